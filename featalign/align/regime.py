"""Regime: how the codes of two clients relate, measured before anything is fused, and which decode follows from it.

Four relations are told apart. *Permutation*: the units agree one to one. *Rotation*: one orthogonal map carries one
code into the other. *Rearrangement*: the same features in unrelated geometry, so that no linear map helps (a linear map
between two superposed codes explains about m/n of the target) but a dictionary does. *Missing features*: one client
has features that the other lacks. Everything that is fitted here is scored on samples that it was not fitted on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from featalign.align.feature import match_features
from featalign.align.linear import orthogonal_map, ridge_map
from featalign.dictionaries.basis import Basis
from featalign.errors import NotFinite, ProbeError
from featalign.measure import correlation
from featalign.spaces.graph import Symmetry

RECOMMENDED = {  # registered fusion methods, where a nonlinearity privileges the units, and where the space is linear
    "permutation": ("ot-acts", "ot-acts"),
    "rotation": ("feature-reexpress", "procrustes"),
    "rearrangement": ("feature-reexpress", "feature-reencode"),
    "missing-features": ("zip", "feature-union"),
}
AS_GOOD = 0.9  # a simpler map that explains this share of what the best map explains is preferred
PRIVILEGED = 0.7  # the same for units against features where a nonlinearity privileges units: only they move exactly
MOST = 0.5  # explained variance below which averaging along a rotation does harm
CLEAR = 0.75  # matched correlation from which unmatched latents count as missing, not as badly trained
SOME = 0.02  # explained variance below which two codes have nothing in common
MISSING = 0.3  # unmatched share of a client's code energy above which features count as missing
UNSEEN = 0.1  # drop of a dictionary's explained variance, own data to probe, from which the probe holds unseen features
MINIMUM = 0.3  # correlation below which two latents are not the same feature, whatever the null says
LARGEST = 4096  # samples used


@dataclass(frozen=True)
class Regime:
    """How client A's code relates to client B's, and which decode follows.

    Attributes:
        name: 'permutation', 'rotation', 'rearrangement' or 'missing-features'.
        recommended: name of a registered fusion method.
        explanation: one sentence.
        samples, units: probe samples used; widths of A and B.
        neuron_correlation: mean |correlation| of units matched on other samples; `neuron_null` the same after the
            samples of A were shuffled.
        feature_correlation: mean correlation of matched latents, or None without bases; `feature_null` the mean best
            correlation under shuffling.
        matched: share of the code energy of A and of B in matched latents, or None.
        unseen: for A and B, how much less of the probe's variance its dictionary explains than of its own held-out
            data, or None: a dictionary knows only what its client saw.
        gram_agreement: Pearson correlation of the off-diagonal Gram entries of matched atoms, or None.
        atoms_explained: share of B's matched atoms' energy that the best rotation of A's explains, or None.
        permutation, orthogonal, linear: share of B's variance explained by the best map of each kind, held out:
            matched units with a positive slope each; one orthogonal map and one scale; ridge regression.
        features: the same for A's matched latents written with B's atoms, or None.
        commutation_defect: `E|s(O a) - O s(a)|^2 / E|O s(a)|^2` of the orthogonal map where an elementwise nonlinearity
            `s` follows, or None.
    """

    name: str
    recommended: str
    explanation: str
    samples: int
    units: tuple[int, int]
    neuron_correlation: float
    neuron_null: float
    permutation: float
    orthogonal: float
    linear: float
    features: float | None = None
    feature_correlation: float | None = None
    feature_null: float | None = None
    matched: tuple[float, float] | None = None
    unseen: tuple[float, float] | None = None
    gram_agreement: float | None = None
    atoms_explained: float | None = None
    commutation_defect: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain numbers."""
        return asdict(self)

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{key.replace('_', ' ')}</td><td>{value:.3f}</td></tr>"
            for key, value in self.to_dict().items()
            if isinstance(value, float)
        )
        return f"<p><b>{self.name}</b> &rarr; {self.recommended}: {self.explanation}</p><table>{rows}</table>"


