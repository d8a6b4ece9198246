"""`featalign bench synthetic`: dictionaries of sae-lens's synthetic models, trained here and by sae-lens, judged by it.

A synthetic model has known features in superposition with frequencies by Zipf's law, a hierarchy and correlations, as
in SynthSAEBench. Both libraries get the same samples, architecture, width, k, batch size and steps, each the learning
rate that explains most of held-out samples; sae-lens's own evaluation scores both.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from featalign.dictionaries import Dictionary, train
from featalign.errors import BadOption

RATES = (1e-2, 3e-3, 1e-3)
TRAINERS = ("featalign", "sae-lens")
JUDGED = 20_000  # fresh samples that the evaluation draws
RARE, FREQUENT = 5e-3, 0.4  # how often the rarest and the most frequent feature fires
BATCH = 1000  # samples drawn at once


def synthetic_benchmark(
    features: int = 2048,
    units: int = 128,
    width: int = 1024,
    k: int = 12,
    samples: int = 100_000,
    steps: int = 1500,
    batch_size: int = 512,
    architectures: Sequence[str] = ("topk", "batchtopk"),
    seed: int = 0,
) -> list[dict[str, Any]]:
    """A row per architecture and trainer: seconds, explained variance, MCC, F1, uniqueness, dead latents.

    Raises `BadOption` for sizes below 1. Sources: `sae_lens.synthetic`; MCC as in arXiv:2505.20254.
    """
    for name, value in {"features": features, "units": units, "width": width, "k": k, "steps": steps}.items():
        if value < 1:
            raise BadOption(f"{name} = {value}; give 1 or more")
    model = synthetic_model(features, units, seed)
    torch.manual_seed(seed)
    with torch.no_grad():
        activations = torch.cat([model.sample(BATCH).cpu() for _ in range(max(1, samples // BATCH))])
    rows = []
    for architecture in architectures:
        wanted: dict[str, Any] = {"width": width, "k": k, "steps": steps, "batch_size": batch_size}
        for trainer in TRAINERS:
            best, seconds = _best(activations, architecture, trainer, seed, wanted)
            rows.append(
                {"architecture": architecture, "trainer": trainer, "seconds": seconds, **judged(best, model, seed)}
            )
    return rows


def synthetic_model(features: int, units: int, seed: int = 0) -> Any:
    """A `sae_lens.synthetic.SyntheticModel`: Zipf frequencies, correlations of rank 25, trees of depth three."""
    with contextlib.redirect_stderr(io.StringIO()):
        from sae_lens import synthetic

    config = synthetic.SyntheticModelConfig(
        num_features=features,
        hidden_dim=units,
        firing_probability=synthetic.ZipfianFiringProbabilityConfig(exponent=0.3, max_prob=FREQUENT, min_prob=RARE),
        hierarchy=synthetic.HierarchyConfig(total_root_nodes=max(1, features // 128), branching_factor=4, max_depth=3),
        correlation=synthetic.LowRankCorrelationConfig(rank=25, correlation_scale=0.1),
        orthogonalization=synthetic.OrthogonalizationConfig(num_steps=100),
        std_firing_magnitudes=0.5,
        mean_firing_magnitudes=1.0,
        seed=seed,
    )
    with contextlib.redirect_stderr(io.StringIO()):  # a bar per orthogonalisation step
        return synthetic.SyntheticModel(config)


def judged(dictionary: Dictionary, model: Any, seed: int = 0) -> dict[str, Any]:
    """What `sae_lens.synthetic.eval_sae_on_synthetic_data` says of a dictionary, read from its own folder."""
    from sae_lens import SAE
    from sae_lens.synthetic import eval_sae_on_synthetic_data

    with tempfile.TemporaryDirectory() as folder:
        dictionary.save(Path(folder) / "sae")
        sae = SAE.load_from_disk(str(Path(folder) / "sae"))
    torch.manual_seed(seed + 1)
    found = eval_sae_on_synthetic_data(sae, model.feature_dict, model.activation_generator, JUDGED, BATCH)
    return {
        "explained_variance": found.explained_variance,
        "mcc": found.mcc,
        "f1": found.classification.f1_score,
        "uniqueness": found.uniqueness,
        "l0": found.sae_l0,
        "true_l0": found.true_l0,
        "dead": found.dead_latents,
    }


def _best(
    activations: torch.Tensor, architecture: str, trainer: str, seed: int, wanted: dict[str, Any]
) -> tuple[Dictionary, float]:
    """The dictionary of the learning rate that explains most of the held-out samples, and the seconds of its run."""
    runs = []
    for lr in RATES:
        start = time.perf_counter()
        found = train(activations, architecture=architecture, trainer=trainer, seed=seed, lr=lr, **wanted)
        runs.append((found, time.perf_counter() - start))
    return max(runs, key=lambda run: run[0].quality.explained_variance if run[0].quality else -1.0)
