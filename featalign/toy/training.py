"""Training of toy models: hundreds at once in one batched program, with gradients written out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from featalign import storage
from featalign.errors import BadOption, SpaceMismatch
from featalign.threads import over_cores
from featalign.toy.features import Features
from featalign.toy.models import ToyConfig, ToyModels, initial

log = logging.getLogger(__name__)
Batches = Callable[[int, torch.Generator], torch.Tensor]
CHUNK = 2**18  # floats of one batch for the models of one program: beyond the cache they only wait for memory
SEED_STRIDE = 104_729  # between the batches of laws that are trained in different programs
BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8


@dataclass(frozen=True)
class Schedule:
    """How long and how fast: Adam, the rate falling to zero over the last 30 % of the steps.

    Attributes:
        patience: stop a model whose smoothed loss improved by less than `tolerance` (relative) over this many steps;
            0 trains to the end. The decay of the rate then begins at once, so that stopped runs are annealed too.
    """

    steps: int = 3000
    batch_size: int = 256
    lr: float = 5e-3
    decay: float = 0.3
    patience: int = 0
    tolerance: float = 0.01

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1 or not self.lr > 0:
            raise BadOption(f"steps={self.steps}, batch_size={self.batch_size}, lr={self.lr}; all must be positive")


def train(
    config: ToyConfig,
    laws: Features | Batches | Sequence[Features | Batches],
    seeds: Sequence[int] = (0,),
    schedule: Schedule = Schedule(),
    start: ToyModels | None = None,
    importance: torch.Tensor | None = None,
    data_seed: int = 0,
    progress: bool = False,
) -> ToyModels:
    """Train one model per seed, or a grid: one per (law, seed) pair, laws varying slowest.

    Args:
        laws: the feature law, several of them, or functions `(count, generator) -> x [count, n]` (real data).
        seeds: initialisations. Models of one law see the same batches, so seeds differ by initialisation only.
        start: models to go on from, `[laws * seeds]`, instead of fresh ones.
        importance: `[n]` or `[laws, n]` weights of the squared errors; None takes those of the laws.
        data_seed: of the batches.

    Raises `SpaceMismatch` for laws of another size. Source: Elhage et al. 2022, "Toy Models of Superposition".
    """
    several = list(laws) if isinstance(laws, Sequence) else [laws]
    for law in several:
        if isinstance(law, Features) and law.n != config.n:
            raise SpaceMismatch(f"the feature law has {law.n} features and the model {config.n}; make them equal")
    models = start or initial(config, [seed for _ in several for seed in seeds])
    if len(models) != len(several) * len(seeds):
        raise SpaceMismatch(f"start holds {len(models)} models for {len(several)} laws and {len(seeds)} seeds")
    weights = _importance(several, config.n, importance)
    size = max(1, CHUNK // (schedule.batch_size * config.n))  # models in one program
    whole = max(1, size // len(seeds))  # laws in one program, if all models of a law fit
    parts = [
        (range(law, min(law + whole, len(several))), range(first, min(first + size, len(seeds))))
        for law in range(0, len(several), whole)
        for first in range(0, len(seeds), size)
    ]

    def work(part: tuple[range, range]) -> ToyModels:
        chosen, copies = part
        rows = [law * len(seeds) + copy for law in chosen for copy in copies]
        program = _Program(models[rows], weights[list(chosen)].repeat_interleave(len(copies), 0), schedule)
        batches = _batches([several[law] for law in chosen], data_seed + SEED_STRIDE * chosen.start)
        return program.run(batches, len(copies), progress and part == parts[0])

    found = over_cores(work, parts)
    order = [law * len(seeds) + copy for chosen, copies in parts for law in chosen for copy in copies]
    return ToyModels.stack(found)[torch.tensor(order).argsort().tolist()]


def _batches(laws: Sequence[Features | Batches], data_seed: int) -> Callable[[int], torch.Tensor]:
    """`count -> x [laws, count, n]`; independent features of all laws come from one draw."""
    if all(isinstance(law, Features) and law.relation == "independent" for law in laws):
        density = torch.tensor([law.density for law in laws if isinstance(law, Features)])[:, None]
        shared = torch.Generator().manual_seed(data_seed)

        def together(count: int) -> torch.Tensor:
            u = torch.rand(len(laws), count, density.shape[2], generator=shared)
            return torch.where(u < density, u / density.clamp_min(1e-12), 0.0)

        return together
    generators = [torch.Generator().manual_seed(data_seed * 7919 + index) for index in range(len(laws))]
    draw = [law.sample if isinstance(law, Features) else law for law in laws]
    return lambda count: torch.stack([law(count, generator) for law, generator in zip(draw, generators)])


def _importance(laws: Sequence[Any], n: int, given: torch.Tensor | None) -> torch.Tensor:
    """`[laws, n]`."""
    if given is not None:
        return given.float().expand(len(laws), n)
    rows = [law.importance if isinstance(law, Features) else (1.0,) * n for law in laws]
    return torch.tensor(rows, dtype=torch.float32)


class _Program:
    """Forward, backward and Adam for `M` models as a handful of batched products."""

    def __init__(self, models: ToyModels, importance: torch.Tensor, schedule: Schedule):
        self.config, self.schedule = models.config, schedule
        self.root = None if bool((importance == 1).all()) else importance[:, None].sqrt()  # [M, 1, n]
        self.params = {"encoder": models.encoder.clone(), "bias": models.bias[:, None].clone()}
        if not self.config.tied:
            self.params["decoder"] = models.decoder.clone()
        self.first = {name: torch.zeros_like(value) for name, value in self.params.items()}
        self.second = {name: torch.zeros_like(value) for name, value in self.params.items()}
        self.watch = torch.zeros(len(models))

    def run(self, draw: Callable[[int], torch.Tensor], copies: int, progress: bool) -> ToyModels:
        from tqdm.auto import tqdm

        size, stop, best, stale = self.schedule.batch_size, self.schedule.steps, float("inf"), 0
        decay = int(self.schedule.decay * self.schedule.steps)
        bar = tqdm(total=stop, disable=not progress, desc=f"{len(self.watch)} toy models", unit="step")
        step = 0
        with torch.no_grad():
            while step < stop:
                batch = draw(size)
                x = batch if copies == 1 else batch.repeat_interleave(copies, 0)
                self._step(x, step, min(1.0, (stop - step) / max(1, decay)))
                step += 1
                bar.update()
                if self.schedule.patience and step % self.schedule.patience == 0 and stop - step > decay:
                    smoothed = float((self.watch / (1 - 0.99**step)).mean())
                    stale = stale + 1 if smoothed > best * (1 - self.schedule.tolerance) else 0
                    best = min(best, smoothed)
                    if stale:
                        stop = step + decay
                        log.info("no progress at step %d: annealing until step %d", step, stop)
            bar.close()
        encoder = self.params["encoder"]
        decoder = encoder.mT.contiguous() if self.config.tied else self.params["decoder"]
        return ToyModels(self.config, encoder, decoder, self.params["bias"][:, 0])

    def _step(self, x: torch.Tensor, step: int, rate: float) -> None:
        encoder, bias = self.params["encoder"], self.params["bias"]
        decoder = encoder.mT if self.config.tied else self.params["decoder"]
        pre = x @ encoder.mT
        hidden = pre.relu() if self.config.hidden == "relu" else pre
        error = torch.baddbmm(bias, hidden, decoder.mT)  # in place from here on: temporaries of this size cost most
        on = (error > 0) if self.config.output == "relu" else None
        error = (error if on is None else error.relu_()).sub_(x)
        root = error if self.root is None else error * self.root
        self.watch.mul_(0.99).add_(torch.linalg.vector_norm(root, dim=(1, 2)) ** 2, alpha=0.01 / x.shape[1])
        delta = error if self.root is None else root.mul_(self.root)
        if on is not None:
            delta.mul_(on)
        delta.mul_(2 / x.shape[1])
        dhidden = delta @ decoder
        if self.config.hidden == "relu":
            dhidden = dhidden * (pre > 0)
        gradient = {"encoder": dhidden.mT @ x}
        if self.config.tied:
            gradient["encoder"] += hidden.mT @ delta
        else:
            gradient["decoder"] = delta.mT @ hidden
        if self.config.bias:
            gradient["bias"] = delta.sum(1, keepdim=True)
        self._adam(gradient, step, rate)

    def _adam(self, gradient: dict[str, torch.Tensor], step: int, rate: float) -> None:
        scale1, scale2 = 1 - BETA1 ** (step + 1), (1 - BETA2 ** (step + 1)) ** 0.5
        for name, grad in gradient.items():
            self.first[name].lerp_(grad, 1 - BETA1)
            self.second[name].mul_(BETA2).addcmul_(grad, grad, value=1 - BETA2)
            denominator = self.second[name].sqrt().div_(scale2).add_(EPSILON)
            self.params[name].addcdiv_(self.first[name], denominator, value=-self.schedule.lr * rate / scale1)


def cached(
    config: ToyConfig, laws: Sequence[Features], seeds: Sequence[int], schedule: Schedule, **options: Any
) -> ToyModels:
    """`train`, with the result kept in the cache folder under the hash of everything that decides it."""
    facts = {
        "config": config.to_dict(),
        "laws": [law.to_dict() for law in laws],
        "seeds": list(seeds),
        "schedule": asdict(schedule),
        "data_seed": options.get("data_seed", 0),
    }
    path = storage.cache_folder() / "toy" / f"{storage.fingerprint(facts)}.safetensors"
    if path.exists():
        return load(path, config)
    models = train(config, laws, seeds, schedule, **options)
    save(models, path)
    return models


def save(models: ToyModels, path: Path | str) -> Path:
    """Write models as safetensors; the configuration travels as metadata."""
    tensors = {"encoder": models.encoder, "decoder": models.decoder, "bias": models.bias}
    return storage.save_tensors(path, tensors, {key: str(value) for key, value in models.config.to_dict().items()})


def load(path: Path | str, config: ToyConfig) -> ToyModels:
    """Read models written by `save`; raises `CorruptFile` when truncated, `SpaceMismatch` when of another shape."""
    tensors = storage.load_tensors(path)
    models = ToyModels(config, tensors["encoder"], tensors["decoder"], tensors["bias"])
    if models.encoder.shape[1:] != (config.m, config.n):
        raise SpaceMismatch(
            f"'{path}' holds models of shape {tuple(models.encoder.shape[1:])}, not {(config.m, config.n)}"
        )
    return models
