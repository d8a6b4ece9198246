"""What each way of aggregating asks of clients, and what it reaches: weights, moments, sums, a probe real or drawn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from featalign.studies.federate.config import FederateConfig
from featalign.studies.federate.run import federation_of

if TYPE_CHECKING:
    import pandas as pd

ROUNDS: Mapping[str, Mapping[str, Any]] = {
    "weights (FedAvg)": {},
    "weights (FedProx)": {"algorithm": "fedprox"},
    "public probe": {"refit": True},
    "synthetic probe": {"refit": True, "probe_kind": "synthetic"},
    "moments only": {"refit": "moments"},
    "readout from sums": {"calibrate": True},
    "readout from masked sums": {"calibrate": "masked"},
    "moments, readout from sums": {"refit": "moments", "calibrate": True},
}
ONE_SHOT: Mapping[str, Mapping[str, Any]] = {
    "weights, position by position": {},
    "Gromov on Gram matrices": {"match": "gromov"},
    "Gromov on Gram matrices, refit from moments": {"match": "gromov", "refit": "moments"},
    "public probe, aligned and refitted": {"fuse": "ot-acts", "refit": True},
    "public probe, zip": {"fuse": "zip"},
}
NOISE = (0.001, 0.01, 0.1)


def modes(
    dataset: str = "digits",
    clients: int = 10,
    alpha: float = 0.1,
    rounds: int = 20,
    samples: int = 0,
    epochs: int = 10,
    noise: tuple[float, ...] = NOISE,
    seed: int = 0,
) -> pd.DataFrame:
    """A row per mode: rounds from a shared start, the same with noise on moments, one shot from independent starts.

    Args:
        samples: training samples that are dealt, from the first on; 0 for all.
        epochs: of local training before one-shot fusion (rounds train one epoch).
        noise: standard deviations, in units of each Gram matrix's mean diagonal.

    Columns: start, mode, noise, kinds (that go up), kB up per client and round, value (headline metric on the test set
    after the last round), late (mean over the last five rounds), rounds to 90 %.
    """
    import pandas as pd

    rows = []
    plans = [("shared", name, 0.0, given) for name, given in ROUNDS.items()]
    for sigma in noise:
        plans += [("shared", name, sigma, ROUNDS[name]) for name in ("moments only", "readout from sums")]
    plans += [("independent", name, 0.0, given) for name, given in ONE_SHOT.items()]
    for start, name, sigma, given in plans:
        once = start == "independent"
        settings: dict[str, Any] = {"start": start, "rounds": 1 if once else rounds, "epochs": epochs if once else 1}
        config = FederateConfig(
            dataset=dataset, clients=clients, alpha=alpha, samples=samples, noise=sigma, watch=0, seed=seed, **settings,
            **given,
        )  # fmt: skip
        rows.append({"start": start, "mode": name, "noise": sigma, **_row(config)})
    return pd.DataFrame(rows)


def _row(config: FederateConfig) -> dict[str, Any]:
    from featalign.federated import InProcess, Server, drive

    federation = federation_of(config)
    server = Server(federation, config.settings(federation.recipe, config.seed))
    result = drive(server, InProcess(federation, server.settings.local), config.rounds, progress=False)
    up = result.frames["traffic"].query("direction == 'up'")
    values = result.to_frame()["value"]
    return {
        "kinds": ", ".join(kind for kind in up["kind"].unique() if kind != "statistics"),
        "kB up": up["bytes"].sum() / 1e3 / len(federation) / config.rounds,
        "value": float(values.iloc[-1]),
        "late": float(values.iloc[-5:].mean()),
        "rounds to 90 %": result.rounds_to(0.9),
    }
