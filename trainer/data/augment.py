"""Augmentation of one image: geometry for the image and its maps together, then colors.

::

    moved = draw_move(rng, image.shape[:2], crop=256, scale=(0.5, 2.0), flip=0.5)
    view = move_image(image, moved)                       # (256, 256, 3) uint8
    label = move_map(label, moved, fill=ignore)           # (256, 256), nearest neighbor
    strong = recolor(view, rng)

All randomness comes from the given generator, so that a sample depends only on its seed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter

from ..methods import MaskedColors
from ..recipes import Scaling

PADDING = {"mean": (124, 116, 104), "black": (0, 0, 0)}
"""RGB of pixels outside the image by its name in a recipe; ``mean`` is ImageNet's."""


@dataclass(frozen=True, kw_only=True)
class Move:
    """A scale, a square crop and a flip, applied in this order; the crop is padded at the right and the bottom."""

    size: tuple[int, int]
    """(height, width) of the scaled image, in pixels."""
    top: int
    """First row of the crop in the scaled image."""
    left: int
    """First column of the crop."""
    crop: int
    """Side of the crop, in pixels."""
    flip: bool
    """True if the crop is mirrored, left to right."""


@dataclass(frozen=True, kw_only=True)
class ColorSettings:
    """Strength and probability of color changes; the defaults are those of UniMatch, which CSL builds on."""

    brightness: float = 0.5
    """Factor from 1 - b to 1 + b."""
    contrast: float = 0.5
    """Factor of the distance from the mean gray."""
    saturation: float = 0.5
    """Factor of the distance from the pixel's own gray."""
    hue: float = 0.25
    """Largest shift, in turns of the color circle."""
    jitter: float = 0.8
    """Probability of the four changes above, which are made in random order."""
    gray: float = 0.2
    """Probability of losing all color."""
    blur: float = 0.5
    """Probability of a Gaussian blur with sigma from 0.1 to 2 pixels."""


STRONG = ColorSettings()
S2C = ColorSettings(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, gray=0.02, blur=0.0)
"""Colors of S2C's code."""
MASKED: Mapping[MaskedColors, ColorSettings | None] = {
    "none": None,
    "strong": STRONG,
    "strong-without-gray": replace(STRONG, gray=0.0),
    "mild-without-gray": ColorSettings(brightness=0.2, contrast=0.2, saturation=0.2, hue=0.2, gray=0.0),
}
"""Colors of images before trusted mask perturbation; the last entry is CSL's code."""


def draw_move(
    rng: Generator,
    size: tuple[int, int],
    *,
    crop: int,
    scale: tuple[float, float],
    flip: float,
    scaling: Scaling = "factor",
) -> Move:
    """Draw a scale in a range, the position of a square crop and a flip for an image of ``size`` (H, W).

    ``scale`` is a range of factors, or with the ``scaling`` ``long-side`` of lengths of the longer side, in pixels.
    """
    factor = rng.uniform(*scale)
    if scaling == "long-side":
        factor /= max(size)
    height, width = (max(1, round(length * factor)) for length in size)
    return Move(
        size=(height, width),
        top=int(rng.integers(0, max(height - crop, 0) + 1)),
        left=int(rng.integers(0, max(width - crop, 0) + 1)),
        crop=crop,
        flip=bool(rng.random() < flip),
    )


def move_image(image: NDArray[Any], move: Move, fill: tuple[float, ...] = PADDING["mean"]) -> NDArray[Any]:
    """Scale (bilinear, by areas when shrinking), crop and flip (H, W, C) uint8 or float32 to (crop, crop, C)."""
    height, width = move.size
    if (height, width) != image.shape[:2]:
        shrinks = height < image.shape[0] or width < image.shape[1]
        filter = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        # OpenCV resizes four channels at once at most
        parts = [
            cv2.resize(image[..., start : start + 3], (width, height), interpolation=filter).reshape(height, width, -1)
            for start in range(0, image.shape[2], 3)
        ]
        image = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=2)
    return _padded(image[move.top : move.top + move.crop, move.left : move.left + move.crop], move, fill)


def move_map(values: NDArray[Any], move: Move, fill: int) -> NDArray[Any]:
    """Scale, crop and flip a class or weight map (H, W), by nearest neighbor with half-pixel centers → (crop, crop)."""
    rows, columns = (
        (np.arange(start, min(start + move.crop, length)) * 2 + 1) * cells // (2 * length)
        for start, length, cells in zip((move.top, move.left), move.size, values.shape, strict=True)
    )
    return _padded(values[rows[:, None], columns], move, fill)


