"""What the code of every document may take for granted, and how blocks are run."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
GIVEN = """
import functools
import torch
from torch import nn
import featalign as fa

fa.diagnose = functools.partial(fa.diagnose, steps=60, sweep_steps=20)  # what is asked here is whether it runs

def network(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 3))

x, x_test = torch.randn(200, 12), torch.randn(100, 12)
y, y_test = x[:, :3].argmax(1), x_test[:, :3].argmax(1)
model_a, model_b = network(0), network(1)
cost, activations, module, example = torch.rand(6, 6), torch.randn(400, 8), model_a, x[:2]
"""


def blocks(text: str) -> list[str]:
    """Blocks of Python of a document, in order."""
    return re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)


def documents() -> list[str]:
    """Every document, relative to the root."""
    return [
        *("README.md", "CONTRIBUTING.md", "CHANGELOG.md"),
        *sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("docs/**/*.md")),
    ]
