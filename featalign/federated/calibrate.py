"""Calibration of the fused readout from sums: a second, short exchange in a round.

Clients run the fused network on their own data and send, of what its readout reads, the Gram matrix and the
cross-moments with centred labels; the server solves one ridge regression. Both are means over samples, so that sums
over clients suffice: nobody's own moments have to be seen. Averaging clients of few classes ruins the readout first
(Luo et al. 2021, arXiv:2106.05001); regressed over all clients it is that of pooled data (Fani et al. 2024,
arXiv:2406.01116), on features that were learned in the rounds.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from featalign.data.batch import Batch, unwrap
from featalign.data.inputs import Inputs
from featalign.data.task import Task
from featalign.errors import BadOption, SpaceMismatch
from featalign.federated.messages import State
from featalign.spaces import affine
from featalign.spaces.capture import evaluating

BATCH = 1024


def readout_of(module: nn.Module, example: Batch) -> str:
    """Name of the affine layer whose output is the network's; raises `BadOption` where there is none."""
    seen: dict[str, Any] = {}
    handles = [
        part.register_forward_hook(lambda part, args, out, name=name: seen.__setitem__(name, out))  # type: ignore[misc]
        for name, part in module.named_modules()
        if affine.is_affine(part)
    ]
    try:
        with evaluating(module):
            outputs = unwrap(example.on(module).run(module))
    finally:
        for handle in handles:
            handle.remove()
    names = [name for name, value in seen.items() if value is outputs]
    if not names or outputs.dim() != 2:
        raise BadOption("calibrate wants outputs [samples, classes] that an affine layer writes; leave calibrate out")
    return names[-1]


def readout_moments(module: nn.Module, task: Task, inputs: Inputs) -> State:
    """Mean Gram matrix `[n + classes, n + classes]` of what the readout reads beside centred labels, by its name.

    Ones are appended to what it reads where it has a bias. Raises `BadOption` for tasks without classes.
    """
    name = readout_of(module, inputs.example())
    part = module.get_submodule(name)
    noted: list[torch.Tensor] = []
    handle = part.register_forward_pre_hook(lambda part, args: noted.append(args[0].detach()))
    gram: Any = 0
    count = 0
    try:
        with evaluating(module):
            for batch in inputs.batched(BATCH):
                outputs = unwrap(batch.run(module))
                labels, x = task.labels(task.targets(batch)), noted.pop().double()
                if labels is None or labels.shape != x.shape[:1]:
                    raise BadOption(f"calibrate wants one class a sample, task '{task.name}' has none; leave it out")
                kept = (labels >= 0).to(x.device)
                x = torch.cat([x, x.new_ones(len(x), 1)], 1) if part.bias is not None else x
                wanted = torch.nn.functional.one_hot(labels.to(x.device)[kept], outputs.shape[1]).to(x)
                rows = torch.cat([x[kept], wanted - 1 / outputs.shape[1]], 1)
                gram = gram + rows.T @ rows
                count += int(kept.sum())
    finally:
        handle.remove()
    return {name: (gram / max(count, 1)).float()}


def calibrate(module: nn.Module, example: Batch, gram: torch.Tensor, ridge: float = 1e-2) -> None:
    """Regress the readout of `module` in place on the mean over clients of what `readout_moments` gave.

    The solution is scaled to the norm of the readout as it was: which class wins does not depend on it, and local
    training, which goes on from there, meets gradients as steep as before. `ridge` is relative to the mean diagonal of
    the Gram matrix. Raises `SpaceMismatch` for moments of another shape.
    """
    part = module.get_submodule(readout_of(module, example))
    before, bias = affine.matrix(part).double(), part.bias
    if bias is not None:
        before = torch.cat([before, bias.detach().double()[:, None]], dim=1)  # type: ignore[operator]
    classes, size = before.shape
    wanted = size + classes
    if gram.shape != (wanted, wanted):
        raise SpaceMismatch(f"moments {list(gram.shape)} of a readout {[classes, size]}; expected {wanted} squared")
    second, cross = gram.double()[:size, :size], gram.double()[size:, :size]
    damping = ridge * second.diagonal().mean().clamp_min(1e-12)
    solution = torch.linalg.solve(second + damping * torch.eye(size, dtype=second.dtype), cross.T).T
    if float(solution.norm()) > 0:  # nothing is known of a network whose readout reads zeros
        solution = solution * (before.norm() / solution.norm())
        affine.write(part, *((solution[:, :-1], solution[:, -1]) if bias is not None else (solution,)))
