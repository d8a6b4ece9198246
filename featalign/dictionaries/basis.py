"""Bases: interchangeable ways to read the activations of a space as codes.

Neuron, SAE, transcoder, PCA, ICA, random-dictionary, CCA and joint bases satisfy one protocol, so that everything
downstream (costs, plans, decodes, measures) takes any of them: neuron-basis OT *is* feature-basis OT with
`NeuronBasis`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from featalign.dictionaries.architectures import ARCHITECTURES
from featalign.dictionaries.loading import assemble, load
from featalign.dictionaries.releases import released
from featalign.errors import DictionaryError


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
        """What tables call it."""
        return "neuron"

    @property
    def atoms(self) -> torch.Tensor:
        """The unit vectors `[n, n]`."""
        return torch.eye(self.size)

    def encode(self, activations: torch.Tensor) -> torch.Tensor:
        """Activations `[..., n]` as they are."""
        return activations

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes `[..., n]` as they are."""
        return codes


@dataclass(frozen=True)
class ForeignBasis:
    """A basis made of somebody else's object: its `encode` and `decode` run without gradients and give dense tensors.

    Attributes:
        name: for tables; atoms: `[F, n]`; source: the object.
    """

    name: str
    atoms: torch.Tensor
    source: Any

    def encode(self, activations: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            codes = self.source.encode(activations.to(self.atoms))
        return codes.to_dense() if codes.is_sparse else codes

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return self.source.decode(codes.to(self.atoms))


def as_basis(source: Any) -> Basis:
    """What encodes here: a `Basis`, a folder of a dictionary, sae-lens's `SAE`, or anything that can do it.

    Anything is an object with `encode`, `decode` and `atoms` or `W_dec [F, n]`. An `SAE` whose architecture is known
    here becomes a `Dictionary` of its weights as they stand, normalisation included. A name `release/sae_id` that is no
    folder is fetched by sae-lens. Raises `DictionaryError` for everything else.
    """
    if isinstance(source, str) and "/" in source and not Path(source).parent.is_dir():
        return as_basis(released(source))
    if isinstance(source, (str, Path)):
        return load(source)
    if isinstance(source, Basis):
        return source
    able = all(callable(getattr(source, name, None)) for name in ("encode", "decode"))
    atoms = getattr(source, "atoms", None)
    atoms = getattr(source, "W_dec", None) if atoms is None else atoms
    if isinstance(source, type) or not able or not isinstance(atoms, torch.Tensor) or atoms.dim() != 2:
        raise DictionaryError(
            f"a {type(source).__name__} is no basis; pass a dictionary, its folder, a sae-lens SAE, or an object with "
            "encode, decode and atoms [F, n]"
        )
    config: Any = getattr(source, "cfg", None)
    if hasattr(config, "to_dict") and hasattr(source, "state_dict"):
        facts = config.to_dict()
        if any(ARCHITECTURES[name].inference == facts.get("architecture") for name in ARCHITECTURES):
            return assemble(facts, source.state_dict(), f"{type(source).__name__} of {facts.get('d_in')} units")
    return ForeignBasis(str(getattr(source, "name", None) or type(source).__name__.lower()), atoms.detach(), source)
