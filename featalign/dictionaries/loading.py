"""Dictionaries from sae-lens's configuration and tensors, of a folder or a living object, without importing it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from featalign.dictionaries.architectures import ARCHITECTURES, Architecture
from featalign.dictionaries.architectures.base import Tensors
from featalign.dictionaries.dictionary import CONFIG, HISTORY, WEIGHTS, Dictionary, Quality
from featalign.dictionaries.normalisation import PER_SAMPLE
from featalign.dictionaries.preflight import DictionaryWarning
from featalign.errors import CorruptFile, DictionaryError, FeatalignError
from featalign.storage import load_tensors, read_json

SCALER = "activation_scaler.json"
_DTYPES = {"float32": torch.float32, "float64": torch.float64, "float16": torch.float16, "bfloat16": torch.bfloat16}


def load(folder: Path | str) -> Dictionary:
    """Read a dictionary saved here or by sae-lens, whose encoder, normalisation and folded factors it then has.

    Raises `CorruptFile` for files that are damaged, incomplete or do not belong together, and `DictionaryError` for a
    folder without a dictionary or with one that does not run here; both name the path.
    """
    folder = Path(folder)
    if not (folder / CONFIG).is_file() or not (folder / WEIGHTS).is_file():
        raise DictionaryError(f"'{folder}' holds no dictionary ({CONFIG} and {WEIGHTS}); give the folder of one")
    config, tensors = read_json(folder / CONFIG), load_tensors(folder / WEIGHTS)
    if not isinstance(config, dict):
        raise CorruptFile(f"'{folder / CONFIG}' is not a configuration of a dictionary; restore the file")
    with corrupt(folder / SCALER):
        scaler = read_json(folder / SCALER).get("scaling_factor") if (folder / SCALER).is_file() else None
        factor = None if scaler is None else float(scaler)
    with corrupt(folder / HISTORY):
        history = pd.DataFrame(read_json(folder / HISTORY)) if (folder / HISTORY).is_file() else pd.DataFrame()
    with corrupt(folder / CONFIG):
        return assemble(config, tensors, str(folder), factor, history)


@contextmanager
def corrupt(file: Path) -> Iterator[None]:
    """Whatever a value of an unexpected kind raises inside the block is a `CorruptFile`."""
    try:
        yield
    except FeatalignError:
        raise
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise CorruptFile(f"'{file}' holds a value of an unexpected kind ({error}); restore the file") from error


def assemble(
    config: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor],
    where: str,
    factor: float | None = None,
    history: pd.DataFrame | None = None,
) -> Dictionary:
    """A dictionary from sae-lens's configuration and tensors; `where` names it in messages.

    `factor` is what sae-lens's trainer multiplied activations by; it is folded into the weights as that trainer does
    at its end.
    """
    config = current(config, where)
    metadata = dict(config.get("metadata") or {})
    metadata.pop("sae_lens_version", None)
    name = architecture_of(str(config["architecture"]), metadata.pop("training_architecture", None), where)
    design = ARCHITECTURES[name]
    held = checked(config, tensors, design, where)
    normalisation = config.get("normalize_activations") or "none"
    if normalisation == "expected_average_only_in":
        normalisation = "none"
        if factor is not None:
            _scale_input(held, float(factor))
        else:
            message = f"'{where}' reads activations scaled to a mean norm of sqrt(n), by a factor that is not in it"
            warnings.warn(f"{message}; scale them before encoding", DictionaryWarning, stacklevel=3)
    if normalisation != "none" and normalisation not in PER_SAMPLE:
        raise DictionaryError(
            f"'{where}': normalisation '{normalisation}' is not one of none, expected_average_only_in, "
            f"{', '.join(PER_SAMPLE)}; fold it into the weights in sae-lens"
        )
    if config.get("rescale_acts_by_decoder_norm"):
        _unit_atoms(held, design)
    if not config.get("apply_b_dec_to_input", True) and not design.transcodes:
        design.shift(held, held["b_dec"])
    quality = metadata.pop("quality", None)
    k = metadata.pop("k", None)
    k = config.get("k") if k is None else k
    found = Quality(**quality) if quality else None
    k = float("nan") if k is None else k
    return Dictionary(name, held, k, found, pd.DataFrame() if history is None else history, metadata, normalisation)


def architecture_of(inference: str, trained: str | None, where: str) -> str:
    """Registered name of what sae-lens calls `inference`; `trained`, its training, decides where several fit."""
    fitting = [name for name in ARCHITECTURES if ARCHITECTURES[name].inference == inference]
    for name in fitting:
        reference = ARCHITECTURES[name].reference(8, 1, 1.0)
        if trained == name or (reference and trained == reference[0]):
            return name
    if not fitting:
        known = ", ".join(sorted({ARCHITECTURES[name].inference for name in ARCHITECTURES}))
        raise DictionaryError(f"'{where}': architecture '{inference}' is not one of {known}; register it")
    return inference if inference in fitting else fitting[0]


def checked(
    config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], design: type[Architecture], where: str
) -> Tensors:
    """The tensors in the configuration's dtype; raises `CorruptFile` where they are not what it describes."""
    try:
        units, width, dtype = int(config["d_in"]), int(config["d_sae"]), str(config.get("dtype", "float32"))
        written = int(config.get("d_out", units)) if design.transcodes else units
        if "k" in design.config({"W_dec": torch.empty(1, 1)}, 1) and not int(config["k"]) >= 1:
            raise ValueError("k")
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptFile(f"'{where}': {CONFIG} lacks or spoils {error}; restore the file") from error
    shapes = {"W_enc": (units, width), "W_dec": (width, written), "b_dec": (written,)}
    shapes |= {name: (width,) for name in design.latents}
    for name, shape in shapes.items():
        if name not in tensors:
            raise CorruptFile(f"'{where}': {WEIGHTS} has no tensor '{name}' {shape}; restore the file")
        if tuple(tensors[name].shape) != shape:
            found = tuple(tensors[name].shape)
            raise CorruptFile(f"'{where}': '{name}' is {found}, {CONFIG} wants {shape}; the folder mixes dictionaries")
    dtypes = sorted({str(tensors[name].dtype) for name in shapes})
    target = _DTYPES.get(dtype.removeprefix("torch."))
    if len(dtypes) > 1 or target is None or not tensors["W_enc"].is_floating_point():
        raise CorruptFile(f"'{where}': tensors of {', '.join(dtypes)}, {CONFIG} says {dtype}; save it in one dtype")
    for name in shapes:
        if not torch.isfinite(tensors[name]).all():
            raise CorruptFile(f"'{where}': '{name}' holds NaN or infinity; restore the file")
    return {name: tensors[name].detach().to(target).clone() for name in shapes}


