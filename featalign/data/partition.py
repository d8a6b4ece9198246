"""Partitions: which training sample belongs to which client, by named scheme.

Every scheme deals each index at most once, from a seed, for any number of clients. A scheme is a function of `labels`
(or of `samples`, their number, where it does not look at them), `clients` and `rng`; its options are keyword-only.
"""

from __future__ import annotations

import hashlib
import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from featalign.errors import BadOption
from featalign.options import bind_options
from featalign.registry import Registry

if TYPE_CHECKING:
    import pandas as pd

Scheme = Callable[..., list[np.ndarray]]
schemes: Registry[Scheme] = Registry("partition scheme")
log = logging.getLogger(__name__)


def client_names(count: int) -> tuple[str, ...]:
    """'A', 'B', ..., 'Z', 'AA', 'AB', ..."""

    def name(k: int) -> str:
        return (name(k // 26 - 1) if k >= 26 else "") + chr(ord("A") + k % 26)

    return tuple(map(name, range(count)))


def check_scheme(scheme: str, **options: Any) -> dict[str, Any]:
    """The options of a partition scheme, checked; raises `UnknownName` for the scheme, `BadOption` for the options."""
    return bind_options(schemes[scheme], options, f"partition scheme '{scheme}'")


@dataclass(frozen=True)
class Partition:
    """Disjoint index sets of a training set, one per client.

    Attributes:
        indices: one sorted int64 array per client; no index occurs twice.
        counts: `[clients, classes]` samples of each label.
        scheme, seed, options: what produced it.
        class_names: names of the labels for the table.
    """

    indices: tuple[np.ndarray, ...]
    counts: np.ndarray
    scheme: str
    seed: int
    options: dict[str, Any] = field(default_factory=dict)
    class_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def client_names(self) -> tuple[str, ...]:
        """'A', 'B', ..., 'Z', 'AA', ..."""
        return client_names(len(self))

    def too_small(self, samples: int = 1) -> tuple[str, ...]:
        """Names of the clients with fewer than `samples` samples."""
        return tuple(name for name, part in zip(self.client_names, self.indices) if len(part) < samples)

    @property
    def digests(self) -> tuple[str, ...]:
        """SHA-256 of each client's indices: part of the identity of a trained client."""
        return tuple(hashlib.sha256(part.astype("<i8").tobytes()).hexdigest() for part in self.indices)

    def table(self) -> pd.DataFrame:
        """Label counts, one row per client, one column per class, and the total."""
        import pandas as pd

        columns = self.class_names or tuple(str(label) for label in range(self.counts.shape[1]))
        frame = pd.DataFrame(self.counts, index=pd.Index(self.client_names, name="client"), columns=list(columns))
        return frame.assign(total=self.counts.sum(axis=1))

    def to_frame(self) -> pd.DataFrame:
        """The same as `table`."""
        return self.table()

    def to_dict(self) -> dict[str, Any]:
        """Scheme, options and label counts, without the indices."""
        return {
            "scheme": self.scheme,
            "clients": len(self),
            "seed": self.seed,
            "options": dict(self.options),
            "counts": self.counts.tolist(),
        }

    def __repr__(self) -> str:
        return self.table().to_string()

    def _repr_html_(self) -> str:
        return self.table().to_html()


def partition(
    labels: Any,
    scheme: str = "special-label",
    clients: int = 2,
    seed: int = 0,
    class_names: tuple[str, ...] = (),
    **options: Any,
) -> Partition:
    """Deal the samples of a training set to clients.

    Args:
        labels: `[N]` integer labels, 0 to classes - 1; for iid and quantity also real targets `[N, ...]`, of which one
            column of `counts` tells the sizes.
        scheme: a name of `schemes`: special-label, iid, dirichlet, client-dirichlet, shards, quantity.
        clients: how many.
        seed: of the random draw.
        class_names: for the printed table; also fixes the number of classes.
        options: of the scheme: `special`, `share` (special-label); `alpha` (dirichlet, client-dirichlet, quantity);
            `shards` (shards).

    A client may come out empty where a draw is very uneven (Dirichlet with a small `alpha`); `too_small` names it.
    Raises `BadOption` for no clients, more clients than samples, a label out of range or an unknown option, and
    `UnknownName` for an unknown scheme.
    """
    labels = np.asarray(labels)
    options, deal = check_scheme(scheme, **options), schemes[scheme]
    wants = inspect.signature(deal).parameters
    named = labels.ndim == 1 and np.issubdtype(labels.dtype, np.integer)
    if not named and "labels" in wants:
        raise BadOption(
            f"scheme '{scheme}' wants integer labels of shape [samples], not {labels.dtype} {labels.shape}; "
            "use scheme 'iid'"
        )
    if clients < 1:
        raise BadOption(f"{clients} clients; a partition needs at least 1 client")
    if clients > len(labels):
        raise BadOption(f"{clients} clients but only {len(labels)} samples; each client needs at least one")
    first = labels if "labels" in wants else len(labels)
    parts = deal(first, clients, np.random.default_rng(seed), **options)
    indices = tuple(np.sort(part).astype(np.int64) for part in parts)
    if named:
        classes = max(len(class_names), int(labels.max()) + 1)
        counts = np.stack([np.bincount(labels[part], minlength=classes) for part in indices])
    else:
        class_names, counts = (), np.array([[len(part)] for part in indices])
    empty = [name for name, part in zip(client_names(clients), indices) if len(part) == 0]
    if empty:
        log.warning("scheme '%s' left %d clients without samples: %s", scheme, len(empty), ", ".join(empty[:9]))
    return Partition(indices, counts, scheme, seed, options, tuple(class_names))


def _at_least_one_each(draw: Callable[[], list[np.ndarray]], alpha: float, attempts: int = 200) -> list[np.ndarray]:
    """Repeat a Dirichlet draw until no client is left empty; after `attempts`, take the last one as it is."""
    if not alpha > 0:
        raise BadOption(f"alpha = {alpha}; the Dirichlet concentration must be positive")
    parts = draw()
    while not all(len(part) for part in parts) and (attempts := attempts - 1):
        parts = draw()
    return parts


@schemes.register("special-label")
def special_label(
    labels: np.ndarray, clients: int, rng: np.random.Generator, *, special: int = 4, share: float = 0.1
) -> list[np.ndarray]:
    """Client A has all of one label and a tenth of the rest; B the other nine tenths and none of that label.

    Singh and Jaggi 2020, section 5.1 ("one-shot skill transfer"). The tenth is drawn without regard to labels. With
    more than two clients the nine tenths are dealt evenly to all but the first client.
    """
    if clients < 2:
        raise BadOption("scheme 'special-label' needs at least 2 clients")
    if not 0 < share < 1:
        raise BadOption(f"share = {share}; the specialist's part of the other labels lies between 0 and 1")
    chosen = np.flatnonzero(labels == special)
    if len(chosen) == 0:
        raise BadOption(f"special label {special} does not occur; the labels run from {labels.min()} to {labels.max()}")
    others = rng.permutation(np.flatnonzero(labels != special))
    cut = int(share * len(others))
    return [np.concatenate([chosen, others[:cut]]), *np.array_split(others[cut:], clients - 1)]


@schemes.register("iid")
def iid(samples: int, clients: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Equal parts of a random permutation."""
    return np.array_split(rng.permutation(samples), clients)


@schemes.register("dirichlet")
def dirichlet(labels: np.ndarray, clients: int, rng: np.random.Generator, *, alpha: float = 0.5) -> list[np.ndarray]:
    """Class-wise: the shares in which each class is split between clients are Dirichlet(alpha).

    Yurochkin et al. 2019. Sizes differ between clients; the draw is repeated until every client has a sample.
    """

    def draw() -> list[np.ndarray]:
        parts: list[list[np.ndarray]] = [[] for _ in range(clients)]
        for label in np.unique(labels):
            members = rng.permutation(np.flatnonzero(labels == label))
            cuts = np.cumsum(rng.dirichlet(np.full(clients, alpha)))[:-1] * len(members)
            for part, piece in zip(parts, np.split(members, cuts.astype(int))):
                part.append(piece)
        return [np.concatenate(part) for part in parts]

    return _at_least_one_each(draw, alpha)


@schemes.register("client-dirichlet")
def client_dirichlet(
    labels: np.ndarray, clients: int, rng: np.random.Generator, *, alpha: float = 0.5
) -> list[np.ndarray]:
    """Client-wise: each client draws its own law over labels from Dirichlet(alpha); all have the same size.

    Hsu et al. 2019. Samples are taken without replacement: when a class runs out, the client's law is renormalised
    over the classes that are left, so late clients deviate most from their law.
    """
    if not alpha > 0:
        raise BadOption(f"alpha = {alpha}; the Dirichlet concentration must be positive")
    names, inverse = np.unique(labels, return_inverse=True)
    pools = [rng.permutation(np.flatnonzero(inverse == c)) for c in range(len(names))]
    taken = np.zeros(len(names), dtype=int)
    available = np.array([len(pool) for pool in pools])
    parts = []
    for size in [len(chunk) for chunk in np.array_split(np.arange(len(labels)), clients)]:
        law = rng.dirichlet(np.full(len(names), alpha))
        take = np.zeros(len(names), dtype=int)
        while (missing := size - take.sum()) > 0:
            left = available - taken - take
            weights = np.where(left > 0, law, 0.0)
            weights = weights if weights.sum() > 1e-12 else left.astype(float)
            take += np.minimum(rng.multinomial(missing, weights / weights.sum()), left)
        parts.append(np.concatenate([pool[t : t + n] for pool, t, n in zip(pools, taken, take)]))
        taken += take
    return parts


@schemes.register("shards")
def shards(labels: np.ndarray, clients: int, rng: np.random.Generator, *, shards: int = 2) -> list[np.ndarray]:
    """Sort by label, cut into `clients * shards` equal shards, deal `shards` of them to each client.

    McMahan et al. 2017: most clients see few labels.
    """
    if shards < 1 or clients * shards > len(labels):
        raise BadOption(f"{shards} shards for each of {clients} clients do not fit {len(labels)} samples")
    ordered = rng.permutation(len(labels))
    ordered = ordered[np.argsort(labels[ordered], kind="stable")]
    pieces = np.array_split(ordered, clients * shards)
    dealt = rng.permutation(clients * shards).reshape(clients, shards)
    return [np.concatenate([pieces[piece] for piece in hand]) for hand in dealt]


@schemes.register("quantity")
def quantity(samples: int, clients: int, rng: np.random.Generator, *, alpha: float = 0.5) -> list[np.ndarray]:
    """Quantity skew: the same law of labels everywhere, sizes in Dirichlet(alpha) proportions (Li et al. 2022)."""

    def draw() -> list[np.ndarray]:
        cuts = np.cumsum(rng.dirichlet(np.full(clients, alpha)))[:-1] * samples
        return np.split(rng.permutation(samples), cuts.astype(int))

    return _at_least_one_each(draw, alpha)
