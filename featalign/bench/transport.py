"""Transport against scipy and POT: exact, entropic, and dictionaries of 8k and 16k latents, all in one run."""

from __future__ import annotations

import functools
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from featalign.bench.latents import LIMIT, latent_rows
from featalign.errors import BadOption

DENSE_SIZES = (100, 200, 500, 1000, 2000, 4000)
ENTROPIC_SIZES = (1000,)
SPARSE_SIZES = (1024, 8192, 16384)
EMD_LIMIT = 2000  # larger ones take minutes and are left out, with a word in the row


def transport_benchmark(
    quick: bool = False, only: str | None = None, progress: bool = True, limit: float = LIMIT
) -> dict[str, list[dict[str, Any]]]:
    """Tables `exact`, `entropic` and `sparse`, one dictionary per size, family and solver.

    `ratio` is ours over theirs in the same run (below 1: ours is faster); medians of interleaved repetitions.
    `quick` keeps to small sizes and leaves out `sparse`; `only` names one table; `limit` stops a solver of `sparse`
    after so many seconds.

    Raises `BadOption` for a table that there is not.
    """
    from tqdm.auto import tqdm

    sizes: dict[str, tuple[int, ...]] = {
        "exact": (100, 500, 1000) if quick else DENSE_SIZES,
        "entropic": (500,) if quick else ENTROPIC_SIZES,
        "sparse": () if quick else SPARSE_SIZES,
    }
    if only is not None and only not in sizes:
        raise BadOption(f"no table '{only}'; choices: {', '.join(sizes)}")
    jobs: list[tuple[str, Callable[[], list[dict[str, Any]]]]] = []
    tables: dict[str, list[dict[str, Any]]] = {name: [] for name in sizes if only in (None, name)}
    for name in tables:
        for n in sizes[name]:
            if name == "sparse":
                jobs.append((name, functools.partial(latent_rows, n, limit)))
            else:
                rows = exact_rows if name == "exact" else entropic_rows
                jobs += [(name, functools.partial(rows, n, family)) for family in FAMILIES]
    for table, job in tqdm(jobs, disable=not progress, desc="transport"):
        tables[table] += job()
    return tables


def random_cost(n: int, seed: int = 0) -> np.ndarray:
    """Independent uniform costs `[n, n]`."""
    return np.random.default_rng(seed).random((n, n))


def correlation_cost(n: int, seed: int = 0, shared: float = 1.0, samples: int = 1000, noise: float = 0.5) -> np.ndarray:
    """`1 - corr` between units and a permuted noisy copy, of which the share `shared` is real, `[n, n]`."""
    from featalign.transport import ground_cost

    rng = np.random.default_rng(seed)
    x = rng.standard_normal((samples, n))
    y = x[:, rng.permutation(n)] + noise * rng.standard_normal((samples, n))
    own = n - round(shared * n)
    y[:, :own] = rng.standard_normal((samples, own))
    return ground_cost("correlation", x, y).dense()


FAMILIES: dict[str, Callable[[int], np.ndarray]] = {
    "random": random_cost,
    "correlation": correlation_cost,
    "shared 60%": lambda n: correlation_cost(n, shared=0.6),
}


EPS = {"random": 0.005, "correlation": 0.1, "shared 60%": 0.1}  # of the range; POT needs 10 to 500 iterations for these


