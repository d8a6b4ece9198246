"""The canonical form of a network with normalisations: gains folded away, so that rotations become admissible.

A residual stream under RMSNorm without gains is unchanged by rotations. LayerNorm is RMSNorm of what has no mean: gains
(and biases) go into the layers that read each norm, and what writes the stream is centred (Ashkboos et al. 2024,
SliceGPT, section 3; the same folding as in TransformerLens). Packed attention is taken apart on the way (`attention`).
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from featalign.errors import SpaceMismatch, TraceError
from featalign.spaces import affine
from featalign.spaces.apart import packed, separated
from featalign.spaces.apply import moved, moved_tensor, pieces_of, rebuilt, unit_rows
from featalign.spaces.attention import layer_by_layer
from featalign.spaces.capture import outputs_of
from featalign.spaces.check import Transform, output_change
from featalign.spaces.graph import Space, SpaceGraph, Symmetry
from featalign.spaces.norms import Norm, Reading, RootMeanSquare, follow, norms_of
from featalign.spaces.tracing import trace

State = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Canonical:
    """A network in canonical form.

    Attributes:
        module: computes the same function; the network itself where nothing could be folded.
        folded: norms that are folded, by name.
        notes: what could not be folded and why, weights that were untied.
        template: the network's own layout with neutral norms.
        example: input on which equality was checked.
        packed: the network that came in, where attention or transposed convolutions were taken apart.
    """

    module: nn.Module
    folded: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    template: nn.Module | None = None
    example: Any = None
    packed: nn.Module | None = None

    def restore(self, fused: nn.Module | State) -> nn.Module:
        """A network fused in canonical form (or its state) in the layout that came in: LayerNorm with gains of one.

        A LayerNorm removes a direction of the stream: the stream is turned so that the direction nothing is written to
        is the mean. Tied readouts come back untied. Raises `SpaceMismatch` when the outputs would move by more than
        1e-4 (relative), which is when fused writers fill every direction of the stream, or when heads do not fill the
        stream that a `nn.MultiheadAttention` writes to.
        """
        module = fused if isinstance(fused, nn.Module) else rebuilt(self.module, fused)
        module = self._with_norms(module)
        return module if self.packed is None else packed(module, self.packed)

    def _with_norms(self, module: nn.Module) -> nn.Module:
        """The network with the norms that came in, or neutral ones."""
        if self.template is None:
            return module
        turned, widths = _without_mean(module, self.folded, self.template, self.example)
        result = _filled(self.template, turned, widths)
        error = _difference(module, result, self.example)
        if error > _tolerance(result):
            raise SpaceMismatch(
                f"a network with {type(self.template).__name__}'s norms cannot hold this one: outputs would move by "
                f"{error:.2g} (its stream is written to in every direction); keep it in canonical form"
            )
        return result


def canonical(module: nn.Module, example: Any) -> Canonical:
    """A copy that computes the same function with RMSNorm without gains in place of every norm of a residual stream.

    Gains (and biases, where all readers have one) go into the affine layers that read each norm; what writes a stream
    under LayerNorm is centred; a readout tied to an embedding is untied. Knows torch's and Hugging Face's norms and
    layers, and HookedTransformer. What cannot be folded (post-norm, norms read by anything but affine layers) is left
    as it is, with a note. The projections of every `nn.MultiheadAttention` become layers, and transposed convolutions
    plain ones.
    """
    if type(module).__name__ == "HookedTransformer":
        return _canonical_lens(module, example)
    apart = separated(module)
    if apart is module:
        return _without_gains(module, example)
    with layer_by_layer():
        moved_by = _difference(module, apart, example)
    if moved_by > _tolerance(module):
        note = f"modules are not taken apart: outputs would move by {moved_by:.2g}"
        found = _without_gains(module, example)
        return replace(found, notes=(note, *found.notes))
    return replace(_without_gains(apart, example), packed=module)


def _without_gains(module: nn.Module, example: Any) -> Canonical:
    """The network with the gains of its norms folded away, where that is possible."""
    norms = norms_of(module)
    if not norms:
        return Canonical(module)
    try:
        reading = follow(module, norms, example)
        result = copy.deepcopy(module)
        untied = _untie(result, {layer for layers in reading.readers.values() for layer in layers})
        graph = trace(result, example)
    except TraceError as error:
        return Canonical(module, notes=(f"not folded: {error}",))
    chosen, notes = _foldable(graph, norms, reading)
    if not chosen:
        return Canonical(module, notes=tuple(notes))
    notes += untied
    template = copy.deepcopy(result)
    for name in chosen:
        _fold(result, template, norms[name], reading.readers[name])
    _centre(result, graph, [name for name in chosen if norms[name].centring])
    moved_by = _difference(module, result, example)
    if moved_by > _tolerance(result):
        return Canonical(module, notes=(*notes, f"not folded: outputs would move by {moved_by:.2g}"))
    return Canonical(result.eval(), tuple(chosen), tuple(notes), template.eval(), example)


def _tolerance(module: nn.Module) -> float:
    """Relative error of outputs that rounding explains."""
    return 1e-4 if all(p.dtype.itemsize > 2 for p in module.parameters() if p.is_floating_point()) else 5e-2


def _difference(before: nn.Module, after: nn.Module, example: Any) -> float:
    """Relative change of the outputs; infinite where the second network fails."""
    try:
        return output_change(outputs_of(before, example), outputs_of(after, example))
    except (RuntimeError, AttributeError, TypeError, ValueError):
        return float("inf")


def _streams(graph: SpaceGraph, names: list[str]) -> dict[str, Space]:
    """The hidden space that each norm sees whole."""
    found = {}
    for space in graph.hidden:
        for site in space.sites:
            if site.module in names and site.size is None:
                found[site.module] = space
    return found


def _foldable(graph: SpaceGraph, norms: dict[str, Norm], reading: Reading) -> tuple[list[str], list[str]]:
    """Norms to fold, and why not the others: a stream is folded at all its norms or at none."""
    streams = _streams(graph, list(norms))
    reasons = dict(reading.spoiled)
    for name, norm in norms.items():
        if name not in streams:
            reasons.setdefault(name, "a stream that keeps its basis")
        if norm.bias is not None and bool(((norm.gain.abs() < 1e-6) & (norm.bias != 0)).any()):
            reasons.setdefault(name, "a gain of zero beside a bias")
    blocked = {streams[name].name for name in reasons if name in streams}
    chosen = [name for name in norms if name in streams and name not in reasons and streams[name].name not in blocked]
    notes = [f"norm '{name}' is not folded: read by {reason}" for name, reason in reasons.items()]
    return chosen, notes[:5]


def _untie(module: nn.Module, readers: set[str]) -> list[str]:
    """Give readers a weight of their own where they share it (tied embeddings)."""
    users: dict[int, int] = {}
    for part in module.modules():
        for parameter in part._parameters.values():
            if parameter is not None:
                users[id(parameter)] = users.get(id(parameter), 0) + 1
    notes = []
    for name in sorted(readers):
        layer: Any = module.get_submodule(name)
        if users[id(layer.weight)] > 1:
            layer.weight = nn.Parameter(layer.weight.detach().clone())
            notes.append(f"'{name}' was tied and has a weight of its own now")
            config: Any = getattr(module, "config", None)
            if hasattr(config, "tie_word_embeddings"):
                config.tie_word_embeddings = False
    return notes


def _fold(result: nn.Module, template: nn.Module, norm: Norm, readers: list[str]) -> None:
    """Move a norm's gain (and bias) into its readers; neutral parameters in the template."""
    layers: list[Any] = [result.get_submodule(name) for name in readers]
    folded = norm.bias if all(layer.bias is not None for layer in layers) else None
    kept = None if norm.bias is None or folded is not None else norm.bias / norm.gain
    level = 0.0 if kept is None else kept.mean()
    for layer in layers:
        weight = affine.matrix(layer).double()
        bias = None if folded is None else layer.bias.detach().double() + weight @ folded
        weight = weight * norm.gain.to(weight.device)
        if norm.centring:  # what is normed has no mean: readers keep what they make of the bias's, taken as one
            weight = weight + weight.mean(1, keepdim=True) * (level - 1)
        affine.write(layer, weight, bias)
    part: Any = template.get_submodule(norm.name)
    with torch.no_grad():
        if getattr(part, "weight", None) is not None:
            part.weight.fill_(norm.neutral)
        if getattr(part, "bias", None) is not None:
            part.bias.zero_()
    if not norm.centring:
        result.get_submodule(norm.name).load_state_dict(part.state_dict())
        return
    like = next(result.parameters())
    plain = RootMeanSquare(norm.eps, None if kept is None else (kept - level + 1).to(like))
    parent, _, child = norm.name.rpartition(".")
    setattr(result.get_submodule(parent), child, plain)


