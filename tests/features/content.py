"""What a browser's content holds, unpacked as the page does it."""

import base64
import gzip
import json

import numpy as np

KINDS = {"u8": "<u1", "u16": "<u2", "u32": "<u4", "f32": "<f4"}


def rows_of(content, place):
    """The rows of a block, one per latent, null where it never fires."""
    block = content["blocks"][place]
    shards = -(-block["latents"] // content["per"])
    texts = content["shards"][block["first"] : block["first"] + shards]
    return [row for text in texts for row in json.loads(gzip.decompress(base64.b64decode(text)))]


def unpacked(packed):
    """Numbers from base64."""
    ((kind, text),) = packed.items()
    return np.frombuffer(base64.b64decode(text), KINDS[kind])