def _padded(array: NDArray[Any], move: Move, fill: Any) -> NDArray[Any]:
    padded = np.full((move.crop, move.crop, *array.shape[2:]), fill, array.dtype)
    padded[: array.shape[0], : array.shape[1]] = array
    return padded[:, ::-1] if move.flip else padded


def inside(move: Move) -> NDArray[np.bool_]:
    """Return (crop, crop) bool: True on pixels of the image, False on padding."""
    mask = np.zeros((move.crop, move.crop), np.bool_)
    mask[: move.size[0] - move.top, : move.size[1] - move.left] = True
    return mask[:, ::-1] if move.flip else mask


def recolor(image: NDArray[np.uint8], rng: Generator, settings: ColorSettings = STRONG) -> NDArray[np.uint8]:
    """Jitter, gray and blur an image (H, W, 3) uint8, each with its probability."""
    picture = Image.fromarray(image)
    if rng.random() < settings.jitter:
        picture = _jitter(picture, rng, settings)
    if rng.random() < settings.gray:
        picture = picture.convert("L").convert("RGB")
    if rng.random() < settings.blur:
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.1, 2.0)))
    return np.asarray(picture)


def recolor_bands(image: NDArray[np.float32], rng: Generator, settings: ColorSettings = STRONG) -> NDArray[np.float32]:
    """Jitter brightness and contrast and blur the bands (H, W, C) of an image, each with its probability.

    Brightness moves all bands by a share of their standard deviation in the image, contrast scales the distance from
    their mean. Hue, saturation and gray do not apply to bands.
    """
    if rng.random() < settings.jitter:
        mean, deviation = image.mean(axis=(0, 1)), image.std(axis=(0, 1))
        contrast = rng.uniform(1 - settings.contrast, 1 + settings.contrast)
        brightness = rng.uniform(-settings.brightness, settings.brightness)
        image = ((image - mean) * np.float32(contrast) + mean + np.float32(brightness) * deviation).astype(np.float32)
    if rng.random() < settings.blur:
        sigma = rng.uniform(0.1, 2.0)
        planes = [cv2.GaussianBlur(image[..., index], (0, 0), sigma) for index in range(image.shape[2])]
        image = np.stack(planes, axis=2)
    return image


def _jitter(picture: Image.Image, rng: Generator, settings: ColorSettings) -> Image.Image:
    enhancers = {
        ImageEnhance.Brightness: settings.brightness,
        ImageEnhance.Contrast: settings.contrast,
        ImageEnhance.Color: settings.saturation,
    }
    changes = [*enhancers, None]
    for index in rng.permutation(len(changes)):
        enhancer = changes[index]
        if enhancer is None:
            picture = _turn_hue(picture, rng.uniform(-settings.hue, settings.hue))
        else:
            strength = enhancers[enhancer]
            picture = enhancer(picture).enhance(rng.uniform(1 - strength, 1 + strength))
    return picture


def _turn_hue(picture: Image.Image, turns: float) -> Image.Image:
    hue, saturation, value = picture.convert("HSV").split()
    shift = round(turns * 256)
    hue = hue.point([(level + shift) % 256 for level in range(256)])
    return Image.merge("HSV", (hue, saturation, value)).convert("RGB")


def draw_cutmix_box(rng: Generator, size: int, probability: float) -> tuple[int, int, int, int]:
    """Draw the box that CutMix takes from another image: (top, left, bottom, right) in pixels, empty if not mixed.

    Its area is 2 % to 40 % of the square, its aspect ratio 0.3 to 1/0.3, as in UniMatch.
    """
    if rng.random() >= probability:
        return 0, 0, 0, 0
    area = rng.uniform(0.02, 0.4) * size * size
    while True:
        aspect = rng.uniform(0.3, 1 / 0.3)
        width, height = int((area / aspect) ** 0.5), int((area * aspect) ** 0.5)
        top, left = int(rng.integers(0, size)), int(rng.integers(0, size))
        if top + height <= size and left + width <= size:
            return top, left, top + height, left + width


def draw_cells(rng: Generator, size: int, *, cell: int, cover: float, floor: bool = False) -> NDArray[np.bool_]:
    """Draw a grid (g, g) bool of cells, each masked with the probability ``cover``.

    g is ``size / cell`` rounded to the nearest integer, as in CSL's code, or down if ``floor``, as in its supplement.
    """
    side = max(1, size // cell if floor else round(size / cell))
    return rng.random((side, side)) < cover
