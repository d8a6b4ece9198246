"""Dictionaries that sae-lens knows by release, fetched by it."""

from __future__ import annotations

import contextlib
import difflib
import io
from typing import Any

from featalign.errors import DictionaryError


def released(name: str) -> Any:
    """sae-lens's `SAE` of `release/sae_id`; its weights are fetched, or read from the cache of the Hugging Face hub.

    Raises `DictionaryError` in one line for a name that is no release, an unknown id, and where nothing can be fetched.
    """
    with contextlib.redirect_stderr(io.StringIO()):
        from sae_lens import SAE
        from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    known = get_pretrained_saes_directory()
    release = next((r for r in known if name.startswith(f"{r}/")), None)
    if release is None:
        near = difflib.get_close_matches(name.partition("/")[0], known, 2, 0.6)
        hint = f"; near it: {', '.join(near)}" if near else ""
        raise DictionaryError(f"'{name}' is neither a folder nor a release of sae-lens (release/sae_id){hint}")
    identifier = name.removeprefix(f"{release}/")
    if identifier not in known[release].saes_map:
        near = difflib.get_close_matches(identifier, known[release].saes_map, 3, 0.1)
        raise DictionaryError(f"release '{release}' has no '{identifier}'; near it: {', '.join(near)}")
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            return SAE.from_pretrained(release, identifier)
    except Exception as error:  # whatever the hub's client raises without a connection
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise DictionaryError(f"'{name}' could not be fetched ({reason}); give the folder of a copy") from error
