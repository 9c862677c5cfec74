"""Draw the steps that made one image's labels: activation maps with prompts, masks per class, final labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ..predictors.prompted.predictor import PromptedSteps
from ..predictors.prompted.prompts import BOX_END, BOX_START, POSITIVE
from ..predictors.resampling import bilinear_weights
from .overlay import class_colors, overlay

if TYPE_CHECKING:
    from PIL import Image

PANEL = 360
"""Longer side of a panel, in pixels."""
MAX_CLASSES = 6
"""Number of classes with a row, those with the largest masks first."""

_GAP, _CAPTION = 8, 22
_PAPER, _INK = (250, 250, 250), (30, 30, 30)


def prompted_picture(
    image: NDArray[np.uint8],
    steps: PromptedSteps,
    label: NDArray[Any],
    targets: Sequence[str],
    classes: Sequence[str],
    *,
    first: int,
    background: int | None,
    cell: tuple[float, float],
) -> Image.Image:
    """Compose a PIL image: one row per class with map and masks, the photo (H, W, 3) at the left, labels at the right.

    ``label`` (H, W) holds indices of ``targets``; ``classes`` are the names of the score map's channels, of which the
    classifier's own begin at ``first``. ``cell`` is the size of a mask's cell in pixels of the encoder's input,
    (vertical, horizontal), which prompts are given in.
    """
    height, width = image.shape[:2]
    scale = PANEL / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    photo = np.asarray(Image.fromarray(image).resize(size))
    extent = steps.score_map.region[2:]
    per_cell = size[0] / extent[1], size[1] / extent[0]
    covered = {mask.target: mask for mask in steps.masks}
    # a background stands in front of the classifier's classes, unless it is one of them
    channels = [index + first for index in steps.classes]
    areas = [float((covered[channel].claim > 0.5).mean()) if channel in covered else 0.0 for channel in channels]
    order = sorted(range(len(channels)), key=lambda index: -areas[index])[:MAX_CLASSES]
    rows = []
    for index in order:
        name, channel = classes[channels[index]], channels[index]
        heat = _heat(photo, steps.cams[index], extent)
        _draw_prompts(heat, steps, index, cell, per_cell)
        if channel in covered:
            mask = covered[channel]
            masked = _masked(photo, mask.score, extent, tuple(class_colors(channel + 1)[channel].tolist()))
            caption = f"{name}: masks, score up to {mask.score.max():.2f}"
        else:
            masked, caption = Image.fromarray(photo), f"{name}: no mask"
        rows.append(((heat, f"{name}: activation map and prompts"), (masked, caption)))
    label_picture = overlay(photo, np.asarray(_nearest(label, size)), targets, background=background)
    return _compose(Image.fromarray(photo), label_picture, rows, size)


def _nearest(label: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    return cv2.resize(label.astype(np.uint16), size, interpolation=cv2.INTER_NEAREST)


def _resized(values: NDArray[np.float32], extent: tuple[float, float], size: tuple[int, int]) -> NDArray[np.float32]:
    """Resample a map, of which the image covers ``extent`` cells, to the panel's size (width, height)."""
    rows, columns = (
        bilinear_weights(pixels, pixels, cells, covered / cells)
        for pixels, cells, covered in zip(size[::-1], values.shape, extent, strict=True)
    )
    return np.asarray(rows @ values @ columns.T, np.float32)


def _heat(photo: NDArray[np.uint8], cam: NDArray[np.float32], extent: tuple[float, float]) -> Image.Image:
    values = _resized(cam, extent, (photo.shape[1], photo.shape[0]))
    colors = cv2.applyColorMap((np.clip(values, 0, 1) * 255).astype(np.uint8), cv2.COLORMAP_TURBO)[:, :, ::-1]
    return Image.fromarray((photo * 0.45 + colors * 0.55).round().astype(np.uint8))


def _masked(
    photo: NDArray[np.uint8], score: NDArray[np.float32], extent: tuple[float, float], color: tuple[int, ...]
) -> Image.Image:
    """Draw the photo in gray and the mask in color with an outline; a higher score gives more color."""
    values = _resized(score, extent, (photo.shape[1], photo.shape[0]))
    inside = (values > values.max() / 2) if values.max() > 0 else np.zeros(values.shape, bool)
    gray = np.repeat(photo.mean(axis=2, keepdims=True), 3, axis=2) * 0.8 + 40
    mix = (0.35 + 0.5 * np.clip(values, 0, 1))[..., None] * inside[..., None]
    painted = gray * (1 - mix) + np.array(color, np.float32) * mix
    outlines, _ = cv2.findContours(inside.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    picture = np.ascontiguousarray(painted.clip(0, 255).round().astype(np.uint8))
    return Image.fromarray(cv2.drawContours(picture, outlines, -1, (255, 255, 255), 1))


def _draw_prompts(
    panel: Any, steps: PromptedSteps, index: int, cell: tuple[float, float], per_cell: tuple[float, float]
) -> None:
    draw, prompts = ImageDraw.Draw(panel), steps.prompts
    for row in np.flatnonzero(prompts.target == index):
        places = prompts.points[row] / np.array([cell[1], cell[0]]) * np.array(per_cell)
        kinds = prompts.labels[row]
        if (kinds == BOX_END).any():
            corners = [tuple(places[kinds == kind][0].tolist()) for kind in (BOX_START, BOX_END)]
            draw.rectangle([*corners[0], *corners[1]], outline=(255, 255, 255), width=2)
        for x, y in places[kinds == POSITIVE]:
            draw.ellipse((x - 5, y - 5, x + 5, y + 5), fill=(255, 255, 255), outline=(0, 0, 0), width=2)


def _compose(photo: Any, label_picture: Any, rows: Sequence[Any], size: tuple[int, int]) -> Image.Image:
    """Arrange photo, rows of two panels each, and labels, with captions above the panels."""
    step = size[1] + _CAPTION + _GAP
    height = max(step * max(len(rows), 1), label_picture.height + _CAPTION + _GAP) + _GAP
    canvas = Image.new("RGB", (4 * (size[0] + _GAP) + _GAP, height), _PAPER)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=14)
    placed = [(0, 0, photo, "photo"), (3, 0, label_picture, "labels")]
    for number, ((heat, about), (masks, confidence)) in enumerate(rows):
        placed += [(1, number, heat, about), (2, number, masks, confidence)]
    for column, row, panel, caption in placed:
        left, top = _GAP + column * (size[0] + _GAP), _GAP + row * step
        draw.text((left, top), caption, fill=_INK, font=font)
        canvas.paste(panel, (left, top + _CAPTION))
    if not rows:
        draw.text((2 * _GAP + size[0], _GAP), "no class was prompted for", fill=_INK, font=font)
    return canvas
