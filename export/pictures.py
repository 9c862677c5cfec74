"""Images for tests and comparisons of a model: photos with names, or generated pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..engine.model.input_spec import InputSpec

GateImage = tuple[str, NDArray[Any]]
"""Name and pixels, HWC as the model takes it (uint8 RGB of a photo), of an image that artifacts are compared on."""


def generated_images(spec: InputSpec, num: int = 2) -> list[GateImage]:
    """Return ``num`` smooth pictures of the input's size with structure at every scale; always the same ones."""
    return [(f"generated {seed}", _generated_picture(spec, seed)) for seed in range(num)]


def _generated_picture(spec: InputSpec, seed: int) -> NDArray[Any]:
    """Return one picture that uses the full range of bytes, or the display range of bands."""
    import cv2

    rng = np.random.default_rng(seed)
    height, width, number = spec.height, spec.width, spec.num_channels
    picture = np.zeros((height, width, number), np.float32)
    for cells in (2, 5, 13, 31):
        noise = rng.random((cells, cells, number), dtype=np.float32)
        for start in range(0, number, 3):
            # OpenCV resizes four channels at once at most
            part = cv2.resize(noise[..., start : start + 3], (width, height), interpolation=cv2.INTER_CUBIC)
            picture[..., start : start + 3] += part.reshape(height, width, -1) / cells**0.5
    picture -= picture.min()
    low, high = (0.0, 255.0) if spec.bands is None else spec.bands.display_range
    return (low + picture * ((high - low) / picture.max())).astype(
        "uint8" if spec.bands is None else spec.bands.sample_type
    )
