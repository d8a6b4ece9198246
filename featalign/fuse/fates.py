"""What became of every feature of every client in a fused network, by re-encoding.

The fused activations of a space are read linearly as each client's (regressed on one half of the probe, judged on the
other), encoded with that client's own dictionary, and the codes compared with those of the client itself. No map of the
method is used, so that any fused network can be asked, refitted or not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from featalign.align.linear import ridge_map
from featalign.data.inputs import Inputs
from featalign.dictionaries.basis import Basis
from featalign.fuse.problem import FusionProblem
from featalign.spaces.capture import collect
from featalign.spaces.graph import Space

FATES = ("kept", "merged", "absorbed", "split", "lost")
INPUTS, ROWS = 2000, 4000  # inputs that are looked at, and rows of their activations
SPLIT = 3  # latents that may share one feature
SILENT = 1e-12
Asked = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Fates:
    """The features of one client in one space of a fused network.

    Attributes:
        space, client: where; `client` is its position.
        latents: the client's latents that fire, `[alive]`.
        fate: index into `FATES` of each.
        recovered: correlation of each latent's code with its re-encoded code, `[alive]`.
        threshold: correlation from which a feature counts as present: half, or the best that chance reaches.
    """

    space: str
    client: int
    latents: torch.Tensor
    fate: torch.Tensor
    recovered: torch.Tensor
    threshold: float

    def counts(self) -> dict[str, int]:
        """Latents by fate."""
        return {name: int((self.fate == place).sum()) for place, name in enumerate(FATES)}


def fates(problem: FusionProblem, module: nn.Module, dictionaries: Mapping[str, Sequence[Basis]]) -> list[Fates]:
    """Fates of all clients' features in every space that has a dictionary of each client.

    *kept*: the latent itself fires again where it did. *merged*: so it does, and so does the latent of another client
    that it is matched with, so that one place holds both. *absorbed*: another latent of the same client fires in its
    place. *split*: several together do. *lost*: nothing tells it any more. Clients of mixing weight zero take part:
    what they knew is asked for as well.
    """
    spaces = [
        space
        for space in problem.graph.hidden
        if len(dictionaries.get(space.name, ())) == len(problem.cohort) and space.pre is not None and space.pre.paired
    ]
    if not spaces:
        return []
    inputs = problem.memory.get(
        "asked about fates", (problem.cohort.refit_inputs,), lambda: problem.cohort.refit_inputs.sample(INPUTS)
    )
    held = collect(module, inputs, [space.after for space in spaces])
    found = []
    for space in spaces:
        found += _of_space(problem, inputs, held[space.after][:ROWS].double(), space, dictionaries[space.name])
    return found


def _own(problem: FusionProblem, inputs: Inputs, space: Space, bases: Sequence[Basis]) -> list[Asked]:
    """Activations of every client, and their codes on the half that is judged; the same for all fused networks."""

    def make() -> list[Asked]:
        asked = []
        for client, graph, basis in zip(problem.clients, problem.graphs, bases):
            site = graph[space.name].after
            theirs = collect(client, inputs, [site])[site][:ROWS]
            with torch.no_grad():
                asked.append((theirs.double(), basis.encode(theirs[len(theirs) // 2 :].float()).double()))
        return asked

    return problem.memory.get(f"own codes of {space.name}", (*problem.clients, inputs, *bases), make)


def _of_space(
    problem: FusionProblem, inputs: Inputs, fused: torch.Tensor, space: Space, bases: Sequence[Basis]
) -> list[Fates]:
    own, read = [], []
    for (theirs, codes), basis in zip(_own(problem, inputs, space, bases), bases):
        half = len(theirs) // 2
        mean_in, mean_out = fused[:half].mean(0), theirs[:half].mean(0)
        reading = ridge_map(fused[:half] - mean_in, theirs[:half] - mean_out)
        own.append(codes)
        with torch.no_grad():
            read.append(basis.encode(((fused[half:] - mean_in) @ reading + mean_out).float()).double())
    threshold = [max(0.5, _chance(a, b)) for a, b in zip(own, read)]
    present = [_diagonal(a, b) >= t for a, b, t in zip(own, read, threshold)]
    return [_of_client(space.name, k, own, read[k], threshold[k], present) for k in range(len(bases))]


def _of_client(
    space: str, client: int, own: list[torch.Tensor], read: torch.Tensor, threshold: float, present: list[torch.Tensor]
) -> Fates:
    mine = own[client]
    alive = torch.nonzero(mine.var(0) > SILENT).ravel()
    across = _correlations(mine[:, alive], read)  # [alive, latents]
    straight = across[torch.arange(len(alive)), alive]
    shared = torch.zeros(len(alive), dtype=torch.bool)
    for other in range(len(own)):
        if other != client:
            shared |= _partners(mine, own[other], threshold, alive, present[other])
    best = across.clone()
    best[torch.arange(len(alive)), alive] = -1.0
    fate = torch.full((len(alive),), FATES.index("lost"))
    fate[best.amax(1) >= threshold] = FATES.index("absorbed")
    for row in torch.nonzero(fate == FATES.index("lost")).ravel().tolist():
        some = read[:, across[row].topk(min(SPLIT, across.shape[1])).indices]
        if _together(mine[:, alive[row]], some) >= threshold:
            fate[row] = FATES.index("split")
    kept = straight >= threshold
    fate[kept] = FATES.index("kept")
    fate[kept & shared] = FATES.index("merged")
    return Fates(space, client, alive, fate, straight, threshold)


def _partners(
    mine: torch.Tensor, theirs: torch.Tensor, threshold: float, alive: torch.Tensor, present: torch.Tensor
) -> torch.Tensor:
    """`[alive]`: whether a latent has a mutual best partner in another client that the fused network holds as well."""
    across = _correlations(mine, theirs)
    best, back = across.argmax(1), across.argmax(0)
    mutual = back[best] == torch.arange(len(across))
    strong = across.gather(1, best[:, None])[:, 0] >= threshold
    return (mutual & strong & present[best])[alive]


def _centred(codes: torch.Tensor) -> torch.Tensor:
    """Codes with mean zero and length one; silent ones stay zero."""
    codes = codes - codes.mean(0)
    length = codes.norm(dim=0)
    return torch.where(length > SILENT**0.5, codes / length.clamp_min(1e-300), torch.zeros_like(codes))


def _correlations(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return _centred(a).T @ _centred(b)


def _diagonal(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (_centred(a) * _centred(b)).sum(0)


def _chance(a: torch.Tensor, b: torch.Tensor) -> float:
    """The correlation that a latent reaches with its own re-encoding once samples are rolled by half, 95 % quantile."""
    return float(_diagonal(a, b.roll(max(1, len(b) // 2), dims=0)).quantile(0.95))


def _together(code: torch.Tensor, several: torch.Tensor) -> float:
    """Multiple correlation of a code with several others."""
    y, x = _centred(code[:, None]), _centred(several)
    solution = torch.linalg.lstsq(x.T @ x + 1e-9 * torch.eye(x.shape[1], dtype=x.dtype), x.T @ y).solution
    return float((x @ solution).norm())
