"""Files, checksums, the cache and names."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from featalign import storage
from featalign.errors import CorruptFile

TENSORS = {
    "a": torch.arange(6.0).reshape(2, 3),
    "half": torch.randn(5).bfloat16(),
    "flag": torch.tensor([True, False]),
    "one": torch.tensor(3.0, dtype=torch.float64),
    "none": torch.zeros(0, 4),
}


def test_tensors_and_metadata_come_back(tmp_path):
    path = storage.save_tensors(tmp_path / "a.safetensors", TENSORS, {"who": "me"})
    found = storage.load_tensors(path)
    assert found.keys() == TENSORS.keys()
    assert all(
        torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype for name, tensor in TENSORS.items()
    )
    assert storage.load_metadata(path) == {"who": "me"}


def test_every_flipped_bit_is_found(tmp_path):
    path = storage.save_tensors(tmp_path / "a.safetensors", TENSORS, {"who": "me"})
    whole = path.read_bytes()
    for place in range(8, len(whole)):
        for bit in (0, 3, 7):
            damaged = bytearray(whole)
            damaged[place] ^= 1 << bit
            path.write_bytes(damaged)
            try:
                found = storage.load_tensors(path)
            except CorruptFile as error:
                assert str(path) in str(error)
            else:  # a space of the padded header, or the name of the checksum itself: nothing that is read
                assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items())


def test_a_flipped_weight_is_corrupt(tmp_path):
    path = storage.save_tensors(tmp_path / "a.safetensors", {"a": torch.ones(100)})
    damaged = bytearray(path.read_bytes())
    damaged[-20] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(CorruptFile, match="checksum"):
        storage.load_tensors(path)
    assert torch.isfinite(storage.load_tensors(path, verify=False)["a"]).all()


def test_files_of_other_programs_are_read(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.ones(3)}, tmp_path / "a.safetensors")
    assert torch.equal(storage.load_tensors(tmp_path / "a.safetensors")["a"], torch.ones(3))


@pytest.mark.parametrize("content", [None, b"", b"{", b"\xff\xfe", b"[" * 100_000])
def test_damaged_files_are_named(content, tmp_path):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    for read in (storage.read_json, storage.load_tensors, storage.load_metadata):
        with pytest.raises(CorruptFile, match=r"a\.json") as caught:
            read(path)
        assert len(str(caught.value).splitlines()) == 1


class Counter:
    """A cached value that counts how often it was built."""

    def __init__(self, folder):
        self.folder, self.built = folder, 0

    def get(self):
        return storage.cached(self.folder, self._build, self._load, self._save)

    def _build(self):
        self.built += 1
        return {"w": torch.arange(200.0)}

    def _load(self, folder):
        assert storage.read_json(folder / "facts.json") == {"k": 4}
        return storage.load_tensors(folder / "deep" / "w.safetensors")

    def _save(self, value, folder):
        storage.save_tensors(folder / "deep" / "w.safetensors", value)
        storage.write_json(folder / "facts.json", {"k": 4})


def test_a_cached_value_is_built_once(tmp_path):
    counter = Counter(tmp_path / "cache" / "entry")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(counter.get()["w"], counter.get()["w"])
    assert counter.built == 1


@pytest.mark.parametrize("name", ["deep/w.safetensors", "facts.json", "checksums.json"])
@pytest.mark.parametrize("damage", ["flipped", "missing", "empty"])
def test_a_damaged_entry_is_built_again(name, damage, tmp_path):
    counter = Counter(tmp_path / "entry")
    whole = counter.get()
    path = tmp_path / "entry" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink() if damage == "missing" else path.write_bytes(content if damage == "flipped" else b"")
    with pytest.warns(storage.CacheWarning, match="built again") as caught:
        assert torch.equal(counter.get()["w"], whole["w"])
    assert counter.built == 2 and len(caught) == 1 and len(str(caught[0].message).splitlines()) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        counter.get()
    assert counter.built == 2


def test_entries_without_checksums_are_built_again(tmp_path):
    counter = Counter(tmp_path / "entry")
    counter._save(counter._build(), tmp_path / "entry")
    with pytest.warns(storage.CacheWarning):
        counter.get()
    assert counter.built == 2


def test_a_cache_that_cannot_be_written_is_gone_without(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    counter = Counter(tmp_path / "file" / "cache" / "entry")
    with pytest.warns(storage.CacheWarning, match="going on without the cache"):
        assert len(counter.get()["w"]) == 200

    def full(*_arguments, **_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "open", full)
    counter = Counter(tmp_path / "cache" / "entry")
    with pytest.warns(storage.CacheWarning, match="No space left on device"):
        assert len(counter.get()["w"]) == 200
    assert not (tmp_path / "cache" / "entry").exists()


def test_what_build_raises_is_raised(tmp_path):
    with pytest.raises(ZeroDivisionError):
        storage.cached(tmp_path / "entry", lambda: 1 / 0, lambda folder: 0, lambda value, folder: None)
    assert list(tmp_path.iterdir()) == []


names = st.text(st.characters(codec=None), max_size=300)


@given(names, names)
@example("", "%")
@example(".", "%2E")
@example("..", "%2E.")
@example("/etc/passwd", "%2Fetc%2Fpasswd")
@example("x" * 400, "x" * 401)
@example("..\\..\\x", "../../x")
def test_safe_names_are_one_component_and_differ(first, second):
    safe = [storage.safe_name(name) for name in (first, second)]
    for name in safe:
        assert (
            len(Path("folder", name).parts) == 2 and Path("folder", name).resolve().parent == Path("folder").resolve()
        )
        assert 0 < len(name.encode()) <= 140 and not name.startswith(".") and "\\" not in name
    assert (first == second) == (safe[0] == safe[1])


def test_everyday_names_stay():
    for name in ("zip+refit", "fc1", "features.0.conv1", "client-A", "A", "blocks.0.mlp"):
        assert storage.safe_name(name) == name


def test_text_is_utf_8_whatever_the_locale(tmp_path):
    """The C locale without Python's own UTF-8 mode, and every `open` without an encoding an error."""
    (tmp_path / "a.json").write_text('{"name": "é ± ↔"}', encoding="utf-8")
    code = (
        "import sys; from featalign import storage; from featalign.report import Section, page;"
        f"found = storage.read_json({str(tmp_path / 'a.json')!r});"
        f"storage.write_json({str(tmp_path / 'b.json')!r}, found); page(found['name'], [], [Section('x')]);"
        "from featalign.studies.compare.config import RunConfig;"
        f"storage.write_bytes({str(tmp_path / 'c.toml')!r}, RunConfig(folder=chr(233)).to_toml().encode());"
        f"assert ascii(RunConfig.from_toml({str(tmp_path / 'c.toml')!r}).folder) == ascii(chr(233))"
    )
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    flags = ["-X", "warn_default_encoding", "-W", "error::EncodingWarning:featalign"]
    done = subprocess.run([sys.executable, *flags, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "b.json").read_text()) == {"name": "é ± ↔"}


def test_tensors_of_any_strides_are_saved(tmp_path):
    tensors = {
        "one": torch.ones(1).as_strided((1,), (0,)),
        "wide": torch.ones(1, 1).expand(3, 4),
        "t": torch.rand(3, 2).T,
    }
    path = storage.save_tensors(tmp_path / "x.safetensors", tensors)
    found = storage.load_tensors(path)
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
