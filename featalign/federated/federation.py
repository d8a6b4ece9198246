"""`Federation`: who takes part, on what data, for what task, and how a network starts."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import nn

from featalign import storage
from featalign.clients.cohort import try_out
from featalign.clients.models import ModelConfig, build, models
from featalign.clients.training import TrainConfig, check_finite
from featalign.data.batch import Batch
from featalign.data.datasets import Dataset
from featalign.data.inputs import Inputs
from featalign.data.partition import Partition, client_names
from featalign.data.probe import probe as draw_probe
from featalign.data.task import TASKS, Task, task_of
from featalign.errors import BadOption

PROBE = 2000


@dataclass(frozen=True)
class Federation:
    """Clients with their own data, and the network that they train together.

    Attributes:
        names, own: the clients and what each holds, inputs with targets; clients without samples are left out.
        make: a freshly initialised network from a seed; of a module that was passed in, a copy of it.
        recipe: how clients train, epochs included.
        task: what the network is for.
        probe: unlabelled inputs that the server may use, or None: then only weights and moments can align and refit.
        evaluation: inputs with targets on which the server's network is scored; None leaves that out.
        initialises: whether `make` follows its seed, which independent starts need.
        notes: what was left out.
        remote_sizes: samples of clients whose data lies elsewhere; `own` is empty then.
    """

    names: tuple[str, ...]
    own: tuple[Inputs, ...]
    make: Callable[[int], nn.Module]
    recipe: TrainConfig
    task: Task
    probe: Inputs | None = None
    evaluation: Inputs | None = None
    initialises: bool = True
    notes: tuple[str, ...] = ()
    remote_sizes: tuple[int, ...] = ()

    @classmethod
    def of(
        cls,
        dataset: Dataset,
        partition: Partition,
        model: ModelConfig | str = "mlp",
        probe: Any = PROBE,
        task: Task | str | None = None,
        recipe: TrainConfig | None = None,
    ) -> Federation:
        """A data set dealt to clients.

        Args:
            model: a configuration or the name of a family.
            probe: so many unlabelled training inputs, whatever `Inputs` reads, or None.
            task: defaults to the data set's.
            recipe: defaults to one epoch of the family's.
        """
        config = model if isinstance(model, ModelConfig) else models[model].for_dataset(dataset)
        if isinstance(probe, int):
            probe = draw_probe(dataset, min(probe, len(dataset.train_inputs))) if probe else None
        kept = [k for k, part in enumerate(partition.indices) if len(part)]
        own = [(dataset.train_inputs[i], dataset.train_labels[i]) for i in (partition.indices[k] for k in kept)]
        names = [partition.client_names[k] for k in kept]
        lost = [name for name in partition.client_names if name not in names]
        notes = (f"left out, without samples: {', '.join(lost)}",) if lost else ()
        recipe = recipe or config.recipe(len(dataset.train_labels), epochs=1)
        found = cls.gather(
            own, config, probe, (dataset.test_inputs, dataset.test_labels), task or dataset.task, names, recipe
        )
        return replace(found, notes=notes)

    @classmethod
    def gather(
        cls,
        own: Sequence[Any],
        model: ModelConfig | nn.Module,
        probe: Any = None,
        evaluate: Any = None,
        task: Task | str | None = None,
        names: Sequence[str] | None = None,
        recipe: TrainConfig | None = None,
    ) -> Federation:
        """Clients from their data: per client `(inputs, targets)`, or whatever `Inputs` reads with its targets.

        Raises `BadOption` for no clients or names that do not fit, `ProbeError` for a network that cannot read
        the first client's inputs, `TaskError` where network, data and task do not fit.
        """
        if not own:
            raise BadOption("zero clients; give the data of at least one")
        names = tuple(names or client_names(len(own)))
        if len(set(names)) != len(own):
            raise BadOption(f"{len(set(names))} names for {len(own)} clients; give each one of its own")
        held = tuple(Inputs.of(each, labelled=True) for each in own)
        make: Callable[[int], nn.Module]
        if isinstance(model, ModelConfig):
            make, usual = _Initialised(model), model.recipe(len(held[0]), epochs=1)
        else:
            check_finite(model, "server")
            make, usual = _Copied(model), TrainConfig(epochs=1)
        found = TASKS[task]() if isinstance(task, str) else task
        module, example = make(0), held[0].example()
        found = task_of(found, try_out(module, example, names[0], "data"), example)
        scored = None if evaluate is None else Inputs.of(evaluate, labelled=True)
        public = None if probe is None else Inputs.of(probe)
        return cls(names, held, make, recipe or usual, found, public, scored, isinstance(model, ModelConfig))

    @classmethod
    def remote(
        cls,
        sizes: Mapping[str, int],
        model: ModelConfig | nn.Module,
        probe: Any,
        evaluate: Any = None,
        task: Task | str = "classification",
    ) -> Federation:
        """What a server knows of clients on other machines: names and samples; the probe is inputs of the right shape.

        Raises `BadOption` for no clients.
        """
        if not sizes:
            raise BadOption("zero clients; give the samples of at least one by name")
        found = TASKS[task]() if isinstance(task, str) else task
        make: Callable[[int], nn.Module] = _Initialised(model) if isinstance(model, ModelConfig) else _Copied(model)
        scored = None if evaluate is None else Inputs.of(evaluate, labelled=True)
        return cls(
            tuple(sizes), (), make, TrainConfig(epochs=1), found, Inputs.of(probe), scored,
            isinstance(model, ModelConfig), remote_sizes=tuple(sizes.values()),
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Samples of each client."""
        return self.remote_sizes or tuple(len(each) for each in self.own)

    @cached_property
    def example(self) -> Batch:
        """Two inputs that may leave nobody: of the probe, or noise of the same shapes."""
        if self.probe is not None:
            return self.probe.example()
        generator = torch.Generator().manual_seed(0)
        like = self.own[0].example()
        noise = Batch(like.args, like.kwargs)
        return noise.map(
            lambda t: torch.randn(t.shape, generator=generator).to(t.dtype) if t.is_floating_point() else t * 0
        )

    def fingerprint(self) -> str:
        """Of names, sizes, task and initial weights: what a run that is resumed must share."""
        state = {name: float(tensor.double().sum()) for name, tensor in self.make(0).state_dict().items()}
        return storage.fingerprint(
            {"names": self.names, "sizes": self.sizes, "task": self.task.to_dict(), "start": state}
        )


@dataclass(frozen=True)
class _Initialised:
    """Builds a configuration from a seed."""

    config: ModelConfig

    def __call__(self, seed: int) -> nn.Module:
        return build(self.config, seed)


@dataclass(frozen=True)
class _Copied:
    """Copies a module, whatever the seed."""

    module: nn.Module

    def __call__(self, seed: int) -> nn.Module:
        return copy.deepcopy(self.module)
