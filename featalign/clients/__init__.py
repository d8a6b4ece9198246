"""Clients: separately trained networks with hook points, and the data they saw.

>>> from featalign import clients, data
>>> digits = data.load("digits")
>>> split = data.partition(digits.train_labels, "special-label", clients=2, special=4)
>>> a, b = clients.train_clients(digits, split, seed=0)          # cached: the second call is instant
>>> clients.accuracy(a.model, digits.test_inputs, digits.test_labels)
>>> _, cache = a.model.run_with_cache(digits.test_inputs)        # 'hook_pre1', 'hook_post1', ...
>>> config = clients.MLPConfig(64, hidden=(128, 64), bias=True)  # other widths; clients.build(config, seed=0)

`TrainConfig` holds the optimiser's settings; both configurations have `for_dataset`. A new architecture is a frozen
configuration in the registry `models` whose `module()` builds it.
"""

from typing import TYPE_CHECKING, Any

from featalign.clients import decoder, resnet, vgg, vit  # noqa: F401 - they register themselves
from featalign.clients.client import Client, client_folder, train_clients
from featalign.clients.models import MLPConfig, ModelConfig, build, from_dict, models
from featalign.clients.training import TrainConfig, accuracy, check_finite, logits, train

if TYPE_CHECKING:
    from featalign.clients.mlp import MLP

__all__ = [
    "MLP",
    "Client",
    "MLPConfig",
    "ModelConfig",
    "TrainConfig",
    "accuracy",
    "build",
    "check_finite",
    "client_folder",
    "from_dict",
    "logits",
    "models",
    "train",
    "train_clients",
]


def __getattr__(name: str) -> Any:
    if name == "MLP":  # imports transformer_lens, which takes seconds
        from featalign.clients.mlp import MLP

        return MLP
    raise AttributeError(f"module 'featalign.clients' has no attribute '{name}'")
