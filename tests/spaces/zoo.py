"""Small networks of many kinds: `ZOO[name]() -> (module, example)`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

ZOO: dict[str, Callable[[], tuple[nn.Module, Any]]] = {}
PICTURES = (2, 3, 32, 32)


def entry(build: Callable[[], tuple[nn.Module, Any]]) -> Callable[[], tuple[nn.Module, Any]]:
    ZOO[build.__name__.replace("_", "-")] = build
    return build


def tokens(vocabulary: int = 40, length: int = 7) -> torch.Tensor:
    return torch.randint(0, vocabulary, (2, length))


@entry
def mlp() -> tuple[nn.Module, Any]:
    from featalign.clients import MLPConfig

    return MLPConfig(16, (12, 9), 3, bias=True).module(), torch.randn(4, 16)


@entry
def bottleneck() -> tuple[nn.Module, Any]:
    parts = [
        nn.Flatten(),
        nn.Linear(16, 12),
        nn.PReLU(12),
        nn.Linear(12, 5),
        nn.Linear(5, 12),
        nn.Tanh(),
        nn.Linear(12, 3),
    ]
    return nn.Sequential(*parts), torch.randn(4, 4, 4)


@entry
def vgg11() -> tuple[nn.Module, Any]:
    from featalign.clients.families.vgg import VGGConfig

    return VGGConfig(width=1 / 16).module(), torch.randn(PICTURES)


@entry
def vgg11_batch_norm() -> tuple[nn.Module, Any]:
    from featalign.clients.families.vgg import VGGConfig

    return VGGConfig(width=1 / 16, batch_norm=True, size=16).module(), torch.randn(2, 3, 16, 16)


def _resnet(norm: str) -> tuple[nn.Module, Any]:
    from featalign.clients.families.resnet import ResNet20Config

    return ResNet20Config(width=0.5, norm=norm).module(), torch.randn(2, 3, 16, 16)


@entry
def resnet20_batch() -> tuple[nn.Module, Any]:
    return _resnet("batch")


@entry
def resnet20_layer() -> tuple[nn.Module, Any]:
    return _resnet("layer")


@entry
def resnet20_none() -> tuple[nn.Module, Any]:
    return _resnet("none")


@entry
def resnet18() -> tuple[nn.Module, Any]:
    from featalign.clients.families.resnet import ResNet18Config

    return ResNet18Config(width=0.125).module(), torch.randn(2, 3, 16, 16)


@entry
def vit() -> tuple[nn.Module, Any]:
    from featalign.clients.families.vit import ViTConfig

    return ViTConfig(width=24, depth=2, heads=3, hidden=30, size=16).module(), torch.randn(2, 3, 16, 16)


@entry
def decoder() -> tuple[nn.Module, Any]:
    from featalign.clients.families.decoder import DecoderConfig

    return DecoderConfig(vocabulary=40, width=24, heads=3, hidden=30, context=12).module(), tokens()


class Mixed(nn.Module):
    """What the others lack: 1d convolutions with groups and dilation, GroupNorm, gates, chunks, concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(4, 12, 3, padding=2, dilation=2)
        self.norm = nn.GroupNorm(3, 12)
        self.depthwise = nn.Conv1d(12, 24, 3, padding=1, groups=12)
        self.grouped = nn.Conv1d(24, 18, 1, groups=3)
        self.batch = nn.BatchNorm1d(18)
        self.up = nn.ConvTranspose1d(9, 6, 2, stride=2)
        self.head = nn.Linear(6 + 18, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.silu(self.norm(self.first(x)))
        x = self.batch(self.grouped(self.depthwise(x).relu_()))
        value, gate = x.chunk(2, 1)
        up = self.up(value * gate.sigmoid())
        joined = torch.cat([up.mean(-1), F.adaptive_max_pool1d(x, 1).flatten(1)], 1)
        return self.head(F.leaky_relu(joined))


@entry
def mixed_convolutions() -> tuple[nn.Module, Any]:
    return Mixed(), torch.randn(2, 4, 10)


class Gated(nn.Module):
    """RMSNorm, MultiheadAttention with packed projections, SwiGLU; a rotation of the stream is admissible."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(40, 20)
        self.attention = nn.MultiheadAttention(20, 4, batch_first=True)
        self.norms = nn.ModuleList(nn.RMSNorm(20) for _ in range(3))
        self.gate, self.value, self.down = nn.Linear(20, 30), nn.Linear(20, 30), nn.Linear(30, 20)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        y = self.norms[0](x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        y = self.norms[1](x)
        x = x + self.down(F.silu(self.gate(y)) * self.value(y))
        return F.linear(self.norms[2](x), self.embed.weight)


@entry
def gated_tied() -> tuple[nn.Module, Any]:
    return Gated(), tokens()


@entry
def torch_encoder() -> tuple[nn.Module, Any]:
    layer = nn.TransformerEncoderLayer(20, 4, 30, batch_first=True)
    return nn.Sequential(nn.Linear(6, 20), nn.TransformerEncoder(layer, 2), nn.Linear(20, 3)), torch.randn(2, 5, 6)


@entry
def autoencoder() -> tuple[nn.Module, Any]:
    parts = [nn.Conv2d(3, 8, 3, 2, 1), nn.ELU(), nn.Conv2d(8, 12, 3, 2, 1), nn.ReLU6(), nn.ConvTranspose2d(12, 6, 2, 2)]
    parts += [nn.InstanceNorm2d(6, affine=True), nn.Upsample(scale_factor=2), nn.Conv2d(6, 3, 1)]
    return nn.Sequential(*parts), torch.randn(2, 3, 16, 16)


class Loop(nn.Module):
    """A layer that runs several times, its nonlinearity with it."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.again, self.write, self.act = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 3), nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.read(x)
        for _ in range(3):
            hidden = self.act(self.again(hidden))
        return self.write(hidden)


@entry
def loop() -> tuple[nn.Module, Any]:
    return Loop(), torch.randn(4, 5)


class Mixer(nn.Module):
    """Token mixing: units of one layer are read beside the permuted channels of another."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(4, 12), nn.Linear(12, 3)
        self.tokens_in, self.tokens_out = nn.Linear(6, 10), nn.Linear(10, 6)
        self.channels_in, self.channels_out = nn.Linear(12, 20), nn.Linear(20, 12)
        self.norm1, self.norm2 = nn.LayerNorm(12), nn.LayerNorm(12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        x = x + self.tokens_out(F.gelu(self.tokens_in(self.norm1(x).transpose(1, 2)))).transpose(1, 2)
        x = x + self.channels_out(F.gelu(self.channels_in(self.norm2(x))))
        return self.head(x.mean(1))


@entry
def mixer() -> tuple[nn.Module, Any]:
    return Mixer(), torch.randn(3, 6, 4)


class Dilated(nn.Module):
    """Residual dilated convolutions, three outputs per position."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv1d(4, 12, 1), nn.Conv1d(12, 3, 1)
        self.norms = nn.ModuleList(nn.BatchNorm1d(12) for _ in range(3))
        self.layers = nn.ModuleList(nn.Conv1d(12, 12, 3, padding=2**k, dilation=2**k) for k in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for norm, layer in zip(self.norms, self.layers):
            x = x + layer(norm(x).relu())
        return self.head(x)


@entry
def dilated() -> tuple[nn.Module, Any]:
    return Dilated(), torch.randn(2, 4, 20)


@entry
def shuffled_pictures() -> tuple[nn.Module, Any]:
    parts = [nn.Conv2d(3, 16, 3, padding=1), nn.Hardswish(), nn.ChannelShuffle(4), nn.Conv2d(16, 24, 1), nn.GLU(1)]
    parts += [nn.PixelShuffle(2), nn.ReplicationPad2d(1), nn.Conv2d(3, 8, 3), nn.LogSigmoid(), nn.PixelUnshuffle(2)]
    return nn.Sequential(*parts, nn.Conv2d(32, 2, 1)), torch.randn(2, 3, 8, 8)


class TwoHeads(nn.Module):
    """Wide and deep: the input goes past the hidden layers too; two readouts, one of them behind a temperature."""

    def __init__(self) -> None:
        super().__init__()
        self.deep, self.wide = nn.Sequential(nn.Linear(6, 10), nn.Softplus(), nn.Linear(10, 4)), nn.Linear(6, 4)
        self.other, self.temperature = nn.Linear(10, 3), nn.Parameter(torch.tensor(2.0))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        hidden = self.deep[1](self.deep[0](x))
        probabilities = ((self.deep[2](hidden) + self.wide(x)) / self.temperature).softmax(-1)
        return {"probabilities": probabilities, "other": self.other(hidden)}


@entry
def two_heads() -> tuple[nn.Module, Any]:
    return TwoHeads(), torch.randn(4, 6)


@entry
def weight_normed() -> tuple[nn.Module, Any]:
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(5, 8))
    return nn.Sequential(layer, nn.Tanh(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)), torch.randn(4, 5)


_SIZES = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
_VISION = {"image_size": 32, "patch_size": 8, **_SIZES}
_TEXT = {"vocab_size": 40, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
_HUGGING_FACE: dict[str, tuple[str, str, dict[str, Any]]] = {
    "hf-bert": ("BertForSequenceClassification", "BertConfig", {**_SIZES, **_TEXT}),
    "hf-bert-masked": ("BertForMaskedLM", "BertConfig", {**_SIZES, **_TEXT}),
    "hf-gpt2": ("GPT2LMHeadModel", "GPT2Config", {"n_embd": 24, "n_layer": 2, "n_head": 4, "vocab_size": 40}),
    "hf-llama": ("LlamaForCausalLM", "LlamaConfig", {"num_key_value_heads": 2, **_SIZES, **_TEXT}),
    "hf-llama-tied": ("LlamaForCausalLM", "LlamaConfig", {"tie_word_embeddings": True, **_SIZES, **_TEXT}),
    "hf-gemma": ("GemmaForCausalLM", "GemmaConfig", {"num_key_value_heads": 1, "head_dim": 6, **_SIZES, **_TEXT}),
    "hf-bigcode": (
        "GPTBigCodeForCausalLM",
        "GPTBigCodeConfig",
        {"n_embd": 24, "n_layer": 2, "n_head": 4, "n_positions": 16, **_TEXT},
    ),
    "hf-qwen2": ("Qwen2ForCausalLM", "Qwen2Config", {"num_key_value_heads": 2, **_SIZES, **_TEXT}),
    "hf-neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", {**_SIZES, **_TEXT}),
    "hf-distilbert": (
        "DistilBertForSequenceClassification",
        "DistilBertConfig",
        {"dim": 24, "hidden_dim": 40, "n_layers": 2, "n_heads": 4, **_TEXT},
    ),
    "hf-vit": ("ViTForImageClassification", "ViTConfig", _VISION),
    "hf-clip-vision": ("CLIPVisionModelWithProjection", "CLIPVisionConfig", {"projection_dim": 12, **_VISION}),
    "hf-resnet": (
        "ResNetForImageClassification",
        "ResNetConfig",
        {"embedding_size": 8, "hidden_sizes": [8, 12, 16], "depths": [2, 1, 1], "layer_type": "basic"},
    ),
    "hf-resnet-bottleneck": (
        "ResNetForImageClassification",
        "ResNetConfig",
        {"embedding_size": 8, "hidden_sizes": [16, 24], "depths": [2, 1]},
    ),
    "hf-mobilenet": ("MobileNetV2ForImageClassification", "MobileNetV2Config", {"depth_multiplier": 0.25}),
    "hf-convnext": (
        "ConvNextForImageClassification",
        "ConvNextConfig",
        {"hidden_sizes": [8, 12, 16, 20], "depths": [1, 1, 1, 1]},
    ),
}


def _hugging_face(model: str, config: str, options: dict[str, Any]) -> Callable[[], tuple[nn.Module, Any]]:
    def build() -> tuple[nn.Module, Any]:
        import transformers

        made = getattr(transformers, model)(getattr(transformers, config)(**options))
        return made, tokens() if "vocab_size" in options else torch.randn(PICTURES)

    return build


for name, (model, config, options) in _HUGGING_FACE.items():
    ZOO[name] = _hugging_face(model, config, options)


def shake(module: nn.Module) -> nn.Module:
    """Parameters and statistics away from their initial values, so that no basis is special by accident."""
    for parameter in module.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.running_var is not None:
            part.running_mean.normal_()
            part.running_var.uniform_(0.5, 2)
    return module.eval()
