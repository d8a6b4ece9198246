import pytest
import torch
from torch import nn

from featalign.clients import TrainConfig
from featalign.federated import Federation


def blobs(clients=4, samples=40, inputs=6, classes=3, seed=0):
    """Separable classes; client k sees mostly class k."""
    generator = torch.Generator().manual_seed(seed)
    centres = 3 * torch.randn(classes, inputs, generator=torch.Generator().manual_seed(1))
    data = []
    for k in range(clients):
        labels = torch.randint(0, classes, (samples + 8 * k,), generator=generator)
        labels[: samples // 2] = k % classes
        data.append((centres[labels] + torch.randn(len(labels), inputs, generator=generator), labels))
    return data


def net(inputs=6, classes=3, bias=True, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(inputs, 12, bias=bias), nn.ReLU(), nn.Linear(12, classes, bias=bias)).eval()


def small(clients=4, model=None, **options):
    data = blobs(clients)
    probe = torch.cat([x for x, _ in blobs(2, seed=5)])
    recipe = TrainConfig(epochs=1, batch_size=16, lr=0.05, momentum=0.0)
    options = {"probe": probe, "evaluate": blobs(1, 200, seed=9)[0], "recipe": recipe, **options}
    return Federation.gather(data, model or net(), **options)


@pytest.fixture
def federation():
    return small()