def exact_rows(n: int, family: str) -> list[dict[str, Any]]:
    """Ours (plan alone, and plan with certificate) against scipy's assignment and POT's `emd`."""
    import ot
    from scipy.optimize import linear_sum_assignment

    from featalign.transport import solve

    cost = FAMILIES[family](n)
    uniform = np.full(n, 1 / n)
    solvers: dict[str, Callable[[], Any]] = {
        "featalign": lambda: solve(cost),
        "featalign with certificate": lambda: _certified(solve(cost)),
        "scipy assignment": lambda: linear_sum_assignment(cost),
    }
    if n <= EMD_LIMIT:
        solvers["POT emd"] = lambda: ot.emd(uniform, uniform, cost, numItermax=10_000_000)
    repeats = max(3, min(300, 200_000 // n**2 * 20 + 3))
    seconds = _interleaved(solvers, repeats)
    rivals = {name: s for name, s in seconds.items() if not name.startswith("featalign")}
    plan = _certified(solve(cost))
    optimum = float(cost[linear_sum_assignment(cost)].mean())
    return [
        {
            "n": n,
            "family": family,
            "solver": name,
            "seconds": took,
            "ratio": took / min(rivals.values()),
            "value_error": abs(plan.value - optimum) if name.startswith("featalign") else 0.0,
            "relative_gap": plan.gap / max(abs(plan.value), 1e-300) if name.startswith("featalign") else None,
        }
        for name, took in seconds.items()
    ]


def entropic_rows(n: int, family: str, tolerance: float = 1e-6) -> list[dict[str, Any]]:
    """Ours against POT's `sinkhorn_log` at the same eps, both to the same relative marginal error.

    POT's stopping rule is absolute and in the 2-norm: it gets `tolerance / sqrt(n)`, which is the same for even errors.
    Its iterations are capped at 500; where that is too few, its error is in the row and the ratio flatters it.
    """
    import ot
    import torch

    from featalign.transport import sinkhorn

    cost, eps = FAMILIES[family](n), EPS[family]
    uniform, absolute = np.full(n, 1 / n), eps * float(np.ptp(cost))
    tensor = torch.from_numpy(cost)
    options = {"method": "sinkhorn_log", "stopThr": tolerance / n**0.5, "numItermax": 500, "log": True}

    def run_ours() -> Any:
        return sinkhorn(tensor, eps=eps, tolerance=tolerance, rounded=False)

    def run_theirs() -> Any:
        return ot.sinkhorn(uniform, uniform, cost, absolute, **options)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        took = _interleaved({"featalign": run_ours, "POT": run_theirs}, 3)
        ours, (theirs, record) = run_ours(), run_theirs()
    seconds, theirs_took = took["featalign"], took["POT"]
    rows = [("featalign", seconds, _marginal_error(ours.plan.numpy()), ours.iterations)]
    rows.append(("POT sinkhorn_log", theirs_took, _marginal_error(theirs), int(record["niter"])))
    return [
        {
            "n": n,
            "family": f"{family}, eps {eps:g}",
            "solver": name,
            "seconds": each,
            "ratio": each / theirs_took,
            "marginal_error": error,
            "iterations": iterations,
        }
        for name, each, error, iterations in rows
    ]


def _certified(plan: Any) -> Any:
    _ = plan.gap
    return plan


def _marginal_error(coupling: np.ndarray) -> float:
    n, m = coupling.shape
    return float(np.abs(coupling.sum(1) - 1 / n).sum() + np.abs(coupling.sum(0) - 1 / m).sum())


def _timed(run: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result


def _interleaved(solvers: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median seconds; solvers take turns, so that a busy machine slows all alike."""
    took: dict[str, list[float]] = {name: [] for name in solvers}
    order = list(solvers)
    for _ in range(repeats):
        for name in order:
            took[name].append(_timed(solvers[name])[0])
        order = order[1:] + order[:1]  # each runs after every other, so that no one always finds the caches cold
    return {name: float(np.median(values)) for name, values in took.items()}


def table_rows(tables: dict[str, list[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    """All tables as rows with the columns a terminal can show."""
    for table, rows in tables.items():
        for row in rows:
            quality = {
                k: row[k]
                for k in ("relative_gap", "marginal_error", "value_error", "recall", "peak_memory_gb")
                if row.get(k) is not None
            }
            yield {
                "task": table,
                "n": row["n"],
                "costs": row["family"],
                "solver": row["solver"],
                "seconds": row["reason"] if row["seconds"] is None else f"{row['seconds']:.4g}",
                "ratio": f"{row['ratio']:.2f}" if "ratio" in row else "",
                "quality": ", ".join(f"{name.replace('_', ' ')} {value:.2g}" for name, value in quality.items()),
            }
