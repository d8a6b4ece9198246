"""Maps of dictionaries: atoms in two dimensions, those of several clients turned onto each other."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from featalign.errors import BadOption

EXACT = 1024  # units up to which principal components are exact
MAPS = ("auto", "pca", "umap")
Link = tuple[Any, Any, np.ndarray, np.ndarray]  # two names, and the rows that go together


def layout(
    atoms: Mapping[Any, torch.Tensor], groups: Mapping[Any, Any], links: Sequence[Link], method: str = "auto"
) -> dict[Any, np.ndarray]:
    """Places of atoms `[F, n]` in the unit square, `[F, 2]` for each name.

    Directions alone count (atoms are normalised). Names of one group live in one space and share their axes; another
    group's map is turned onto the first it is linked to (orthogonal Procrustes of the pairs). `method` is pca, umap
    (package `umap-learn`), or auto: umap where it is installed. Raises `BadOption` for another or a missing one.
    """
    if method not in MAPS or (method == "umap" and importlib.util.find_spec("umap") is None):
        raise BadOption(f"map '{method}'; choices: {', '.join(MAPS)} (umap needs the package umap-learn)")
    members: dict[Any, list[Any]] = {}
    for name in atoms:
        members.setdefault(groups[name], []).append(name)
    found: dict[Any, np.ndarray] = {}
    done: set[Any] = set()
    for group, names in members.items():
        joined = torch.cat([torch.nn.functional.normalize(atoms[n].cpu().float(), dim=1) for n in names])
        places = _flat(joined, method)
        own = dict(zip(names, np.split(places, np.cumsum([len(atoms[n]) for n in names])[:-1])))
        turn = _turn(own, found, links)
        found |= {name: part @ turn for name, part in own.items()}
        done.add(group)
    return {name: _squared(places) for name, places in found.items()}


def _flat(unit: torch.Tensor, method: str) -> np.ndarray:
    if method != "pca" and len(unit) > 15 and importlib.util.find_spec("umap") is not None:
        import umap

        return np.asarray(umap.UMAP(metric="cosine", random_state=0).fit_transform(unit.numpy()))
    centred = unit - unit.mean(0)
    count = min(2, *centred.shape)
    if unit.shape[1] <= EXACT:
        axes = torch.linalg.eigh(centred.double().T @ centred.double()).eigenvectors.flip(1)[:, :count].float()
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            axes = torch.pca_lowrank(centred, q=min(6, *centred.shape), center=False)[2][:, :count]
    axes = axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()  # a sign of its own for each axis
    return torch.nn.functional.pad(centred @ axes, (0, 2 - count)).numpy()


def _turn(own: Mapping[Any, np.ndarray], placed: Mapping[Any, np.ndarray], links: Sequence[Link]) -> np.ndarray:
    """The rotation or reflection that brings pairs together best."""
    moment = np.zeros((2, 2))
    for a, b, rows_a, rows_b in links:
        if a in placed and b in own:
            moment += own[b][rows_b].T @ placed[a][rows_a]
        elif b in placed and a in own:
            moment += own[a][rows_a].T @ placed[b][rows_b]
    left, _, right = np.linalg.svd(moment)
    return left @ right if np.abs(moment).max() > 0 else np.eye(2)


def _squared(places: np.ndarray) -> np.ndarray:
    """Into the unit square; the outermost half per cent on each side lie on its border."""
    low, high = np.quantile(places, [0.005, 0.995], axis=0) if len(places) else (np.zeros(2), np.ones(2))
    return np.clip((places - low) / np.maximum(high - low, 1e-12), 0, 1)
