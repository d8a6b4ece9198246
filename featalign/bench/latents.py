"""Dictionaries of 8k and 16k latents matched by featalign and by POT's sparse and lazy exact solvers.

Every solver runs in a process of its own, so that its peak memory is its own and a limit on its seconds can be kept.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from typing import Any

import numpy as np
import scipy.sparse

SAMPLES = 2000
SHARED = 0.6  # of the latents of either client have a twin
LIMIT = 600.0  # seconds after which a solver is stopped
ITERATIONS = 1_000_000_000  # of POT's network simplex, whose own default stops it long before large problems end


def latent_rows(n: int, limit: float = LIMIT) -> list[dict[str, Any]]:
    """A row per solver of one partial match of `n` latents per client, 60 % of them shared.

    `lazy` solves the balanced problem (POT has no price for unmatched mass there); `featalign, balanced` is its peer.
    """
    rows = [_in_own_process(name, n, limit) for name in SOLVERS]
    ours = {"partial": rows[0], "balanced": next(row for row in rows if row["solver"] == "featalign, balanced")}
    for row in rows:
        mine = ours[row["problem"]]
        if row["seconds"] is not None and mine["seconds"] is not None:
            row["ratio"] = mine["seconds"] / row["seconds"]
            row["value_error"] = abs(row["value"] - mine["value"]) / abs(mine["value"])
    return rows


def planted_latents(
    n: int, samples: int, shared: float = SHARED, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sparse codes of two clients `[samples, n]` and, for every latent of A, its twin in B or -1."""
    rng = np.random.default_rng(seed)

    def codes(count: int) -> np.ndarray:
        return np.maximum(rng.standard_normal((samples, count), dtype=np.float32) - 2, 0)

    common, order = round(shared * n), rng.permutation(n)
    a, b = codes(n), np.empty((samples, n), dtype=np.float32)
    b[:, order[:common]] = a[:, :common] + 0.5 * codes(common)
    b[:, order[common:]] = codes(n - common)
    twin = np.full(n, -1)
    twin[:common] = order[:common]
    return a, b, twin


def measured(name: str, n: int, samples: int = SAMPLES) -> dict[str, Any]:
    """One solver on the planted latents: seconds from activations to plan, value, recall, precision, peak memory.

    `cpu_seconds` are those of all threads, which a busy machine leaves alone.
    """
    a, b, twin = planted_latents(n, samples)
    SOLVERS[name](a[:, :8], b[:, :8])  # imports outside the clock
    start, worked = time.perf_counter(), time.process_time()
    found = SOLVERS[name](a, b)
    seconds, worked = time.perf_counter() - start, time.process_time() - worked
    pairs = found.pop("pairs")
    hits = int((twin[pairs[:, 0]] == pairs[:, 1]).sum())
    return {
        **_row(name, n),
        **found,
        "seconds": seconds,
        "cpu_seconds": worked,
        "recall": hits / int((twin >= 0).sum()),
        "precision": hits / max(len(pairs), 1),
        "peak_memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def _featalign(a: np.ndarray, b: np.ndarray) -> dict[str, Any]:
    from featalign.transport import ground_cost, null_threshold, solve

    cost = ground_cost("correlation", a, b)
    plan = solve(cost, method="sparse", threshold=null_threshold(cost.null(seed=0)))
    return {"pairs": plan.pairs, "value": plan.value, "relative_gap": plan.gap / plan.value, "reason": plan.reason}


def _featalign_balanced(a: np.ndarray, b: np.ndarray) -> dict[str, Any]:
    from featalign.transport import ground_cost, solve

    plan = solve(ground_cost("correlation", a, b), method="sparse")
    return {"pairs": plan.pairs, "value": plan.value, "relative_gap": plan.gap / plan.value, "reason": plan.reason}


def _pot_sparse(a: np.ndarray, b: np.ndarray) -> dict[str, Any]:
    """`ot.emd` on a sparse cost: the pairs below the price, which it must be given, and dummies for what stays."""
    import ot

    from featalign.transport import ground_cost, null_threshold

    cost = ground_cost("correlation", a, b)
    n, m = cost.shape
    price = float(null_threshold(cost.null(seed=0)))
    parts = []
    for part in cost.blocks():
        block = np.asarray(cost.rows(part), dtype=np.float64)
        i, j = np.nonzero(block < price)
        parts.append((i + part.start, j, block[i, j]))
    i, j, c = (np.concatenate(columns) for columns in zip(*parts))
    listed = len(c)
    i, j = np.concatenate([i, np.arange(n), np.full(m + 1, n)]), np.concatenate([j, np.full(n, m), np.arange(m + 1)])
    c = np.concatenate([c, np.full(n, price), np.full(m + 1, 0.0)])
    graph = scipy.sparse.coo_array((c + 1.0, (i, j)), shape=(n + 1, m + 1))  # explicit zeros may be dropped
    mass = np.append(np.full(n, 0.5 / n), 0.5)
    plan, record = ot.emd(mass, mass, graph, numItermax=ITERATIONS, log=True)
    entries = scipy.sparse.coo_array(plan)
    real = (entries.row < n) & (entries.col < m) & (entries.data > 0)
    return {
        "pairs": np.stack([entries.row[real], entries.col[real]], axis=1),
        "value": 2 * (float(record["cost"]) - 1.0),
        "reason": record["warning"] or f"{listed} pairs below the price, listed by the caller",
    }


def _pot_lazy(a: np.ndarray, b: np.ndarray) -> dict[str, Any]:
    """`ot.emd2_lazy`: standardised activations as coordinates, whose squared distance is twice `1 - correlation`."""
    import ot

    points = []
    for values in (a, b):
        centred = values.T.astype(np.float64) - values.mean(0, dtype=np.float64)[:, None]
        points.append(centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-30))
    value, record = ot.emd2_lazy(*points, numItermax=ITERATIONS, log=True, return_matrix=True)
    entries = scipy.sparse.coo_array(record["G"])
    kept = entries.data > 0
    return {
        "pairs": np.stack([entries.row[kept], entries.col[kept]], axis=1),
        "value": float(value) / 2,
        "reason": record["warning"] or "solved",
    }


SOLVERS = {
    "featalign": _featalign,
    "POT emd, sparse cost": _pot_sparse,
    "featalign, balanced": _featalign_balanced,
    "POT emd2_lazy, balanced": _pot_lazy,
}


def _row(name: str, n: int) -> dict[str, Any]:
    problem = "balanced" if name.endswith("balanced") else "partial"
    return {"n": n, "family": "latents, 60% shared", "problem": problem, "solver": name}


def _in_own_process(name: str, n: int, limit: float) -> dict[str, Any]:
    """`measured` in a fresh process; without seconds where the limit stopped it."""
    code = f"import json; from featalign.bench.latents import measured; print(json.dumps(measured({name!r}, {n})))"
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return {**_row(name, n), "seconds": None, "reason": f"not done after {limit:.0f} s"}
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or [f"exit status {error.returncode}"])[-1]
        return {**_row(name, n), "seconds": None, "reason": last}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
