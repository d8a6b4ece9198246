"""Networks from folders of weights and back, in the layout that they came in.

Three layouts: safetensors beside the JSON of a registered family, a Hugging Face folder (through `transformers`, local
files only), and the bare state dict of a module whose class lives elsewhere. No pickle is read.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from featalign import storage
from featalign.clients.models import ModelConfig, build, config_of, from_dict, models
from featalign.errors import BadOption, CorruptFile, FeatalignError

CONFIGS = ("config.json", "model.json", "client.json")
WEIGHTS, CONFIG = "model.safetensors", "config.json"
_TOKENIZER = ("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "spiece.model",
              "preprocessor_config.json")  # fmt: skip
_WANTED = (
    "pass safetensors beside a config.json that names a registered model, or a Hugging Face folder (config.json and "
    "safetensors)"
)


@dataclass(frozen=True)
class Layout:
    """How a network came in.

    Attributes:
        config: of its registered family, where it has one.
        folder: the Hugging Face folder it was read from, whose tokenizer goes along.
    """

    config: ModelConfig | None = None
    folder: Path | None = None


class StateOnly(nn.Module):
    """The weights of a module whose class was not saved: `state_dict()` holds them under their names."""

    def __init__(self, state: Mapping[str, torch.Tensor]):
        super().__init__()
        for name, tensor in state.items():
            owner: nn.Module = self
            *path, last = name.split(".")
            for part in path:
                if part not in owner._modules:
                    owner.add_module(part, nn.Module())
                owner = owner.get_submodule(part)
            owner.register_buffer(last, tensor)

    def forward(self, *_args: Any, **_kwargs: Any) -> torch.Tensor:
        """Raises `BadOption`: the class that these weights belong to is not known here."""
        raise BadOption(
            "only weights were saved, not the class they belong to; load them with "
            "module.load_state_dict(result.module.state_dict())"
        )


def read_module(path: Path | str) -> tuple[nn.Module, Layout]:
    """The network in a folder or a safetensors file, in eval mode, and its layout.

    A file is read with the JSON beside it (`<name>.json`, or one of `CONFIGS`). Raises `CorruptFile` for a place
    without weights, weights that do not fit their configuration, and files that are damaged; `UnknownName` for a family
    that is not registered.
    """
    place = Path(path).expanduser()
    if not place.exists():
        raise CorruptFile(f"no file or folder '{path}'; {_WANTED}")
    folder = place if place.is_dir() else place.parent
    names = CONFIGS if place.is_dir() else (f"{place.stem}.json", *CONFIGS)
    content = next((storage.read_json(folder / name) for name in names if (folder / name).is_file()), None)
    if isinstance(content, Mapping) and ("architectures" in content or "model_type" in content) and place.is_dir():
        return _read_hugging_face(folder, content), Layout(folder=folder)
    file = place if place.is_file() else _weights_in(folder)
    if isinstance(content, Mapping) and isinstance(content.get("model"), Mapping):
        content = content["model"]  # a client of the cache
    if not isinstance(content, Mapping) or not isinstance(content.get("model"), str):
        raise CorruptFile(
            f"'{path}' holds weights but nothing says of which network: put a config.json beside them, such as "
            f'{{"model": "mlp", "inputs": 64, ...}} (registered: {", ".join(models.names())}), or pass the module'
        )
    config = _config(content, folder)
    module = build(config)
    state = storage.load_tensors(file)
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise CorruptFile(f"the weights in '{path}' do not fit model '{config.name}': {_last(error)}") from error
    return module.eval(), Layout(config)


def read_state(folder: Path) -> StateOnly:
    """The bare weights in a folder that `write_module` wrote."""
    return StateOnly(storage.load_tensors(folder / WEIGHTS))


def write_module(module: nn.Module, folder: Path, layout: Layout) -> str:
    """Write a network into a folder that exists; returns its layout: hugging-face, family or state.

    A registered family becomes safetensors and JSON, a `transformers` network what its own `save_pretrained` writes
    (with the tokenizer it came with), any other module the safetensors of its state dict.
    """
    if is_hugging_face(module):
        with quiet():
            module.save_pretrained(folder)  # type: ignore[operator]
        for pattern in _TOKENIZER if layout.folder is not None else ():
            for file in layout.folder.glob(pattern):  # type: ignore[union-attr]
                if file.is_file():
                    shutil.copyfile(file, folder / file.name)
        return "hugging-face"
    storage.save_tensors(folder / WEIGHTS, module.state_dict())
    if layout.config is None:
        return "state"
    storage.write_json(folder / CONFIG, layout.config.to_dict())
    return "family"


def layout_of(module: nn.Module) -> Layout:
    """The layout of a network that is passed as a module."""
    return Layout(config_of(module))


def is_hugging_face(module: nn.Module) -> bool:
    """Whether `transformers` saves and loads the module."""
    return any(kind.__module__.partition(".")[0] == "transformers" for kind in type(module).__mro__) and hasattr(
        module, "save_pretrained"
    )


def read_tokenizer(folder: Path | str) -> Any:
    """The tokenizer in a Hugging Face folder, padding with its end-of-text token where it has none of its own.

    Raises `CorruptFile` where there is none.
    """
    try:
        with quiet():
            from transformers import AutoTokenizer

            found = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, ImportError, KeyError, TypeError, AttributeError) as error:
        raise CorruptFile(
            f"no tokenizer in '{folder}': {_first(error)}; pass tokenizer=, or tokens as probe"
        ) from error
    if found.pad_token is None and found.eos_token is not None:
        found.pad_token = found.eos_token
    return found


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No bars and no notes of `transformers` inside."""
    try:
        from transformers.utils import logging
    except ImportError:
        yield
        return
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _weights_in(folder: Path) -> Path:
    found = sorted(folder.glob("*.safetensors"))
    named = [file for file in found if file.name in (WEIGHTS, "weights.safetensors")]
    if not found:
        raise CorruptFile(f"no weights in '{folder}' (no .safetensors file); {_WANTED}")
    if len(found) > 1 and len(named) != 1:
        raise CorruptFile(f"'{folder}' holds {len(found)} safetensors files; name the file instead of the folder")
    return (named or found)[0]


