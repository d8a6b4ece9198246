"""Sparse dictionaries and the other bases in which a space can be read."""

from featalign.dictionaries.architectures import ARCHITECTURES, Architecture, architecture
from featalign.dictionaries.bases import LinearBasis, cca, ica, pca, random_atoms, random_dictionary, untrained
from featalign.dictionaries.basis import Basis, NeuronBasis, as_basis
from featalign.dictionaries.dictionary import Dictionary, Quality
from featalign.dictionaries.joint import Crosscoder, Sweep, sweep, train_crosscoder, train_joint
from featalign.dictionaries.loading import load
from featalign.dictionaries.preflight import DictionaryWarning, Preflight, inspect
from featalign.dictionaries.quality import assess
from featalign.dictionaries.training import train, train_many

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "Basis",
    "Crosscoder",
    "Dictionary",
    "DictionaryWarning",
    "LinearBasis",
    "NeuronBasis",
    "Preflight",
    "Quality",
    "Sweep",
    "architecture",
    "as_basis",
    "assess",
    "cca",
    "ica",
    "inspect",
    "load",
    "pca",
    "random_atoms",
    "random_dictionary",
    "sweep",
    "train",
    "train_crosscoder",
    "train_joint",
    "train_many",
    "untrained",
]
