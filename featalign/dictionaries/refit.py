"""Least squares for the final codes of a penalised dictionary: undoes the shrinkage.

A free decoder explains most, but shrunken codes of features that occur together bend its rows away from the features,
and planted dictionaries are recovered less well; one gain per latent keeps directions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.sparse
import scipy.sparse.linalg
import torch

DENSE = 1 / 50  # multiplications of sparse codes, as a share of the dense product's, from which dense ones are faster
CHUNK = 2048  # samples whose codes are held at a time
SETTLED = 1e-9  # change of every gain in one step below which they count as found


@dataclass
class CodeMoments:
    """Second moments of codes `[N, F]` and their products with targets `[N, m]`, gathered without holding the codes.

    Attributes:
        gram: `E[z z^T]`, `[F, F]` float64, sparse where few latents fire together.
        mean: `E[z]`, `[F]`; cross: `cov(z, y)`, `[F, m]`; centre: `E[y]`, `[m]`.
    """

    gram: np.ndarray | scipy.sparse.csr_array
    mean: torch.Tensor
    cross: torch.Tensor
    centre: torch.Tensor

    @classmethod
    def of(cls, codes_of: Callable[[torch.Tensor], torch.Tensor], rows: torch.Tensor, y: torch.Tensor) -> CodeMoments:
        """From codes `codes_of(rows) [B, F]` and their targets `y [N, m]`."""
        parts = [scipy.sparse.csr_array(codes_of(part).double().numpy()) for part in rows.split(CHUNK)]
        codes = scipy.sparse.vstack(parts, format="csr")
        count, target = len(rows), y.double()
        mean, centre = torch.from_numpy(np.asarray(codes.mean(0)).ravel()), target.mean(0)
        cross = torch.from_numpy(codes.T @ target.numpy()) / count - torch.outer(mean, centre)
        work = float(np.square(np.diff(codes.indptr).astype(float)).sum())
        if work < DENSE * count * codes.shape[1] ** 2:
            return cls((codes.T @ codes).tocsr() / count, mean, cross, centre)
        gram = np.zeros((codes.shape[1], codes.shape[1]))
        for part in parts:
            dense = part.toarray()
            gram += dense.T @ dense
        return cls(gram / count, mean, cross, centre)

    @property
    def covariance(self) -> torch.Tensor:
        """`cov(z)`, `[F, F]`."""
        dense = self.gram if isinstance(self.gram, np.ndarray) else self.gram.toarray()
        return torch.from_numpy(dense) - torch.outer(self.mean, self.mean)


def free_decoder(moments: CodeMoments, decoder: torch.Tensor) -> torch.Tensor:
    """`[F, m]`: the best decoder of the codes, drawn slightly towards the trained one."""
    gram = moments.covariance
    ridge = 1e-5 * gram.diagonal().mean()
    gram.diagonal().add_(ridge)
    return torch.linalg.solve(gram, moments.cross + ridge * decoder)


def gained_decoder(moments: CodeMoments, decoder: torch.Tensor, steps: int = 500) -> torch.Tensor:
    """`[F, m]`: the trained rows times gains between 1/2 and 10 that explain most, by projected gradient from 1.

    The quadratic form `cov(z) * (D D^T)` is never formed where codes are sparse: only its entries at latents that fire
    together, and the means, whose part has rank m. `moments.gram` is used up.
    """
    atoms = decoder.numpy()
    form = _at_atoms(moments.gram, atoms)
    low = moments.mean.numpy()[:, None] * atoms
    right = (moments.cross * decoder).sum(1).numpy()

    def times(gains: np.ndarray) -> np.ndarray:
        return form @ gains - low @ (low.T @ gains)

    operator = scipy.sparse.linalg.LinearOperator((len(right), len(right)), matvec=times, dtype=np.float64)
    start = np.ones(len(right))
    largest = (
        scipy.sparse.linalg.eigsh(operator, 1, v0=start, return_eigenvectors=False)[0]
        if len(right) > 2
        else (np.linalg.norm(np.stack([times(row) for row in np.eye(len(right))]), 2))
    )
    gains, rate = start, 1 / max(float(largest), 1e-300)
    for _ in range(steps):
        before = gains
        gains = np.clip(gains - rate * (times(gains) - right), 0.5, 10.0)
        if np.abs(gains - before).max() < SETTLED:
            break
    return torch.from_numpy(gains)[:, None] * decoder


def _at_atoms(gram: np.ndarray | scipy.sparse.csr_array, atoms: np.ndarray) -> np.ndarray | scipy.sparse.csr_array:
    """`gram * (D D^T)`, in place, a block of rows at a time."""
    step = max(1, 2**22 // len(atoms))
    for start in range(0, len(atoms), step):
        block = atoms[start : start + step] @ atoms.T
        if isinstance(gram, np.ndarray):
            gram[start : start + step] *= block
        else:
            cut = slice(gram.indptr[start], gram.indptr[min(start + step, len(atoms))])
            rows = np.repeat(np.arange(len(block)), np.diff(gram.indptr[start : start + step + 1]))
            gram.data[cut] *= block[rows, gram.indices[cut]]
    return gram
