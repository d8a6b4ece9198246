"""`featalign diagnose`: is a network polysemantic, layer by layer, and how would we know?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featalign.errors import ProbeError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from featalign.diagnosis import Diagnosis
    from featalign.dictionaries import Dictionary

SAMPLES = 12_000


def diagnose(
    model: nn.Module,
    data: torch.Tensor | tuple[torch.Tensor, torch.Tensor],
    spaces: Sequence[str] | None = None,
    dictionaries: Mapping[str, Dictionary] | None = None,
    partners: Mapping[str, nn.Module] | None = None,
    seeds: Sequence[int] = (0, 1),
    class_names: Sequence[str] = (),
    steps: int | None = None,
    sweep_steps: int = 150,
    title: str = "model",
    out: Path | str | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> Diagnosis:
    """Diagnose superposition and polysemanticity of every hidden layer, against controls.

    Args:
        model: a trained module; data: inputs `[samples, ...]`, or `(inputs, labels)` for class measures and splicing.
        spaces: names of hidden spaces; all by default.
        dictionaries: dictionaries to diagnose instead of the first seed's, by space.
        partners: other clients of the same architecture, whose matching features appear on the cards.
        seeds: of the dictionaries; two at least, so that their agreement is measured.
        steps: of training; None takes the default.
        sweep_steps: of each of the smaller trainings along width and sparsity.
        out: folder to write the page into.

    The control is the same network with the entries of each weight tensor shuffled: what it shows too is no evidence
    of anything learned. Raises `ProbeError` for fewer than 320 inputs, `SpaceMismatch` for an unknown space or a
    dictionary of another one.
    """
    import torch
    from tqdm.auto import tqdm

    from featalign.diagnosis import Diagnosis
    from featalign.polysemanticity import examine, shuffled
    from featalign.spaces import trace
    from featalign.spaces.capture import collect

    inputs, labels = data if isinstance(data, tuple) else (data, None)
    if len(inputs) < 320:
        raise ProbeError(f"{len(inputs)} inputs; a diagnosis needs at least 320 to train and to hold out")
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))[:SAMPLES]
    inputs, labels = inputs[order], labels[order] if labels is not None else None
    graph = trace(model, inputs[:4])
    chosen = [graph[name] for name in spaces] if spaces else [s for s in graph.hidden if s.pre is not None]
    sites = {space.name: space.after for space in chosen}
    networks = {"model": model, "control": shuffled(model), **(partners or {})}
    seen = {name: collect(network, inputs, list(sites.values())) for name, network in networks.items()}
    layers = {}
    for space in tqdm(chosen, disable=not progress, desc="layers"):
        held = {name: found[sites[space.name]][: 4 * len(inputs)] for name, found in seen.items()}
        given = (dictionaries or {}).get(space.name)
        settings = {"seeds": seeds, "steps": steps, "sweep_steps": sweep_steps}
        layers[space.name] = examine(model, space, sites[space.name], held, inputs, labels, given, settings)
    count = int(labels.max()) + 1 if labels is not None else 0
    facts = {"samples": len(inputs), "seeds": list(seeds), "partners": list(partners or {})}
    names = list(class_names) or [str(label) for label in range(count)]
    found = Diagnosis(title, layers, inputs, labels, names, facts)
    if out is not None:
        found.save(out, overwrite)
    return found


def run(
    model: Path | str | None = None,
    folder: Path | str | None = None,
    dataset: str = "digits",
    out: Path | str | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> Diagnosis:
    """Diagnose weights on disk, the first client of a compare run, or a client trained on a data set.

    Args:
        model: safetensors of an MLP of this toolkit (`fc1.weight`, ...); its inputs come from `dataset`.
        folder: run folder of `featalign compare`; the other clients become partners on the cards.
        out: where the page goes; `reports/diagnose-<name>` by default.

    Raises `CorruptFile` for unreadable weights and `ArchitectureMismatch` for weights that are no MLP of the data set.
    """
    from featalign.data import load, partition
    from featalign.storage import refuse_existing
    from featalign.studies.compare.config import RunConfig

    config = RunConfig.from_toml(Path(folder) / "config.toml") if folder else RunConfig(dataset=dataset, clients=1)
    name = Path(model).stem if model else Path(folder).name if folder else dataset
    out = Path(out) if out else Path("reports") / f"diagnose-{name}"
    refuse_existing(out, overwrite)
    content = load(config.dataset, config.folder or None, progress)
    partners: dict[str, nn.Module] = {}
    if model:
        network = _read(Path(model), content)
    else:
        from featalign.clients import MLPConfig
        from featalign.clients.client import train_clients

        scheme = config.split if folder else "iid"
        options: dict[str, Any] = {"special": config.special} if scheme == "special-label" else {}
        if "dirichlet" in scheme or scheme == "quantity":
            options = {"alpha": config.alpha}
        parts = partition(content.train_labels, scheme, config.clients, 0, content.class_names, **options)
        shape = MLPConfig.for_dataset(content, **config.model_options)
        recipe = shape.recipe(len(content.train_labels), **({"epochs": config.epochs} if config.epochs else {}))
        members = train_clients(content, parts, shape, recipe, 0, progress=progress)
        network = members[0].model
        partners = {f"client {member.name}": member.model for member in members[1:]}
    data = (content.train_inputs, content.train_labels)
    names = list(content.class_names)
    return diagnose(
        network, data, partners=partners, class_names=names, title=name, out=out, overwrite=overwrite, progress=progress
    )


def _read(path: Path, content: Any) -> nn.Module:
    """An MLP from its weights: widths and biases are read off the tensors."""
    from featalign.clients import MLPConfig, build
    from featalign.errors import ArchitectureMismatch
    from featalign.storage import load_tensors

    if not path.is_file():
        raise ArchitectureMismatch(f"no file '{path}'; give the safetensors of a client or a fused model")
    weights = load_tensors(path)
    layers = sorted((key for key in weights if key.endswith(".weight")), key=lambda key: (len(key), key))
    if not layers or any(not key.startswith("fc") for key in layers):
        shown = ", ".join(list(weights)[:4])
        raise ArchitectureMismatch(
            f"'{path}' holds {shown}; only MLPs can be read from weights, call fa.diagnose(model)"
        )
    widths = [weights[layers[0]].shape[1], *(weights[key].shape[0] for key in layers)]
    if widths[0] != content.features:
        raise ArchitectureMismatch(f"'{path}' reads {widths[0]} inputs, '{content.name}' has {content.features}")
    shape = MLPConfig(widths[0], tuple(widths[1:-1]), widths[-1], bias=f"{layers[0][:-7]}.bias" in weights)
    network = build(shape)
    network.load_state_dict(weights)
    return network
