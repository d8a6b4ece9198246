"""Dictionary architectures: one file each, registered by name."""

from featalign.dictionaries.architectures import batchtopk, gated, jumprelu, matryoshka, relu, topk, transcoder
from featalign.dictionaries.architectures.base import ARCHITECTURES, Architecture, architecture

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "architecture",
    "batchtopk",
    "gated",
    "jumprelu",
    "matryoshka",
    "relu",
    "topk",
    "transcoder",
]
