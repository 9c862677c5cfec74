"""Images that a model is tried and compared on: photos with names, or generated pictures if there is no photo."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..engine.model.bundle import InputSpec

GateImage = tuple[str, NDArray[np.uint8]]
"""Name and pixels, (H, W, 3) uint8 RGB, of an image that artifacts are compared on."""


def generated_images(spec: InputSpec, num: int = 2) -> list[GateImage]:
    """Return ``num`` smooth pictures of the input's size with structure at every scale; always the same ones."""
    return [(f"generated {seed}", generated_picture(spec.height, spec.width, seed)) for seed in range(num)]


def generated_picture(height: int, width: int, seed: int) -> NDArray[np.uint8]:
    """Return one picture, (height, width, 3) uint8 RGB, that uses the whole range of values."""
    import cv2

    rng = np.random.default_rng(seed)
    picture = np.zeros((height, width, 3), np.float32)
    for cells in (2, 5, 13, 31):
        noise = rng.random((cells, cells, 3), dtype=np.float32)
        picture += cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC) / cells**0.5
    picture -= picture.min()
    return (picture * (255 / picture.max())).astype(np.uint8)
