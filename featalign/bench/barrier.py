"""Loss barriers between two character transformers, by the basis in which their weights are interpolated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from featalign.errors import BadOption

if TYPE_CHECKING:
    import torch
    from torch import nn

    from featalign.align.maps import SpaceMap
    from featalign.clients import DecoderConfig
    from featalign.spaces.graph import Space, SpaceGraph

WAYS = ("vanilla", "permutation", "orthogonal-activations", "orthogonal-weights", "feature-orthogonal", "soft")
PAIRS = ("editions", "seeds")


@dataclass(frozen=True)
class Curve:
    """Loss along the straight line between two networks, after one of them was aligned.

    Attributes:
        way: how it was aligned.
        shares: weight of the aligned network at each point.
        losses: nats per character on held-out text of both clients.
        barrier: largest excess over the line between the two networks as they were trained.
        midpoint: the loss half way.
        explained: share of the target stream's energy that the stream map explains on the probe.
    """

    way: str
    shares: tuple[float, ...]
    losses: tuple[float, ...]
    barrier: float
    midpoint: float
    explained: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True)
class BarrierResult:
    """Curves of one pair of clients, with the losses of the clients themselves and the diagnosis of the stream."""

    pair: str
    parents: tuple[float, float]
    curves: tuple[Curve, ...]
    diagnosis: dict[str, float] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "curves": [curve.to_dict() for curve in self.curves]}


def corpora(pair: str, held_out: float = 0.05) -> tuple[list[torch.Tensor], torch.Tensor, list[str]]:
    """Training tokens of both clients, held-out tokens of both joined, and the alphabet.

    `editions`: the works that exist in modern spelling and in that of the First Folio, one edition per client.
    `seeds`: modern spelling for both.
    """
    import torch

    from featalign.data.text import encode, shakespeare

    if pair not in PAIRS:
        raise BadOption(f"unknown pair '{pair}'; choices: {', '.join(PAIRS)}")
    modern, folio = shakespeare("modern"), shakespeare("folio")
    shared = sorted(set(modern) & set(folio))
    texts = ["".join(edition[name] for name in shared) for edition in (modern, folio if pair == "editions" else modern)]
    alphabet = sorted(set("".join(texts)))
    train, test = [], []
    for text in texts:
        tokens = encode(text, alphabet)
        cut = int(len(tokens) * (1 - held_out))
        train.append(tokens[:cut])
        test.append(tokens[cut:])
    return train, torch.cat(test), alphabet


def client(config: DecoderConfig, tokens: torch.Tensor, steps: int, seed: int, progress: bool = True) -> nn.Module:
    """A trained decoder, cached by everything that determines its weights."""
    import hashlib

    from featalign import storage
    from featalign.clients import build, train
    from featalign.data.text import Stream

    digest = hashlib.sha256(tokens.numpy().tobytes()).hexdigest()
    key = storage.fingerprint({"model": config.to_dict(), "tokens": digest, "steps": steps, "seed": seed, "version": 1})
    path = storage.cache_folder() / "decoders" / f"{key}.safetensors"
    module = build(config, seed)
    if path.exists():
        module.load_state_dict(storage.load_tensors(path), strict=False)
    else:
        recipe = config.recipe(len(tokens), steps=steps)
        train(module, Stream(tokens, config.context), None, "next-token", recipe, seed, progress, "decoder")
        storage.save_tensors(path, {n: t for n, t in module.state_dict().items() if t.is_floating_point()})
    return module.eval()


def barrier(
    pair: str = "editions",
    ways: Sequence[str] = WAYS,
    steps: int = 1000,
    points: int = 11,
    probe: int = 64,
    windows_held_out: int = 128,
    seed: int = 0,
    progress: bool = True,
    **options: Any,
) -> BarrierResult:
    """Train (or load) two clients, align one to the other in every way, and follow the loss between them.

    `options` are those of `DecoderConfig`. The probe is text of both clients' training sets; held-out text only
    measures.
    """
    import torch

    from featalign.align.transformer import fold_norms
    from featalign.clients import DecoderConfig, evaluate
    from featalign.data.text import windows
    from featalign.spaces import trace

    train, test, alphabet = corpora(pair)
    config = DecoderConfig(**{"vocabulary": len(alphabet), "width": 48, "hidden": 192, "context": 48, **options})
    trained = [client(config, tokens, steps, 2 * seed + k, progress) for k, tokens in enumerate(train)]
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.cat([windows(tokens, config.context, probe // 2, generator) for tokens in train])[:, :-1]
    held_out = windows(test, config.context, windows_held_out, generator)
    source, target = (fold_norms(module, inputs[:2]) for module in trained)
    graph = trace(target, inputs[:2])
    shares = tuple(k / (points - 1) for k in range(points))
    curves = []

    def next_token_loss(module: nn.Module) -> float:
        return evaluate(module, (held_out[:, :-1], held_out[:, 1:]), "next-token")["loss"]

    ends = [next_token_loss(module) for module in (target, source)]
    for way in ways:
        state, explained = _aligned(way, source, target, graph, inputs)
        losses = [next_token_loss(_between(target, state, share)) for share in shares]
        excess = [loss - ((1 - s) * ends[0] + s * ends[1]) for loss, s in zip(losses, shares)]
        curves.append(Curve(way, shares, tuple(losses), max(excess), losses[len(losses) // 2], explained))
    parents = (next_token_loss(trained[0]), next_token_loss(trained[1]))
    found = {"steps": steps, "probe": probe, "seed": seed, **config.to_dict()}
    return BarrierResult(pair, parents, tuple(curves), _diagnosis(source, target, graph, inputs), found)


def _aligned(
    way: str, source: nn.Module, target: nn.Module, graph: SpaceGraph, probe: torch.Tensor
) -> tuple[dict[str, torch.Tensor], float]:
    """The source's weights in the target's basis, and how much of the target's stream its moved stream explains."""
    from featalign.align.transformer import align_softly, align_transformer
    from featalign.spaces import moved

    kinds: dict[str, str | Callable[[Space], SpaceMap]] = {
        "permutation": "permutation",
        "orthogonal-activations": "activations",
        "orthogonal-weights": "weights",
        "feature-orthogonal": _feature_map(source, target, probe),
    }
    main = _stream(graph)
    if way == "vanilla":
        return source.state_dict(), _explained(source, target, main, probe, None)
    if way == "soft":
        alignment = align_softly(source, target, graph, probe)
        return moved(source, graph, alignment.maps), _explained(source, target, main, probe, alignment.maps[main.name])
    if way not in kinds:
        raise BadOption(f"unknown way '{way}'; choices: {', '.join(WAYS)}")
    result = align_transformer(source, target, graph, probe, kinds[way])
    state = moved(result.module, graph, result.alignment.maps)
    return state, _explained(source, target, main, probe, result.alignment.maps[main.name])


