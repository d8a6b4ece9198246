"""Bases: interchangeable ways to read the activations of a space as codes.

Neuron, SAE, transcoder, PCA, ICA, random-dictionary, CCA and joint bases satisfy one protocol, so that everything
downstream (costs, plans, decodes, measures) takes any of them: neuron-basis OT *is* feature-basis OT with
`NeuronBasis`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch


@runtime_checkable
class Basis(Protocol):
    """`a ~ codes @ atoms + offset` for activations `a [samples, n]`, codes `[samples, F]`, atoms `[F, n]`."""

    @property
    def name(self) -> str:
        """What the basis is, for tables: 'neuron', 'sae', 'pca', ..."""
        ...

    @property
    def atoms(self) -> torch.Tensor:
        """`[F, n]`: the direction in activation space that one unit of each code writes."""
        ...

    def encode(self, activations: torch.Tensor) -> torch.Tensor:
        """Codes `[samples, F]` of activations `[samples, n]`."""
        ...

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Activations `[samples, n]` of codes `[samples, F]`, offset included."""
        ...


@dataclass(frozen=True)
class NeuronBasis:
    """The identity dictionary of a space of `size` units."""

    size: int

    @property
    def name(self) -> str:
        return "neuron"

    @property
    def atoms(self) -> torch.Tensor:
        return torch.eye(self.size)

    def encode(self, activations: torch.Tensor) -> torch.Tensor:
        return activations

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        return codes
