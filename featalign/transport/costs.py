"""Ground costs as objects: evaluated whole for small problems, by blocks of rows for dictionaries of 8k and more.

Every named cost takes activations of both clients on the same probe set, `[samples, units]`, and, except `weights`
and `semantic`, alternatively one object of streaming cross moments (`correlation`, `squared_distances`, `mean_a`,
`variance_a`, ... as `featalign.spaces.CrossMoments` has them), so that no activations need be held.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from featalign.errors import NotFinite, ProbeError, TransportError
from featalign.registry import Registry
from featalign.transport.checks import as_cost, as_floats, require_finite

BLOCK_ENTRIES = 1 << 23  # of a block of rows: 32 MB in float32


class GroundCost:
    """A cost matrix `[n, m]` that can be read by rows."""

    shape: tuple[int, int]

    def rows(self, index: slice | np.ndarray) -> np.ndarray:
        """Rows of the cost `[r, m]`, in the precision of the data behind it."""
        raise NotImplementedError

    def dense(self) -> np.ndarray:
        """The whole cost `[n, m]` in float64."""
        return np.concatenate([np.asarray(self.rows(part), dtype=np.float64) for part in self.blocks()])

    def blocks(self) -> list[slice]:
        """Slices of rows that together cover the cost, each of a bounded number of entries."""
        step = max(1, BLOCK_ENTRIES // self.shape[1])
        return [slice(start, min(start + step, self.shape[0])) for start in range(0, self.shape[0], step)]

    def transposed(self) -> GroundCost:
        """The same cost with the roles of sources and targets exchanged."""
        raise NotImplementedError

    def null(self, seed: int = 0) -> GroundCost:
        """The cost after the samples of the sources were shuffled: no pair is real. Feeds `null_threshold`.

        Raises `TransportError` when the samples are not known (a matrix or moments).
        """
        raise TransportError("a null needs the samples: build the cost from activations, or shuffle them yourself")


class DenseCost(GroundCost):
    """A matrix `[n, m]` as a ground cost. Raises `NotFinite` or `TransportError` when it is malformed."""

    def __init__(self, matrix: Any) -> None:
        self.matrix = as_cost(matrix)
        self.shape = self.matrix.shape

    @classmethod
    def checked(cls, matrix: np.ndarray) -> DenseCost:
        """Of a matrix that was checked before."""
        cost = object.__new__(cls)
        cost.matrix, cost.shape = matrix, matrix.shape
        return cost

    def rows(self, index: slice | np.ndarray) -> np.ndarray:
        return self.matrix[index]

    def dense(self) -> np.ndarray:
        return self.matrix

    def transposed(self) -> GroundCost:
        return DenseCost.checked(np.ascontiguousarray(self.matrix.T))


class MaskedCost(GroundCost):
    """Another cost `[n, m]` whose pairs off `mask` are priced so that no plan pays it if it need not (`never_paid`)."""

    def __init__(self, cost: GroundCost, mask: np.ndarray, level: float | None = None) -> None:
        self.cost, self.mask, self.shape = cost, mask, cost.shape
        self.level = self._level() if level is None else level

    def _level(self) -> float:
        low, high = np.inf, -np.inf
        for part in self.cost.blocks():
            allowed = self.cost.rows(part)[self.mask[part]]
            require_finite(allowed, "ground cost")
            if allowed.size:
                low, high = min(low, float(allowed.min())), max(high, float(allowed.max()))
        return never_paid(low, high, self.shape)

    def rows(self, index: slice | np.ndarray) -> np.ndarray:
        block = self.cost.rows(index)
        return np.where(self.mask[index], block, np.asarray(self.level, dtype=block.dtype))

    def transposed(self) -> MaskedCost:
        return MaskedCost(self.cost.transposed(), np.ascontiguousarray(self.mask.T), self.level)


def never_paid(low: float, high: float, shape: tuple[int, int]) -> float:
    """A price above which an optimal plan uses no pair, if some plan has costs from `low` to `high` only.

    Exchanging one unit on a dearer pair goes round an alternating cycle of at most `min(n, m)` pairs of each kind; it
    saves at least `price - high - (min(n, m) - 1) (high - low)`.
    """
    return high + (min(shape) + 1) * ((high - low) or abs(high) or 1.0)


class FactoredCost(GroundCost):
    """`C_ij = transform(r_i + c_j + scale <x_i, y_j>)`, never held whole: `x [n, d]`, `y [m, d]`.

    Covers squared and plain Euclidean distances, cosine and correlation.
    """

    def __init__(
        self,
        x: np.ndarray,
        y: np.ndarray,
        row_term: np.ndarray,
        column_term: np.ndarray,
        scale: float,
        root: bool = False,
        shuffle: bool = True,
    ) -> None:
        if x.shape[1] != y.shape[1]:
            raise TransportError(f"sources {x.shape} and targets {y.shape} do not share their second axis")
        self.x, self.y, self.row_term, self.column_term = x, y, row_term, column_term
        self.scale, self.root, self.shuffle = scale, root, shuffle
        self.shape = (len(x), len(y))

    def rows(self, index: slice | np.ndarray) -> np.ndarray:
        block = self.x[index] @ self.y.T
        block *= self.scale
        block += self.row_term[index][:, None].astype(block.dtype)
        block += self.column_term.astype(block.dtype)
        np.maximum(block, 0, out=block)
        return np.sqrt(block, out=block) if self.root else block

    def dense(self) -> np.ndarray:
        x, y = self.x.astype(np.float64), self.y.astype(np.float64)
        return FactoredCost(x, y, self.row_term, self.column_term, self.scale, self.root).rows(slice(None))

    def transposed(self) -> FactoredCost:
        return FactoredCost(
            self.y, self.x, self.column_term, self.row_term, self.scale, self.root, shuffle=self.shuffle
        )

    def null(self, seed: int = 0) -> GroundCost:
        if not self.shuffle:
            return super().null(seed)
        order = np.random.default_rng(seed).permutation(self.x.shape[1])
        x = np.ascontiguousarray(self.x[:, order])
        return FactoredCost(x, self.y, self.row_term, self.column_term, self.scale, self.root)


COSTS: Registry[Callable[..., GroundCost]] = Registry("ground cost")


def ground_cost(name: str, *inputs: Any, **options: Any) -> GroundCost:
    """The ground cost of that name, for example `ground_cost("correlation", codes_a, codes_b)` or `(..., moments)`.

    Raises `UnknownName` for an unknown name, `ProbeError` on empty or unpaired samples, `NotFinite` on NaN.
    """
    return COSTS[name](*inputs, **options)


@COSTS.register("squared")
def squared(a: Any, b: Any = None) -> GroundCost:
    """`E |a_i - b_j|^2` over samples, from activations `[samples, n]`, `[samples, m]` or from moments."""
    if b is None:
        return DenseCost(a.squared_distances)
    x, y = _units_by_samples(a, b)
    return _squared(x, y, per=x.shape[1], root=False)


@COSTS.register("euclidean")
def euclidean(a: Any, b: Any = None) -> GroundCost:
    """`(E |a_i - b_j|^2)^(1/2)`: the activation ground cost of OTFusion (Singh and Jaggi 2020), per sample."""
    if b is None:
        return DenseCost(a.squared_distances**0.5)
    x, y = _units_by_samples(a, b)
    return _squared(x, y, per=x.shape[1], root=True)


@COSTS.register("cosine")
def cosine(a: Any, b: Any = None) -> GroundCost:
    """`1 - E[a_i b_j] / (E[a_i^2] E[b_j^2])^(1/2)`; 1 where a unit is always zero.

    For decoder directions `[latents, d]` pass their transposes: it means something only if the clients share an
    initialisation.
    """
    if b is None:
        second_a = a.variance_a + a.mean_a**2
        second_b = a.variance_b + a.mean_b**2
        product = a.covariance_ab + a.mean_a[:, None] * a.mean_b[None, :]
        scale = (second_a[:, None] * second_b[None, :]) ** 0.5
        return DenseCost(1 - product / scale.clip(min=1e-150) * (scale > 0))
    x, y = _units_by_samples(a, b)
    return _one_minus(_normalised(x, centre=False), _normalised(y, centre=False))


@COSTS.register("correlation")
def correlation(a: Any, b: Any = None) -> GroundCost:
    """`1 - corr(a_i, b_j)`; 1 where a unit is constant. The cost between latents of two clients."""
    if b is None:
        return DenseCost(1 - a.correlation)
    x, y = _units_by_samples(a, b)
    return _one_minus(_normalised(x, centre=True), _normalised(y, centre=True))


@COSTS.register("weights")
def weights(a: Any, b: Any, previous: Any = None) -> GroundCost:
    """Euclidean distance between incoming weight rows `a [n, d_a]`, `b [m, d_b]` (OTFusion, `wts`).

    `previous [d_a, d_b]` is the in-map of the space below, which brings A's columns into B's basis.
    """
    x, y = _finite(a), _finite(b)
    if previous is not None:
        x = x @ _finite(previous).astype(x.dtype)
    if x.shape[1] != y.shape[1]:
        raise TransportError(
            f"weight rows of length {x.shape[1]} and {y.shape[1]}; pass previous= with the in-map of the space below"
        )
    return _squared(x, y, per=1, root=True, shuffle=False)


class SemanticMoments:
    """Streaming first and second moments of activation-weighted distributions over a reference space.

    Latent i stands for the distribution of reference vectors `e [d]` (any embedding of the probe that both clients
    share) weighted by `|z_i|`; its mean and its standard deviations per axis are kept, `O(latents d)` numbers.
    """

    def __init__(self) -> None:
        self.sums: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}

    def update(self, codes_a: Any, codes_b: Any, reference: Any) -> SemanticMoments:
        """Add a batch: codes `[samples, n]` and `[samples, m]`, reference `[samples, d]`.

        Raises `ProbeError` for different numbers of samples.
        """
        e = _finite(reference).astype(np.float64)
        for side, codes in (("a", codes_a), ("b", codes_b), ("all", np.ones((len(e), 1)))):
            z = np.abs(_finite(codes)).astype(np.float64)
            if len(z) != len(e):
                raise ProbeError(f"codes of {len(z)} samples and a reference of {len(e)}; feed the same batches")
            batch = (z.sum(0), z.T @ e, z.T @ e**2)
            old = self.sums.get(side)
            self.sums[side] = batch if old is None else tuple(o + n for o, n in zip(old, batch))  # type: ignore[assignment]
        return self

    def points(self, side: str) -> np.ndarray:
        """`[latents, 2 d]`: means and standard deviations; silent latents get those of the whole reference. Raises
        `ProbeError` before any sample was seen."""
        if not self.sums:
            raise ProbeError("no samples were seen; the probe set is empty")
        return np.where(self.sums[side][0][:, None] > 0, self._normal(side), self._normal("all"))

    def _normal(self, side: str) -> np.ndarray:
        weight, first, second = self.sums[side]
        weight = np.where(weight > 0, weight, 1.0)[:, None]
        mean = first / weight
        return np.concatenate([mean, np.sqrt(np.maximum(second / weight - mean**2, 0))], axis=1)


@COSTS.register("semantic")
def semantic(codes_a: Any, codes_b: Any = None, reference: Any = None) -> GroundCost:
    """Squared Wasserstein-2 distance between activation-weighted distributions of latents (Cao et al. 2026).

    From codes `[samples, n]`, `[samples, m]` and `reference [samples, d]`, or from `SemanticMoments`. Computed as
    `|mean_i - mean_j|^2 + |sd_i - sd_j|^2`, the Gaussian distance with diagonal covariances: exact for those, a lower
    bound for any other distributions (Gelbrich 1990, applied per axis), and a function of streaming moments.
    """
    if codes_b is None:
        moments = codes_a
    elif reference is None:
        raise ProbeError("semantic cost wants reference= [samples, d], the space both clients' samples are placed in")
    else:
        moments = SemanticMoments().update(codes_a, codes_b, reference)
    return _squared(moments.points("a"), moments.points("b"), per=1, root=False, shuffle=False)


def _finite(values: Any) -> np.ndarray:
    """A float matrix from an array or a tensor; raises `NotFinite`, `ProbeError` when it is empty or no matrix."""
    array = values.detach().cpu().float().numpy() if _is_half(values) else values
    if hasattr(array, "detach"):
        array = array.detach().cpu().numpy()
    array = np.asarray(array)
    if array.dtype not in (np.float32, np.float64):
        array = as_floats(array, "activations or weights").astype(np.float32)
    if array.ndim != 2 or 0 in array.shape:
        raise ProbeError(f"activations or weights of shape {array.shape}; a matrix that is not empty is needed")
    require_finite(array, "activations or weights")
    return array


def _is_half(values: Any) -> bool:
    """Whether it is a tensor of a precision below float32."""
    return hasattr(values, "detach") and values.is_floating_point() and values.element_size() < 4


def _units_by_samples(a: Any, b: Any) -> tuple[np.ndarray, np.ndarray]:
    x, y = _finite(a), _finite(b)
    if len(x) != len(y):
        raise ProbeError(f"{len(x)} samples of A and {len(y)} of B; both clients must see the same probe set")
    return np.ascontiguousarray(x.T), np.ascontiguousarray(y.T)


def _squared(x: np.ndarray, y: np.ndarray, per: int, root: bool, shuffle: bool = True) -> FactoredCost:
    """Distances stay when one number is taken from all coordinates; that saves digits and survives shuffling."""
    centre = (x.mean(dtype=np.float64) + y.mean(dtype=np.float64)) / 2
    x, y = (x - centre).astype(x.dtype), (y - centre).astype(y.dtype)
    norm_x, norm_y = (np.einsum("ij,ij->i", part, part, dtype=np.float64) / per for part in (x, y))
    if not np.isfinite(norm_x.sum() + norm_y.sum()):
        raise NotFinite("squared distances overflow; rescale the activations")
    return FactoredCost(x, y, norm_x, norm_y, -2.0 / per, root, shuffle)


def _one_minus(x: np.ndarray, y: np.ndarray) -> FactoredCost:
    return FactoredCost(x, y, np.ones(len(x)), np.zeros(len(y)), -1.0)


def _normalised(x: np.ndarray, centre: bool) -> np.ndarray:
    """Rows of unit length, zero where a row has none (constant units, up to rounding of their mean)."""
    mean = x.mean(axis=1, dtype=np.float64, keepdims=True) if centre else np.zeros((len(x), 1))
    energy = np.einsum("ij,ij->i", x, x, dtype=np.float64)
    x = (x - mean).astype(x.dtype)
    norm = np.sqrt(np.einsum("ij,ij->i", x, x, dtype=np.float64))
    alive = norm > 10 * np.finfo(x.dtype).eps * np.sqrt(energy)
    return x * (alive / np.where(alive, norm, 1.0)).astype(x.dtype)[:, None]