def regime(
    activations_a: torch.Tensor,
    activations_b: torch.Tensor,
    basis_a: Basis | None = None,
    basis_b: Basis | None = None,
    symmetry: Symmetry | str | None = None,
    pre: torch.Tensor | None = None,
    apply: Callable[[torch.Tensor], torch.Tensor] = torch.relu,
    seed: int = 0,
) -> Regime:
    """Diagnose how two clients' activations of the same inputs relate.

    Args:
        activations_a, activations_b: `[samples, n]`, `[samples, m]`, in the same order of inputs.
        basis_a, basis_b: dictionaries of the two spaces; without them rearranged and missing features look alike, and
            the verdict says so.
        symmetry: of the space. With an elementwise nonlinearity a rotation is no symmetry, so that re-expression is
            recommended instead.
        pre: A's pre-activations `[samples, n]`, for the commutation defect; `activations_a` where not given.
        apply: the nonlinearity behind them.
        seed: of the folds and of the null.

    Raises `ProbeError` for fewer than 20 samples or unequal counts, `NotFinite` for NaN.
    """
    a, b = _checked(activations_a, activations_b)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(a), generator=generator)[:LARGEST]
    a, b = a[order], b[order]
    elementwise = symmetry is not None and Symmetry(symmetry) in {Symmetry.PERMUTATION, Symmetry.SCALED_PERMUTATION}
    measured: dict[str, Any] = _map_scores(a, b)
    measured["neuron_null"] = _map_scores(a[torch.randperm(len(a), generator=generator)], b, only_units=True)[
        "neuron_correlation"
    ]
    if basis_a is not None and basis_b is not None:
        measured |= _feature_scores(activations_a[order], activations_b[order], basis_a, basis_b)
        measured["unseen"] = (_unseen(basis_a, activations_a[order]), _unseen(basis_b, activations_b[order]))
    if elementwise:
        before = (activations_a if pre is None else pre)[order].double()
        measured["commutation_defect"] = commutation_defect(orthogonal_map(a, b), before, apply)
    name, explanation = _verdict(measured, elementwise)
    recommended = RECOMMENDED[name][0 if elementwise else 1]
    if name == "rotation" and elementwise:
        explanation += ", but the nonlinearity does not commute with it: re-express and regress instead"
    return Regime(name, recommended, explanation + ".", len(a), (a.shape[1], b.shape[1]), **measured)


