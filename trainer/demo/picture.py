"""Picture of the demonstration: photo, truth, raw labels and conformal labels of the eastern Earth, with a legend."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from .earth import CLASSES, EAST, HEIGHT, TILE, Tile

COLORS = np.array(
    [(38, 84, 140), (20, 122, 68), (232, 183, 84), (146, 205, 104), (142, 108, 180), (228, 238, 247)], np.uint8
)
"""RGB of each class."""

_LATITUDES = slice(HEIGHT * 4 // 180, HEIGHT * 150 // 180)
"""Visible rows: 86 N to 60 S, without the ice around the south pole."""
_LONGITUDES = slice(EAST.start * TILE, EAST.stop * TILE)
_SCALE = 0.55
_GAP, _TITLE, _LEGEND = 14, 34, 44
_INK, _PAPER, _MUTED = (28, 32, 38), (255, 255, 255), (105, 112, 120)


def draw_earth(
    picture: NDArray[np.uint8], panels: Sequence[tuple[str, NDArray[np.uint8] | None]], calibration: Sequence[Tile]
) -> Image.Image:
    """Draw four panels with titles in a square, and a legend.

    ``picture`` is the world map (1080, 2160, 3) uint8 RGB. A panel is a title and a class map (1080, 2160) uint8 of
    indices into the classes of the demonstration, 255 for pixels without a label; None shows the picture itself. The
    tiles of ``calibration`` are gray in every class map except the first, which is the truth.
    """
    height = round((_LATITUDES.stop - _LATITUDES.start) * _SCALE)
    width = round((_LONGITUDES.stop - _LONGITUDES.start) * _SCALE)
    canvas = Image.new("RGB", (2 * width + 3 * _GAP, 2 * (height + _TITLE) + _GAP + _LEGEND), _PAPER)
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(size=17)
    maps = 0
    for index, (title, labels) in enumerate(panels):
        left = _GAP + index % 2 * (width + _GAP)
        top = index // 2 * (height + _TITLE)
        maps += labels is not None
        world = picture if labels is None else _paint(picture, labels, calibration if maps > 1 else ())
        view = Image.fromarray(np.ascontiguousarray(world[_LATITUDES, _LONGITUDES]))
        canvas.paste(view.resize((width, height), Image.Resampling.LANCZOS), (left, top + _TITLE))
        draw.text((left, top + 8), title, fill=_INK, font=font)
    _draw_legend(draw, 2 * (height + _TITLE) + _GAP)
    return canvas


def _paint(picture: NDArray[np.uint8], labels: NDArray[np.uint8], grayed: Sequence[Tile]) -> NDArray[np.uint8]:
    """Paint class colors; pixels without a label show the picture in dark gray, ``grayed`` tiles in light gray."""
    gray = picture.astype(np.float32).mean(axis=2, keepdims=True)
    shaded = np.repeat(26 + 0.30 * gray, 3, axis=2).astype(np.uint8)
    world = np.where((labels < len(CLASSES))[..., None], COLORS[np.minimum(labels, len(CLASSES) - 1)], shaded)
    for tile in grayed:
        world[tile.window] = 150 + 0.35 * gray[tile.window]
    return world


def _draw_legend(draw: ImageDraw.ImageDraw, top: int) -> None:
    font = ImageFont.load_default(size=15)
    swatches: list[tuple[str, tuple[int, ...]]] = [
        (name, tuple(color)) for name, color in zip(CLASSES, COLORS.tolist(), strict=True)
    ]
    x = _GAP
    for name, color in [*swatches, ("no label", (40, 40, 40))]:
        draw.rectangle((x, top + 4, x + 18, top + 20), fill=color, outline=_MUTED)
        draw.text((x + 25, top + 3), name, fill=_INK, font=font)
        x += 25 + int(font.getlength(name)) + 20
    draw.rectangle((x, top + 4, x + 18, top + 20), fill=(165, 165, 165), outline=_MUTED)
    draw.text((x + 25, top + 3), "calibration tile, not scored", fill=_INK, font=font)
