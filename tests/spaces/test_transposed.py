"""A transposed convolution as a plain one computes the same, comes back, and can be fused."""

from typing import Any

import pytest
import torch
from torch import nn

from featalign.spaces import trace
from featalign.spaces.apart import packed, separated
from featalign.spaces.canonical import canonical
from featalign.spaces.transposed import SpreadConvolution

SETTINGS: list[dict[str, Any]] = [
    {"kernel_size": 1},
    {"kernel_size": 2, "stride": 2},
    {"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1},
    {"kernel_size": 4, "stride": 2, "padding": 1, "groups": 2},
    {"kernel_size": 3, "padding": 3, "dilation": 2, "bias": False},
    {"kernel_size": (3, 1), "stride": (1, 3), "groups": 4},
]


@pytest.mark.parametrize("options", SETTINGS, ids=str)
def test_it_computes_what_torch_computes(options: dict[str, Any]) -> None:
    kinds: dict[int, Any] = {2: nn.ConvTranspose2d}
    if not isinstance(options["kernel_size"], tuple):
        kinds[1] = nn.ConvTranspose1d
    for dims, kind in kinds.items():
        module = kind(8, 12, **options)
        apart, x = separated(module), torch.randn(3, 8, *(5, 7)[:dims])
        assert isinstance(apart, SpreadConvolution)
        with torch.no_grad():
            assert torch.allclose(apart(x), module(x), atol=1e-5)
            assert torch.allclose(apart(x[0]), module(x[0]), atol=1e-5)
            size = [length + 1 for length in module(x).shape[2:]]
            if options.get("stride") == 2 and not options.get("output_padding"):
                assert torch.allclose(apart(x, size), module(x, size), atol=1e-5)
        back = packed(apart, module).state_dict()
        assert all(torch.equal(tensor, back[key]) for key, tensor in module.state_dict().items())


def test_what_it_reads_and_writes_is_seen_and_widths_may_change() -> None:
    def network(first: int, second: int) -> nn.Module:
        up = nn.ConvTranspose2d(first, second, 2, stride=2)
        return nn.Sequential(nn.Conv2d(3, first, 3), nn.ReLU(), up, nn.ReLU(), nn.Conv2d(second, 2, 1)).eval()

    module = network(6, 5)
    x = torch.randn(2, 3, 6, 6)
    found = canonical(module, x)
    graph = trace(found.module, x)
    assert not graph.warnings and [space.size for space in graph.hidden] == [6, 5]
    assert [layer.module for layer in graph.layers] == ["0", "2.conv", "4"]
    wide = separated(network(9, 7))
    back: Any = found.restore(wide)
    assert (back[2].in_channels, back[2].out_channels) == (9, 7)
    assert torch.allclose(back(x), wide(x), atol=1e-5)


def test_a_subclass_stays() -> None:
    class Own(nn.ConvTranspose2d):
        pass

    module = nn.Sequential(Own(3, 2, 1))
    assert separated(module) is module
