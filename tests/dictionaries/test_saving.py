"""Saved dictionaries come back as they were, and nothing of it needs sae-lens."""

import subprocess
import sys

import pytest
import torch

from featalign import dictionaries as fd
from featalign.errors import FolderExists

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
