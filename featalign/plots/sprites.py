"""Input examples as one PNG sheet, so that a page with thousands of thumbnails stays small."""

from __future__ import annotations

import base64
import io
import math
from typing import Any

import numpy as np


def sprite_sheet(inputs: np.ndarray, columns: int = 40) -> dict[str, Any]:
    """Inputs `[samples, ...]` as a sheet of thumbnails: `{png: base64, width, height, columns, count}`.

    Images are `[C, H, W]`, `[H, W]` or square ones flattened; anything else is drawn as a strip one pixel high.
    Values are scaled to the range of the whole set.
    """
    from PIL import Image

    if len(inputs) == 0:
        return {"png": "", "width": 1, "height": 1, "columns": columns, "count": 0}
    images = _as_images(np.asarray(inputs, dtype=np.float32))
    low, high = float(images.min()), float(images.max())
    levels = ((images - low) / max(high - low, 1e-9) * 255).astype(np.uint8)
    count, height, width, channels = levels.shape
    rows = math.ceil(count / columns)
    sheet = np.zeros((rows * height, columns * width, channels), dtype=np.uint8)
    for place, image in enumerate(levels):
        y, x = divmod(place, columns)
        sheet[y * height : (y + 1) * height, x * width : (x + 1) * width] = image
    buffer = io.BytesIO()
    Image.fromarray(sheet if channels == 3 else sheet[..., 0]).save(buffer, format="PNG", optimize=True)
    png = base64.b64encode(buffer.getvalue()).decode()
    return {"png": png, "width": width, "height": height, "columns": columns, "count": count}


def _as_images(inputs: np.ndarray) -> np.ndarray:
    """`[samples, H, W, 1 or 3]`."""
    if inputs.ndim == 4 and inputs.shape[1] in (1, 3):
        return np.moveaxis(inputs, 1, -1)
    if inputs.ndim == 3:
        return inputs[..., None]
    flat = inputs.reshape(len(inputs), -1)
    side = math.isqrt(flat.shape[1])
    shape = (side, side) if side * side == flat.shape[1] else (1, flat.shape[1])
    return flat.reshape(len(flat), *shape, 1)
