"""Sites by name: TransformerLens's hook names on any transformer, and module paths on any network.

>>> site = resolve_site(model, "blocks.0.hook_resid_post")     # HookedTransformer, TransformerBridge, GPT-2, BERT, ...
>>> sites(model)                                               # what can be addressed, with units
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

from featalign.data.inputs import Inputs
from featalign.errors import SpaceMismatch
from featalign.spaces.capture import collect, units_at
from featalign.spaces.graph import Site
from featalign.spaces.layouts import UNITLESS, hook_points, hooks_of, point_site

if TYPE_CHECKING:
    import pandas as pd


def resolve_site(module: nn.Module, name: str | Site) -> Site:
    """The site that a hook name (`blocks.0.mlp.hook_post`) or a module path (`transformer.h.0`) stands for.

    A path stands for the module's output, with `:in` appended for its input. In post-norm networks (BERT) the residual
    stream is what the next layer reads, its norm included. Raises `SpaceMismatch` for a name that the network does not
    have, with the nearest, and for hooks that hold no units (attention patterns).
    """
    if isinstance(name, Site):
        if not _exists(module, name.module):
            raise SpaceMismatch(_unknown(module, str(name)))
        return name
    bare, _, side = name.partition(":")
    if side not in ("", "in", "out"):
        raise SpaceMismatch(f"site '{name}' ends on ':{side}'; write the module's path with ':in' or ':out'")
    if bare.rpartition(".")[2] in UNITLESS and bare in hook_points(module):
        raise SpaceMismatch(f"hook '{bare}' holds no units of a layer (weights or scales of positions); choose another")
    hooks = hooks_of(module)
    if bare in hooks and side != "in":
        return hooks[bare].sites[0]
    if bare in hook_points(module):
        return point_site(bare)
    if not bare or not _exists(module, bare):
        raise SpaceMismatch(_unknown(module, name))
    return Site(bare, side or "out")


def hook_name_of(module: nn.Module, site: Site | str) -> str:
    """The hook name of a site, for a dictionary's record; the site itself (`path`, `path:in`) where it has none."""
    site = resolve_site(module, site)
    for hook in hooks_of(module).values():
        if site in hook.sites:
            return hook.name
    return site.module if site.side == "out" else str(site)


def same_place(module: nn.Module, a: Site | str, b: Site | str) -> bool:
    """Whether two sites show the same tensor."""
    first, second = resolve_site(module, a), resolve_site(module, b)
    shown = [{first}, {second}]
    for hook in hooks_of(module).values():
        for found in shown:
            if not found.isdisjoint(hook.sites):
                found.update(hook.sites)
    return not shown[0].isdisjoint(shown[1])


def units_of_site(module: nn.Module, site: Site | str, example: Any = None) -> int:
    """Units at a site; an `example` (see `data.Inputs`) is run where the weights do not tell."""
    site = resolve_site(module, site)
    known = next((hook.units for hook in hooks_of(module).values() if site in hook.sites), None)
    if known is not None:
        return known
    if example is None:
        raise SpaceMismatch(f"how many units '{site}' has is not known before the network runs; pass an example")
    return collect(module, [Inputs.of(example).example()], [site])[site].shape[1]


def check_hook(module: nn.Module, site: Site | str, metadata: Mapping[str, Any], units: int, width: int) -> None:
    """Raise `SpaceMismatch` in one line where a dictionary belongs to another place or layer size.

    Args:
        metadata: of the dictionary; `hook_name` is compared where it is recorded.
        units: that the dictionary reads; width: units of the site.
    """
    named = hook_name_of(module, site)
    recorded = metadata.get("hook_name")
    if units != width:
        whose = f" of '{recorded}'" if recorded else ""
        raise SpaceMismatch(f"a dictionary{whose} of {units} units does not fit '{named}', which has {width}")
    if not recorded:
        return
    try:
        fits = same_place(module, str(recorded), site)
    except SpaceMismatch as error:
        raise SpaceMismatch(f"a dictionary of '{recorded}' does not fit a {type(module).__name__}: {error}") from error
    if not fits:
        raise SpaceMismatch(
            f"a dictionary of '{recorded}' does not fit '{named}'; use it at '{recorded}', or train one there"
        )


def provenance(module: nn.Module, site: Site | str, inputs: Any = None) -> dict[str, Any]:
    """What a dictionary records of where it belongs, in sae-lens's words, for its metadata.

    `hook_name`, `hook_layer`, `model_name`, and of `inputs` (tokens) `context_size` and `prepend_bos`: whether all
    begin with the model's first token. sae-lens splices at the hook name; SAEDashboard reads the rest.
    """
    hook = hook_name_of(module, site)
    config: Any = getattr(module, "cfg", None) or getattr(module, "config", None)
    named = getattr(config, "model_name", None) or getattr(config, "_name_or_path", None)
    found: dict[str, Any] = {"hook_name": hook, "model_name": named or type(module).__name__}
    parts = hook.split(".")
    if parts[0] == "blocks" and len(parts) > 2 and parts[1].isdigit():
        found["hook_layer"] = int(parts[1])
    tokens = None if inputs is None else Inputs.of(inputs).example(64).tokens
    if tokens is not None:
        start = getattr(config, "bos_token_id", None)
        found["context_size"] = tokens.shape[1]
        found["prepend_bos"] = start is not None and bool((tokens[:, 0] == start).all())
    return found


def sites(module: nn.Module, example: Any = None) -> pd.DataFrame:
    """What can be addressed in a network, in order of depth: `name`, `module`, `side`, `units`.

    Hook names where there are any; with an `example` also every submodule that shows one tensor of units. Units are
    missing where they are not known without an example.
    """
    import pandas as pd

    hooks = hooks_of(module)
    rows = [(hook.name, hook.sites[0].module, hook.sites[0].side, hook.units) for hook in hooks.values()]
    if example is not None:
        seen = units_at(module, Inputs.of(example).example())
        rows = [(name, path, side, units or seen.get(path)) for name, path, side, units in rows]
        points = hook_points(module)
        rows += [(path, path, "out", units) for path, units in seen.items() if path not in points]
    elif not hooks:
        rows = [(path, path, "out", _written(part)) for path, part in module.named_modules() if _written(part)]
    frame = pd.DataFrame(rows, columns=["name", "module", "side", "units"])
    return frame.astype({"units": "Int64"})


def _written(part: nn.Module) -> int | None:
    """Units that a layer writes, by its attributes."""
    names = ("out_features", "out_channels", "num_features", "embedding_dim")
    found = (getattr(part, name, None) for name in names)
    return next((value for value in found if isinstance(value, int)), None)


def _exists(module: nn.Module, path: str) -> bool:
    try:
        return isinstance(module.get_submodule(path), nn.Module)
    except AttributeError:
        return False


def _unknown(module: nn.Module, name: str) -> str:
    known = list(dict.fromkeys((*hooks_of(module), *(path for path, _ in module.named_modules() if path))))
    near = difflib.get_close_matches(name, known, 4, 0.3) or known[:5]
    return f"no site '{name}' in a {type(module).__name__}; near it: {', '.join(near) or 'none'}"
