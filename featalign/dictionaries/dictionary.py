"""Trained dictionaries: one basis object, the named tensors of sae-lens, and its folder layout.

Nothing here imports sae_lens (6 s): the layout of `SAE.save_model` is written and read directly, and a test asks
`sae_lens.SAE.load_from_disk` for equal outputs.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from featalign.errors import CorruptFile, DictionaryError, SpaceMismatch
from featalign.storage import atomic_folder, load_tensors, plain, read_json, save_tensors, write_json

CONFIG, WEIGHTS, HISTORY = "cfg.json", "sae_weights.safetensors", "history.json"
_LAYOUT_VERSION = "6.20.0"  # the layout written here; sae-lens reads it from 6.0 on

# training architecture -> the sae-lens class that runs it
INFERENCE = {
    "relu": "standard",
    "topk": "topk",
    "batchtopk": "jumprelu",
    "jumprelu": "jumprelu",
    "matryoshka": "jumprelu",
    "gated": "gated",
    "transcoder": "transcoder",
}


@dataclass(frozen=True)
class Quality:
    """How well a dictionary describes activations it was not trained on.

    Attributes:
        explained_variance: `1 - sum |a - a_hat|^2 / sum |a - mean|^2`, sums pooled over all held-out samples and units.
        l0: mean number of active latents per held-out sample.
        dead_fraction: share of latents that never fire in `dead_samples` samples (training and held-out).
        samples: held-out samples behind `explained_variance` and `l0`.
    """

    explained_variance: float
    l0: float
    dead_fraction: float
    dead_samples: int
    samples: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Dictionary:
    """A sparse dictionary of one space of one client: a `Basis` with the tensors of sae-lens.

    Attributes:
        architecture: what it was trained as: 'topk', 'batchtopk', 'relu', 'jumprelu', 'gated', 'matryoshka',
            'transcoder'.
        tensors: `W_enc [n, F]`, `W_dec [F, m]` (rows of unit norm), `b_enc [F]`, `b_dec [m]`, and what the
            architecture adds (`threshold [F]`; `b_gate`, `b_mag`, `r_mag [F]`).
        k: active latents per sample that were asked for.
        quality: on held-out activations; None for dictionaries loaded from elsewhere.
        history: frame of the training run (step, loss, explained variance, L0, dead, learning rate).
        metadata: client, space, seed and whatever else identifies it; saved with it.
    """

    architecture: str
    tensors: Mapping[str, torch.Tensor]
    k: float
    quality: Quality | None = None
    history: pd.DataFrame = field(default_factory=pd.DataFrame, compare=False, repr=False)
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return str(self.metadata.get("basis", "transcoder" if self.architecture == "transcoder" else "sae"))

    @property
    def atoms(self) -> torch.Tensor:
        """`[F, m]`: the decoder rows, unit norm."""
        return self.W_dec

    @property
    def W_enc(self) -> torch.Tensor:
        """`[n, F]`."""
        return self.tensors["W_enc"]

    @property
    def W_dec(self) -> torch.Tensor:
        """`[F, m]`."""
        return self.tensors["W_dec"]

    @property
    def b_enc(self) -> torch.Tensor:
        """`[F]`."""
        if "b_enc" not in self.tensors:
            raise DictionaryError("a gated dictionary has 'b_gate' and 'b_mag' instead of 'b_enc'")
        return self.tensors["b_enc"]

    @property
    def b_dec(self) -> torch.Tensor:
        """`[m]`."""
        return self.tensors["b_dec"]

    @property
    def width(self) -> int:
        """Latents `F`."""
        return self.W_dec.shape[0]

    @property
    def reads(self) -> str:
        """'pre' when `encode` wants pre-activations (transcoders), else 'post'."""
        return "pre" if self.architecture == "transcoder" else "post"

    def encode(self, activations: torch.Tensor) -> torch.Tensor:
        """Codes `[samples, F]` of activations `[samples, n]` (pre-activations for a transcoder).

        Raises `SpaceMismatch` for activations of another space.
        """
        if activations.shape[-1] != self.W_enc.shape[0]:
            raise SpaceMismatch(
                f"dictionary of space '{self.metadata.get('space', '?')}' reads {self.W_enc.shape[0]} units, "
                f"got activations {tuple(activations.shape)}; use the dictionary of that space"
            )
        with torch.no_grad():
            return _encode(INFERENCE[self.architecture], self.tensors, self.k, activations.to(self.W_enc.dtype))

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Activations `[samples, m]` of codes `[samples, F]`, offset included."""
        return codes @ self.W_dec + self.b_dec

    def to_dict(self) -> dict[str, Any]:
        """Facts without tensors."""
        return {
            "architecture": self.architecture,
            "units": self.W_enc.shape[0],
            "width": self.width,
            "k": self.k,
            "quality": self.quality.to_dict() if self.quality else None,
            "metadata": plain(dict(self.metadata)),
        }

    def to_frame(self) -> pd.DataFrame:
        """One row of facts."""
        facts = self.to_dict()
        facts.update(facts.pop("quality") or {})
        facts.update(facts.pop("metadata"))
        return pd.DataFrame([facts])

    def __repr__(self) -> str:
        facts = self.to_dict()
        place = ", ".join(f"{key}={value!r}" for key, value in facts["metadata"].items())
        found = f", explained_variance={self.quality.explained_variance:.3f}" if self.quality else ""
        return f"Dictionary({self.architecture}, {facts['units']} -> {self.width}, k={self.k:g}{found}, {place})"

    def _repr_html_(self) -> str:
        return self.to_frame().round(3).to_html(index=False)

    def permuted(self, order: torch.Tensor) -> Dictionary:
        """The same dictionary with its latents in another order `[F]`; reconstructions do not change."""
        per_latent = {name: t[..., order] for name, t in self.tensors.items() if name not in {"W_dec", "b_dec"}}
        tensors = {**per_latent, "W_dec": self.W_dec[order], "b_dec": self.b_dec}
        return Dictionary(self.architecture, tensors, self.k, self.quality, self.history, self.metadata)

    def save(self, folder: Path | str, overwrite: bool = False) -> Path:
        """Write `cfg.json` and `sae_weights.safetensors` as sae-lens reads them, and `history.json`, atomically.

        Raises `FolderExists` when the folder holds anything and `overwrite` is off.
        """
        with atomic_folder(folder, overwrite, kind="dictionary") as temporary:
            save_tensors(temporary / WEIGHTS, self.tensors)
            write_json(temporary / CONFIG, self._config())
            write_json(temporary / HISTORY, self.history.to_dict(orient="list"))
        return Path(folder)

    def _config(self) -> dict[str, Any]:
        inference = INFERENCE[self.architecture]
        config: dict[str, Any] = {
            "architecture": inference,
            "d_in": self.W_enc.shape[0],
            "d_sae": self.width,
            "dtype": "float32",
            "device": "cpu",
            "apply_b_dec_to_input": inference != "transcoder",
            "normalize_activations": "none",
            "reshape_activations": "none",
        }
        if inference == "topk":
            config |= {"k": int(self.k), "rescale_acts_by_decoder_norm": False}
        if inference == "transcoder":
            config["d_out"] = self.W_dec.shape[1]
        config["metadata"] = {
            "sae_lens_version": sae_lens_version(),
            "training_architecture": self.architecture,
            "k": self.k,
            "quality": self.quality.to_dict() if self.quality else None,
            **plain(dict(self.metadata)),
        }
        return config