def _checked(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    for label, acts in (("A", a), ("B", b)):
        if acts.dim() != 2:
            raise ProbeError(f"client {label}: activations of shape {tuple(acts.shape)}; pass [samples, units]")
        if not torch.isfinite(acts).all():
            raise NotFinite(f"client {label}: activations hold NaN or infinity; check its weights")
    if len(a) != len(b):
        raise ProbeError(f"{len(a)} samples of client A and {len(b)} of B; feed both the same probe inputs")
    if len(a) < 20:
        raise ProbeError(f"{len(a)} probe samples cannot support held-out maps; give at least 20")
    return a.detach().double(), b.detach().double()


def _folds(count: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Training and held-out indices: five folds for small probes, two from a thousand samples on."""
    folds = 5 if count < 1000 else 2
    assigned = torch.arange(count) % folds
    for fold in range(folds):
        yield torch.nonzero(assigned != fold).flatten(), torch.nonzero(assigned == fold).flatten()


def _map_scores(a: torch.Tensor, b: torch.Tensor, only_units: bool = False) -> dict[str, float]:
    """Held-out explained variance of B by the best permutation, orthogonal and linear map, pooled over folds."""
    errors = {"permutation": 0.0, "orthogonal": 0.0, "linear": 0.0}
    total, correlations = 0.0, []
    for train, held in _folds(len(a)):
        mean_a, mean_b = a[train].mean(0), b[train].mean(0)
        fit_a, fit_b, test_a, test_b = a[train] - mean_a, b[train] - mean_b, a[held] - mean_a, b[held] - mean_b
        similarity = correlation(fit_a, fit_b)
        rows, columns = _assigned(similarity.abs())
        correlations.append(_pair_correlation(test_a[:, rows], test_b[:, columns]))
        if only_units:
            continue
        rows, columns = _assigned(similarity)  # a permutation does not negate
        slope = (fit_a[:, rows] * fit_b[:, columns]).sum(0) / fit_a[:, rows].pow(2).sum(0).clamp_min(1e-300)
        slope = slope.clamp_min(0)
        permuted = torch.zeros_like(test_b)
        permuted[:, columns] = test_a[:, rows] * slope
        errors["permutation"] += float((test_b - permuted).pow(2).sum())
        rotation = orthogonal_map(fit_a, fit_b)
        turned = fit_a @ rotation.T
        scale = float((turned * fit_b).sum() / turned.pow(2).sum().clamp_min(1e-300))
        errors["orthogonal"] += float((test_b - scale * test_a @ rotation.T).pow(2).sum())
        errors["linear"] += float((test_b - test_a @ ridge_map(fit_a, fit_b)).pow(2).sum())
        total += float(test_b.pow(2).sum())
    scores = {"neuron_correlation": float(np.mean(correlations))}
    if not only_units:
        scores |= {name: 1 - error / max(total, 1e-300) for name, error in errors.items()}
    return scores


def _assigned(similarity: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows and columns of the one-to-one pairs of largest total similarity."""
    rows, columns = linear_sum_assignment(-similarity.numpy())
    return torch.from_numpy(rows), torch.from_numpy(columns)


def _pair_correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    """Mean |correlation| of corresponding columns."""
    a, b = a - a.mean(0), b - b.mean(0)
    return float(((a * b).sum(0) / (a.norm(dim=0) * b.norm(dim=0)).clamp_min(1e-12)).abs().mean())


def commutation_defect(
    out_map: torch.Tensor, pre: torch.Tensor, apply: Callable[[torch.Tensor], torch.Tensor] = torch.relu
) -> float:
    """`E|s(O a) - O s(a)|^2 / E|O s(a)|^2` of `O [m, n]` over pre-activations `[samples, n]`, `s` the nonlinearity.

    Zero exactly when the map commutes with it on these samples: the identity and permutations always, positive scaling
    for ReLU.
    """
    out_map, pre = out_map.double(), pre.double()
    after = apply(pre) @ out_map.T
    return float((apply(pre @ out_map.T) - after).pow(2).sum() / after.pow(2).sum().clamp_min(1e-300))


def _feature_scores(a: torch.Tensor, b: torch.Tensor, basis_a: Basis, basis_b: Basis) -> dict[str, Any]:
    """Matched on one half and scored on the other, both ways round."""
    halves = torch.arange(len(a)) % 2 == 0
    found: list[dict[str, Any]] = []
    error = total = 0.0
    with torch.no_grad():
        for train in (halves, ~halves):
            match = match_features(basis_a, basis_b, [(a[train], b[train])], minimum=MINIMUM)
            first, second = match.pairs[:, 0], match.pairs[:, 1]
            codes_a, codes_b = (
                basis_a.encode(a[~train])[:, first].double(),
                basis_b.encode(b[~train])[:, second].double(),
            )
            means = match.moments.mean_a[first]
            written = (codes_a - means) * torch.from_numpy(match.gains) @ basis_b.atoms.double()[second]
            target = b[~train].double() - b[train].double().mean(0)
            error += float((target - written).pow(2).sum())
            total += float(target.pow(2).sum())
            found.append(
                {
                    "feature_correlation": _pair_correlation(codes_a, codes_b) if len(first) else 0.0,
                    "feature_null": float(match.null_best.mean()),
                    "matched": match.matched_energy,
                    **_atom_geometry(basis_a.atoms[first], basis_b.atoms[second], match.scores),
                }
            )
    scores: dict[str, Any] = {
        key: float(np.mean([half[key] for half in found])) for key in found[0] if key != "matched"
    }
    scores["matched"] = tuple(float(np.mean([half["matched"][side] for half in found])) for side in (0, 1))
    return scores | {"features": 1 - error / max(total, 1e-300)}


def _unseen(basis: Basis, activations: torch.Tensor) -> float:
    """Explained variance on the client's own held-out data minus that on the probe; 0 for bases without a record."""
    quality = getattr(basis, "quality", None)
    if quality is None:
        return 0.0
    with torch.no_grad():
        error = (activations - basis.decode(basis.encode(activations))).pow(2).sum()
    total = (activations - activations.mean(0)).pow(2).sum().clamp_min(1e-30)
    return float(quality.explained_variance - (1 - error / total))


def _atom_geometry(atoms_a: torch.Tensor, atoms_b: torch.Tensor, scores: np.ndarray) -> dict[str, float]:
    """Gram agreement and the share of matched atoms that a rotation explains; weighted by match quality."""
    if len(atoms_a) < 3:
        return {"gram_agreement": 0.0, "atoms_explained": 0.0}
    unit_a = torch.nn.functional.normalize(atoms_a.detach().double(), dim=1)
    unit_b = torch.nn.functional.normalize(atoms_b.detach().double(), dim=1)
    weight = torch.from_numpy(np.clip(scores, 0, None) ** 2)
    upper = torch.triu_indices(len(unit_a), len(unit_a), 1)
    pair_weight = (weight[upper[0]] * weight[upper[1]]).numpy()
    gram_a, gram_b = ((unit @ unit.T)[upper[0], upper[1]].numpy() for unit in (unit_a, unit_b))
    covariance = np.cov(gram_a, gram_b, aweights=pair_weight + 1e-12)
    agreement = covariance[0, 1] / max(float(np.sqrt(covariance[0, 0] * covariance[1, 1])), 1e-300)
    nuclear = torch.linalg.svdvals(unit_b.T @ (weight[:, None] * unit_a)).sum()
    return {"gram_agreement": float(agreement), "atoms_explained": float(nuclear / weight.sum().clamp_min(1e-300)) ** 2}


def _verdict(measured: dict[str, Any], elementwise: bool) -> tuple[str, str]:
    """Name and explanation; where a nonlinearity follows, rotations are no candidates and units get the benefit."""
    permutation, orthogonal, linear = (measured[key] for key in ("permutation", "orthogonal", "linear"))
    features, matched = measured.get("features"), measured.get("matched")
    best = max(permutation, orthogonal, linear, features or 0.0)
    rival = linear if features is None else features
    shares = f"permutation {permutation:.2f}, orthogonal {orthogonal:.2f}, linear {linear:.2f}"
    if features is not None:
        shares += f", matched features {features:.2f}"
    if best < SOME:
        return "missing-features", f"nothing carries one code into the other (explained variance: {shares})"
    enough = PRIVILEGED * rival if elementwise and features is not None else AS_GOOD * max(orthogonal, rival)
    if permutation >= enough:
        if permutation >= AS_GOOD * max(orthogonal, rival):
            return "permutation", f"units agree one to one (explained variance: {shares})"
        return "permutation", (
            f"units agree only in part, but features no better, and the nonlinearity allows no rotation (explained "
            f"variance: {shares})"
        )
    trusted = measured.get("feature_correlation") is not None and measured["feature_correlation"] >= CLEAR
    if matched is not None and trusted and min(matched) < 1 - MISSING:
        lacking = "A" if matched[0] < matched[1] else "B"
        return "missing-features", (
            f"{1 - min(matched):.0%} of client {lacking}'s code energy has no partner in the other"
            f" (explained variance: {shares})"
        )
    if max(measured.get("unseen") or (0.0,)) > UNSEEN:
        drop = max(measured["unseen"])
        lacking = "A" if drop == measured["unseen"][0] else "B"
        return "missing-features", (
            f"client {lacking}'s dictionary explains {drop:.0%} less of the probe's variance than of its own data: the "
            f"probe holds features it never saw (explained variance: {shares})"
        )
    if orthogonal >= AS_GOOD * rival and orthogonal >= MOST:
        return "rotation", f"one orthogonal map carries one code into the other (explained variance: {shares})"
    if features is None:
        remark = "; give dictionaries to tell rearranged features from missing ones"
        return "rearrangement", f"no orthogonal map carries one code into the other (explained: {shares}){remark}"
    return "rearrangement", f"the same features lie in unrelated geometry (explained variance: {shares})"