def _config(content: Mapping[str, Any], folder: Path) -> ModelConfig:
    kind: Any = models[content["model"]]
    known = {name: value for name, value in content.items() if name == "model" or name in kind.__dataclass_fields__}
    try:
        return from_dict(known if "losses" in content else content)
    except FeatalignError:
        raise
    except (TypeError, ValueError) as error:
        raise CorruptFile(f"the configuration in '{folder}' is none of model '{kind.name}': {_first(error)}") from error


def _read_hugging_face(folder: Path, content: Mapping[str, Any]) -> nn.Module:
    """The network that `config.architectures` names, with every weight found in the folder."""
    try:
        import transformers
    except ImportError as error:
        raise BadOption(f"'{folder}' is a Hugging Face folder; install `transformers` to read it") from error
    name = next(iter(content.get("architectures") or ["AutoModel"]))
    kind = getattr(transformers, str(name), None)
    if kind is None:
        raise CorruptFile(
            f"'{folder}' holds a {name}, which `transformers` {transformers.__version__} does not have; pass the module"
        )
    if not list(folder.glob("*.safetensors")):
        raise CorruptFile(f"no weights in '{folder}' (no .safetensors file; pickles are not read)")
    try:
        with quiet():
            module, info = kind.from_pretrained(
                str(folder), local_files_only=True, use_safetensors=True, dtype="auto", output_loading_info=True
            )
    except Exception as error:  # whatever `transformers` and safetensors raise
        raise CorruptFile(f"`transformers` cannot read '{folder}': {_first(error)}") from error
    wrong = sorted(map(str, (*info.get("missing_keys", ()), *info.get("mismatched_keys", ()))))
    if wrong:
        raise CorruptFile(f"the weights in '{folder}' lack '{wrong[0]}' of {name} ({len(wrong)} tensors in all)")
    return module.eval()


def _first(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _last(error: BaseException) -> str:
    return " ".join((str(error).strip().splitlines() or [type(error).__name__])[-1].split())