def sae_lens_version() -> str:
    """Version of the installed sae-lens, read without importing it; the layout's version where there is none."""
    try:
        return importlib.metadata.version("sae-lens")
    except importlib.metadata.PackageNotFoundError:
        return _LAYOUT_VERSION


def load(folder: Path | str) -> Dictionary:
    """Read a dictionary saved here or by sae-lens; raises `CorruptFile` or `DictionaryError` with the path."""
    folder = Path(folder)
    if not (folder / CONFIG).is_file() or not (folder / WEIGHTS).is_file():
        raise DictionaryError(f"'{folder}' holds no dictionary ({CONFIG} and {WEIGHTS}); give the folder of one")
    config, tensors = read_json(folder / CONFIG), load_tensors(folder / WEIGHTS)
    metadata = dict(config.get("metadata") or {})
    metadata.pop("sae_lens_version", None)
    architecture = metadata.pop("training_architecture", None)
    architecture = {"standard": "relu", "matryoshka_batchtopk": "matryoshka"}.get(architecture, architecture)
    if architecture not in INFERENCE or INFERENCE[architecture] != config.get("architecture"):
        architecture = {inference: name for name, inference in reversed(INFERENCE.items())}.get(config["architecture"])
    if architecture is None:
        raise DictionaryError(
            f"'{folder}': architecture '{config['architecture']}' is not one of {sorted(set(INFERENCE.values()))}"
        )
    expected = (config["d_in"], config["d_sae"])
    if tuple(tensors.get("W_enc", torch.empty(0)).shape) != expected:
        raise CorruptFile(f"'{folder / WEIGHTS}' has no W_enc of shape {expected}; the folder mixes two dictionaries")
    if config.get("rescale_acts_by_decoder_norm"):
        norms = tensors["W_dec"].norm(dim=1)
        tensors["W_enc"], tensors["b_enc"] = tensors["W_enc"] * norms, tensors["b_enc"] * norms
        tensors["W_dec"] = tensors["W_dec"] / norms[:, None]
    if not config.get("apply_b_dec_to_input", True) and config["architecture"] != "transcoder":
        for bias in {"b_enc", "b_gate"} & tensors.keys():  # b_mag: see below
            tensors[bias] = tensors[bias] + tensors["b_dec"] @ tensors["W_enc"]
        if "b_mag" in tensors:
            tensors["b_mag"] = tensors["b_mag"] + tensors["b_dec"] @ (tensors["W_enc"] * tensors["r_mag"].exp())
    quality = metadata.pop("quality", None)
    k = metadata.pop("k", config.get("k", float("nan")))
    history = pd.DataFrame(read_json(folder / HISTORY)) if (folder / HISTORY).is_file() else pd.DataFrame()
    return Dictionary(architecture, tensors, k, Quality(**quality) if quality else None, history, metadata)


def _encode(inference: str, tensors: Mapping[str, torch.Tensor], k: float, x: torch.Tensor) -> torch.Tensor:
    """The encoders of sae-lens: standard, topk, jumprelu, gated and transcoder."""
    if inference != "transcoder":
        x = x - tensors["b_dec"]
    if inference == "gated":
        gate = x @ tensors["W_enc"] + tensors["b_gate"]
        magnitude = x @ (tensors["W_enc"] * tensors["r_mag"].exp()) + tensors["b_mag"]
        return (gate > 0) * magnitude.relu()
    pre = x @ tensors["W_enc"] + tensors["b_enc"]
    if inference == "jumprelu":
        return pre.relu() * (pre > tensors["threshold"])
    if inference == "topk":
        values, indices = pre.topk(min(int(k), pre.shape[-1]), dim=-1, sorted=False)
        return torch.zeros_like(pre).scatter_(-1, indices, values.relu())
    return pre.relu()