def current(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A configuration of sae-lens 6; one of an earlier version is read as what it meant then.

    Raises `DictionaryError` for activation functions and fine-tuned gains that version 6 left out.
    """
    found = dict(config)
    version = found.get("sae_lens_version") or (found.get("metadata") or {}).get("sae_lens_version") or "0"
    if int(str(version).split(".")[0] or 0) >= 6:
        if "architecture" not in found:
            raise CorruptFile(f"'{where}': {CONFIG} names no architecture; restore the file")
        return found
    activation = found.get("activation_fn") or found.get("activation_fn_str") or "relu"
    options = found.get("activation_fn_kwargs") or {}
    found.setdefault("architecture", "standard")
    if activation == "topk" and "k" in options:
        found |= {"architecture": "topk", "k": options["k"]}
    elif activation != "relu":
        raise DictionaryError(f"'{where}': activation '{activation}' of sae-lens {version}; convert it with sae-lens")
    if found.get("finetuning_scaling_factor"):
        raise DictionaryError(f"'{where}': fine-tuned gains of sae-lens {version} are not read; fold them into W_dec")
    if isinstance(found.get("normalize_activations"), bool):
        found["normalize_activations"] = "expected_average_only_in" if found["normalize_activations"] else "none"
    names = {"hook_name": found.get("hook_name") or found.get("hook_point"), "model_name": found.get("model_name")}
    found.setdefault("metadata", {key: value for key, value in names.items() if value})
    return found


def _scale_input(tensors: Tensors, factor: float) -> None:
    """Let the encoder read activations that were to be multiplied by `factor`, and the decoder return them."""
    tensors["W_enc"] = tensors["W_enc"] * factor
    tensors["W_dec"], tensors["b_dec"] = tensors["W_dec"] / factor, tensors["b_dec"] / factor


def _unit_atoms(tensors: Tensors, design: type[Architecture]) -> None:
    """Move the norms of the atoms into the codes."""
    norms = tensors["W_dec"].norm(dim=1).clamp_min(1e-8)
    tensors["W_dec"] = tensors["W_dec"] / norms[:, None]
    for name in {"W_enc", *design.latents} - {*design.unitless}:
        tensors[name] = tensors[name] * norms
