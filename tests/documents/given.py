"""What the code of every document may take for granted, and how blocks are run."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
GIVEN = """
import functools
import torch
from torch import nn
import featalign as fa

# what is asked here is whether it runs
fa.diagnose = functools.partial(fa.diagnose, steps=60, sweep_steps=20)
fa.compare = functools.partial(fa.compare, curve=3)
fa.dictionaries.store.FEW_STEPS = 60  # of every dictionary that a comparison trains

def network(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 3))

x, x_test = torch.randn(500, 12), torch.randn(100, 12)
y, y_test = x[:, :3].argmax(1), x_test[:, :3].argmax(1)
model_a, model_b = network(0), network(1)
cost, activations, module, example = torch.rand(6, 6), torch.randn(400, 8), model_a, x[:2]
"""

BESIDES = {
    "match.md": """
class Blocks(nn.Module):
    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.embed, self.head = nn.Embedding(30, 8), nn.Linear(8, 30)
        self.blocks = nn.ModuleList(nn.ModuleDict({"hook_resid_post": nn.Linear(8, 8)}) for _ in range(2))
        self.blocks[1]["mlp"] = nn.ModuleDict({"hook_post": nn.Linear(8, 8)})

    def forward(self, tokens):
        h = self.embed(tokens)
        for block in self.blocks:
            h = h + block["hook_resid_post"](h).relu()
        return self.head(h + self.blocks[1]["mlp"]["hook_post"](h).relu())

def tokenizer(texts):
    return torch.tensor([[ord(letter) % 30 for letter in text] for text in texts])

texts = ["".join(chr(97 + (start + 7 * step) % 26) for step in range(24)) for start in range(60)]
model_a, model_b = Blocks(0), Blocks(1)
for name in ("sae_a", "sae_b"):
    fa.dictionaries.train(torch.randn(400, 8), width=12, k=2, steps=30).save(name)
sae_a, sae_b = (fa.dictionaries.load(name) for name in ("sae_a", "sae_b"))
fa.match = functools.partial(fa.match, progress=False)
""",
    "federated.md": """
from featalign.federated.flower import FeatureAlign

probe = torch.randn(40, 64)
model = nn.Sequential(nn.Linear(64, 10), nn.ReLU(), nn.Linear(10, 10))
class Partitions:
    num_partitions = 2

    def load_partition(self, k):
        return [{"image": row.numpy(), "label": int(label)} for row, label in zip(x[k::2], y[k::2])]

dataset = type("Data", (), {"partitioners": {"train": Partitions()}})
run = fa.federated.run
fa.federated.run = lambda federation, rounds, **options: run(federation, rounds=1, progress=False, **options)
""",
}  # what single pages take for granted too: two dictionaries, a language model, fewer rounds


def blocks(text: str) -> list[str]:
    """Blocks of Python of a document, in order."""
    return re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)


def run_here(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A fresh process of Python in another folder that imports this checkout."""
    inherited = os.environ.get("PYTHONPATH")
    path = os.pathsep.join([str(ROOT), *([inherited] if inherited else [])])
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})


def documents() -> list[str]:
    """Every document, relative to the root."""
    return [
        *("README.md", "CONTRIBUTING.md", "CHANGELOG.md"),
        *sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("docs/**/*.md")),
    ]
