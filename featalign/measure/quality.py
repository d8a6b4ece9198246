"""Quality of a reconstruction: explained variance, shrinkage, redundancy, and what splicing it in costs the network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from featalign.errors import ProbeError, SpaceMismatch


def explained_variance(activations: torch.Tensor, reconstruction: torch.Tensor) -> float:
    """`1 - sum |a - a_hat|^2 / sum |a - mean|^2`, both sums pooled over all samples and units.

    scikit-learn's variance-weighted R^2. Averaging the ratio over batches is biased: pool, then divide.
    """
    if activations.shape != reconstruction.shape:
        raise SpaceMismatch(f"activations {tuple(activations.shape)}, reconstruction {tuple(reconstruction.shape)}")
    a, b = activations.double(), reconstruction.double()
    return float(1 - (a - b).pow(2).sum() / (a - a.mean(0)).pow(2).sum().clamp_min(1e-300))


def shrinkage(activations: torch.Tensor, reconstruction: torch.Tensor) -> float:
    """Least-squares gain of the centred reconstruction, below 1 when it is too small: `<a, a_hat> / |a|^2`."""
    mean = activations.mean(0)
    a, b = (activations - mean).double(), (reconstruction - mean).double()
    return float((a * b).sum() / a.pow(2).sum().clamp_min(1e-300))


def redundancy(atoms: torch.Tensor, limit: float = 0.9) -> float:
    """Share of atoms with another atom at a cosine above `limit`."""
    unit = atoms / atoms.norm(dim=1, keepdim=True).clamp_min(1e-12)
    cosine = unit @ unit.T
    cosine.fill_diagonal_(-1)
    return float((cosine.max(1).values > limit).float().mean())


@dataclass(frozen=True)
class Splice:
    """What is left of a network's function when a layer is replaced by its reconstruction.

    Attributes:
        loss, loss_spliced, loss_ablated: cross-entropy of the network, with the reconstruction, with the layer's mean.
        recovered: `(loss_ablated - loss_spliced) / (loss_ablated - loss)`; 1 lossless, 0 no better than the mean.
        accuracy, accuracy_spliced, accuracy_ablated: likewise.
        kl: mean KL divergence from the network's output distribution to the spliced one.
    """

    loss: float
    loss_spliced: float
    loss_ablated: float
    recovered: float
    accuracy: float
    accuracy_spliced: float
    accuracy_ablated: float
    kl: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def splice(
    model: nn.Module,
    module: str,
    reconstruct: Callable[[torch.Tensor], torch.Tensor],
    inputs: torch.Tensor,
    labels: torch.Tensor,
) -> Splice:
    """Run `model` with the output of submodule `module` replaced by `reconstruct(output)` and by its mean.

    `inputs [N, ...]`, `labels [N]`. Raises `SpaceMismatch` for an unknown submodule and `ProbeError` without inputs.
    """
    modules = dict(model.named_modules())
    if module not in modules:
        raise SpaceMismatch(f"no submodule '{module}' to splice into")
    if len(inputs) == 0 or len(inputs) != len(labels):
        raise ProbeError(f"{len(inputs)} inputs and {len(labels)} labels; pass one label per input")
    seen: list[torch.Tensor] = []
    results = []
    training = model.training
    model.eval()
    edits: tuple[Callable[[torch.Tensor], torch.Tensor] | None, ...] = (
        None,
        reconstruct,
        lambda a: torch.cat(seen).mean(0).expand_as(a),
    )
    try:
        with torch.no_grad():
            for edit in edits:
                hook = modules[module].register_forward_hook(
                    (lambda _m, _i, out: seen.append(out)) if edit is None else (lambda _m, _i, out, e=edit: e(out))
                )
                try:
                    results.append(torch.cat([model(batch) for batch in inputs.split(2048)]).double())
                finally:
                    hook.remove()
    finally:
        model.train(training)
    losses = [float(nn.functional.cross_entropy(out, labels)) for out in results]
    hits = [float((out.argmax(1) == labels).double().mean()) for out in results]
    logs = [out.log_softmax(1) for out in results[:2]]
    gap = losses[2] - losses[0]
    recovered = (losses[2] - losses[1]) / gap if gap > 1e-6 else float("nan")
    kl = float((logs[0].exp() * (logs[0] - logs[1])).sum(1).mean())
    return Splice(losses[0], losses[1], losses[2], recovered, hits[0], hits[1], hits[2], kl)
