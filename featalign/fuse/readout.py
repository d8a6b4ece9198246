"""The readout of a refit: what it should say, and heads that are fitted by a loss instead of by least squares."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from featalign.fuse.problem import FusionProblem

AGREED = 1e-4  # relative difference of outputs up to which clients say the same
NUMBERS = 1_500_000  # outputs in the sample that a loss is fitted on
ROUNDS = 25  # of L-BFGS
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def readout_target(
    problem: FusionProblem, outputs: Sequence[torch.Tensor], head: str | None, taking: Sequence[int] | None = None
) -> torch.Tensor:
    """The task's target `[rows, outputs]` from the clients' outputs; where all clients say the same, just that.

    Source of the default for classes: the logarithm of the averaged softmax, `log sum_k lambda_k softmax(z_k)`.
    """
    taking = range(len(problem.cohort)) if taking is None else taking
    mixing = [problem.mixing[k] for k in taking]
    counts = None if problem.cohort.class_counts is None else problem.cohort.class_counts[list(taking)]
    told = [(weight, out.double()) for weight, out in zip(mixing, outputs) if weight > 0]
    mean = torch.stack([weight * out for weight, out in told]).sum(0)
    apart = torch.stack([(out - told[0][1]).abs().amax(-1) for _, out in told]).amax(0)
    agreed = apart <= AGREED * told[0][1].abs().amax(-1)
    target = problem.cohort.task.head_target(outputs, mixing, counts, head, problem.temper)
    return torch.where(agreed[:, None], mean, target.double())


class Sample:
    """Evenly spaced rows of what a readout reads `[rows, f]`, says and should say `[rows, outputs]`.

    `NUMBERS` outputs are kept of `inputs` in all, and at least four rows for each feature that is read.
    """

    def __init__(self, inputs: int):
        self.inputs, self.every = inputs, 0
        self.parts: list[tuple[torch.Tensor, ...]] = []

    def add(self, batch: int, *rows: torch.Tensor) -> None:
        """All three of a batch of so many inputs."""
        if not self.every:
            read, said = rows[0], rows[1]
            wanted = max(NUMBERS // said.shape[1], 4 * read.shape[1])
            self.every = max(1, len(said) * self.inputs // batch // wanted)
        self.parts.append(tuple(each[:: self.every].double() for each in rows))

    def change(self, loss: Loss, start: torch.Tensor, ridge: float) -> torch.Tensor:
        """`[f, outputs]` added to the weights: least mean loss, from and towards `start`.

        L-BFGS in the basis in which what is read is white; `ridge` is relative to its mean second moment.
        """
        x, said, wanted = (torch.cat(parts) for parts in zip(*self.parts))
        gram = x.T @ x / len(x)
        pull = ridge * gram.diagonal().mean().clamp_min(1e-12)
        root = torch.linalg.cholesky(gram + pull * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)).T
        said = said + x @ start
        white = torch.linalg.solve_triangular(root, x, upper=True, left=False)
        step = torch.zeros(start.shape, dtype=gram.dtype, device=gram.device, requires_grad=True)
        search = torch.optim.LBFGS(
            [step], max_iter=ROUNDS, line_search_fn="strong_wolfe", tolerance_grad=1e-7, tolerance_change=1e-10
        )

        def closure() -> torch.Tensor:
            search.zero_grad()
            moved = torch.linalg.solve_triangular(root, step, upper=True)
            total = loss(said + white @ step, wanted).mean() + 0.5 * pull * moved.square().sum()
            total.backward()
            return total

        with torch.enable_grad():
            search.step(closure)  # type: ignore[no-untyped-call]
        return start + torch.linalg.solve_triangular(root, step.detach(), upper=True)
