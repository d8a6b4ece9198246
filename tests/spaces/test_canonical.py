"""Canonical form: norms folded, the function unchanged, rotations admissible, and back into the layout that came in."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from featalign.errors import SpaceMismatch
from featalign.spaces import Symmetry, canonical, check, moved, rebuilt, trace
from featalign.spaces.capture import outputs_of
from featalign.spaces.check import output_change, random_transform
from tests.spaces.zoo import ZOO, shake


def lens(kind: str, parallel: bool = False) -> tuple[nn.Module, Any]:
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    config = HookedTransformerConfig(
        n_layers=2, d_model=24, n_ctx=12, d_head=8, n_heads=3, d_mlp=30, d_vocab=40, act_fn="gelu",
        normalization_type=kind, parallel_attn_mlp=parallel, device="cpu", seed=0,
    )  # fmt: skip
    return HookedTransformer(config), torch.randint(0, 40, (2, 7))


class PlainRMS(nn.Module):
    """torch's RMSNorm with trained gains, read by Linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(40, 20)
        self.norms = nn.ModuleList(nn.RMSNorm(20) for _ in range(2))
        self.up, self.down, self.head = nn.Linear(20, 30), nn.Linear(30, 20), nn.Linear(20, 5)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        x = x + self.down(self.up(self.norms[0](x)).relu())
        return self.head(self.norms[1](x).mean(1))


def packed_attention(norm_first: bool) -> tuple[nn.Module, Any]:
    """torch's own encoder, whose attention keeps queries, keys and values in one parameter."""
    layer = nn.TransformerEncoderLayer(20, 4, 30, batch_first=True, norm_first=norm_first)
    blocks = nn.TransformerEncoder(layer, 2, nn.LayerNorm(20), enable_nested_tensor=False)
    return nn.Sequential(nn.Embedding(40, 20), blocks, nn.Linear(20, 5)), torch.randint(0, 40, (2, 6))


BUILDERS: dict[str, Any] = {
    **{name: ZOO[name] for name in ("vit", "decoder", "hf-gpt2", "hf-llama", "hf-llama-tied", "hf-qwen2", "hf-vit")},
    "hf-neox": ZOO["hf-neox"],
    "packed-attention": lambda: packed_attention(True),
    "lens": lambda: lens("LN"),
    "lens-parallel": lambda: lens("LN", True),
    "lens-pre": lambda: lens("LNPre"),
    "lens-rms": lambda: lens("RMS"),
    "torch-rms": lambda: (PlainRMS(), torch.randint(0, 40, (2, 6))),
}


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", BUILDERS)
def test_folding_keeps_the_function_and_frees_rotations(name: str, seed: int) -> None:
    torch.manual_seed(seed)
    module, example = BUILDERS[name]()
    reference = outputs_of(shake(module), example)
    state = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    found = canonical(module, example)
    assert found.folded and not any("not folded" in note for note in found.notes)
    assert output_change(reference, outputs_of(found.module, example)) < 1e-4
    assert all(torch.equal(tensor, state[key]) for key, tensor in module.state_dict().items())
    graph = trace(found.module, example)
    streams = [space for space in graph.hidden if any(site.module in found.folded for site in space.sites)]
    assert streams and all(space.symmetry in (Symmetry.ORTHOGONAL, Symmetry.LINEAR) for space in streams)
    check(graph, found.module, example)


@pytest.mark.parametrize("name", BUILDERS)
def test_rotated_networks_come_back_in_their_layout(name: str) -> None:
    torch.manual_seed(0)
    module, example = BUILDERS[name]()
    reference = outputs_of(shake(module), example)
    found = canonical(module, example)
    graph = trace(found.module, example)
    generator = torch.Generator().manual_seed(1)
    maps = {s.name: random_transform(s.size, s.symmetry, generator) for s in graph.hidden if s.name in ("embed", "wte")
            or any(site.module in found.folded for site in s.sites)}  # fmt: skip
    turned = rebuilt(found.module, moved(found.module, graph, maps))
    back = found.restore(turned.state_dict())
    assert type(back) is type(module)
    assert output_change(reference, outputs_of(back, example)) < 1e-3
    keys, own = set(back.state_dict()), set(module.state_dict())
    assert keys == own
    for name_, part in back.named_modules():
        if isinstance(part, nn.LayerNorm) and name_ in found.folded:
            assert torch.equal(part.weight, torch.ones_like(part.weight))


