"""What latents do to the outputs: token logits by the direct path, other outputs by taking the latent out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from featalign.data.batch import unwrap
from featalign.errors import FeatalignError
from featalign.spaces.capture import evaluating
from featalign.spaces.splice import edited

if TYPE_CHECKING:
    from featalign.studies.features.cards import Contexts
    from featalign.studies.features.source import Source

SHOWN = 8  # outputs raised, and as many lowered
OUTPUTS = 40  # that are measured by taking latents out
SAMPLES = 4096  # runs of single inputs that this may take
DIRECT = (
    "direct path: the latent's atom through the unembedding, mean over the vocabulary taken off; what the final norm "
    "divides by is left out, so that only ratios count"
)
REMOVED = "mean change of each output over inputs where the latent fires, against the latent taken out"


@dataclass(frozen=True)
class Effect:
    """Outputs that each latent raises most, and lowers most.

    Attributes:
        words: how it was measured.
        raised, lowered: `[F, k]` outputs, the most changed first; -1 where there is none.
        up, down: `[F, k]` by how much; NaN where it was not measured.
        names: of the outputs, where they are no tokens.
    """

    words: str
    raised: torch.Tensor
    up: torch.Tensor
    lowered: torch.Tensor
    down: torch.Tensor
    names: tuple[str, ...] = ()

    @property
    def largest(self) -> int:
        """The largest token id among them; -1 where outputs are no tokens."""
        return -1 if self.names else int(max(self.raised.max(), self.lowered.max()))

    @classmethod
    def of(cls, words: str, values: torch.Tensor, names: Sequence[str] = ()) -> Effect:
        """The extremes of `values [F, outputs]`; only what is above zero is raised, only what is below is lowered."""
        raised, up, lowered, down = _extremes(values)
        return cls(words, raised, up, lowered, down, tuple(names))


def _extremes(values: torch.Tensor) -> tuple[torch.Tensor, ...]:
    count = min(SHOWN, values.shape[1])
    found: list[torch.Tensor] = []
    for sign in (1, -1):
        best = (sign * values.nan_to_num(nan=-torch.inf, neginf=-torch.inf)).topk(count, dim=1)
        real = (best.values > 0) & best.values.isfinite()
        found += [best.indices.where(real, -1), (sign * best.values).where(real, torch.nan).float()]
    return tuple(found)


def effect_of(source: Source, some: Contexts, energy: torch.Tensor, names: Sequence[str]) -> Effect | None:
    """The effect on token logits where the network has an unembedding, on outputs where there are few; or None."""
    try:
        outputs = source.outputs(source.inputs.example(2))
        if source.inputs.example(1).tokens is not None and outputs.dim() == 3:
            readout = unembedding(source.module, source.site.module, source.basis.atoms.shape[1])
            known = readout is not None and readout.shape[1] == outputs.shape[2]
            return _direct(source.basis.atoms, readout) if known else None  # type: ignore[arg-type]
        return _removed(source, some, energy, names, outputs)
    except FeatalignError:
        return None


def unembedding(module: nn.Module, place: str, units: int) -> torch.Tensor | None:
    """`[units, vocabulary]`: what reads the logits off activations at `place`, or None where that cannot be told.

    For activations of the residual stream the unembedding with the gain of the final norm (and without the mean, where
    the norm takes it off); for a hidden layer the weight that writes it to the stream as well.
    """
    matrix = _readout(module)
    if matrix is None:
        return None
    width = len(matrix)
    matrix = _normed(module, matrix, place)
    if units == width:
        return matrix
    written = _writer(module, place, units, width)
    return None if written is None else written @ matrix


def _readout(module: nn.Module) -> torch.Tensor | None:
    """`[width, vocabulary]`: of `transformer_lens`, of Hugging Face models, or the last linear layer."""
    matrix = getattr(module, "W_U", None)
    if isinstance(matrix, torch.Tensor):
        return matrix.detach().cpu().float()
    given: Any = getattr(module, "get_output_embeddings", None)
    head = given() if callable(given) else None
    linear = {name: part for name, part in module.named_modules() if isinstance(part, nn.Linear)}
    head = head if head is not None else list(linear.values())[-1] if linear else None
    outer = next((name.rpartition(".")[0] for name, part in linear.items() if part is head), "")
    if any(outer and name.startswith(f"{outer}.") and part is not head for name, part in linear.items()):
        return None  # a head of several layers, as in masked language models, is no matrix
    weight = getattr(head, "weight", None)
    return weight.detach().cpu().float().T if isinstance(weight, torch.Tensor) else None


def _normed(module: nn.Module, matrix: torch.Tensor, place: str) -> torch.Tensor:
    """The readout with the final norm's gain and centring in it: the last norm outside numbered blocks."""
    found = None
    for name, part in module.named_modules():
        kind = type(part).__name__.lower()
        weight = getattr(part, "weight", getattr(part, "w", None))
        if "norm" in kind and name != place and not re.search(r"\.\d+(\.|$)", name):
            sized = not isinstance(weight, torch.Tensor) or weight.shape == (len(matrix),)
            found = (part, weight) if sized else found
    if found is not None:
        part, weight = found
        if isinstance(weight, torch.Tensor):
            matrix = weight.detach().cpu().float()[:, None] * matrix
        if "rms" not in type(part).__name__.lower():
            matrix = matrix - matrix.mean(0)  # the norm takes the mean over units off what it reads
    return matrix - matrix.mean(1, keepdim=True)


