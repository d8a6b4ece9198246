"""Probes and test sets in files: npz, npy, safetensors, and text with a tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from featalign import storage
from featalign.data.inputs import Inputs
from featalign.data.sources import TARGETS
from featalign.errors import CorruptFile, ProbeError

SUFFIXES = (".npz", ".npy", ".safetensors", ".txt")
NAMED = ("input_ids", "pixel_values", "input_values", "inputs_embeds")  # arguments of networks that want them by name


def is_file_of_inputs(source: Any) -> bool:
    """Whether a source is the path of a file that `read_inputs` knows by its suffix."""
    return isinstance(source, Path) or (isinstance(source, str) and Path(source).suffix.lower() in SUFFIXES)


def read_inputs(path: Path | str, tokenizer: Any = None, labelled: bool = False) -> Inputs:
    """Inputs in a file, with their targets where `labelled`.

    npz and safetensors: arrays `[samples, ...]` by name; `labels` (or `targets`) are the targets, `input_ids`,
    `attention_mask`, ... become keyword arguments, a single array of another name the one argument. npy: that argument,
    memory-mapped. txt: a sample a line, for the tokenizer.

    Raises `ProbeError` for another kind of file and one that holds no inputs, `CorruptFile` for a damaged one.
    """
    place = Path(path).expanduser()
    kind = place.suffix.lower()
    if kind not in SUFFIXES:
        raise ProbeError(f"inputs in '{path}'; give a file that ends in {', '.join(SUFFIXES)}")
    if not place.is_file():
        raise CorruptFile(f"no file '{path}' to read inputs from")
    if kind == ".txt":
        lines = [line for line in storage.read_text(place).splitlines() if line.strip()]
        if not lines:
            raise ProbeError(f"'{path}' holds no text; give a sample a line")
        return Inputs.of(lines, tokenizer=tokenizer)
    if kind == ".safetensors":
        return _named(storage.load_tensors(place), path, labelled)
    try:
        found = np.load(place, allow_pickle=False, mmap_mode="r" if kind == ".npy" else None)
        arrays = found if kind == ".npy" else {name: found[name] for name in found.files}
    except (OSError, ValueError, EOFError, KeyError) as error:
        raise CorruptFile(f"'{path}' is no readable {kind[1:]} file of numbers: {error}") from error
    return Inputs.of(arrays) if kind == ".npy" else _named(arrays, path, labelled)


def _named(arrays: Mapping[str, Any], path: Path | str, labelled: bool) -> Inputs:
    targets = next((arrays[name] for name in TARGETS if name in arrays), None) if labelled else None
    inputs = {name: array for name, array in arrays.items() if name not in TARGETS}
    if not inputs:
        raise ProbeError(f"'{path}' holds {', '.join(arrays) or 'nothing'}; give at least one array of inputs")
    if len(inputs) == 1 and next(iter(inputs)) not in NAMED:
        return Inputs.of(next(iter(inputs.values())), targets)
    return Inputs.of(inputs, targets)
