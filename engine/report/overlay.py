"""Draw labels over photos in class colors."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ...checks import check_number
from ...errors import UsageError

if TYPE_CHECKING:
    from PIL import Image

_LEGEND_ROW = 18  # pixels


def class_colors(num_classes: int) -> NDArray[np.uint8]:
    """Return the RGB color of each class (num_classes, 3) uint8, as in PASCAL VOC's palette (class 0 black)."""
    index = np.arange(num_classes)
    colors = np.zeros((num_classes, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            colors[:, channel] |= (((index >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
    return colors


def colorize(label: NDArray[Any], num_classes: int, ignored: tuple[int, int, int] = (255, 255, 255)) -> NDArray[Any]:
    """Color a label map (H, W) as (H, W, 3) uint8 RGB; values that are no class get the ``ignored`` color."""
    table = np.vstack([class_colors(num_classes), np.array([ignored], np.uint8)])
    return table[np.minimum(label.astype(np.int64), num_classes)]


def overlay(
    image: NDArray[np.uint8],
    label: NDArray[Any],
    targets: Sequence[str],
    *,
    background: int | None = None,
    opacity: float = 0.6,
) -> Image.Image:
    """Draw labels (H, W) over a photo (H, W, 3), with a legend of the classes below, as a PIL image.

    The background shows the photo; ignored pixels are hatched in white.
    """
    check_number("opacity", opacity, least=0, most=1)
    num = len(targets)
    height, width = label.shape
    colors = colorize(label, num).astype(np.float32)
    mix = np.full((height, width, 1), opacity, np.float32)
    hatch = (np.add.outer(np.arange(height), np.arange(width)) // 3 % 3 == 0)[..., None]
    mix = np.where((label >= num)[..., None], np.where(hatch, 0.7, 0.0), mix)
    if background is not None:
        mix[label == background] = 0.0
    blended = Image.fromarray((image * (1 - mix) + colors * mix).round().astype(np.uint8))

    present = [index for index in range(num) if (label == index).any()]
    entries = [(tuple(class_colors(num)[index].tolist()), targets[index]) for index in present]
    if (label >= num).any():
        entries.append(((255, 255, 255), "ignored"))
    font = ImageFont.load_default(size=12)
    rows, x = 1, 0
    places = []
    for color, name in entries:
        length = 18 + int(font.getlength(name)) + 10
        if x + length > width and x > 0:
            rows, x = rows + 1, 0
        places.append((x, (rows - 1) * _LEGEND_ROW, color, name))
        x += length
    canvas = Image.new("RGB", (width, height + rows * _LEGEND_ROW + 4), (24, 24, 24))
    canvas.paste(blended, (0, 0))
    draw = ImageDraw.Draw(canvas)
    for left, top, color, name in places:
        draw.rectangle((left + 3, height + top + 5, left + 14, height + top + 16), fill=color, outline=(200, 200, 200))
        draw.text((left + 18, height + top + 3), name, fill=(235, 235, 235), font=font)
    return canvas


def segment_overlay(image: NDArray[np.uint8], label: NDArray[Any], *, opacity: float = 0.6) -> Image.Image:
    """Draw numbered segments (H, W) over a photo (H, W, 3), each outlined and in a color of its own, as a PIL image."""
    # steps of the golden ratio around the color circle: consecutive numbers get distant hues
    hues = (np.arange(int(label.max()) + 1) * 0.618034 % 1.0 * 255).astype(np.uint8)
    values = np.stack([hues, np.full_like(hues, 190), np.full_like(hues, 240)], axis=1)
    colors = np.asarray(Image.fromarray(values[None], "HSV").convert("RGB"))[0][label]
    edge = np.zeros(label.shape, bool)
    edge[:, 1:] |= label[:, 1:] != label[:, :-1]
    edge[1:] |= label[1:] != label[:-1]
    mix = np.where(label > 0, opacity, 0.0)[..., None]
    blended = image * (1 - mix) + colors * mix
    blended[edge] = 255
    return Image.fromarray(blended.round().astype(np.uint8))


def save_picture(picture: Any, path: str | os.PathLike[str]) -> None:
    """Write a PIL image in the format of the extension."""
    try:
        picture.save(Path(path))
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot write the picture {path}: {error}") from error


@dataclass(frozen=True)
class Overlay:
    """A picture of labels over a photo; a notebook shows it, :meth:`save` writes it."""

    picture: Image.Image
    """The picture, RGB, with a legend below the photo."""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the picture; the extension decides the format. Raises :class:`UsageError` if it cannot be written."""
        save_picture(self.picture, path)

    def _repr_png_(self) -> bytes:
        """Encode the picture for a notebook."""
        stream = io.BytesIO()
        self.picture.save(stream, "PNG")
        return stream.getvalue()
