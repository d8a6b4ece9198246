"""Small modules that people have, for the property that a network fused with itself comes back."""

from __future__ import annotations

import torch
from torch import nn


class Loop(nn.Module):
    """A hidden layer that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.i, self.h, self.o = nn.Linear(12, 8), nn.Linear(8, 8), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.i(x).relu()
        for _ in range(2):
            hidden = self.h(hidden).relu()
        return self.o(hidden)


class SharedReadout(nn.Module):
    """One readout behind two branches."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.o = nn.Linear(12, 8), nn.Linear(12, 8), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.o(self.a(x).relu()) + self.o(self.b(x).tanh())


class WideAndDeep(nn.Module):
    """The output is a sum of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.deep, self.top = nn.Linear(12, 5), nn.Linear(12, 9), nn.Linear(9, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.wide(x) + self.top(self.deep(x).relu())


class Behind(nn.Module):
    """Something stands between the readout and the output."""

    def __init__(self, last: str) -> None:
        super().__init__()
        self.h, self.o, self.last = nn.Linear(12, 9), nn.Linear(9, 5), last

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.o(self.h(x).relu())
        return {
            "softmax": lambda: out.softmax(-1),
            "temperature": lambda: out / 3.0,
            "log-softmax": lambda: out.log_softmax(-1),
        }[self.last]()


class TwoHeads(nn.Module):
    """Two readouts, returned together."""

    def __init__(self) -> None:
        super().__init__()
        self.h, self.one, self.two = nn.Linear(12, 9), nn.Linear(9, 5), nn.Linear(9, 5)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = self.h(x).relu()
        return self.one(hidden), self.two(hidden)


class Skip(nn.Module):
    """A hidden layer as wide as the input is added to it."""

    def __init__(self) -> None:
        super().__init__()
        self.h, self.back, self.o = nn.Linear(12, 9), nn.Linear(9, 12), nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.o(x + self.back(self.h(x).relu()))


class Residual(nn.Module):
    """A residual stream with two blocks."""

    def __init__(self, norm: bool) -> None:
        super().__init__()
        self.i, self.o = nn.Linear(12, 8), nn.Linear(8, 5)
        self.up, self.down = (nn.ModuleList([nn.Linear(8, 8) for _ in range(2)]) for _ in range(2))
        self.norms = nn.ModuleList([nn.LayerNorm(8) if norm else nn.Identity() for _ in range(2)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        stream = self.i(x)
        for up, down, norm in zip(self.up, self.down, self.norms):
            stream = stream + down(up(norm(stream)).relu())
        return self.o(stream)


class Gated(nn.Module):
    """A gated linear unit."""

    def __init__(self) -> None:
        super().__init__()
        self.h, self.o = nn.Linear(12, 16), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.o(nn.functional.glu(self.h(x)))


class Mixer(nn.Module):
    """Tokens are mixed by a hidden layer of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.tokens, self.back = nn.Linear(3, 6), nn.Linear(4, 7), nn.Linear(7, 4)
        self.o = nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.embed(x.reshape(-1, 4, 3)).relu()
        mixed = self.back(self.tokens(tokens.transpose(1, 2)).relu()).transpose(1, 2)
        return self.o((tokens + mixed).mean(1))


class Attention(nn.Module):
    """`nn.MultiheadAttention` on four tokens."""

    def __init__(self, heads: int = 2) -> None:
        super().__init__()
        self.embed, self.attention = nn.Linear(3, 8), nn.MultiheadAttention(8, heads, batch_first=True)
        self.o = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.embed(x.reshape(-1, 4, 3))
        return self.o(self.attention(tokens, tokens, tokens, need_weights=False)[0].mean(1))


