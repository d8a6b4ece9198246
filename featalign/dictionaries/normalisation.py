"""Normalisations of single samples that sae-lens applies before its encoders and undoes after its decoders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.utils.weak import WeakTensorKeyDictionary


@dataclass(frozen=True)
class Frame:
    """Where each sample was before it was normalised: `a = normalised * scale + centre`, both `[..., 1]`."""

    name: str
    scale: torch.Tensor
    centre: torch.Tensor


def layer_norm(x: torch.Tensor) -> tuple[torch.Tensor, Frame]:
    """`(x - mean) / (std + 1e-5)` over the units, with the unbiased standard deviation."""
    centre = x.mean(-1, keepdim=True)
    centred = x - centre
    scale = centred.std(-1, keepdim=True)
    return centred / (scale + 1e-5), Frame("layer_norm", scale, centre)


def constant_norm_rescale(x: torch.Tensor) -> tuple[torch.Tensor, Frame]:
    """Every sample at the norm `sqrt(n)`; a sample of zeros stays where it is."""
    scale = x.norm(dim=-1, keepdim=True) / x.shape[-1] ** 0.5
    normalised = x / torch.where(scale > 0, scale, torch.ones_like(scale))
    return normalised, Frame("constant_norm_rescale", scale, torch.zeros_like(scale))


PER_SAMPLE: dict[str, Callable[[torch.Tensor], tuple[torch.Tensor, Frame]]] = {
    "layer_norm": layer_norm,
    "constant_norm_rescale": constant_norm_rescale,
}

_frames = WeakTensorKeyDictionary()  # of codes that are alive, so that decode(encode(x)) returns to where x was


def into(name: str, x: torch.Tensor) -> tuple[torch.Tensor, Frame | None]:
    """`x [..., n]` normalised, and where it was; `name` is sae-lens's, 'none' changes nothing."""
    return (x, None) if name == "none" else PER_SAMPLE[name](x)


def remember(codes: torch.Tensor, frame: Frame | None) -> None:
    """Keep where the samples of `codes` were for as long as this very tensor lives."""
    if frame is not None:
        _frames[codes] = frame


def recall(codes: torch.Tensor, name: str) -> Frame | None:
    """Where the samples of `codes` were, None for any tensor but one that `name` was remembered for."""
    frame = _frames.get(codes)
    return frame if frame is not None and frame.name == name else None
