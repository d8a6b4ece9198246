"""Sparse dictionaries and the other bases in which a space can be read."""

from featalign.dictionaries.basis import Basis, NeuronBasis
from featalign.dictionaries.dictionary import Dictionary, Quality, load
from featalign.dictionaries.preflight import DictionaryWarning, Preflight, inspect
from featalign.dictionaries.training import assess, train, train_many

__all__ = [
    "Basis",
    "Dictionary",
    "DictionaryWarning",
    "NeuronBasis",
    "Preflight",
    "Quality",
    "assess",
    "inspect",
    "load",
    "train",
    "train_many",
]
