"""Trained dictionaries: one basis object that holds the named tensors of sae-lens and is saved in its layout.

Nothing here imports sae_lens (6 s): the layout of `SAE.save_model` is written directly, and a test asks
`sae_lens.SAE.load_from_disk` for equal outputs.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from featalign.dictionaries import normalisation
from featalign.dictionaries.architectures import ARCHITECTURES, Architecture
from featalign.dictionaries.rows import check_finite
from featalign.errors import DictionaryError, SpaceMismatch
from featalign.storage import atomic_folder, plain, save_tensors, write_json

CONFIG, WEIGHTS, HISTORY = "cfg.json", "sae_weights.safetensors", "history.json"
_LAYOUT_VERSION = "6.20.0"  # the layout written here; sae-lens reads it from 6.0 on


@dataclass(frozen=True)
class Quality:
    """How well a dictionary describes activations it was not trained on.

    Attributes:
        explained_variance: `1 - sum |a - a_hat|^2 / sum |a - mean|^2`, sums pooled over all held-out samples and units.
        l0: mean number of active latents per held-out sample.
        dead_fraction: share of latents that never fire in `dead_samples` samples (training and held-out).
        samples: held-out samples behind `explained_variance` and `l0`.
        trained_on: rows of activations that it was trained on; 0 where that is not known.
        capped_from: latents that were wanted before the data capped them; 0 where they were not capped.
    """

    explained_variance: float
    l0: float
    dead_fraction: float
    dead_samples: int
    samples: int
    trained_on: int = 0
    capped_from: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON holds them."""
        return asdict(self)


@dataclass(frozen=True)
class Dictionary:
    """A sparse dictionary of one space of one client: a `Basis` with the tensors of sae-lens.

    Attributes:
        architecture: registered name of what it was trained as ('topk', 'relu', ...).
        tensors: `W_enc [n, F]`, `W_dec [F, m]` (rows of unit norm where trained here), `b_dec [m]`, and the
            `latents` of the architecture, each `[F]` (`b_enc`, `threshold`, ...); all of one dtype.
        k: active latents per sample that were asked for.
        quality: on held-out activations; None for dictionaries loaded from elsewhere.
        history: frame of the training run (step, loss, explained variance, L0, dead, learning rate).
        metadata: client, space, seed and whatever else identifies it; saved with it.
        normalize_activations: sae-lens's name of what is done to each sample before encoding and undone after decoding.
    """

    architecture: str
    tensors: Mapping[str, torch.Tensor]
    k: float
    quality: Quality | None = None
    history: pd.DataFrame = field(default_factory=pd.DataFrame, compare=False, repr=False)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    normalize_activations: str = "none"

    @property
    def design(self) -> type[Architecture]:
        """The registered architecture."""
        return ARCHITECTURES[self.architecture]

    @property
    def name(self) -> str:
        """What tables call it: `sae`, `transcoder`, or the basis that its metadata names."""
        return str(self.metadata.get("basis", "transcoder" if self.design.transcodes else "sae"))

    @property
    def atoms(self) -> torch.Tensor:
        """`[F, m]`: the decoder rows."""
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
        """`[F]`; raises `DictionaryError` for an architecture that has none."""
        if "b_enc" not in self.tensors:
            raise DictionaryError(f"a {self.architecture} dictionary has {self.design.latents} instead of 'b_enc'")
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
        return "pre" if self.design.transcodes else "post"

    def encode(self, activations: torch.Tensor) -> torch.Tensor:
        """Codes `[..., F]` of activations `[..., n]` (pre-activations for a transcoder), in the dictionary's dtype.

        Raises `SpaceMismatch` for activations of another space and `NotFinite` for NaN or infinity.
        """
        x = torch.as_tensor(activations)
        if x.dim() == 0 or x.shape[-1] != self.W_enc.shape[0]:
            raise SpaceMismatch(
                f"dictionary of space '{self.metadata.get('space', '?')}' reads {self.W_enc.shape[0]} units, "
                f"got activations {tuple(x.shape)}; use the dictionary of that space"
            )
        check_finite(x, self.metadata)
        with torch.no_grad():
            x, frame = normalisation.into(self.normalize_activations, x.to(self.W_enc))
            codes = self.design.encode(self.tensors, self.k, x)
            normalisation.remember(codes, frame)
            return codes

    def decode(self, codes: torch.Tensor, like: torch.Tensor | None = None) -> torch.Tensor:
        """Activations `[..., m]` of codes `[..., F]`, offset included.

        A dictionary that normalises each sample scales back by the activations that `encode` made these very codes
        from; for codes that are edited copies pass those activations as `like [..., n]`. Raises
        `DictionaryError` without them, `SpaceMismatch` for codes of another width.
        """
        if codes.shape[-1] != self.width:
            raise SpaceMismatch(f"codes {tuple(codes.shape)} for a dictionary of {self.width} latents")
        found = codes.to(self.W_dec) @ self.W_dec + self.b_dec
        if self.normalize_activations == "none" or self.design.transcodes:  # what is written is another site's
            return found
        if like is None:
            frame = normalisation.recall(codes, self.normalize_activations)
        else:
            frame = normalisation.into(self.normalize_activations, like.to(self.W_enc))[1]
        if frame is None:
            raise DictionaryError(
                f"{self.normalize_activations}: codes {tuple(codes.shape)} alone do not say how large their samples "
                "were; pass the activations: decode(codes, like=activations)"
            )
        return found * frame.scale + frame.centre

    @property
    def budget(self) -> str:
        """The data it was trained on, in words: rows, rows and firings per latent, whether the data capped it."""
        found = self.quality
        if found is None or not found.trained_on:
            return "what it was trained on is not known"
        rows, capped = found.trained_on, found.capped_from
        words = f"{rows} rows of activations, {rows / self.width:.1f} rows and {rows * found.l0 / self.width:.0f} "
        words += f"firings for each of {self.width} latents"
        words += f", capped by the data from {capped}" if capped else ""
        narrow = self.width < self.W_enc.shape[0]
        return words + (f"; narrower than its layer of {self.W_enc.shape[0]} units" if narrow else "")

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
        return replace(self, tensors={**per_latent, "W_dec": self.W_dec[order], "b_dec": self.b_dec})

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
        return {
            "architecture": self.design.inference,
            "d_in": self.W_enc.shape[0],
            "d_sae": self.width,
            "dtype": str(self.W_enc.dtype).removeprefix("torch."),
            "device": "cpu",
            "apply_b_dec_to_input": not self.design.transcodes,
            "normalize_activations": self.normalize_activations,
            "reshape_activations": "hook_z" if str(self.metadata.get("hook_name")).endswith(".hook_z") else "none",
            **self.design.config(self.tensors, self.k),
            "metadata": {
                "sae_lens_version": sae_lens_version(),
                "training_architecture": self.architecture,
                "k": self.k,
                "quality": self.quality.to_dict() if self.quality else None,
                **plain(dict(self.metadata)),
            },
        }


def sae_lens_version() -> str:
    """Version of the installed sae-lens, read without importing it; the layout's version where there is none."""
    try:
        return importlib.metadata.version("sae-lens")
    except importlib.metadata.PackageNotFoundError:
        return _LAYOUT_VERSION
