"""Language models and texts from disk, as commands name them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from featalign import storage
from featalign.errors import CorruptFile


def language_model(path: Path) -> tuple[nn.Module, Any]:
    """The network of a Hugging Face folder and its tokenizer; nothing is fetched.

    Raises `CorruptFile` for a folder that holds none.
    """
    import transformers

    if not (path / "config.json").is_file():
        raise CorruptFile(f"'{path}' holds no config.json; give the folder of a language model")
    try:
        kind = getattr(transformers, (storage.read_json(path / "config.json").get("architectures") or [""])[0], None)
        network = (kind or transformers.AutoModel).from_pretrained(path, local_files_only=True)
        tokenizer = transformers.AutoTokenizer.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError) as error:
        raise CorruptFile(f"'{path}' is no folder of a language model with its tokenizer: {_first(error)}") from error
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return network, tokenizer


def lines_of(path: str | Path) -> list[str]:
    """The lines of a text file that are not empty."""
    return [line for line in storage.read_text(path).splitlines() if line.strip()]


def _first(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
