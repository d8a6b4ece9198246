"""Cards of a layer's units and latents.

What drives each latent of a digit classifier's dictionary most, and how selective it is.
"""

import tempfile
from pathlib import Path

import torch
from torch import nn

import featalign as fa

digits = fa.data.load("digits")
inputs, labels = digits.train_inputs, digits.train_labels
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 10))
optimiser = torch.optim.Adam(model.parameters(), 1e-2)
for _ in range(150):
    optimiser.zero_grad()
    nn.functional.cross_entropy(model(inputs), labels).backward()
    optimiser.step()

folder = Path(tempfile.mkdtemp()) / "diagnosis"
fa.diagnose(model, (inputs, labels), out=folder, seeds=(0,), steps=200, sweep_steps=50, progress=False)
page = folder / "report.html"
