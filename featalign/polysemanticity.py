"""One layer under diagnosis: dictionaries of several seeds, controls, and every measure with its null."""

from __future__ import annotations

import copy
import functools
import logging
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
import torch
from torch import nn

from featalign import measure
from featalign.diagnosis import LayerDiagnosis, make_cards
from featalign.dictionaries import (
    Dictionary,
    DictionaryWarning,
    assess,
    preflight,
    random_dictionary,
    sweep,
    train_many,
)
from featalign.errors import FeatalignError, SpaceMismatch
from featalign.spaces.capture import stream
from featalign.spaces.graph import Site, Space
from featalign.spaces.splice import splice

EXAMPLES = 2000  # inputs that the page's cards look through
SWEEP_SAMPLES = 12_000
logger = logging.getLogger(__name__)


def shuffled(model: nn.Module, seed: int = 0) -> nn.Module:
    """A copy whose weight tensors hold the same numbers in random order: nothing learned, scales kept."""
    control = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in control.parameters():
            order = torch.randperm(parameter.numel(), generator=generator)
            parameter.copy_(parameter.flatten()[order].view_as(parameter))
    return control


def quiet(function: Callable[..., Any]) -> Callable[..., Any]:
    """Without dictionary warnings: said once for the layer, they need not be repeated for its sweep and control."""

    @functools.wraps(function)
    def run(*args: Any, **options: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DictionaryWarning)
            return function(*args, **options)

    return run


