"""Matryoshka BatchTopK: nested prefixes of the latents reconstruct too (Bussmann et al. 2025, arXiv:2503.17547)."""

from __future__ import annotations

from typing import Any

from featalign.dictionaries.architectures.base import architecture
from featalign.dictionaries.architectures.batchtopk import BatchTopK


def _ends(width: int) -> list[int]:
    return sorted({max(1, width // part) for part in (8, 4, 2, 1)})


@architecture("matryoshka")
class Matryoshka(BatchTopK):
    """BatchTopK whose first eighth, quarter and half reconstruct too (Bussmann et al. 2025, arXiv:2503.17547)."""

    pointwise = False

    def groups(self) -> list[slice]:
        ends = _ends(self.width)
        return [slice(start, end) for start, end in zip([0, *ends], ends)]

    @classmethod
    def reference(cls, width: int, k: float, coefficient: float) -> tuple[str, dict[str, Any]] | None:
        return "matryoshka_batchtopk", {"k": k, "matryoshka_widths": _ends(width)}
