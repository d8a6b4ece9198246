"""Who is matched: clients with their networks, sites and bases, checked before anything runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from featalign.dictionaries import Basis, Dictionary, as_basis
from featalign.errors import BadOption, SpaceMismatch
from featalign.spaces.graph import Site
from featalign.spaces.naming import resolve_site, same_place


@dataclass
class Subject:
    """One client.

    Attributes:
        name: for tables.
        model: its network, None where activations are given or nothing is read.
        sites: where it is read, by the label under which clients are compared.
        bases: its basis at each label; filled by training where none were given.
        trained: rows that a basis was trained on here, by label.
    """

    name: str
    model: nn.Module | None = None
    sites: dict[str, Site] = field(default_factory=dict)
    bases: dict[str, Basis] = field(default_factory=dict)
    trained: dict[str, int] = field(default_factory=dict)


def subjects_of(
    bases: Sequence[Any], models: Any = None, site: Any = None, names: Sequence[str] | None = None
) -> list[Subject]:
    """The clients that arguments name; raises `BadOption`, `SpaceMismatch` or `DictionaryError` in one line."""
    networks = _networks(models)
    if len(bases) == 1:
        raise BadOption("one basis only; a match takes two or more: fa.match(sae_a, sae_b, ...)")
    if not bases and len(networks) < 2:
        raise BadOption("nothing to match: give two bases or more, or models=(model_a, model_b) to train them")
    count = len(bases) or len(networks)
    if len(networks) not in (0, 1, count):
        raise BadOption(f"{len(networks)} models for {count} bases; give one for all, or one for each")
    held = [_bases(basis) for basis in bases] or [{} for _ in networks]
    labels = _names(names, bases, models, count)
    modules: list[Any] = list(networks) * count if len(networks) == 1 else list(networks) or [None] * count
    found = []
    for name, module, own, (wanted, places) in zip(labels, modules, held, _places(held, site, count, networks)):
        subject = Subject(name, module)
        if module is not None:
            subject.sites = {label: resolve_site(module, place) for label, place in zip(wanted, places)}
        if bases:
            subject.bases = {label: own.get(label, next(iter(own.values()))) for label in wanted}
            _check_hooks(subject)
        found.append(subject)
    return found


def reads(basis: Basis) -> int:
    """Units of the activations that a basis encodes."""
    return basis.W_enc.shape[0] if isinstance(basis, Dictionary) else basis.atoms.shape[1]


def hook_of(basis: Any) -> str:
    """The site that a basis says it belongs to, or nothing."""
    source = getattr(basis, "source", basis)
    metadata = getattr(source, "metadata", None)
    if metadata is None:
        metadata = getattr(getattr(source, "cfg", None), "metadata", None)
    found = metadata.get("hook_name") if isinstance(metadata, Mapping) else getattr(metadata, "hook_name", None)
    return str(found or "")


def _networks(models: Any) -> list[nn.Module]:
    if models is None:
        return []
    if isinstance(models, nn.Module):
        return [models]
    found = list(models.values()) if isinstance(models, Mapping) else list(models)
    for module in found:
        if not isinstance(module, nn.Module):
            raise BadOption(f"models holds a {type(module).__name__}; give torch modules: one for all, or one for each")
    return found


def _bases(basis: Any) -> dict[str, Basis]:
    """One basis, or several by site."""
    if isinstance(basis, Mapping):
        if not basis:
            raise BadOption("a mapping of bases is empty; give {site: basis}")
        return {str(site): as_basis(each) for site, each in basis.items()}
    return {"": as_basis(basis)}


def _names(names: Sequence[str] | None, bases: Sequence[Any], models: Any, count: int) -> list[str]:
    if names is not None:
        found = [str(name) for name in names]
        if len(found) != count or len(set(found)) < count:
            raise BadOption(f"names = {found}; give {count} different ones")
        return found
    if not bases and isinstance(models, Mapping):
        return [str(name) for name in models]
    found = [Path(basis).name for basis in bases if isinstance(basis, (str, Path))]
    letters = [chr(ord("A") + k) if k < 26 else f"client {k}" for k in range(count)]
    return found if len(found) == count == len(set(found)) else letters


def _places(
    held: Sequence[Mapping[str, Basis]], site: Any, count: int, networks: Sequence[nn.Module]
) -> list[tuple[list[str], list[Any]]]:
    """Of every client, the labels and the sites behind them."""
    sites = [site] if isinstance(site, (str, Site)) else list(site or [])
    given = [list(each) for each in held]
    if any(each and each != [""] for each in given):
        if any(each != given[0] for each in given):
            raise BadOption(f"bases at other sites: {given[0]} and {next(e for e in given if e != given[0])}")
        if not networks and len(given[0]) > 1:
            raise BadOption("bases at several sites need models= to be read with; or match them site by site")
        return [(each, each) for each in given]
    if not given[0]:  # dictionaries are to be trained, at every site in every client
        if not sites:
            raise BadOption("no site: say where activations are read, as in site='blocks.0.hook_resid_post'")
        return [([str(place) for place in sites], sites)] * count
    if not sites:
        sites = [hook_of(each[""]) for each in held]
        if networks and not all(sites):
            raise BadOption("no site: the dictionaries do not say where they belong; give site=")
    if len(sites) not in (1, count):
        raise BadOption(f"{len(sites)} sites for {count} bases; give one for all, or one for each")
    places = sites * count if len(sites) == 1 else sites
    label = " | ".join(dict.fromkeys(str(place) for place in places if str(place))) or "activations"
    return [([label], [place]) for place in places]


def _check_hooks(subject: Subject) -> None:
    """Raise `SpaceMismatch` for a dictionary that says that it belongs elsewhere in this network."""
    if subject.model is None:
        return
    for label, basis in subject.bases.items():
        hook = hook_of(basis)
        if hook and not _belongs(subject.model, hook, subject.sites[label]):
            raise SpaceMismatch(
                f"the dictionary of '{subject.name}' belongs to '{hook}', not to '{label}'; give that site, or the "
                "dictionary of this one"
            )


def _belongs(model: nn.Module, hook: str, site: Site) -> bool:
    """Whether a dictionary's own site is this one; a name that the network does not have is another network's."""
    try:
        return same_place(model, hook, site)
    except SpaceMismatch:
        return True
