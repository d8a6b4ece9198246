"""Sparse dictionaries and the other bases in which a space can be read."""

from featalign.dictionaries.bases import LinearBasis, cca, ica, pca, random_dictionary
from featalign.dictionaries.basis import Basis, NeuronBasis
from featalign.dictionaries.dictionary import Dictionary, Quality, load
from featalign.dictionaries.joint import Sweep, sweep, train_joint
from featalign.dictionaries.preflight import DictionaryWarning, Preflight, inspect
from featalign.dictionaries.quality import assess
from featalign.dictionaries.training import train, train_many

__all__ = [
    "Basis",
    "Dictionary",
    "DictionaryWarning",
    "LinearBasis",
    "NeuronBasis",
    "Preflight",
    "Quality",
    "Sweep",
    "assess",
    "cca",
    "ica",
    "inspect",
    "load",
    "pca",
    "random_dictionary",
    "sweep",
    "train",
    "train_joint",
    "train_many",
]
