"""Toy models of superposition (Elhage et al. 2022): one as a module, many of one shape as one batch of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from featalign.clients.models import ModelConfig, models
from featalign.errors import BadOption, NotFinite, SpaceMismatch


@models.register("toy")
@dataclass(frozen=True)
class ToyConfig(ModelConfig):
    """Shape and knobs of a toy model `x_hat = out(D hidden(E x) + b)`; a registered model family.

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

    @classmethod
    def shaped(cls, shape: tuple[int, ...], outputs: int, **options: Any) -> ToyConfig:
        """The configuration for inputs `[N, n]`, which a toy model returns; a third as many units unless `m` is given.

        Raises `BadOption` for inputs of another shape and for outputs of another number.
        """
        if len(shape) != 1 or outputs != shape[0]:
            raise BadOption(
                f"model 'toy' returns its inputs [N, n]; it does not fit inputs {list(shape)} and {outputs} outputs"
            )
        return cls(n=shape[0], m=options.pop("m", max(1, shape[0] // 3)), **options)

    def module(self) -> ToyModel:
        """A freshly initialised module, from torch's current random state."""
        return initial(self, [int(torch.randint(2**31, ()))]).modules()[0]


class ToyModel(nn.Module):
    """One toy model: inputs `[N, n]` to reconstructions `[N, n]` through `encoder`, `hidden`, the decoder and `out`.

    A tied decoder is the encoder's own weight and has a `bias [n]` beside it; a free one is the layer `decoder`.
    """

    def __init__(self, config: ToyConfig):
        super().__init__()
        self.config = config
        self.encoder = nn.Linear(config.n, config.m, bias=False)
        self.hidden = nn.ReLU() if config.hidden == "relu" else nn.Identity()
        self.out = nn.ReLU() if config.output == "relu" else nn.Identity()
        if config.tied:
            self.bias = nn.Parameter(torch.zeros(config.n), requires_grad=config.bias)
        else:
            self.decoder = nn.Linear(config.m, config.n)
            self.decoder.bias.requires_grad_(config.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Reconstructions `[N, n]` of inputs `[N, n]`."""
        hidden = self.hidden(self.encoder(x))
        tied = self.config.tied
        return self.out(F.linear(hidden, self.encoder.weight.T, self.bias) if tied else self.decoder(hidden))


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
    def stack(batches: Sequence[ToyModels]) -> ToyModels:
        """Several batches of equal shape as one; raises `SpaceMismatch` for others."""
        shapes = {batch.encoder.shape[1:] for batch in batches}
        if len(shapes) != 1:
            raise SpaceMismatch(f"toy models of shapes {sorted(tuple(s) for s in shapes)} cannot be one batch")
        parts = [torch.cat([getattr(batch, key) for batch in batches]) for key in ("encoder", "decoder", "bias")]
        return ToyModels(batches[0].config, *parts)

    @staticmethod
    def of(modules: Sequence[nn.Module]) -> ToyModels:
        """Modules of one shape as one batch, whatever their width has become; raises `SpaceMismatch` for others."""
        batches = []
        for module in modules:
            if not isinstance(module, ToyModel):
                raise SpaceMismatch(f"a {type(module).__name__} is no toy model; pass fa.toy.ToyModel modules")
            encoder = module.encoder.weight.detach()[None]
            config = replace(module.config, m=encoder.shape[1])
            if config.tied:
                batches.append(ToyModels.tied(encoder, module.bias.detach()[None], config))
            else:
                decoder = module.decoder
                batches.append(ToyModels(config, encoder, decoder.weight.detach()[None], decoder.bias.detach()[None]))
        return ToyModels.stack(batches)

    def modules(self) -> list[ToyModel]:
        """Each as a module of its own."""
        found = []
        for encoder, decoder, bias in zip(self.encoder, self.decoder, self.bias):
            module = ToyModel(self.config)
            tensors = {"encoder.weight": encoder}
            tensors |= {"bias": bias} if self.config.tied else {"decoder.weight": decoder, "decoder.bias": bias}
            module.load_state_dict(tensors)
            found.append(module)
        return found

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
        """Mean squared error of each feature, `[M, n]`; raises `NotFinite` for outputs that are not."""
        total = torch.zeros(len(self), self.config.n, dtype=torch.float64)
        for batch in x.split(chunk):
            total += (self(batch) - batch).double().pow(2).sum(1)
        if not torch.isfinite(total).all():
            raise NotFinite("a toy model's outputs hold NaN or infinity; check its weights")
        weight = torch.ones(self.config.n) if importance is None else importance
        return total / len(x) * weight.double()


def initial(config: ToyConfig, seeds: Sequence[int]) -> ToyModels:
    """Untrained models, one per seed; equal seeds give equal models (a shared initialisation)."""
    encoder = torch.stack(
        [
            torch.randn(config.m, config.n, generator=torch.Generator().manual_seed(seed)) * config.init_scale
            for seed in seeds
        ]
    )
    encoder = encoder / config.n**0.5
    if config.hidden == "relu":  # features are non-negative: a unit that starts against all of them never fires
        total = encoder.sum(2, keepdim=True)
        encoder = torch.where(total < 0, -encoder, encoder)
    if config.tied:
        decoder = encoder.mT.contiguous()
    else:
        draws = [torch.Generator().manual_seed(seed + 1_000_003) for seed in seeds]
        decoder = torch.stack([torch.randn(config.n, config.m, generator=draw) for draw in draws])
        decoder = decoder * config.init_scale / config.n**0.5
    return ToyModels(config, encoder, decoder, torch.zeros(len(seeds), config.n))