class GroupedAttention(nn.Module):
    """Four query heads on four tokens, in groups with one key and value head each."""

    def __init__(self, groups: int = 2) -> None:
        super().__init__()
        self.embed, self.o, width = nn.Linear(3, 8), nn.Linear(8, 5), 3 * groups
        self.q, self.k, self.v, self.back = (
            nn.Linear(8, 12),
            nn.Linear(8, width),
            nn.Linear(8, width),
            nn.Linear(12, 8),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.embed(x.reshape(-1, 4, 3))
        heads = [part(tokens).unflatten(-1, (-1, 3)).transpose(1, 2) for part in (self.q, self.k, self.v)]
        mixed = nn.functional.scaled_dot_product_attention(*heads, enable_gqa=True)
        return self.o((tokens + self.back(mixed.transpose(1, 2).flatten(2))).mean(1))


class Encoder(nn.Module):
    """torch's own transformer on four tokens of three numbers, with its packed attention, and its mean as logits."""

    def __init__(self, norm_first: bool, batch_first: bool = True, depth: int = 1) -> None:
        super().__init__()
        self.batch_first = batch_first
        layer = nn.TransformerEncoderLayer(8, 2, 12, norm_first=norm_first, batch_first=batch_first)
        self.embed, self.head = nn.Linear(3, 8), nn.Linear(8, 5)
        self.blocks = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.embed(x.unflatten(1, (4, 3)))
        h = self.blocks(h) if self.batch_first else self.blocks(h.transpose(0, 1)).transpose(0, 1)
        return self.head(h).mean(1)


class CrossAttention(nn.Module):
    """One token attends to four that are read from another stream."""

    def __init__(self) -> None:
        super().__init__()
        self.ask, self.embed, self.head = nn.Linear(12, 8), nn.Linear(3, 6), nn.Linear(8, 5)
        self.attention = nn.MultiheadAttention(8, 2, kdim=6, vdim=6, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        asked, told = self.ask(x)[:, None], self.embed(x.unflatten(1, (4, 3)))
        return self.head(asked + self.attention(asked, told, told)[0])[:, 0]


class Masked(nn.Module):
    """A buffer holds -inf."""

    def __init__(self) -> None:
        super().__init__()
        self.h, self.o = nn.Linear(12, 9), nn.Linear(9, 5)
        self.register_buffer("mask", torch.triu(torch.full((4, 4), float("-inf")), 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights = (x.reshape(-1, 4, 3) @ x.reshape(-1, 4, 3).mT + self.mask).softmax(-1)
        return self.o(self.h((weights @ x.reshape(-1, 4, 3)).flatten(1)).relu())


def chain(*parts: nn.Module) -> nn.Module:
    return nn.Sequential(*parts)


def dense(activation: type[nn.Module], **options: float) -> nn.Module:
    return chain(nn.Linear(12, 10), activation(**options), nn.Linear(10, 8), activation(**options), nn.Linear(8, 5))


def pictures(*parts: nn.Module, width: int = 6, size: int = 4) -> nn.Module:
    return chain(nn.Unflatten(1, (3, 2, 2)), *parts, nn.Flatten(), nn.Linear(width * size, 5))


NORMS = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)
ACTIVATIONS = {
    "relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU, "silu": nn.SiLU, "sigmoid": nn.Sigmoid, "elu": nn.ELU,
    "softplus": nn.Softplus, "leaky": nn.LeakyReLU, "hardswish": nn.Hardswish, "mish": nn.Mish, "selu": nn.SELU,
    "celu": nn.CELU, "softsign": nn.Softsign, "relu6": nn.ReLU6, "hardtanh": nn.Hardtanh, "logsigmoid": nn.LogSigmoid,
    "identity": nn.Identity, "prelu": nn.PReLU, "hardsigmoid": nn.Hardsigmoid, "tanhshrink": nn.Tanhshrink,
}  # fmt: skip

MODULES = {f"dense-{name}": (lambda kind=kind: dense(kind)) for name, kind in ACTIVATIONS.items()}
MODULES |= {
    "one-layer": lambda: chain(nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 5)),
    "no-bias": lambda: chain(nn.Linear(12, 9, bias=False), nn.ReLU(), nn.Linear(9, 5, bias=False)),
    "in-place": lambda: chain(nn.Linear(12, 9), nn.ReLU(inplace=True), nn.Linear(9, 5)),
    "as-wide-as-classes": lambda: chain(nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 5)),
    "deep": lambda: chain(*[p for _ in range(11) for p in (nn.Linear(12, 12), nn.ReLU())], nn.Linear(12, 5)),
    "bottleneck": lambda: chain(nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 3), nn.Linear(3, 5)),
    "one-logit": lambda: chain(nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 1)),
    "dropout": lambda: chain(nn.Linear(12, 9), nn.ReLU(), nn.Dropout(0.5), nn.Linear(9, 5)),
    "dead-units": lambda: _dead(chain(nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 5))),
    "twin-units": lambda: _twins(chain(nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 5))),
    "loop": Loop, "shared-readout": SharedReadout, "wide-and-deep": WideAndDeep, "two-heads": TwoHeads, "skip": Skip,
    "softmax-behind": lambda: Behind("softmax"), "temperature-behind": lambda: Behind("temperature"),
    "log-softmax-behind": lambda: Behind("log-softmax"), "residual": lambda: Residual(False),
    "residual-norm": lambda: Residual(True), "glu": Gated, "mixer": Mixer, "attention": Attention,
    "one-head": lambda: Attention(1), "masked": Masked,
    "grouped-attention": GroupedAttention, "shared-attention": lambda: GroupedAttention(1),
    "cross-attention": CrossAttention,
    "encoder-norm-first": lambda: Encoder(True, depth=2), "encoder-norm-last": lambda: Encoder(False),
    "encoder-positions-first": lambda: Encoder(True, batch_first=False),
    "layer-norm": lambda: chain(nn.Linear(12, 9), nn.LayerNorm(9), nn.ReLU(), nn.Linear(9, 5)),
    "batch-norm": lambda: chain(nn.Linear(12, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, 5)),
    "batch-norm-first": lambda: chain(nn.BatchNorm1d(12), nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 5)),
    "plain-batch-norm": lambda: chain(nn.Linear(12, 9), nn.BatchNorm1d(9, affine=False), nn.ReLU(), nn.Linear(9, 5)),
    "group-norm": lambda: pictures(nn.Conv2d(3, 6, 1), nn.GroupNorm(3, 6), nn.ReLU()),
    "weight-norm": lambda: chain(
        nn.utils.parametrizations.weight_norm(nn.Linear(12, 9)), nn.ReLU(), nn.Linear(9, 5)
    ),
    "conv": lambda: pictures(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU()),
    "conv-batch-norm": lambda: pictures(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU()),
    "two-convs": lambda: pictures(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 6, 1), nn.Tanh()),
    "grouped-conv": lambda: pictures(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 6, 1, groups=3), nn.ReLU()),
    "depthwise-conv": lambda: pictures(
        nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.ReLU()
    ),
    "average-pool": lambda: pictures(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), size=1),
    "max-pool": lambda: pictures(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), size=1),
    "pooled-logits": lambda: chain(nn.Unflatten(1, (3, 2, 2)), nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 5, 1),
                                   nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    "pixel-shuffle": lambda: chain(nn.Unflatten(1, (3, 2, 2)), nn.Conv2d(3, 8, 1), nn.ReLU(), nn.PixelShuffle(2),
                                   nn.Flatten(), nn.Linear(32, 5)),
    "dilated-conv1d": lambda: chain(nn.Unflatten(1, (3, 4)), nn.Conv1d(3, 6, 3, padding=2, dilation=2), nn.ReLU(),
                                    nn.Flatten(), nn.Linear(24, 5)),
    "per-position": lambda: chain(
        nn.Unflatten(1, (3, 4)), nn.Conv1d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv1d(6, 5, 1)
    ),
    "tokens-out": lambda: chain(nn.Unflatten(1, (4, 3)), nn.Linear(3, 7), nn.GELU(), nn.Linear(7, 5)),
    "transposed-conv": lambda: pictures(nn.ConvTranspose2d(3, 6, 1), nn.ReLU()),
    "gru": lambda: _Recurrent(),
}  # fmt: skip


class _Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.h, self.gru, self.o = nn.Linear(3, 6), nn.GRU(6, 7, batch_first=True), nn.Linear(7, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.o(self.gru(self.h(x.reshape(-1, 4, 3)).relu())[0][:, -1])


def _dead(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        module[0].bias[:3] = -50.0  # type: ignore[index,union-attr]
    return module


def _twins(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        module[0].weight[1], module[0].bias[1] = module[0].weight[0], module[0].bias[0]  # type: ignore[index,union-attr]
    return module


def shaken(name: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Module:
    """A module with random weights, gains and statistics, in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = MODULES[name]()
        with torch.no_grad():
            for part in module.modules():
                if isinstance(part, NORMS) and part.weight is not None:
                    part.weight.add_(0.3 * torch.randn_like(part.weight))
                    part.bias.add_(0.3 * torch.randn_like(part.bias))
                if isinstance(part, nn.modules.batchnorm._BatchNorm):
                    part.running_mean.add_(0.3 * torch.randn_like(part.running_mean))
                    part.running_var.mul_(torch.rand_like(part.running_var) + 0.5)
    return module.to(dtype).eval()