def _stream(graph: SpaceGraph) -> Space:
    """The residual stream: the rotation-symmetric space with most writers."""
    return max(graph.hidden, key=lambda space: (len(space.sites), len(space.writers)))


def _feature_map(source: nn.Module, target: nn.Module, probe: torch.Tensor) -> Callable[[Space], SpaceMap]:
    """Rotation from a partial plan between dictionaries of the two streams, read at every depth."""

    def stream_map(space: Space) -> SpaceMap:
        import torch

        from featalign.align.feature import match_features
        from featalign.align.orthogonal import procrustes_features
        from featalign.dictionaries import train_many
        from featalign.spaces import collect

        sites = [site for site in space.sites if site.size is None and site.side == "out"]
        sites = [site for site in sites if ".hook_resid_post" in site.module] or sites
        a, b = (torch.cat(list(collect(module, probe, sites, 256).values())) for module in (source, target))
        ((left,), (right,)) = train_many([a, b], "topk", (0,), [{"client": "A"}, {"client": "B"}])
        bases = (left, right)
        return procrustes_features(match_features(*bases, zip(a.split(2048), b.split(2048))), *bases)

    return stream_map


def _explained(
    source: nn.Module, target: nn.Module, space: Space, probe: torch.Tensor, space_map: SpaceMap | None
) -> float:
    """`1 - E|b - O a|^2 / E|b|^2` over every site of the stream."""
    import torch

    from featalign.align.orthogonal import stream_moments

    moments = stream_moments(source, target, space, probe)
    out = torch.eye(space.size, dtype=torch.float64) if space_map is None else space_map.out.double()
    second = moments.covariance_ab + torch.outer(moments.mean_a, moments.mean_b)
    own = moments.covariance_aa + torch.outer(moments.mean_a, moments.mean_a)
    energy = (moments.covariance_bb.diagonal() + moments.mean_b**2).sum()
    return float((2 * (out * second.T).sum() - torch.einsum("ij,jk,ik->", out, own, out)) / energy)


def _between(target: nn.Module, state: dict[str, torch.Tensor], share: float) -> nn.Module:
    from featalign.spaces import rebuilt

    mixed = {
        name: (1 - share) * tensor + share * state[name]
        if tensor.is_floating_point() and tensor.isfinite().all()
        else tensor
        for name, tensor in target.state_dict().items()
    }
    return rebuilt(target, mixed)


def _diagnosis(source: nn.Module, target: nn.Module, graph: SpaceGraph, probe: torch.Tensor) -> dict[str, float]:
    """Matched correlation of the stream's units, and the energy that an assignment and a linear map explain."""
    import torch

    from featalign.align.maps import SpaceMap
    from featalign.align.orthogonal import procrustes_activations, stream_moments
    from featalign.transport import solve

    space = _stream(graph)
    moments = stream_moments(source, target, space, probe)
    plan = solve(1 - moments.correlation.abs())
    pairs = torch.from_numpy(plan.pairs)
    ridge = 1e-6 * moments.covariance_aa.diagonal().mean() * torch.eye(space.size, dtype=torch.float64)
    linear = torch.linalg.solve(moments.covariance_aa + ridge, moments.covariance_ab)
    share = (linear * moments.covariance_ab).sum() / moments.covariance_bb.diagonal().sum()
    return {
        "matched_unit_correlation": float(moments.correlation.abs()[pairs[:, 0], pairs[:, 1]].mean()),
        "explained_permutation": _explained(source, target, space, probe, SpaceMap.from_plan(plan)),
        "explained_rotation": 1 - procrustes_activations(source, target, space, probe).residual,
        "variance_explained_linear": float(share),
    }
