"""Bases that are not trained by gradient: PCA, ICA, CCA and random dictionaries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from featalign.dictionaries.dictionary import Dictionary
from featalign.dictionaries.preflight import default_k
from featalign.dictionaries.quality import assess
from featalign.dictionaries.rows import Activations, check_finite, held_rows
from featalign.errors import DictionaryError, SpaceMismatch


@dataclass(frozen=True)
class LinearBasis:
    """Codes are linear in the activations: `codes = (a - mean) @ encoder`, `a ~ codes @ atoms + mean`.

    Attributes:
        name: 'pca', 'ica' or 'cca'.
        encoder: `[n, F]`; atoms: `[F, n]`; mean: `[n]`.
        strength: `[F]`, variance share (PCA), ones (ICA) or canonical correlation (CCA) of each component.
    """

    name: str
    encoder: torch.Tensor
    atoms: torch.Tensor
    mean: torch.Tensor
    strength: torch.Tensor

    def encode(self, activations: torch.Tensor) -> torch.Tensor:
        """Codes `[..., F]` of activations `[..., n]`; raises `SpaceMismatch` for another number of units."""
        if activations.shape[-1] != len(self.mean):
            raise SpaceMismatch(f"{self.name} basis of {len(self.mean)} units, activations {tuple(activations.shape)}")
        check_finite(activations)
        return (activations.to(self.mean) - self.mean) @ self.encoder

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Activations `[..., n]` of codes `[..., F]`."""
        return codes.to(self.mean) @ self.atoms + self.mean


def _finite_rows(activations: Activations) -> torch.Tensor:
    rows = held_rows(activations)
    check_finite(rows)
    return rows


def pca(activations: Activations, components: int | None = None) -> LinearBasis:
    """Principal components of activations `[samples, n]`, all of them unless `components` says less."""
    activations = _finite_rows(activations)
    mean = activations.mean(0)
    centred = (activations - mean).double()
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(centred))
    order = torch.arange(len(values)).flip(0)[: components or len(values)]
    directions = vectors[:, order].float()
    share = (values[order] / values.sum().clamp_min(1e-300)).float()
    return LinearBasis("pca", directions, directions.T.contiguous(), mean, share)


def ica(activations: Activations, components: int | None = None, seed: int = 0) -> LinearBasis:
    """Independent components (FastICA, scikit-learn) of activations `[samples, n]` with unit variance codes."""
    import warnings

    from sklearn.decomposition import FastICA

    activations = _finite_rows(activations)
    wanted = components or activations.shape[1]
    rank = int(torch.linalg.matrix_rank(activations - activations.mean(0)))
    model = FastICA(min(wanted, rank), whiten="unit-variance", random_state=seed, max_iter=400, tol=1e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # not converging within max_iter is visible in the codes, not an error
        model.fit(activations.double().numpy())
    encoder, atoms = torch.from_numpy(model.components_.T).float(), torch.from_numpy(model.mixing_.T).float()
    return LinearBasis("ica", encoder, atoms, torch.from_numpy(model.mean_).float(), torch.ones(len(atoms)))


def cca(a: Activations, b: Activations, components: int | None = None, ridge: float = 1e-3) -> tuple[LinearBasis, ...]:
    """Canonical directions of two clients' activations of the same samples, `[samples, n]` and `[samples, m]`.

    Codes have unit variance and component i of one correlates with component i of the other by `strength[i]`.
    `ridge` is relative to the mean variance. Raises `SpaceMismatch` for different numbers of samples. Source: Hotelling
    1936; Raghu et al. 2017 (SVCCA).
    """
    a, b = _finite_rows(a), _finite_rows(b)
    if len(a) != len(b):
        raise SpaceMismatch(f"{len(a)} and {len(b)} samples; give both clients the same inputs")
    whitened, sides = [], []
    for values in (a, b):
        mean = values.mean(0)
        centred = (values - mean).double()
        spectrum, vectors = torch.linalg.eigh(centred.T @ centred / len(values))
        scale = (spectrum + ridge * spectrum.mean()).clamp_min(1e-12).rsqrt()
        whitener = vectors * scale
        whitened.append(centred @ whitener)
        sides.append((mean, centred, whitener))
    u, strength, vt = torch.linalg.svd(whitened[0].T @ whitened[1] / len(a), full_matrices=False)
    count = components or len(strength)
    bases = []
    for (mean, centred, whitener), rotation in zip(sides, (u, vt.T)):
        encoder = whitener @ rotation[:, :count]
        codes = centred @ encoder
        atoms = torch.linalg.lstsq(codes, centred).solution
        bases.append(LinearBasis("cca", encoder.float(), atoms.float(), mean, strength[:count].float()))
    return tuple(bases)


def random_dictionary(
    activations: Activations,
    width: int,
    k: float | None = None,
    seed: int = 0,
    metadata: dict[str, Any] | None = None,
) -> Dictionary:
    """An untrained TopK dictionary with the data's mean and scale: the null that a trained one must beat.

    Atoms are random unit vectors, codes the k largest projections times the one gain that explains most.
    """
    rows = held_rows(activations, metadata)
    facts = {"basis": "random", "seed": seed, **(metadata or {})}
    k = min(default_k(rows.shape[1]) if k is None else k, width)
    atoms = random_atoms(width, rows.shape[1], torch.Generator().manual_seed(seed))
    mean, some = rows.mean(0), rows[:8192]
    plain = untrained(atoms, k, mean)
    guess = plain.decode(plain.encode(some)) - mean
    gain = float((guess * (some - mean)).sum() / guess.pow(2).sum().clamp_min(1e-12))
    scaled = untrained(atoms, k, mean, max(gain, 1e-6), facts)
    return replace(scaled, quality=assess(scaled, rows, rows))


def random_atoms(width: int, units: int, generator: torch.Generator) -> torch.Tensor:
    """`[width, units]`: directions drawn uniformly, of unit norm. Raises `DictionaryError` for a width below 1."""
    if width < 1:
        raise DictionaryError(f"width {width}; pass at least 1")
    atoms = torch.randn(width, units, generator=generator)
    return atoms / atoms.norm(dim=1, keepdim=True)


def untrained(
    atoms: torch.Tensor,
    k: float,
    mean: torch.Tensor | None = None,
    gain: float = 1.0,
    metadata: Mapping[str, Any] | None = None,
) -> Dictionary:
    """A dictionary that nobody trained: codes are the `k` largest positive projections on `atoms [F, n]`, times `gain`.

    `mean [n]` is subtracted before and added after; none by default.
    """
    width, units = atoms.shape
    mean = atoms.new_zeros(units) if mean is None else mean
    tensors = {"W_enc": atoms.T * gain, "b_enc": atoms.new_zeros(width), "W_dec": atoms, "b_dec": mean}
    return Dictionary("topk", tensors, k, metadata={"basis": "random", **(metadata or {})})