def _writer(module: nn.Module, place: str, units: int, width: int) -> torch.Tensor | None:
    """`[units, width]`: the weight nearest to `place` by name that takes `units` to `width`."""
    best, found = 0, None
    for name, part in module.named_modules():
        for weight in part.parameters(recurse=False):
            shape = (width, units) if isinstance(part, nn.Linear) else (units, width)
            if weight.dim() == 2 and weight.shape == shape:
                shared = len(_common(name.split("."), place.split(".")))
                if shared > best:
                    best, found = shared, weight.T if isinstance(part, nn.Linear) else weight
    return None if found is None else found.detach().cpu().float()


def _common(a: Sequence[str], b: Sequence[str]) -> list[str]:
    found = []
    for x, y in zip(a, b):
        if x != y:
            break
        found.append(x)
    return found


def _direct(atoms: torch.Tensor, readout: torch.Tensor) -> Effect:
    """Chunks of latents, so that not all logits of all latents are held."""
    parts = [_extremes(some @ readout) for some in atoms.detach().cpu().float().split(256)]
    raised, up, lowered, down = (torch.cat(each) for each in zip(*parts))
    return Effect(DIRECT, raised, up, lowered, down)


def _removed(
    source: Source, some: Contexts, energy: torch.Tensor, names: Sequence[str], first: torch.Tensor
) -> Effect | None:
    """Mean change of the outputs, strongest latents first, as many as `SAMPLES` runs allow; NaN for the others.

    Every input of a batch has another latent taken out; all positions of the input are edited.
    """
    known = some.value > -torch.inf
    if not bool(known.any()) or not source.inputs.sized or first.dim() != 2 or first.shape[1] > OUTPUTS:
        return None
    latents = energy.argsort(descending=True)[: max(1, SAMPLES // known.shape[1])]
    owner = latents[:, None].expand(-1, known.shape[1])[known[latents]]
    inputs = some.input[latents][known[latents]]
    change = torch.zeros(len(energy), first.shape[1], dtype=torch.double)
    count = torch.zeros(len(energy), dtype=torch.double)
    for place in torch.arange(len(owner)).split(256):
        which, batch = owner[place], source.inputs.subset(inputs[place]).example(len(place))

        def without(rows: torch.Tensor, which: torch.Tensor = which) -> torch.Tensor:
            each = which.repeat_interleave(len(rows) // len(which))
            code = source.basis.encode(rows).gather(1, each[:, None].to(rows.device)).clamp_min(0)
            return rows - (code * source.basis.atoms[each]).to(rows)

        with evaluating(source.module):
            whole = unwrap(batch.run(source.module))
            with edited(source.module, source.site, without):
                changed = unwrap(batch.run(source.module))
        change.index_add_(0, which, (whole - changed).double().cpu())
        count.index_add_(0, which, torch.ones(len(which), dtype=torch.double))
    values = (change / count.clamp_min(1)[:, None]).where(count[:, None] > 0, torch.nan)
    labels = [str(name) for name in names[: first.shape[1]]]
    labels += [f"output {k}" for k in range(len(labels), first.shape[1])]
    return Effect.of(REMOVED, values.float(), labels)


def logits_of(effect: Effect, latent: int, name: Any) -> dict[str, list[Any]]:
    """Names and values of the outputs that a latent raises and lowers."""
    found: dict[str, list[Any]] = {}
    for key, index, value in (("raised", effect.raised, effect.up), ("lowered", effect.lowered, effect.down)):
        pairs = [(i, v) for i, v in zip(index[latent].tolist(), value[latent].tolist()) if i >= 0]
        found[key] = [[effect.names[i] if effect.names else name(i), v] for i, v in pairs]
    return found
