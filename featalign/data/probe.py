"""Probe sets: unlabelled inputs on which clients are compared, and recipes that make more of them."""

from __future__ import annotations

from collections.abc import Callable
from math import isqrt
from typing import Any

import torch

from featalign.data.datasets import Dataset
from featalign.errors import BadOption, ProbeError
from featalign.options import bind_options
from featalign.registry import Registry

Recipe = Callable[..., torch.Tensor]
recipes: Registry[Recipe] = Registry("probe augmentation")


def check_recipe(recipe: str, **options: Any) -> dict[str, Any]:
    """The options of an augmentation, checked; raises `UnknownName` for the recipe, `BadOption` for the options."""
    return bind_options(recipes[recipe], options, f"probe augmentation '{recipe}'")


def probe(dataset: Dataset, size: int, seed: int = 0) -> torch.Tensor:
    """`[size, ...]` inputs drawn without replacement from the training data, without labels.

    Raises `ProbeError` when `size` is not between 1 and the number of training samples.
    """
    available = len(dataset.train_inputs)
    if not 1 <= size <= available:
        raise ProbeError(
            f"a probe of {size} from '{dataset.name}' with {available} training samples; give 1 to {available}"
        )
    order = torch.randperm(available, generator=torch.Generator().manual_seed(seed))
    return dataset.train_inputs[order[:size]]


def check_probe(inputs: Any, shape: tuple[int, ...]) -> torch.Tensor:
    """Return the probe `[samples, *shape]`; raise `ProbeError` when it is empty, of another shape or not finite."""
    if not isinstance(inputs, torch.Tensor) or not inputs.is_floating_point():
        raise ProbeError(f"the probe must be a float tensor [samples, {_names(shape)}]")
    if len(inputs.shape) == 0 or len(inputs) == 0:
        raise ProbeError(f"the probe set is empty; pass a tensor [samples, {_names(shape)}] with at least one sample")
    if tuple(inputs.shape[1:]) != tuple(shape):
        raise ProbeError(f"probe of shape {list(inputs.shape)}; the clients take [samples, {_names(shape)}]")
    if not torch.isfinite(inputs).all():
        raise ProbeError(f"the probe {list(inputs.shape)} holds NaN or infinity; drop those samples")
    return inputs


def augment(inputs: torch.Tensor, size: int, seed: int = 0, recipe: str = "shift-mix", **options: Any) -> torch.Tensor:
    """`[size, ...]` inputs made from a probe `[samples, ...]`, by a named recipe.

    Args:
        inputs: the probe; images as `[N, C, H, W]`, `[N, H, W]`, or square ones flattened to `[N, H * W]`; windows of
            tokens as `[N, tokens]`, whole numbers.
        size: inputs wanted.
        seed: of the random draw.
        recipe: blend or shift-mix (images), gaussian (any numbers), splice (windows of tokens) or none.
        options: of the recipe: `pixels`, `image` (shift-mix, blend), `gaussian_share` (blend).

    The recipe belongs in every table that reports a result obtained with it. Raises `ProbeError` for an empty probe
    or one that the recipe does not fit, `BadOption` for a size below 1, `UnknownName` for an unknown recipe.
    """
    if len(inputs) == 0:
        raise ProbeError("the probe set is empty; there is nothing to augment")
    if size < 1:
        raise BadOption(f"augmentation to {size} inputs; give at least 1")
    options = check_recipe(recipe, **options)
    return recipes[recipe](inputs, size, torch.Generator().manual_seed(seed), **options)


@recipes.register("none")
def unchanged(inputs: torch.Tensor, size: int, generator: torch.Generator) -> torch.Tensor:
    """The probe as it is, whatever the size."""
    return inputs


@recipes.register("shift-mix")
def shift_mix(
    inputs: torch.Tensor,
    size: int,
    generator: torch.Generator,
    *,
    pixels: int | None = None,
    image: tuple[int, int, int] | None = None,
) -> torch.Tensor:
    """Convex mixtures of two shifted images.

    Each of the two is moved by up to `pixels` in both directions (default: a fourteenth of the side, so 2 for 28x28
    and 32x32, 1 for 8x8), filled with the darkest value of the probe's channel (the zero pixel, standardised or not),
    and mixed with a weight uniform in [0, 1] (mixup, Zhang et al. 2018).
    `image` is `(C, H, W)` of flattened inputs that are not square grey images.
    """
    _check_numbers(inputs, "shift-mix")
    channels, height, width = image or _image_shape(inputs)
    images = inputs.reshape(len(inputs), channels, height, width)
    reach = max(1, round(min(height, width) / 14)) if pixels is None else pixels
    if not 0 <= reach < min(height, width):
        raise BadOption(f"a shift of {reach} pixels on images of {height}x{width}")
    dark = images.amin((0, 2, 3))[None, :, None, None]
    padded = torch.nn.functional.pad(images - dark, (reach, reach, reach, reach)) + dark
    mixed = torch.zeros(size, channels, height, width, dtype=inputs.dtype)
    weight = torch.rand(size, 1, 1, 1, generator=generator, dtype=inputs.dtype)
    for share in (weight, 1 - weight):
        chosen = torch.randint(len(images), (size,), generator=generator)
        down = torch.randint(2 * reach + 1, (size,), generator=generator)
        right = torch.randint(2 * reach + 1, (size,), generator=generator)
        for y in range(2 * reach + 1):
            for x in range(2 * reach + 1):
                at = torch.nonzero((down == y) & (right == x)).flatten()
                mixed[at] += share[at] * padded[chosen[at], :, y : y + height, x : x + width]
    return mixed.reshape(size, *inputs.shape[1:])


