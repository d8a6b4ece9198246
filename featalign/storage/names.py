"""Names of layers, clients and methods as names of files."""

from __future__ import annotations

import hashlib

LONGEST = 120  # bytes of a name; file systems allow 255, and suffixes and temporary names need room
_KEPT = "._-+=@,"


def safe_name(name: str) -> str:
    """A name as one readable, unique component of a path: `zip+refit` stays, `../a b` becomes `%2E.%2Fa%20b`.

    Letters and digits of any script and `._-+=@,` stay; everything else is percent-encoded, so is a leading dot, and a
    name longer than 120 bytes ends in `~` and its hash. Different names stay different.
    """
    text = "".join(letter if _is_kept(letter, place) else _encoded(letter) for place, letter in enumerate(str(name)))
    if not text:
        return "%"
    if len(text.encode()) > LONGEST:
        digest = hashlib.sha256(str(name).encode("utf-8", "surrogatepass")).hexdigest()[:16]
        text = text.encode()[: LONGEST - 17].decode("utf-8", "ignore") + "~" + digest
    return text


def _is_kept(letter: str, place: int) -> bool:
    return letter.isalnum() or (letter in _KEPT and not (letter == "." and place == 0))


def _encoded(letter: str) -> str:
    return "".join(f"%{byte:02X}" for byte in letter.encode("utf-8", "surrogatepass"))
