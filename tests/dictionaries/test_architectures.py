"""An architecture is one class: one from outside trains, saves, reloads and encodes."""

import pytest
import torch

from featalign import dictionaries as fd
from featalign.bench.sae import planted
from featalign.errors import DictionaryError, UnknownName


@pytest.fixture
def mine():
    @fd.architecture("mine")
    class Shrunk(fd.Architecture):
        """ReLU of pre-activations less one learned threshold per latent."""

        inference = "soft-threshold"
        latents = ("b_enc", "gap", "share")
        unitless = ("share",)
        steered = True

        def parameters(self):
            return {"gap": torch.full((self.stack, self.width), 0.05)}

        def activate(self, pre, params):
            return (pre - params["gap"][:, None]).relu()

        def backward(self, dz, pre, codes, params, grads):
            active = (dz + self.penalty / pre.shape[1]) * (codes > 0)
            grads["gap"] -= active.sum(1)
            return active

        def finish(self, pre, s, params):
            share = (pre() > params["gap"][s]).float().mean(0)
            return {**super().finish(pre, s, params), "gap": params["gap"][s], "share": share}

        @classmethod
        def codes(cls, pre, tensors, k):
            return (pre - tensors["gap"]).relu()

        @classmethod
        def config(cls, tensors, k):
            return {"gaps": "learned"}

    yield Shrunk
    fd.ARCHITECTURES._entries.pop("mine")


def test_an_architecture_from_outside_trains_saves_reloads_and_encodes(mine, tmp_path):
    x = planted(24, 8, 3000, 1.0)[1]
    found = fd.train(x, 32, "mine", 2, steps=400)
    assert found.quality.explained_variance > 0.5 and 0.5 < found.quality.l0 < 6
    assert torch.allclose(found.tensors["share"], (found.encode(x) > 0).float().mean(0), atol=0.02)  # not scaled
    back = fd.load(found.save(tmp_path / "d"))
    assert back.architecture == "mine" and torch.equal(back.encode(x), found.encode(x))
    assert fd.as_basis(back) is back
    assert torch.allclose(found.permuted(torch.arange(31, -1, -1)).encode(x).flip(-1), found.encode(x), atol=1e-6)
    fd.ARCHITECTURES._entries.pop("mine")
    with pytest.raises(DictionaryError, match="'soft-threshold' is not one of gated, jumprelu"):
        fd.load(tmp_path / "d")
    with pytest.raises(UnknownName, match="mine"):
        fd.train(x, 32, "mine")
    fd.ARCHITECTURES._entries["mine"] = mine


def test_a_scaled_and_moved_space_gives_scaled_codes(mine):
    """Every architecture stores tensors in the units of its space: training does not see scale or mean."""
    x = planted(16, 8, 1500, 1.0)[1]
    for name in fd.ARCHITECTURES:
        if name == "transcoder":
            continue
        plain, moved = (fd.train(values, 16, name, 2, steps=30, lr=1e-3) for values in (x, 1024 * x + 512))
        codes, scaled = plain.encode(x), moved.encode(1024 * x + 512) / 1024
        same = (codes - scaled).abs() < 1e-2
        assert float(same.float().mean()) > 0.99, name
