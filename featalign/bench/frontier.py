"""Accuracy against monosemanticity: what a fused network gains and loses when its units are features.

Fused units are picked by the column-subset selection of `zip` from the clients' neurons, from latents of their
transcoders at several sparsities, or from both, at several fused widths. All rows of a seed share clients, probe and
refit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from featalign.errors import BadOption

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

    from featalign.bench.paper.lab import Lab
    from featalign.clients import Client
    from featalign.dictionaries import Dictionary
    from featalign.fuse import FusionProblem

    Transcoders = Mapping[str, tuple[Dictionary, ...]]

POOLS = ("neurons", "latents", "both")
SPARSITIES = (6.0, 16.0, 40.0)
WIDTHS = (1.0, 1.5, 2.0, 3.0)
PROBE, AUGMENTED = 400, 10_000  # unlabelled inputs, and what they are extended to
MEASURES = ("value", "selectivity", "null", "entropy", "monosemanticity", "monosemanticity_null", "active", "alive")


@dataclass(frozen=True)
class FrontierRow:
    """One network. Means are over the units of all its hidden layers that fire on held-out inputs.

    Attributes:
        seed: the repetition.
        network: client, ensemble, average (position by position) or fused.
        pool: what fused units were picked from: neurons, latents or both; empty for other networks.
        k: active latents per sample that transcoders were trained for; 0 where the pool holds none.
        width: fused units over the reference's.
        metric, value: the task's headline on held-out data.
        selectivity: class selectivity (Morcos et al. 2018); `null` with labels shuffled.
        entropy: of the class profile, 0 for one class, 1 for all alike.
        monosemanticity: mean cosine of the inputs, less their mean, that drive a unit (Pach et al. 2025, who embed
            inputs by an image encoder); `monosemanticity_null` with inputs shuffled.
        active: share of units above zero, mean over inputs; `alive`: share that is so on any.
    """

    seed: int
    network: str
    pool: str
    k: float
    width: float
    metric: str
    value: float
    selectivity: float
    null: float
    entropy: float
    monosemanticity: float
    monosemanticity_null: float
    active: float
    alive: float


@dataclass(frozen=True)
class Frontier:
    """All rows."""

    rows: tuple[FrontierRow, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"rows": [asdict(row) for row in self.rows]}

    def to_frame(self) -> pd.DataFrame:
        """A row per network, pool, k and width: means over seeds (and clients), `_std` of value and selectivity."""
        return summary(self.to_dict())


def summary(found: Mapping[str, Any]) -> pd.DataFrame:
    """The frame of `Frontier.to_dict`, from the object or the file."""
    import pandas as pd

    frame = pd.DataFrame(found["rows"])
    grouped = frame.groupby(["network", "pool", "k", "width", "metric"], sort=False)
    means = grouped[list(MEASURES)].mean()
    spread = grouped[["value", "selectivity"]].std().add_suffix("_std")
    return means.join(spread).assign(seeds=grouped["seed"].nunique()).reset_index()


def table(found: Mapping[str, Any]) -> str:
    """Markdown of `Frontier.to_dict`: headline metric in per cent and mean class selectivity of every network."""
    frame = summary(found)
    lines = ["| network | units | width | accuracy | selectivity | null | active |", "|---|---|---|---|---|---|---|"]
    for row in frame.to_dict("records"):
        units = row["pool"] + (f", k = {row['k']:g}" if row["k"] else "")
        value, selectivity = f"{100 * row['value']:.1f}", f"{row['selectivity']:.2f}"
        if row["seeds"] > 1:
            value, selectivity = (
                f"{value} ± {100 * row['value_std']:.1f}",
                f"{selectivity} ± {row['selectivity_std']:.2f}",
            )
        lines.append(
            f"| {row['network']} | {units} | {row['width']:g} | {value} | {selectivity} | {row['null']:.2f} | "
            f"{row['active']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def frontier(
    dataset: str = "mnist",
    clients: int = 2,
    sparsities: Sequence[float] = (),
    widths: Sequence[float] = (),
    seeds: int = 2,
    progress: bool = True,
) -> Frontier:
    """Train (or load) clients of a special-label split and their transcoders, and fuse them at every point.

    Clients are those of `featalign bench paper` with biases of zero, so that fused units may have thresholds: the first
    holds a label alone. Transcoders are trained on the inputs of the refit, 400 unlabelled ones shifted and mixed to
    10,000. `sparsities` are active latents per sample (6, 16 and 40 unless given), `widths` multiples of the clients'
    (1, 1.5, 2 and 3); a pool that holds too few units for a width is left out there. Raises `BadOption` for fewer than
    one seed or two clients.
    """
    from tqdm.auto import tqdm

    from featalign.bench.paper.lab import Lab
    from featalign.dictionaries.store import cached_dictionaries

    if seeds < 1 or clients < 2:
        raise BadOption(f"seeds = {seeds}, clients = {clients}; give at least 1 seed and 2 clients")
    lab, rows = Lab(dataset, PROBE, AUGMENTED, progress=progress), []
    with tqdm(desc="frontier", unit=" networks", disable=not progress, leave=False) as bar:
        for seed in range(seeds):
            members = lab.split(seed, clients=clients)
            problem = lab.problem([_with_biases(lab, member.model) for member in members], seed)
            cohort, keys = problem.cohort, _keys(lab, members, seed)
            inputs = [cohort.refit_inputs] * clients
            trained = {
                k: cached_dictionaries(
                    cohort.modules, cohort.graphs, inputs, cohort.names, "transcoder", seed, keys, k=k
                )
                for k in sparsities or SPARSITIES
            }
            for row in points(problem, trained, widths or WIDTHS, seed):
                rows.append(row)
                bar.update()
                bar.set_postfix_str(f"seed {seed}, {row.network} {row.pool}: {100 * row.value:.1f} %")
    return Frontier(tuple(rows))


def points(
    problem: FusionProblem, trained: Mapping[float, Transcoders], widths: Sequence[float], seed: int = 0
) -> Iterator[FrontierRow]:
    """The clients, their ensemble and their average, then every pool that is wide enough, at every width.

    `trained` are the transcoders by their k, of every hidden space.
    """
    from featalign.clients import Ensemble
    from featalign.fuse import solve

    cohort = problem.cohort

    def row(network: str, module: nn.Module, parts: Sequence[nn.Module], **point: Any) -> FrontierRow:
        facts = {"pool": "", "k": 0.0, "width": 1.0, **point, **_measured(problem, module, parts, seed)}
        return FrontierRow(seed=seed, network=network, **facts)

    for module in cohort.modules:
        yield row("client", module, [module])
    ensemble = Ensemble(cohort.modules, problem.mixing, cohort.task)
    yield row("ensemble", ensemble, cohort.modules, width=float(len(cohort)))
    average = solve(problem, "vanilla").module
    yield row("average", average, [average])
    for width in widths:
        if width <= len(cohort):
            fused = solve(problem, "zip", refit=True, width=width).module
            yield row("fused", fused, [fused], pool="neurons", width=width)
    for pool in POOLS[1:]:
        for k, transcoders in trained.items():
            own = replace(problem, transcoders=transcoders)
            for width in widths:
                if _holds(problem, transcoders, pool, width):
                    fused = solve(own, "feature-zip", width=width, neurons=pool == "both").module
                    yield row("fused", fused, [fused], pool=pool, k=k, width=width)


def _holds(problem: FusionProblem, transcoders: Transcoders, pool: str, width: float) -> bool:
    """Whether the pool of every space has as many units as the fused one."""
    for space in problem.graph.hidden:
        units = sum(basis.width for basis in transcoders[space.name])
        if pool == "both":
            units += sum(graph[space.name].size for graph in problem.graphs)
        if units < round(width * space.size):
            return False
    return True


def _measured(problem: FusionProblem, module: nn.Module, parts: Sequence[nn.Module], seed: int) -> dict[str, Any]:
    """Headline and means over the units of all hidden layers of `parts`, on the evaluation inputs."""
    import torch

    from featalign import measure
    from featalign.clients import evaluate
    from featalign.data.inputs import Inputs
    from featalign.spaces.capture import collect

    task, evaluation = problem.cohort.task, Inputs.of(problem.cohort.evaluation)
    inputs, labels = torch.as_tensor(evaluation.tensor), torch.as_tensor(evaluation.targets)
    sites = [space.after for space in problem.graph.hidden]
    held = [collect(part, inputs, sites) for part in parts]
    units = torch.cat([found[site] for found in held for site in sites], dim=1)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    seen = inputs.flatten(1) - inputs.flatten(1).mean(0)
    return {
        "metric": task.metric.name,
        "value": evaluate(module, evaluation, task)[task.metric.name],
        "selectivity": float(measure.class_selectivity(units, labels).nanmean()),
        "null": float(measure.class_selectivity(units, labels[order]).nanmean()),
        "entropy": float(measure.class_entropy(units, labels).nanmean()),
        "monosemanticity": float(measure.monosemanticity(units, seen).nanmean()),
        "monosemanticity_null": float(measure.monosemanticity(units, seen[order]).nanmean()),
        "active": float((units > 0).double().mean()),
        "alive": float((units > 0).any(0).double().mean()),
    }


def _with_biases(lab: Lab, module: nn.Module) -> nn.Module:
    """The same function with biases of zero: latents fire above thresholds, which a layer without one cannot hold."""
    import torch

    twin = replace(lab.config(), bias=True).module()
    state = {name: torch.zeros_like(value) for name, value in twin.state_dict().items()}
    twin.load_state_dict({**state, **module.state_dict()})
    return twin.eval()


def _keys(lab: Lab, members: Sequence[Client], seed: int) -> list[str]:
    """Fingerprints of the clients and of the inputs that their transcoders are trained on."""
    from featalign import storage

    return [storage.fingerprint({"client": member.key, "inputs": lab.to_dict(), "seed": seed}) for member in members]