def test_what_a_layer_norm_cannot_hold_is_said() -> None:
    torch.manual_seed(0)
    module, example = ZOO["decoder"]()
    found = canonical(shake(module), example)
    state = found.module.state_dict()
    weights = {name for name, _ in found.module.named_parameters()}
    full = {name: t + 0.1 * torch.randn_like(t) if name in weights else t for name, t in state.items()}
    with pytest.raises(SpaceMismatch, match="in every direction"):
        found.restore(full)


@pytest.mark.parametrize("name", ["hf-bert", "hf-clip-vision", "mlp", "resnet20-layer"])
def test_what_cannot_be_folded_is_left_alone(name: str) -> None:
    torch.manual_seed(0)
    module, example = ZOO[name]()
    found = canonical(shake(module), example)
    assert found.module is module and not found.folded and found.restore(module) is module
    assert name in ("mlp", "resnet20-layer") or any("not folded" in note for note in found.notes)


@pytest.mark.parametrize("name", ["gated-tied", "torch-encoder"])
def test_norms_that_stay_leave_attention_taken_apart(name: str) -> None:
    torch.manual_seed(0)
    module, example = ZOO[name]()
    found = canonical(shake(module), example)
    back = found.restore(found.module)
    assert not found.folded and any("not folded" in note for note in found.notes)
    assert type(back) is type(module)
    assert all(torch.equal(tensor, back.state_dict()[key]) for key, tensor in module.state_dict().items())
    assert not any(isinstance(part, nn.MultiheadAttention) for part in found.module.modules())


def random_network(kind: str, seed: int) -> tuple[nn.Module, Any]:
    """A transformer of `transformers` or TransformerLens of random sizes."""
    import random

    import transformers

    draw = random.Random(seed)
    heads, layers = draw.choice([1, 2, 4]), draw.randint(1, 3)
    width, hidden, words = heads * draw.choice([4, 6, 8]), draw.randint(10, 40), draw.randint(20, 50)
    tokens = {"vocab_size": words, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    sizes = {
        "hidden_size": width,
        "intermediate_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
    }
    ids = torch.randint(0, words, (2, draw.randint(3, 7)))
    if kind == "gpt2":
        config: Any = transformers.GPT2Config(
            n_embd=width, n_layer=layers, n_head=heads, n_inner=hidden, n_positions=16, activation_function="gelu",
            tie_word_embeddings=draw.random() < 0.5, vocab_size=words, bos_token_id=0, eos_token_id=0,
        )  # fmt: skip
        return transformers.GPT2LMHeadModel(config), ids
    if kind == "llama":
        groups = draw.choice([k for k in (1, 2, 4) if heads % k == 0])
        config = transformers.LlamaConfig(
            num_key_value_heads=groups, tie_word_embeddings=draw.random() < 0.5, attention_bias=draw.random() < 0.5,
            max_position_embeddings=16, **sizes, **tokens,
        )  # fmt: skip
        return transformers.LlamaForCausalLM(config), ids
    if kind == "gemma":
        config = transformers.GemmaConfig(
            head_dim=4, num_key_value_heads=1, max_position_embeddings=16, **sizes, **tokens
        )
        return transformers.GemmaForCausalLM(config), ids
    config = transformers.ViTConfig(
        image_size=16, patch_size=draw.choice([4, 8]), num_labels=draw.randint(2, 5), **sizes
    )
    return transformers.ViTForImageClassification(config), torch.randn(2, 3, 16, 16)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma", "vit"])
def test_random_networks_fold_and_come_back(kind: str, seed: int) -> None:
    torch.manual_seed(seed)
    module, example = random_network(kind, seed)
    reference = outputs_of(shake(module), example)
    found = canonical(module, example)
    assert found.folded and not any("not folded" in note for note in found.notes)
    assert output_change(reference, outputs_of(found.module, example)) < 1e-4
    back = found.restore(found.module.state_dict())
    assert output_change(reference, outputs_of(back, example)) < 1e-4
    assert set(back.state_dict()) == set(module.state_dict())
