"""Which places of a network are diagnosed: traced spaces, hook names, module paths; and which dictionaries fit them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from featalign.clients.cohort import Cohort
from featalign.dictionaries import Basis
from featalign.errors import ProbeError, SpaceMismatch
from featalign.spaces.graph import Space, Symmetry
from featalign.spaces.layouts import hooks_of
from featalign.spaces.naming import check_hook, resolve_site, units_of_site
from featalign.studies.diagnose.rows import LayerRow

SHOWN = ("hook_resid_post", "mlp.hook_post")  # of every block, where spaces cannot be traced


def chosen_spaces(
    cohort: Cohort, names: Sequence[str], given: Sequence[str] = ()
) -> tuple[list[Space], list[LayerRow]]:
    """Spaces to diagnose, and rows of those that cannot be read; raises where one of these was asked for.

    `given` are the places of dictionaries, which are diagnosed too. Freedoms inside attention heads are no layers: they
    are diagnosed only where they are named.
    """
    if names:
        found = [space_of(cohort, name) for name in dict.fromkeys((*names, *given))]
        for space in found:
            assert space.before
        return found, []
    hidden = [space for space in cohort.graphs[0].hidden if not space.is_gauge]
    if not cohort.graphs[0].spaces:
        hooks = [name for name in hooks_of(cohort.modules[0]) if name.endswith(SHOWN)]
        hidden = [space_of(cohort, name) for name in hooks]
    known = {space.name for space in hidden}
    hidden += [space_of(cohort, name) for name in given if name not in known]
    if not hidden:
        why = cohort.notes[0] if cohort.notes else "the network has no hidden space that is understood"
        raise ProbeError(f"there is nothing to diagnose: {why}; name sites with spaces= (fa.spaces.sites lists them)")
    chosen, skipped = [], []
    for space in hidden:
        if space.pre is not None and space.pre.paired:
            chosen.append(space)
        elif space.pre is None:
            skipped.append(LayerRow(space.name, space.size, note="it is seen at no module's input or output"))
        else:
            skipped.append(LayerRow(space.name, space.size, note="it is seen only beside other hidden spaces"))
    return chosen, skipped


def space_of(cohort: Cohort, name: str) -> Space:
    """A traced space, or the site of a hook name or module path as a space that nothing is known of but its units."""
    graph, module = cohort.graphs[0], cohort.modules[0]
    if name in graph.by_name:
        return graph[name]
    try:
        site = resolve_site(module, name)
    except SpaceMismatch as error:
        shown = [space.name for space in graph.hidden if not space.is_gauge]
        raise SpaceMismatch(f"{error}" + (f"; hidden spaces: {', '.join(shown[:8])}" if shown else "")) from error
    units = units_of_site(module, site, cohort.probe)
    return Space(name, units, symmetry=Symmetry.PERMUTATION, pre=site, post=site)


def check_bases(cohort: Cohort, bases: Mapping[str, Basis]) -> None:
    """Raise `SpaceMismatch` for a basis of another place or width, and for one that reads pre-activations."""
    for name, basis in bases.items():
        if getattr(basis, "reads", "post") != "post":
            raise SpaceMismatch(f"dictionary of space '{name}' is a transcoder; pass one that writes where it reads")
        space = space_of(cohort, name)
        check_hook(cohort.modules[0], space.after, getattr(basis, "metadata", {}), basis.atoms.shape[1], space.size)
