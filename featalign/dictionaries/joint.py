"""One dictionary for several clients (crosscoder), and sweeps along width and sparsity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch

from featalign.dictionaries.dictionary import Dictionary
from featalign.dictionaries.preflight import default_k
from featalign.dictionaries.quality import assess
from featalign.dictionaries.rows import held_rows
from featalign.dictionaries.training import train, train_many
from featalign.errors import SpaceMismatch


@dataclass(frozen=True)
class Crosscoder:
    """One TopK dictionary of several clients' activations side by side, each centred and scaled.

    Attributes:
        dictionary: of rows `[samples, sum of units]`; means, scales: of every client's activations.
    """

    dictionary: Dictionary
    means: tuple[torch.Tensor, ...]
    scales: tuple[float, ...]

    @property
    def blocks(self) -> list[slice]:
        """Where every client's units lie."""
        ends = torch.tensor([len(mean) for mean in self.means]).cumsum(0).tolist()
        return [slice(end - len(mean), end) for end, mean in zip(ends, self.means)]

    def side_by_side(self, activations: Sequence[torch.Tensor]) -> torch.Tensor:
        """The clients' activations as the dictionary reads them, `[samples, sum of units]`."""
        return torch.cat([(a - m) / s for a, m, s in zip(activations, self.means, self.scales)], 1)

    def atoms(self, client: int) -> torch.Tensor:
        """The client's block of the decoder `[F, n]`, of scaled activations, so that norms of clients compare."""
        return self.dictionary.W_dec[:, self.blocks[client]]


def train_crosscoder(
    activations: Sequence[torch.Tensor],
    width: int | None = None,
    k: float | None = None,
    seed: int = 0,
    metadata: Mapping[str, Any] | None = None,
    **options: Any,
) -> Crosscoder:
    """A dictionary whose latents are features of all clients (crosscoder, Lindsey et al. 2024), with TopK for its L1.

    `activations`: `[samples, units]` of every client, of the same samples. Options are those of `train`. Raises
    `SpaceMismatch` for different numbers of samples.
    """
    if len({len(a) for a in activations}) != 1:
        raise SpaceMismatch(f"{[len(a) for a in activations]} samples; give every client the same inputs")
    activations = [held_rows(a, metadata or {}) for a in activations]
    means = tuple(a.mean(0) for a in activations)
    scales = tuple(float((a - m).pow(2).sum(1).mean().sqrt()) for a, m in zip(activations, means))
    k = default_k(max(a.shape[1] for a in activations)) if k is None else k
    together = torch.cat([(a - m) / s for a, m, s in zip(activations, means, scales)], 1)
    facts = {**(metadata or {}), "client": "joint"}
    return Crosscoder(train(together, width, "topk", k, seed, metadata=facts, **options), means, scales)


def train_joint(
    activations: Sequence[torch.Tensor],
    width: int | None = None,
    k: float | None = None,
    seed: int = 0,
    metadata: Sequence[Mapping[str, Any]] | None = None,
    **options: Any,
) -> list[Dictionary]:
    """Dictionaries of several clients whose latent j is one and the same feature, split from a crosscoder.

    `activations`: `[samples, units]` of every client, of the same samples.

    Client c keeps its block of the decoder (row norms tell how strongly it holds the feature, see
    `fa.measure.relative_norms`) and gets the encoder that best predicts the joint pre-activations from its own
    activations, so that each entry is an ordinary `Basis` of its client. Options are those of `train`.
    """
    metadata = metadata or [{"client": index} for index in range(len(activations))]
    coder = train_crosscoder(activations, width, k, seed, metadata[0], **options)
    joint = coder.dictionary
    activations = [held_rows(a, facts) for a, facts in zip(activations, metadata)]
    pre = (coder.side_by_side(activations) - joint.b_dec) @ joint.W_enc + joint.b_enc
    found = []
    for client, (acts, own) in enumerate(zip(activations, metadata)):
        mean, scale = coder.means[client], coder.scales[client]
        atoms = coder.atoms(client) * scale
        b_dec = mean + joint.b_dec[coder.blocks[client]] * scale
        x = torch.cat([acts - b_dec, acts.new_ones(len(acts), 1)], 1).double()
        gram = x.T @ x
        ridge = 1e-4 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
        readout = torch.linalg.solve(gram + ridge, x.T @ pre.double()).float()
        tensors = {"W_enc": readout[:-1].contiguous(), "b_enc": readout[-1], "W_dec": atoms, "b_dec": b_dec}
        bare = Dictionary("topk", tensors, joint.k)
        facts = {"basis": "joint", "seed": seed, **own}
        found.append(Dictionary("topk", tensors, joint.k, assess(bare, acts, acts), joint.history, facts))
    return found


@dataclass(frozen=True)
class Sweep:
    """Dictionaries along width and sparsity with their quality.

    Attributes:
        frame: a row per dictionary: width, k, seed, explained variance, L0, dead fraction.
        dictionaries: in the order of the frame's rows.
    """

    frame: pd.DataFrame
    dictionaries: tuple[Dictionary, ...]

    @property
    def pareto(self) -> pd.DataFrame:
        """Rows that no other row beats in both L0 (less) and explained variance (more)."""
        rows = self.frame.sort_values(["l0", "explained_variance"], ascending=[True, False])
        best = rows["explained_variance"].cummax()
        return rows[(rows["explained_variance"] >= best) & ~best.duplicated()]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON holds them."""
        return {"rows": self.frame.to_dict(orient="records")}

    def to_frame(self) -> pd.DataFrame:
        """A row per dictionary."""
        return self.frame

    def __repr__(self) -> str:
        return self.frame.round(3).to_string(index=False)

    def _repr_html_(self) -> str:
        return self.frame.round(3).to_html(index=False)


def sweep(
    activations: torch.Tensor,
    ks: Sequence[float] = (),
    widths: Sequence[int] = (),
    seeds: Sequence[int] = (0, 1),
    architecture: str = "topk",
    metadata: Mapping[str, Any] | None = None,
    progress: bool = False,
    **options: Any,
) -> Sweep:
    """Train dictionaries of activations `[samples, units]` over sparsity and width: never judge a space by one L0.

    Defaults: half, once and twice the default k; widths 1, 2 and 4 times the units, as far as the data carries.
    """
    from tqdm.auto import tqdm

    units = activations.shape[-1]
    base = default_k(units)
    ks = list(ks) or sorted({max(1, base // 2), base, 2 * base})
    widths = list(widths) or [units, 2 * units, 4 * units]
    found: list[Dictionary] = []
    seen: set[tuple[int, float]] = set()
    for width in tqdm(widths, disable=not progress, desc="sweep"):
        for k in ks:
            trained = train_many([activations], architecture, seeds, [metadata or {}], width=width, k=k, **options)[0]
            if (trained[0].width, k) not in seen:
                seen.add((trained[0].width, k))
                found += trained
    rows = []
    for entry in found:
        assert entry.quality is not None
        rows.append({"width": entry.width, "k": entry.k, "seed": entry.metadata["seed"], **entry.quality.to_dict()})
    return Sweep(pd.DataFrame(rows), tuple(found))
