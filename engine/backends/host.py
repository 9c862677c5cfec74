"""The host backend: processor and main memory."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..inputs.images import MAX_PIXELS, decode_image, preprocess
from ..model.bundle import InputSpec


class HostBackend:
    """Processor and main memory: Pillow, OpenCV, NumPy, Numba."""

    form = "cpu"
    xp = np
    queued = False

    def decode(self, data: bytes, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
        """Decode on the calling thread."""
        return decode_image(data, max_pixels=max_pixels)

    def preprocess(self, image: Any, spec: InputSpec) -> tuple[NDArray[np.float32], tuple[float, float]]:
        """Resize and normalize on the calling thread."""
        return preprocess(image, spec)

    def queue(self) -> AbstractContextManager[Any]:
        """Nothing: work is done when a call returns."""
        return nullcontext()

    def download(self, *arrays: Any) -> list[NDArray[Any]]:
        """The arrays themselves."""
        return list(arrays)

    def __repr__(self) -> str:
        return "images and kernels on the processor (Numba)"


HOST = HostBackend()
"""The backend of every predictor whose session runs on the processor."""
