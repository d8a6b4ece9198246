"""Two clients' codes with known truth: shared features, own ones, some split in two, in random order and with noise."""

from dataclasses import dataclass

import numpy as np
import torch


@dataclass
class Planted:
    """Codes `[samples, F]` of both, and the name of the feature behind every latent (`s0` shared, `a0`, `b0` own)."""

    codes: tuple[np.ndarray, np.ndarray]
    truth: tuple[np.ndarray, np.ndarray]
    split: int
    shared: int

    @property
    def pairs(self):
        """Latents with one feature, as pairs."""
        a, b = self.truth
        return {(i, j) for i in range(len(a)) for j in np.flatnonzero(b == a[i])}


def planted(samples=12_000, shared=400, own=100, split=40, density=0.02, noise=0.3, seed=0):
    rng = np.random.default_rng(seed)
    count = shared + 2 * own
    z = np.where(rng.random((samples, count)) < density, rng.gamma(4, 0.25, (samples, count)), 0)
    a, b = z[:, : shared + own], np.concatenate([z[:, :shared], z[:, shared + own :]], 1)
    half = rng.random((samples, split)) < 0.5
    b = np.concatenate([b[:, split:], b[:, :split] * half, b[:, :split] * ~half], 1)

    def seen(codes):
        kept = codes * (rng.random(codes.shape) > 0.1) * np.exp(noise * rng.standard_normal(codes.shape))
        return (kept + 0.5 * (rng.random(codes.shape) < 0.001)).astype(np.float32)

    names_a = np.array([f"s{k}" for k in range(shared)] + [f"a{k}" for k in range(own)])
    halves = [f"s{k}" for k in range(split)] * 2
    names_b = np.array([f"s{k}" for k in range(split, shared)] + [f"b{k}" for k in range(own)] + halves)
    order = rng.permutation(a.shape[1]), rng.permutation(b.shape[1])
    return Planted(
        (seen(a)[:, order[0]], seen(b)[:, order[1]]), (names_a[order[0]], names_b[order[1]]), split, shared
    )  # fmt: skip


class Given:
    """A basis whose activations are its codes."""

    name = "given"

    def __init__(self, width):
        self.atoms = torch.eye(width)

    def encode(self, activations):
        return activations

    def decode(self, codes):
        return codes