@recipes.register("gaussian")
def gaussian(inputs: torch.Tensor, size: int, generator: torch.Generator) -> torch.Tensor:
    """Draws from the Gaussian with the probe's mean and covariance, kept within the probe's range per coordinate."""
    _check_numbers(inputs, "gaussian")
    if len(inputs) < 2:
        raise ProbeError("recipe 'gaussian' needs at least 2 probe samples to measure a covariance")
    flat = inputs.reshape(len(inputs), -1)
    centred = flat - flat.mean(0)
    # n samples span the covariance: standard normal weights on them have exactly the empirical moments
    weights = torch.randn(size, len(flat), generator=generator, dtype=flat.dtype) / (len(flat) - 1) ** 0.5
    drawn = flat.mean(0) + weights @ centred
    return drawn.clamp(flat.amin(0), flat.amax(0)).reshape(size, *inputs.shape[1:])


@recipes.register("blend")
def blend(
    inputs: torch.Tensor,
    size: int,
    generator: torch.Generator,
    *,
    pixels: int | None = None,
    image: tuple[int, int, int] | None = None,
    gaussian_share: float = 0.3,
) -> torch.Tensor:
    """Both: draws from the Gaussian for `gaussian_share` of the inputs, shifted and mixed images for the rest.

    Each of the two is the better one on some clients, together they are hardly worse than either.
    """
    if not 0 <= gaussian_share <= 1:
        raise BadOption(f"gaussian_share = {gaussian_share} of recipe 'blend'; give a number between 0 and 1")
    drawn = round(gaussian_share * size) if len(inputs) > 1 else 0
    parts = [shift_mix(inputs, size - drawn, generator, pixels=pixels, image=image)]
    return torch.cat([*parts, *([gaussian(inputs, drawn, generator)] if drawn else [])])


@recipes.register("splice")
def splice(inputs: torch.Tensor, size: int, generator: torch.Generator) -> torch.Tensor:
    """Windows of tokens: those of the probe `[samples, tokens]`, then beginnings of one with the end of another.

    Where the two are joined is uniform. Continuations are the clients' to judge, so that joints that nobody would
    write are contexts like others; cutting and pasting is to text what mixing is to images (Yun et al. 2019, CutMix).
    """
    if inputs.is_floating_point() or inputs.dim() != 2 or inputs.shape[1] < 2:
        raise ProbeError(
            f"recipe 'splice' needs windows [samples, tokens] of at least two token ids, not {inputs.dtype} "
            f"{list(inputs.shape)}; use gaussian for numbers"
        )
    count = max(0, size - len(inputs))
    first, second = (inputs[torch.randint(len(inputs), (count,), generator=generator)] for _ in range(2))
    joint = torch.randint(1, inputs.shape[1], (count, 1), generator=generator)
    return torch.cat([inputs[:size], torch.where(torch.arange(inputs.shape[1]) < joint, first, second)])


def _check_numbers(inputs: torch.Tensor, recipe: str) -> None:
    if not inputs.is_floating_point():
        raise ProbeError(
            f"recipe '{recipe}' needs numbers, not {inputs.dtype} {list(inputs.shape)}; recipe 'splice' takes tokens"
        )


def _image_shape(inputs: torch.Tensor) -> tuple[int, int, int]:
    """`(C, H, W)` of image inputs; raises `ProbeError` when they do not look like images."""
    shape = tuple(inputs.shape[1:])
    if len(shape) == 3:
        return (shape[0], shape[1], shape[2])
    if len(shape) == 2:
        return (1, shape[0], shape[1])
    if len(shape) == 1 and isqrt(shape[0]) ** 2 == shape[0] and shape[0] >= 16:
        return (1, isqrt(shape[0]), isqrt(shape[0]))
    raise ProbeError(
        f"recipe 'shift-mix' needs images, not inputs of shape [{_names(shape)}]; "
        "pass image=(channels, height, width) or recipe 'gaussian'"
    )


def _names(shape: tuple[int, ...]) -> str:
    return ", ".join(map(str, shape))
