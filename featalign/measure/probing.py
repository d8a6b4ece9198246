"""What codes say about classes: k-sparse probes with controls, targeted perturbation, absorption."""

from __future__ import annotations

import torch

from featalign.errors import ProbeError
from featalign.measure.arrays import Classes, labelled, rows
from featalign.measure.score import Score, mean_score


def _labelled(codes: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, Classes]:
    values, classes = labelled(codes, labels, "codes")
    if len(values) < 2:
        raise ProbeError(f"{len(values)} samples with a label; pass some whose labels are not negative")
    return values, classes


def _split(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return order[: count // 2], order[count // 2 :]


def _probe(codes: torch.Tensor, target: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The k latents with the largest standardised mean difference and their ridge weights: `(index, weights, bias)`."""
    on = target > 0
    spread = codes.std(0).clamp_min(1e-6)
    difference = ((codes[on].mean(0) - codes[~on].mean(0)) / spread).abs()
    index = difference.topk(min(k, codes.shape[1])).indices
    x = torch.cat([codes[:, index], codes.new_ones(len(codes), 1)], 1).double()
    weight = torch.where(on, 0.5 / on.double().mean(), 0.5 / (~on).double().mean())  # classes balanced
    gram = x.T @ (weight[:, None] * x)
    ridge = 1e-3 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    solved = torch.linalg.solve(gram + ridge, x.T @ (weight * torch.where(on, 1.0, -1.0)))
    return index, solved[:-1], solved[-1]


def _balanced_accuracy(
    codes: torch.Tensor, target: torch.Tensor, probe: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
) -> float:
    index, weights, bias = probe
    said = codes[:, index].double() @ weights + bias > 0
    on = target > 0
    return float((said[on].double().mean() + (~said[~on]).double().mean()) / 2)


def sparse_probing(codes: torch.Tensor, labels: torch.Tensor, k: int = 1, seed: int = 0) -> Score:
    """Held-out balanced accuracy of one-against-rest probes on `k` latents each, mean over classes.

    Gurnee et al. 2023 (arXiv:2305.01610). Chance is .5; the null is the same procedure on shuffled labels (selection
    included). Classes with fewer than ten samples on either half lower the coverage. Codes `[..., F]`; masked samples
    (negative labels) are left out.
    """
    codes, classes = _labelled(codes, labels)
    index = classes.index
    fit, test = _split(len(codes), seed)
    shuffled = index[torch.randperm(len(index), generator=torch.Generator().manual_seed(seed + 1))]
    found: list[float] = []
    null: list[float] = []
    for label in classes.in_order_of_appearance:
        for names, into in ((index, found), (shuffled, null)):
            target = (names == label).long()
            if min(int(target[fit].sum()), int(target[test].sum())) < 10 or int(target.sum()) == len(target):
                into.append(float("nan"))
                continue
            into.append(_balanced_accuracy(codes[test], target[test], _probe(codes[fit], target[fit], k)))
    kept = [value for value in null if value == value]
    return mean_score(found, null=sum(kept) / len(kept) if kept else float("nan"))


def targeted_perturbation(codes: torch.Tensor, labels: torch.Tensor, k: int = 1, seed: int = 0) -> Score:
    """Zeroing the `k` latents of a class: fall of its own probe's accuracy minus the mean fall of the other classes'.

    `codes [samples, F]`, `labels [samples]`. Probes read 16 latents each (Karvonen et al. 2025, arXiv:2503.09532).
    Null: `k` random latents zeroed.
    """
    codes, classes = _labelled(codes, labels)
    fit, test = _split(len(codes), seed)
    names = classes.in_order_of_appearance
    targets = [(classes.index == name).long() for name in names]
    usable = [t for t in targets if 10 <= int(t[fit].sum()) < len(fit) and int(t[test].sum()) >= 10]
    probes = [_probe(codes[fit], t[fit], 16) for t in usable]
    base = [_balanced_accuracy(codes[test], t[test], p) for t, p in zip(usable, probes)]
    generator = torch.Generator().manual_seed(seed)
    found: list[float] = []
    null: list[float] = []
    for own, target in enumerate(usable):
        chosen = _probe(codes[fit], target[fit], k)[0]
        random = torch.randperm(codes.shape[1], generator=generator)[:k]
        for index, into in ((chosen, found), (random, null)):
            edited = codes[test].clone()
            edited[:, index] = 0
            fall = [b - _balanced_accuracy(edited, t[test], p) for b, t, p in zip(base, usable, probes)]
            others = [value for i, value in enumerate(fall) if i != own]
            into.append(fall[own] - (sum(others) / len(others) if others else 0.0))
    coverage = len(usable) / max(1, len(names))
    return mean_score(found, null=sum(null) / len(null) if null else float("nan"), coverage=coverage)


def absorption(codes: torch.Tensor, labels: torch.Tensor, atoms: torch.Tensor, seed: int = 0) -> Score:
    """Share of a class's samples on which its main latent is silent while another one writes its direction.

    `codes [samples, F]`, `labels [samples]`, `atoms [F, units]`.

    A simplification of Chanin et al. 2024 (arXiv:2409.14507): the main latent is the best single probe, the direction
    the class's mean difference in the reconstruction; a latent absorbs when its atom's cosine with the direction
    exceeds .25 and its contribution along it is the largest. Null: atoms in random order.
    """
    codes, classes = _labelled(codes, labels)
    atoms = rows(atoms, "atoms")
    fit, test = _split(len(codes), seed)
    order = torch.randperm(len(atoms), generator=torch.Generator().manual_seed(seed))
    found: list[float] = []
    null: list[float] = []
    for label in classes.in_order_of_appearance:
        target = classes.index == label
        if int(target[fit].sum()) < 10 or int(target[test].sum()) < 10 or bool(target.all()):
            continue
        main = int(_probe(codes[fit], target[fit].long(), 1)[0])
        for directions, into in ((atoms, found), (atoms[order], null)):
            mean = codes[fit][target[fit]].mean(0) - codes[fit][~target[fit]].mean(0)
            direction = mean @ directions
            direction = direction / direction.norm().clamp_min(1e-12)
            along = directions @ direction
            cosine = along / directions.norm(dim=1).clamp_min(1e-12)
            own = codes[test][target[test]]
            silent = own[:, main] <= 0
            contribution = own * along
            contribution[:, cosine < 0.25] = 0
            contribution[:, main] = 0
            into.append(float((silent & (contribution.max(1).values > 0)).float().mean()))
    coverage = len(found) / len(classes.names)
    return mean_score(found, null=sum(null) / len(null) if null else float("nan"), coverage=coverage)
