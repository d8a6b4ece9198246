"""Readers of the file formats in which data sets come: IDX, CIFAR-10's binary batches and row-per-image PNG sheets.

Each returns the four arrays of a data set as uint8, or None when the folder does not hold that format.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np

from featalign.errors import CorruptFile

Arrays = dict[str, np.ndarray]
IDX_NAMES = {
    "train_inputs": "train-images-idx3-ubyte",
    "train_labels": "train-labels-idx1-ubyte",
    "test_inputs": "t10k-images-idx3-ubyte",
    "test_labels": "t10k-labels-idx1-ubyte",
}


def find(folder: Path, *names: str) -> Path | None:
    """The first file below `folder` that has one of the names, shallowest first."""
    for name in names:
        if found := sorted(folder.rglob(name), key=lambda path: (len(path.parts), str(path))):
            return found[0]
    return None


def read_idx(path: Path) -> np.ndarray:
    """An unsigned-byte IDX file, gzipped or not; raises `CorruptFile` when it is truncated or something else."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError) as error:
        raise CorruptFile(f"'{path}' is not a complete gzip file ({error}); get it again") from error
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise CorruptFile(f"'{path}' is not an IDX file of bytes; get it again")
    rank = content[3]
    shape = np.frombuffer(content[4 : 4 + 4 * rank], dtype=">u4").astype(int)
    body = np.frombuffer(content[4 + 4 * rank :], dtype=np.uint8)
    if len(body) != shape.prod():
        raise CorruptFile(f"'{path}' announces {shape.prod()} bytes and holds {len(body)}; get it again")
    return body.reshape(shape)


def idx_folder(folder: Path) -> Arrays | None:
    """MNIST's four files, in any subfolder, with or without `.gz`, `-` or `.` before `idx`."""
    arrays = {}
    for key, name in IDX_NAMES.items():
        dotted = name.replace("-idx", ".idx")
        path = find(folder, name, dotted, f"{name}.gz", f"{dotted}.gz")
        if path is None:
            return None
        arrays[key] = read_idx(path)
    return {key: array.reshape(len(array), -1) if key.endswith("inputs") else array for key, array in arrays.items()}


def cifar_binary(folder: Path) -> Arrays | None:
    """CIFAR-10's binary version: `data_batch_1.bin` to `5` and `test_batch.bin`, records of 1 + 3072 bytes."""
    names = [*(f"data_batch_{k}.bin" for k in range(1, 6)), "test_batch.bin"]
    paths = [find(folder, name) for name in names]
    batches = []
    for path in paths:
        if path is None:
            return None
        content = np.frombuffer(path.read_bytes(), dtype=np.uint8)
        if len(content) != 10_000 * 3073:
            raise CorruptFile(f"'{path}' has {len(content)} bytes instead of {10_000 * 3073}; get it again")
        batches.append(content.reshape(-1, 3073))
    train, test = np.concatenate(batches[:5]), batches[5]
    return {
        "train_inputs": train[:, 1:].reshape(-1, 3, 32, 32),
        "train_labels": train[:, 0],
        "test_inputs": test[:, 1:].reshape(-1, 3, 32, 32),
        "test_labels": test[:, 0],
    }


def cifar_sheets(folder: Path) -> Arrays | None:
    """CIFAR-10 as PNG sheets, a row of 1024 pixels per image, with the labels of each split as a JSON list."""
    from PIL import Image

    names = [*(f"data_batch_{k}.png" for k in range(1, 6)), "test_batch.png"]
    paths = [find(folder, name) for name in [*names, "train_lables.json", "test_lables.json"]]
    sheets = []
    for path in paths[:6]:
        if path is None:
            return None
        try:
            sheet = np.asarray(Image.open(path).convert("RGB"))
        except OSError as error:
            raise CorruptFile(f"'{path}' is not a complete PNG ({error}); get it again") from error
        sheets.append(np.ascontiguousarray(sheet.reshape(-1, 32, 32, 3).transpose(0, 3, 1, 2)))
    texts = [path.read_text(encoding="utf-8") for path in paths[6:] if path is not None]
    labels = [np.array(json.loads(text), dtype=np.uint8) for text in texts]
    if len(labels) != 2:
        return None
    return {
        "train_inputs": np.concatenate(sheets[:5]),
        "train_labels": labels[0],
        "test_inputs": sheets[5],
        "test_labels": labels[1],
    }
