"""Second opinions on a match: untrained dictionaries on the same rows, and one dictionary trained on all clients."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from featalign.align.correspondence import Rule, agreement_in, alive_in, best_of
from featalign.dictionaries import Basis, random_dictionary, train_crosscoder
from featalign.measure.agreement import Agreement
from featalign.measure.crosscoder import latent_strengths, norm_shares
from featalign.transport.codes import Codes, nearest

CHUNK = 2048
ROOM = 1.3  # latents of the joint dictionary over those of the largest: every client's own ones need a place


def untrained_codes(basis: Basis, sample: torch.Tensor, l0: float, seed: int) -> Codes:
    """Codes of a random dictionary as wide as `basis` and as sparse as it was, on the sample's rows."""
    width = len(basis.atoms)
    found = random_dictionary(sample, width, float(np.clip(round(l0), 1, width)), seed)
    return codes_of(found, sample)


def codes_of(basis: Basis, sample: torch.Tensor) -> Codes:
    """Codes of a sample that is held."""
    return Codes.gathered(basis.encode(part) for part in sample.split(CHUNK))


def untrained_agreement(a: Codes, b: Codes, rule: Rule) -> Agreement:
    """What untrained dictionaries agree on."""
    alive = [np.flatnonzero(alive_in(codes, rule)) for codes in (a, b)]
    if min(len(side) for side in alive) == 0:
        return Agreement()
    return agreement_in(nearest(a.chosen(alive[0]), b.chosen(alive[1])))[0]


def crosscoder_columns(
    bases: Sequence[Basis], samples: Sequence[torch.Tensor], rule: Rule, seed: int, steps: int | None = None
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Of every client, the relative norm and the latent scaling `[F]` of the joint latent nearest to each of its own.

    A joint dictionary is trained on the clients' samples side by side; a latent's nearest is the joint latent whose
    code correlates most with its own, NaN where that is below the rule's minimum.
    """
    width = round(ROOM * max(len(basis.atoms) for basis in bases))
    coder = train_crosscoder(samples, width=width, seed=seed, steps=steps)
    rows = coder.side_by_side([sample.float() for sample in samples])
    joint = torch.cat([coder.dictionary.encode(part) for part in rows.split(CHUNK)])
    atoms = [coder.atoms(client) for client in range(len(bases))]
    shares = norm_shares(atoms).numpy()
    centred = rows - coder.dictionary.b_dec
    strengths = np.stack(
        [latent_strengths(joint, centred[:, block], own).numpy() for block, own in zip(coder.blocks, atoms)]
    )
    joint_codes = Codes.gathered([joint])
    found = []
    for client, (basis, sample) in enumerate(zip(bases, samples)):
        near = nearest(codes_of(basis, sample), joint_codes)
        best, _ = best_of(near)
        matrix = near.matrix(1 - near.costs)
        partner = np.asarray(matrix.argmax(axis=1)).ravel()
        others = np.delete(strengths, client, axis=0).max(axis=0)
        scaling = others / np.maximum(strengths[client], 1e-300)
        told = best > rule.minimum
        found.append((
            np.where(told, shares[client][partner], np.nan),
            np.where(told, np.minimum(scaling[partner], 1e3), np.nan),
        ))  # fmt: skip
    return found