def _centre(module: nn.Module, graph: SpaceGraph, names: list[str]) -> None:
    """Subtract the mean of whatever writes the streams of these norms (their own biases excepted), in place."""
    streams = {space.name: space for space in _streams(graph, names).values()}
    maps = {name: _Centring(space.size) for name, space in streams.items()}
    own = {f"{name}.bias" for name in names} | {f"{name}.weight" for name in names}
    pieces = {key: found for key, found in pieces_of(graph, maps).items() if key[0] not in own}
    state = module.state_dict()
    module.load_state_dict({name: moved_tensor(t, name, pieces).to(t.dtype) for name, t in state.items()})


class _Centring:
    """Subtracts the mean of what writes a space; readers stay (a norm reads it)."""

    shift = None

    def __init__(self, size: int):
        self.out = torch.eye(size, dtype=torch.float64) - 1 / size
        self.into = torch.eye(size, dtype=torch.float64)


def _without_mean(
    fused: nn.Module, folded: tuple[str, ...], template: nn.Module, example: Any
) -> tuple[nn.Module, dict[str, int]]:
    """The fused network turned so that its streams have no mean, and the width of every norm."""
    graph = trace(fused, example)
    streams = _streams(graph, list(folded))
    names = [name for name in folded if _centring(template.get_submodule(name))]
    centred = {space.name: space for name, space in streams.items() if name in names}
    state = fused.state_dict()
    turns = {}
    for name, space in centred.items():
        rows = [unit_rows(state[a.parameter], a, space.size) for a in space.writers if not _of_norm(a.parameter, names)]
        energy = torch.cat(rows, 1)
        gram = energy @ energy.T
        mean = torch.full((space.size,), space.size**-0.5, dtype=torch.float64)
        silent = torch.linalg.eigh(gram)[1][:, 0]
        if mean @ gram @ mean > 1e-10 * gram.trace() and space.symmetry in (Symmetry.ORTHOGONAL, Symmetry.LINEAR):
            mirror = silent - mean
            turn = torch.eye(space.size, dtype=torch.float64)
            turn -= 2 * torch.outer(mirror, mirror) / (mirror @ mirror).clamp_min(1e-30)
            turns[name] = Transform(turn, turn.T)
    turned = rebuilt(fused, moved(fused, graph, turns))
    _centre(turned, graph, names)
    return turned, {name: space.size for name, space in streams.items()}


