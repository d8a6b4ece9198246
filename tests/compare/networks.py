"""Networks that people bring, tiny: `NETWORKS[name]() -> Case`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from featalign.clients import Conv1dConfig, EncoderConfig, MLPConfig, build

TEXT: dict[str, Any] = {"vocab_size": 40, "max_position_embeddings": 16, "bos_token_id": 0, "eos_token_id": 0}
SIZES: dict[str, Any] = {
    "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 30
}  # fmt: skip
GPT2: dict[str, Any] = {"n_embd": 24, "n_layer": 2, "n_head": 4, "n_positions": 16, "vocab_size": 40,
                        "bos_token_id": 0, "eos_token_id": 0}  # fmt: skip


@dataclass
class Case:
    """A network with what is said about it.

    Attributes:
        make: two calls with different seeds give two clients.
        probe, evaluate, task: as `Cohort.of` takes them; `expected` is the name of the task that is found.
    """

    make: Callable[[int], nn.Module]
    probe: Any
    evaluate: Any = None
    task: str | None = None
    expected: str = "classification"


def draw(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tokens(count: int = 24, length: int = 7, vocabulary: int = 40) -> torch.Tensor:
    return torch.randint(1, vocabulary, (count, length), generator=torch.Generator().manual_seed(2))


def padded() -> dict[str, torch.Tensor]:
    """Tokens with their mask, a third of them padded at the end."""
    mask = torch.ones(24, 7, dtype=torch.long)
    mask[::3, 5:] = 0
    return {"input_ids": tokens(), "attention_mask": mask}


def shaken(module: nn.Module, seed: int) -> nn.Module:
    """Gains, biases and weights away from their initial values."""
    generator = torch.Generator().manual_seed(seed + 5)
    with torch.no_grad():
        for parameter in module.parameters():
            scale = 0.1 if parameter.dim() == 1 else 0.05
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def hugging_face(model: str, config: str, **options: Any) -> Callable[[int], nn.Module]:
    def make(seed: int = 0) -> nn.Module:
        import transformers

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            made = getattr(transformers, model)(getattr(transformers, config)(**options))
        return shaken(made, seed)

    return make


def hooked(seed: int = 0) -> nn.Module:
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    config = HookedTransformerConfig(
        n_layers=2, d_model=24, n_ctx=12, d_head=6, n_heads=4, d_mlp=30, d_vocab=40, act_fn="gelu",
        normalization_type="LN", device="cpu", seed=seed,
    )  # fmt: skip
    return shaken(HookedTransformer(config), seed)


def bridge(seed: int = 0) -> nn.Module:
    """`TransformerBridge` booted from a local folder."""
    from tokenizers import Tokenizer, models
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedTokenizerFast

    folder = tempfile.mkdtemp()
    hugging_face("GPT2LMHeadModel", "GPT2Config", **GPT2)(seed).save_pretrained(folder)  # type: ignore[operator]
    vocabulary = Tokenizer(models.WordLevel({f"w{k}": k for k in range(40)}, unk_token="w0"))
    special = {"eos_token": "w0", "bos_token": "w0", "pad_token": "w0"}
    PreTrainedTokenizerFast(tokenizer_object=vocabulary, **special).save_pretrained(folder)
    return TransformerBridge.boot_transformers(folder, device="cpu").eval()


def family(config: Any) -> Callable[[int], nn.Module]:
    return lambda seed=0: shaken(build(config, seed), seed)


def regressor(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(12, 9), nn.Tanh(), nn.Linear(9, 6), nn.ReLU(), nn.Linear(6, 2)).eval()


labels = torch.arange(24) % 3
pictures, sequences, rows = draw(24, 3, 8, 8), draw(16, 4, 20), draw(64, 12)
NETWORKS: dict[str, Callable[[], Case]] = {
    "hooked-transformer": lambda: Case(hooked, tokens(), expected="next-token"),
    "gpt2": lambda: Case(hugging_face("GPT2LMHeadModel", "GPT2Config", **GPT2), padded(), expected="next-token"),
    "gpt2-labels": lambda: Case(
        hugging_face("GPT2ForSequenceClassification", "GPT2Config", num_labels=3, pad_token_id=0, **GPT2),
        padded(), (padded(), labels),
    ),
    "llama": lambda: Case(
        hugging_face("LlamaForCausalLM", "LlamaConfig", num_key_value_heads=2, **SIZES, **TEXT),
        padded(), expected="next-token",
    ),
    "bert-labels": lambda: Case(
        hugging_face("BertForSequenceClassification", "BertConfig", num_labels=3, **SIZES, **TEXT),
        padded(), (padded(), labels),
    ),
    "bert-masked": lambda: Case(
        hugging_face("BertForMaskedLM", "BertConfig", **SIZES, **TEXT),
        padded(), (padded(), tokens().where(tokens() % 5 == 0, -100)), "classification",
    ),
    "vit": lambda: Case(
        hugging_face("ViTForImageClassification", "ViTConfig", image_size=8, patch_size=4, num_labels=3, **SIZES),
        {"pixel_values": pictures}, ({"pixel_values": pictures}, labels),
    ),
    "torch-encoder": lambda: Case(
        family(EncoderConfig(size=8, channels=3, width=16, heads=2, hidden=24, outputs=3)), pictures, (pictures, labels)
    ),
    "conv1d": lambda: Case(
        family(Conv1dConfig(width=8, kernels=(3, 3), dilations=(1, 2), blocks=1)),
        sequences, (sequences, torch.randint(0, 3, (16, 20), generator=torch.Generator().manual_seed(0))),
    ),
    "regressor": lambda: Case(regressor, rows, (rows, draw(64, 2, seed=3)), expected="regression"),
    "one-logit": lambda: Case(family(MLPConfig(12, (9, 6), 1, bias=True)), rows, (rows, torch.arange(64) % 2)),
}  # fmt: skip
