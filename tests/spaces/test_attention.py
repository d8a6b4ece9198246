"""`nn.MultiheadAttention` taken apart computes the same, and comes back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from featalign.errors import SpaceMismatch
from featalign.spaces import canonical
from featalign.spaces.apart import packed, separated
from featalign.spaces.attention import SeparateAttention, layer_by_layer


def attention(**options: Any) -> nn.MultiheadAttention:
    torch.manual_seed(0)
    module = nn.MultiheadAttention(12, 3, **options).eval()
    for parameter in module.parameters():
        nn.init.normal_(parameter, 0, 0.3)
    return module


def arguments(module: nn.MultiheadAttention) -> list[torch.Tensor]:
    """Queries of five positions, keys and values of four."""
    parts = [torch.randn(2, 5, 12), torch.randn(2, 4, module.kdim), torch.randn(2, 4, module.vdim)]
    return parts if module.batch_first else [part.transpose(0, 1) for part in parts]


MASKS = {"none": None, "boolean": torch.rand(5, 4) > 0.7, "by-head": torch.randn(6, 5, 4)}
PADDING = torch.tensor([[False, False, False, True], [False] * 4])


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(
    "options", [{}, {"kdim": 6, "vdim": 7}, {"bias": False}], ids=["own", "other-widths", "no-bias"]
)
@pytest.mark.parametrize("batch_first", [True, False])
def test_it_computes_what_torch_computes(batch_first: bool, options: dict[str, Any], mask: str) -> None:
    module = attention(batch_first=batch_first, **options)
    apart, given = separated(module), arguments(module)
    hidden = MASKS[mask] if mask != "boolean" else MASKS[mask].clone().index_fill_(1, torch.tensor([0]), False)  # type: ignore[union-attr]
    for padding in (None, PADDING):
        for told in ({"need_weights": False}, {"average_attn_weights": True}, {"average_attn_weights": False}):
            with layer_by_layer(), torch.no_grad():
                want = module(*given, key_padding_mask=padding, attn_mask=hidden, **told)
                found = apart(*given, key_padding_mask=padding, attn_mask=hidden, **told)
            assert torch.allclose(found[0], want[0], atol=1e-5)
            assert (found[1] is None) == (want[1] is None)
            assert want[1] is None or torch.allclose(found[1], want[1], atol=1e-5)
    single = [part.select(0 if batch_first else 1, 0) for part in given]
    for one, other in zip(module(*single), apart(*single)):
        assert one.shape == other.shape and torch.allclose(one, other, atol=1e-5)
    back = packed(apart, module)
    assert all(torch.equal(tensor, back.state_dict()[key]) for key, tensor in module.state_dict().items())


def test_a_module_that_is_used_twice_stays_one() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = self.second = attention(batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(*[self.first(x, x, x)[0]] * 3)[0]  # type: ignore[no-any-return]

    module, x = Twice(), torch.randn(2, 5, 12)
    apart: Any = separated(module)
    assert apart.first is apart.second and isinstance(apart.first, SeparateAttention)
    assert torch.allclose(apart(x), module(x), atol=1e-5)
    assert packed(apart, module).state_dict().keys() == module.state_dict().keys()


def test_a_network_that_reads_the_packed_weight_itself_stays_as_it_is() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = attention(batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.attention.in_proj_weight.T

    module = Own()
    found = canonical(module, torch.randn(2, 5, 12))
    assert found.module is module and "not taken apart" in found.notes[0]


def test_heads_that_do_not_fill_the_stream_are_refused() -> None:
    module = nn.Sequential(attention(batch_first=True))
    apart: Any = separated(module)
    apart[0].out_proj = nn.Linear(12, 24)
    with pytest.raises(SpaceMismatch, match=r"'0.out_proj.weight' would be \[24, 12\]"):
        packed(apart, module)


def test_learned_keys_stay() -> None:
    module = attention(add_bias_kv=True)
    assert separated(module) is module
