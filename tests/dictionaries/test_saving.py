"""Saved dictionaries come back as they were, and nothing of it needs sae-lens."""

import subprocess
import sys
import warnings

import pytest
import torch

from featalign import dictionaries as fd
from featalign.dictionaries.store import cached_dictionaries
from featalign.errors import FolderExists
from featalign.spaces import trace
from featalign.storage import CacheWarning

NAMES = ("topk", "batchtopk", "relu", "jumprelu", "gated", "matryoshka", "transcoder")


@pytest.mark.parametrize("name", NAMES)
def test_round_trip(name, tmp_path):
    torch.manual_seed(0)
    x = torch.randn(600, 12) @ torch.randn(12, 16)
    found = fd.train(x, 32, name, 3, steps=60, metadata={"client": "A", "space": "fc1"})
    found.save(tmp_path / "d")
    back = fd.load(tmp_path / "d")
    assert back.architecture == name and back.quality == found.quality and back.metadata["client"] == "A"
    assert back.k == found.k and back.reads == found.reads and back.name == found.name
    assert torch.equal(back.encode(x), found.encode(x))
    assert list(back.history.columns) == list(found.history.columns)
    with pytest.raises(FolderExists):
        found.save(tmp_path / "d")


def test_training_and_saving_do_not_import_sae_lens():
    code = (
        "import sys, torch, tempfile; from featalign import dictionaries as d; "
        "f = d.train(torch.randn(400, 8), steps=3); f.save(p := tempfile.mkdtemp() + '/x'); d.load(p); "
        "assert 'sae_lens' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_damaged_cached_dictionary_is_trained_again_with_a_warning(tmp_path, monkeypatch):
    monkeypatch.setenv("FEATALIGN_CACHE", str(tmp_path))
    network = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)).eval()
    inputs = torch.randn(600, 6, generator=torch.Generator().manual_seed(0))
    graph = trace(network, inputs[:2])

    def found():
        return cached_dictionaries([network], [graph], [inputs], ["A"], "topk", keys=["a"])["0"][0]

    first = found()
    weights = next(tmp_path.rglob("sae_weights.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1  # one bit of one weight
    weights.write_bytes(content)
    with pytest.warns(CacheWarning, match="built again"):
        again = found()
    assert torch.equal(first.W_dec, again.W_dec)
    with warnings.catch_warnings():
        warnings.simplefilter("error", CacheWarning)
        assert torch.equal(found().W_dec, first.W_dec)
