"""Clients: separately trained networks of registered families, and the data they saw.

>>> from featalign import clients, data
>>> digits = data.load("digits")
>>> split = data.partition(digits.train_labels, "special-label", clients=2, special=4)
>>> a, b = clients.train_clients(digits, split, seed=0)          # cached: the second call is instant
>>> clients.evaluate(a.model, (digits.test_inputs, digits.test_labels))["accuracy"]
>>> _, cache = a.model.run_with_cache(digits.test_inputs)        # 'hook_pre1', 'hook_post1', ...
>>> config = clients.MLPConfig(64, hidden=(128, 64), bias=True)  # other widths; clients.build(config, seed=0)
>>> clients.models["vgg11"].for_dataset(digits)                  # any family on any data set it can read

`train` is one loop for every `Task`; `TrainConfig` holds the optimiser's settings, a family's `recipe` the usual ones.
A new architecture is one file (`clients.models`).
"""

from typing import TYPE_CHECKING, Any

from featalign.clients.client import Client, client_folder, train_clients
from featalign.clients.cohort import Cohort
from featalign.clients.evaluation import Ensemble, evaluate, outputs
from featalign.clients.families import (
    Conv1dConfig,
    DecoderConfig,
    EncoderConfig,
    MLPConfig,
    ResNet18Config,
    ResNet20Config,
    VGGConfig,
    ViTConfig,
)
from featalign.clients.models import ModelConfig, build, from_dict, models
from featalign.clients.training import TrainConfig, check_finite, train

if TYPE_CHECKING:
    from featalign.clients.families.hooked_mlp import MLP

__all__ = [
    "MLP",
    "Client",
    "Cohort",
    "Conv1dConfig",
    "DecoderConfig",
    "EncoderConfig",
    "Ensemble",
    "MLPConfig",
    "ModelConfig",
    "ResNet18Config",
    "ResNet20Config",
    "TrainConfig",
    "VGGConfig",
    "ViTConfig",
    "build",
    "check_finite",
    "client_folder",
    "evaluate",
    "from_dict",
    "models",
    "outputs",
    "train",
    "train_clients",
]


def __getattr__(name: str) -> Any:
    if name == "MLP":  # imports transformer_lens, which takes seconds
        from featalign.clients.families.hooked_mlp import MLP

        return MLP
    raise AttributeError(f"module 'featalign.clients' has no attribute '{name}'")
