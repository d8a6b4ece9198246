"""Rounds on disk: one folder a round that appears when it is complete, from which a killed run goes on."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

from featalign import storage
from featalign.errors import BadOption, CorruptFile, FolderExists
from featalign.federated.messages import State
from featalign.federated.result import ROWS
from featalign.federated.server import Server

SETTINGS, ROUND, WEIGHTS, STATE = "settings.json", "round.json", "weights.safetensors", "state.safetensors"
KIND = "federated-round"
FLOATS = {"float"}


def open_folder(folder: Path | str, server: Server, resume: bool) -> Path:
    """The folder of rounds, new or to be resumed; raises `FolderExists`, or `BadOption` for one of other settings."""
    place = Path(folder)
    described = {"federation": server.federation.fingerprint(), "settings": described_settings(server)}
    if (place / SETTINGS).exists():
        if not resume:
            raise FolderExists(f"'{place}' holds rounds already; pass resume=True, or another folder")
        if storage.read_json(place / SETTINGS) != storage.plain(described):
            raise BadOption(f"'{place}' holds rounds of other settings or clients; resume with the same ones")
    else:
        storage.require_writable(place)
        storage.write_json(place / SETTINGS, described)
    return place


def described_settings(server: Server) -> dict[str, Any]:
    """The settings as plain values."""
    return dict(storage.plain(dataclasses.asdict(server.settings)))


def save_round(folder: Path, server: Server, controls: dict[str, State]) -> None:
    """Write the round that was just closed; what older rounds needed to go on is removed, their weights are kept."""
    number = server.round
    held: State = {f"velocity/{name}": tensor for name, tensor in server.velocity.items()}
    held |= {f"control/{name}": tensor for name, tensor in server.control.items()}
    held |= {f"client/{client}/{name}": t for client, state in controls.items() for name, t in state.items()}
    read, facts = server.features.state()
    held |= {f"features/{name}": tensor for name, tensor in read.items()}
    rows = {name: [row for row in server.result.rows[name] if row.round == number] for name in ROWS}
    with storage.atomic_folder(_place(folder, number), kind=KIND) as temporary:
        storage.save_tensors(temporary / WEIGHTS, server.weights)
        if held:
            storage.save_tensors(temporary / STATE, held)
        content = {
            "round": number,
            "typical": server.typical,
            "weigher": server.weigher.state(),
            "features": facts,
            "rows": {name: [dataclasses.asdict(row) for row in found] for name, found in rows.items()},
        }
        storage.write_json(temporary / ROUND, content)
    (_place(folder, number - 2) / STATE).unlink(missing_ok=True)


def restore(folder: Path, server: Server) -> dict[str, State]:
    """Bring a new server to the last complete round; returns the clients' variates.

    Raises `CorruptFile` for rounds that are missing in between or that cannot be read.
    """
    numbers = sorted(int(path.name) for path in (folder / "rounds").glob("[0-9]*") if (path / ROUND).exists())
    if numbers != list(range(1, len(numbers) + 1)):
        raise CorruptFile(f"'{folder}' holds rounds {numbers[:5]}...: one is missing; start again")
    for number in numbers:
        content = storage.read_json(_place(folder, number) / ROUND)
        for name, kind in ROWS.items():
            server.result.rows[name] += [_row(kind, record) for record in content["rows"][name]]
    if not numbers:
        return {}
    last = _place(folder, numbers[-1])
    server.weights = storage.load_tensors(last / WEIGHTS)
    server.round, server.typical = numbers[-1], tuple(content["typical"])
    server.weigher.restore(content["weigher"])
    controls: dict[str, State] = {}
    read: State = {}
    held = storage.load_tensors(last / STATE) if (last / STATE).exists() else {}
    for key, tensor in held.items():
        holder, _, name = key.partition("/")
        if holder == "client":
            client, _, name = name.partition("/")
            controls.setdefault(client, {})[name] = tensor
        elif holder == "features":
            read[name] = tensor
        else:
            getattr(server, holder)[name] = tensor
    server.features.restore(read, content.get("features", {}))
    return controls


def _row(kind: type, record: dict[str, Any]) -> Any:
    """A row as it was written; null stands for a number that is none."""
    hints = {item.name: item.type for item in dataclasses.fields(kind)}
    return kind(**{k: math.nan if v is None and hints[k] in FLOATS else v for k, v in record.items()})


def _place(folder: Path, number: int) -> Path:
    return folder / "rounds" / f"{number:05d}"