def examine(
    model: nn.Module,
    space: Space,
    site: Site,
    held: dict[str, torch.Tensor],
    inputs: torch.Tensor,
    labels: torch.Tensor | None,
    given: Dictionary | None,
    settings: dict[str, Any],
) -> LayerDiagnosis:
    """Train dictionaries of one layer and its control and measure everything; `held` are activations by network."""
    acts, control = held["model"], held["control"]
    seeds, steps = settings["seeds"], settings["steps"]
    facts = {"space": space.name, "client": "model"}
    if given is not None and given.W_dec.shape[1] != acts.shape[1]:
        raise SpaceMismatch(
            f"dictionary of space '{given.metadata.get('space', '?')}' writes {given.W_dec.shape[1]} units, "
            f"space '{space.name}' has {acts.shape[1]}"
        )
    shape: dict[str, Any] = {"width": given.width, "k": given.k} if given is not None else {}
    trained = train_many([acts], seeds=seeds, metadata=[facts], steps=steps, **shape)[0]
    if given is not None:
        trained = [_with_quality(given, acts), *trained[1:]]
    shape = {"width": trained[0].width, "k": trained[0].k}
    random = random_dictionary(acts, **shape)
    per_input = len(acts) == len(inputs)  # one row per input; convolutions and token sequences get no cards
    clients = {name: held[name] for name in held if name not in {"model", "control"} and per_input}
    bases = _counterparts({"control": control, **clients}, seed=seeds[0], steps=steps, **shape)
    control_basis = bases.get("control", random)
    rows = acts[:: max(1, len(acts) // 8000)]
    codes = trained[0].encode(rows)
    control_rows = control[:: max(1, len(control) // 8000)]
    per_unit = measure.effective_features_per_unit(codes, trained[0].atoms)
    per_unit[rows.std(0) < 1e-6] = float("nan")
    control_codes = control_basis.encode(control_rows)
    per_control = measure.effective_features_per_unit(control_codes, control_basis.atoms)
    per_control[control_rows.std(0) < 1e-6] = float("nan")
    per_random = measure.effective_features_per_unit(random.encode(rows), random.atoms)
    null = float(per_control.nanmean())
    psi_null = measure.effective_features(control_codes, control_basis.atoms) / acts.shape[1]
    found = LayerDiagnosis(
        space.name, acts.shape[1], int((rows.std(0) > 1e-6).sum()), trained,
        random.quality.explained_variance if random.quality else 0.0, _agreement(trained),
        per_unit.numpy(), per_control.numpy(), per_random.numpy(),
        measure.mean_score(per_unit.numpy(), null=null), measure.superposition(codes, trained[0].atoms, psi_null),
        measure.privileged_basis(rows), _sweep(acts, control, settings), {},
    )  # fmt: skip
    if labels is not None and len(labels) == len(acts):
        _class_measures(found, model, site, acts, inputs, labels)
    found.cards = {"units": [], "features": []}
    if per_input:
        effect = _effect(model, site, trained[0], inputs[:256])
        partners = {name: (bases[name], values) for name, values in clients.items() if name in bases}
        found.cards = _cards(found, acts[:EXAMPLES], labels, partners, effect)
    found.cards["shrinkage"] = measure.shrinkage(rows, trained[0].decode(codes))
    return found


def _counterparts(networks: dict[str, torch.Tensor], seed: int, **shape: Any) -> dict[str, Dictionary]:
    """A dictionary of the same layer in each other network, trained side by side; a dead layer has none."""
    alive = {}
    for name, values in networks.items():
        try:
            quiet(preflight.inspect)(values, {"client": name})
        except FeatalignError as error:
            logger.warning("no counterpart of the dictionary: %s", error)
        else:
            alive[name] = values
    trained = quiet(train_many)(list(alive.values()), seeds=[seed], **shape)
    return {name: dictionaries[0] for name, dictionaries in zip(alive, trained)}


def _cards(
    found: LayerDiagnosis,
    acts: torch.Tensor,
    labels: torch.Tensor | None,
    clients: dict[str, tuple[Dictionary, torch.Tensor]],
    effect: Callable[[int], list[float]] | None,
) -> dict[str, Any]:
    rivals = [(f"seed {d.metadata['seed']}", d.encode(acts)) for d in found.dictionaries[1:]]
    rivals += [(name, basis.encode(values[: len(acts)])) for name, (basis, values) in clients.items()]
    basis, names = found.dictionaries[0], labels[: len(acts)] if labels is not None else None
    per_unit = torch.from_numpy(found.per_unit)
    return make_cards(acts, basis.encode(acts), basis, per_unit, names, rivals, effect)


def _with_quality(given: Dictionary, acts: torch.Tensor) -> Dictionary:
    quality = assess(given, acts, acts)
    return replace(given, quality=quality)


def _agreement(trained: Sequence[Dictionary]) -> measure.Score:
    """Mean matched cosine of the first dictionary's atoms with the other seeds', over atoms."""
    scores = [measure.match_scores(trained[0].atoms, other.atoms) for other in trained[1:]]
    if not scores:
        return measure.mean_score([])
    matched = [value for found in scores for value in found.similarity]
    return measure.mean_score(matched, null=sum(s.null for s in scores) / len(scores))


def _sweep(acts: torch.Tensor, control: torch.Tensor, settings: dict[str, Any]) -> pd.DataFrame:
    """Psi, explained variance and L0 over widths and sparsity, with seeds, here and in the control."""
    units = acts.shape[1]
    frames = []
    for name, values, seeds in (("model", acts, settings["seeds"]), ("control", control, settings["seeds"][:1])):
        values = values[:SWEEP_SAMPLES]
        try:
            found = quiet(sweep)(values, widths=[units, 2 * units], seeds=seeds, steps=settings["sweep_steps"])
        except FeatalignError as error:
            logger.warning("sweep of the %s: %s", name, error)
            continue
        psi = [measure.effective_features(d.encode(values[:4000]), d.atoms) / units for d in found.dictionaries]
        frames.append(found.frame.assign(psi=psi, network=name))
    return pd.concat(frames, ignore_index=True)


def _class_measures(
    found: LayerDiagnosis,
    model: nn.Module,
    site: Site,
    acts: torch.Tensor,
    inputs: torch.Tensor,
    labels: torch.Tensor,
) -> None:
    basis = found.dictionaries[0]
    acts, labels_here = acts[:6000], labels[:6000]
    codes = basis.encode(acts)
    mixed = labels_here[torch.randperm(len(labels_here), generator=torch.Generator().manual_seed(1))]
    for name, values in (("unit_selectivity", acts), ("latent_selectivity", codes)):
        null = float(measure.class_selectivity(values, mixed).nanmean())
        setattr(found, name, measure.mean_score(measure.class_selectivity(values, labels_here).numpy(), null=null))
    found.probing = measure.sparse_probing(codes, labels_here)
    found.unit_probing = measure.sparse_probing(acts, labels_here)
    if len(model(inputs[:2]).shape) == 2:
        found.splice = splice(model, site, lambda a: basis.decode(basis.encode(a)), inputs[:2000], labels[:2000])


def _effect(
    model: nn.Module, site: Site, basis: Dictionary, inputs: torch.Tensor
) -> Callable[[int], list[float]] | None:
    """Mean change of each output when a latent's contribution is taken out, over the inputs where it is active."""
    if site.side != "out":
        return None
    outputs, held = next(stream(model, inputs, [site], len(inputs)))
    if outputs.dim() != 2:
        return None
    codes = basis.encode(held[site])
    part = dict(model.named_modules())[site.module]

    def effect(latent: int) -> list[float]:
        on = torch.nonzero(codes[:, latent] > 0).flatten()[:64]
        if len(on) == 0:
            return [0.0] * outputs.shape[1]
        removed = codes[on, latent, None] * basis.atoms[latent]
        hook = part.register_forward_hook(lambda _m, _i, out: out - removed)
        try:
            edited, _ = next(stream(model, inputs[on], [], len(on)))
        finally:
            hook.remove()
        return (outputs[on] - edited).mean(0).tolist()

    return effect
