"""Normalisations of a network: which there are, and what reads them, followed operation by operation."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from featalign.spaces.affine import is_affine
from featalign.spaces.capture import outputs_of
from featalign.spaces.structures import tensors_in

_PASSES = {
    *("view", "_unsafe_view", "reshape", "slice", "select", "mean", "alias", "detach", "clone", "_to_copy"),
    *("unsqueeze", "squeeze", "expand", "permute", "transpose", "index", "index_select", "split", "unbind"),
}


class RootMeanSquare(nn.Module):
    """`x / sqrt(mean(x^2) + eps)` over the last axis of any width, plus a bias where one could not be folded."""

    def __init__(self, eps: float, bias: torch.Tensor | None = None):
        super().__init__()
        self.eps = eps
        self.bias = None if bias is None else nn.Parameter(bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[..., units]` to the same shape."""
        normed = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)
        return normed if self.bias is None else normed + self.bias


@dataclass(frozen=True)
class Norm:
    """A normalisation over the last axis.

    Attributes:
        centring: whether it subtracts the mean (LayerNorm).
        gain, bias: what it multiplies and adds, `[units]` float64; bias is None where there is none.
        neutral: the value of its weight that means a gain of one (0 for gains stored as `1 + weight`).
    """

    name: str
    centring: bool
    eps: float
    gain: torch.Tensor
    bias: torch.Tensor | None
    neutral: float = 1.0


def norms_of(module: nn.Module) -> dict[str, Norm]:
    """LayerNorms and RMSNorms (of torch, and those of `transformers` by what they compute) over one axis."""
    found = {}
    for name, part in module.named_modules():
        norm = _layer_norm(name, part) if isinstance(part, nn.LayerNorm) else _rms_norm(name, part)
        if norm is not None:
            found[name] = norm
    return found


def _layer_norm(name: str, part: nn.LayerNorm) -> Norm | None:
    if len(part.normalized_shape) != 1 or type(part).forward is not nn.LayerNorm.forward:
        return None
    width = part.normalized_shape[0]
    gain = torch.ones(width).double() if part.weight is None else part.weight.detach().double()
    return Norm(name, True, part.eps, gain, None if part.bias is None else part.bias.detach().double())


def _rms_norm(name: str, part: nn.Module) -> Norm | None:
    """An RMSNorm recognised by its outputs: `gain * x / rms(x)` with its weight, or one more than it, as gain."""
    if not type(part).__name__.endswith("RMSNorm"):
        return None
    weight, eps = getattr(part, "weight", None), getattr(part, "variance_epsilon", getattr(part, "eps", None))
    if not isinstance(weight, nn.Parameter) or weight.dim() != 1 or len(list(part.parameters())) != 1:
        return None
    eps = torch.finfo(weight.dtype).eps if eps is None else eps
    x = torch.randn(4, len(weight), generator=torch.Generator().manual_seed(0)).to(weight)
    with torch.no_grad():
        out, wide = part(x).double(), x.double()
    plain = wide / (wide.pow(2).mean(-1, keepdim=True) + eps).sqrt()
    for neutral in (1.0, 0.0):
        gain = weight.detach().double() + (1 - neutral)
        if torch.allclose(out, plain * gain, rtol=1e-3 if weight.dtype.itemsize > 2 else 3e-2, atol=1e-5):
            return Norm(name, False, float(eps), gain, None, neutral)
    return None


@dataclass
class Reading:
    """Affine submodules that read each norm's output, and the norms that anything else reads (and what)."""

    readers: dict[str, list[str]]
    spoiled: dict[str, str]


class _Follow(TorchDispatchMode):
    """Follows the outputs of norms through slices, means over positions and reshapes to the layers that read them."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: dict[int, str] = {}
        self.kept: list[torch.Tensor] = []
        self.inside = 0  # affine modules that run
        self.readers: dict[str, list[str]] = defaultdict(list)
        self.spoiled: dict[str, str] = {}

    def tag(self, tensor: torch.Tensor, norm: str) -> None:
        self.tags[id(tensor)] = norm
        self.kept.append(tensor)  # ids stay unique while the tensors live

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        tagged = [t for t in tensors_in([args, list(kwargs.values())]) if id(t) in self.tags]
        if not tagged or self.inside:
            return out
        name = func._schema.name.split("::")[-1]
        for tensor in tagged:
            norm = self.tags[id(tensor)]
            if name in _PASSES and tensor is args[0] and _keeps_last(name, tensor, args, out):
                for piece in tensors_in(out):
                    self.tag(piece, norm)
            else:
                self.spoiled.setdefault(norm, f"operation '{name}'")
        return out


def _keeps_last(name: str, tensor: torch.Tensor, args: tuple[Any, ...], out: Any) -> bool:
    """Whether the last axis comes out whole and last."""
    rank, last = tensor.dim(), tensor.dim() - 1
    if any(piece.dim() == 0 or piece.shape[-1] != tensor.shape[-1] for piece in tensors_in(out)):
        return False
    if name == "permute":
        return args[1][-1] % rank == last
    if name == "transpose":
        return last not in (args[1] % rank, args[2] % rank)
    if name in ("slice", "select", "split", "unbind", "index_select", "squeeze", "unsqueeze"):
        axis = args[2] if name == "split" and len(args) > 2 else args[1] if len(args) > 1 and name != "split" else 0
        return name == "slice" or not isinstance(axis, int) or axis % (rank + (name == "unsqueeze")) != last
    if name == "mean":
        axes = args[1] if len(args) > 1 and args[1] is not None else range(rank)
        return last not in {axis % rank for axis in axes}
    if name == "index":
        return len(args[1]) < rank
    return True


def follow(module: nn.Module, norms: dict[str, Norm], example: Any) -> Reading:
    """Run the module once and note what reads every norm."""
    mode, handles = _Follow(), []

    def enter(name: str) -> Any:
        def hook(_module: nn.Module, args: tuple[Any, ...]) -> None:
            if args and isinstance(args[0], torch.Tensor) and id(args[0]) in mode.tags and not mode.inside:
                mode.readers[mode.tags[id(args[0])]].append(name)
            mode.inside += 1

        return hook

    def leave(_module: nn.Module, _args: Any, _out: Any) -> None:
        mode.inside -= 1

    try:
        for name, part in module.named_modules():
            if name in norms:
                hook = lambda _m, _args, out, n=name: mode.tag(out, n)  # noqa: E731
                handles.append(part.register_forward_hook(hook))
            elif is_affine(part) and not isinstance(part, nn.modules.conv._ConvNd):
                handles += [part.register_forward_pre_hook(enter(name)), part.register_forward_hook(leave)]
        with mode:
            outputs_of(module, example)
    finally:
        for handle in handles:
            handle.remove()
    spoiled = {**{name: "no affine layer" for name in norms if name not in mode.readers}, **mode.spoiled}
    return Reading({name: list(dict.fromkeys(layers)) for name, layers in mode.readers.items()}, spoiled)