def _centring(part: nn.Module) -> bool:
    return isinstance(part, nn.LayerNorm) or type(part).__name__.startswith("LayerNorm")


def _of_norm(parameter: str, norms: list[str]) -> bool:
    return parameter.rpartition(".")[0] in norms


def _filled(template: nn.Module, module: nn.Module, widths: Mapping[str, int]) -> nn.Module:
    """The template with the module's weights; neutral norms follow the width of their stream."""
    state = dict(module.state_dict())
    for name, tensor in template.state_dict().items():
        owner = name.rpartition(".")[0]
        if name not in state and owner in widths:
            state[name] = tensor.reshape(-1)[:1].expand(widths[owner]).clone()
        state.setdefault(name, tensor)
    return rebuilt(template, state).eval()


def _canonical_lens(module: nn.Module, example: Any) -> Canonical:
    """HookedTransformer: its own folding, and a configuration without gains."""
    lens: Any = module
    kind = lens.cfg.normalization_type
    if kind not in ("LN", "LNPre", "RMS", "RMSPre"):
        return Canonical(module, notes=(f"norms of type {kind} are not folded",))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folded: Any = copy.deepcopy(module)
        folded.load_and_process_state_dict(
            folded.state_dict(),
            fold_ln=True,
            center_writing_weights=kind.startswith("LN"),
            center_unembed=False,
            fold_value_biases=False,
        )
        result = _lens_like(folded, "RMSPre")  # with centred writers there is no mean to subtract
        template = _lens_like(folded, kind)
    if (error := _difference(module, result, example)) > _tolerance(result):
        return Canonical(module, notes=(f"not folded: outputs would move by {error:.2g}",))
    kinds = ("LayerNorm", "RMSNorm")
    names = tuple(name for name, part in template.named_modules() if type(part).__name__.startswith(kinds))
    return Canonical(result, names, (), template, example)


def _is_norm(parameter: str) -> bool:
    return any(part.startswith("ln") for part in parameter.split("."))


def _lens_like(model: Any, kind: str) -> nn.Module:
    """A HookedTransformer of another kind of norm with the same weights; gains one, biases zero."""
    config = copy.deepcopy(model.cfg)
    config.normalization_type = kind
    result: Any = type(model)(config)
    state = {name: t for name, t in model.state_dict().items() if not _is_norm(name)}
    result.load_state_dict(state, strict=False)
    return result.to(next(model.parameters()).dtype, print_details=False).eval()
