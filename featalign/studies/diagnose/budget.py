"""What the data can carry, said before any training: rows, latents, steps."""

from __future__ import annotations

import math
from dataclasses import dataclass

from featalign.dictionaries.preflight import FIRINGS_PER_LATENT, default_k, supported_width
from featalign.errors import DictionaryError
from featalign.studies.diagnose.config import DiagnoseConfig

ROWS_PER_UNIT = 4  # fewer rows than this leave directions of a layer to chance
WORK = 1e11  # multiply-adds of the encoder in one training: seconds on two cores
BATCH = 256


@dataclass(frozen=True)
class Budget:
    """What one layer's dictionaries get.

    Attributes:
        rows: of activations that they are trained on; inputs: that these came from.
        width, k, steps: of the dictionaries; steps are None where the default is affordable.
        wanted: latents without the cap.
        sweep: whether the sweep is affordable.
    """

    rows: int
    inputs: int
    width: int
    k: float
    steps: int | None
    wanted: int
    sweep: bool

    @classmethod
    def of(cls, layer: str, units: int, rows: int, inputs: int, config: DiagnoseConfig) -> Budget:
        """Raises `DictionaryError` where the data carry no dictionary as wide as the layer, and none was asked for.

        `rows` of training activations come from so many `inputs`.
        """
        k = config.k or default_k(units)
        wanted = config.width or round((4 if units <= 128 else 2 if units <= 1024 else 1.5) * units)
        carried = supported_width(int(0.9 * rows), k)  # a tenth is kept from the training
        width = min(wanted, carried)
        if not config.width and (carried < units or rows < ROWS_PER_UNIT * units):
            need = max(math.ceil(units * FIRINGS_PER_LATENT / k / 0.9), ROWS_PER_UNIT * units)
            more = math.ceil(need / max(rows, 1) * inputs / max(1 - config.held_out, 0.1))
            raise DictionaryError(
                f"layer '{layer}' has {units} units, and the data give {rows} rows of activations: a dictionary as "
                f"wide as the layer needs {need}, about {more} inputs like these in all; pass more, or width= for a "
                f"dictionary narrower than its layer (the data carry {carried} latents)"
            )
        steps = config.steps or None
        affordable = int(WORK / (BATCH * units * width))
        if steps is None and affordable < (1000 if width <= 1024 else 2000):
            steps = max(120, affordable)
        return cls(rows, inputs, width, min(k, width), steps, wanted, units * width < 2**19)

    def words(self, held: int) -> str:
        """The budget in a sentence."""
        capped = f", capped by the data from {self.wanted}" if self.width < self.wanted else ""
        steps = "" if self.steps is None else f", {self.steps} steps of training"
        return (
            f"{self.rows} rows of activations from {self.inputs} inputs seen in training, {held} held out; "
            f"{self.width} latents{capped}: {self.rows / self.width:.1f} rows and "
            f"{self.rows * self.k / self.width:.0f} firings per latent{steps}"
        )
