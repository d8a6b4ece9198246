"""Toy models of superposition (Elhage et al. 2022), many of one shape held as one batch of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from featalign.errors import BadOption, NotFinite, SpaceMismatch


@dataclass(frozen=True)
class ToyConfig:
    """Shape and knobs of a toy model `x_hat = out(D hidden(E x) + b)`.

    Attributes:
        n, m: features and hidden units.
        tied: `D = E^T`, as in the paper; untied decoders are free.
        output: 'relu' or 'none' (the linear model, which is PCA).
        hidden: 'none' (a linear space, no privileged basis) or 'relu' (units are privileged).
        bias: whether `b [n]` is trained.
        init_scale: standard deviation of the initial weights times sqrt(n).
    """

    n: int
    m: int
    tied: bool = True
    output: str = "relu"
    hidden: str = "none"
    bias: bool = True
    init_scale: float = 1.0

    def __post_init__(self) -> None:
        if self.n < 1 or self.m < 1:
            raise BadOption(f"a toy model of {self.n} features in {self.m} units; both must be at least 1")
        for name, value in (("output", self.output), ("hidden", self.hidden)):
            if value not in {"relu", "none"}:
                raise BadOption(f"{name}='{value}'; choices: relu, none")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class ToyModels:
    """`M` models of one shape.

    Attributes:
        config: what they share.
        encoder: `E [M, m, n]`, columns are the directions of features.
        decoder: `D [M, n, m]`; the transposed encoder when tied.
        bias: `[M, n]`.
    """

    config: ToyConfig
    encoder: torch.Tensor
    decoder: torch.Tensor
    bias: torch.Tensor

    def __post_init__(self) -> None:
        count, m, n = self.encoder.shape
        if self.decoder.shape != (count, n, m) or self.bias.shape != (count, n):
            raise SpaceMismatch(
                f"encoder {tuple(self.encoder.shape)}, decoder {tuple(self.decoder.shape)} and bias "
                f"{tuple(self.bias.shape)} do not fit; want [M, m, n], [M, n, m] and [M, n]"
            )

    def __len__(self) -> int:
        return len(self.encoder)

    def __getitem__(self, index: int | Sequence[int] | slice) -> ToyModels:
        """Models by position; one integer keeps the leading axis."""
        chosen = [index] if isinstance(index, int) else index
        return ToyModels(self.config, self.encoder[chosen], self.decoder[chosen], self.bias[chosen])

    @classmethod
    def tied(cls, weight: torch.Tensor, bias: torch.Tensor, config: ToyConfig) -> ToyModels:
        """Models with `E = weight [M, m, n]`, `D = E^T`."""
        return cls(config, weight, weight.mT.contiguous(), bias)

    @staticmethod
    def stack(models: Sequence[ToyModels]) -> ToyModels:
        """Several batches of equal shape as one."""
        shapes = {batch.encoder.shape[1:] for batch in models}
        if len(shapes) != 1:
            raise SpaceMismatch(f"toy models of shapes {sorted(tuple(s) for s in shapes)} cannot be one batch")
        parts = [torch.cat([getattr(batch, key) for batch in models]) for key in ("encoder", "decoder", "bias")]
        return ToyModels(models[0].config, *parts)

    def pre(self, x: torch.Tensor) -> torch.Tensor:
        """Hidden pre-activations `[M, samples, m]` of `x [samples, n]` or `[M, samples, n]`."""
        return x @ self.encoder.mT

    def hidden(self, x: torch.Tensor) -> torch.Tensor:
        """Hidden activations `[M, samples, m]`."""
        pre = self.pre(x)
        return pre.relu() if self.config.hidden == "relu" else pre

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Reconstructions `[M, samples, n]`."""
        out = torch.baddbmm(self.bias[:, None], self.hidden(x), self.decoder.mT)
        return out.relu() if self.config.output == "relu" else out

    def loss(self, x: torch.Tensor, importance: torch.Tensor | None = None, chunk: int = 4096) -> torch.Tensor:
        """Squared error summed over features (weighted by `importance [n]`), mean over samples, `[M]`."""
        return self.loss_per_feature(x, importance, chunk).sum(1)

    def loss_per_feature(
        self, x: torch.Tensor, importance: torch.Tensor | None = None, chunk: int = 4096
    ) -> torch.Tensor:
        """Mean squared error of each feature, `[M, n]`."""
        total = torch.zeros(len(self), self.config.n, dtype=torch.float64)
        for batch in x.split(chunk):
            total += (self(batch) - batch).double().pow(2).sum(1)
        if not torch.isfinite(total).all():
            raise NotFinite("a toy model's outputs hold NaN or infinity; check its weights")
        weight = torch.ones(self.config.n) if importance is None else importance
        return total / len(x) * weight.double()
