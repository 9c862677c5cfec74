"""Labeled photos to calibrate on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from ....models import color_image

SIZE = (16, 24)


def write_labeled_photos(folder: Path, num: int) -> Path:
    """Noisy photos of vertical stripes in ``images`` with their label maps in ``labels``; the outer rows are void."""
    for name in ("images", "labels"):
        (folder / name).mkdir()
    rng = np.random.default_rng(0)
    for index in range(num):
        label = np.broadcast_to((np.arange(SIZE[1]) // 6 + index) % (3 if index % 3 else 2), SIZE).copy()
        photo = color_image(label, strength=150) + 50 + rng.normal(0, 90, (*SIZE, 3))
        Image.fromarray(np.clip(photo, 0, 255).astype(np.uint8)).save(folder / "images" / f"{index}.png")
        truth = label.astype(np.uint8)
        truth[[0, -1]] = 255
        Image.fromarray(truth).save(folder / "labels" / f"{index}.png")
    return folder
