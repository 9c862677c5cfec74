"""The backend of a CPU: images and scores in main memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import ImageError
from ..inputs.images import MAX_PIXELS, decode_input, preprocess
from ..model.input_spec import BandSpec, InputSpec


def decoded_or_error(data: bytes, bands: BandSpec | None, **options: Any) -> NDArray[Any] | ImageError:
    """Decode a photo, or the bands of a file, and return its :class:`ImageError` instead of raising it."""
    try:
        return decode_input(data, bands, **options)
    except ImageError as error:
        return error


class HostBackend:
    """The CPU backend: Pillow decodes, OpenCV and Pillow resize, arrays are NumPy's, kernels are compiled by Numba."""

    form = "cpu"
    xp = np
    queued = False
    decode_size = 1
    keep_limit = 0

    def __init__(self, *, bit_depth: int | None = None, bands: BandSpec | None = None) -> None:
        self.bit_depth = bit_depth
        self.bands = bands

    def decode(
        self, data: bytes, *, max_pixels: int = MAX_PIXELS, warn: Callable[[str], None] | None = None
    ) -> NDArray[Any]:
        """Decode on the calling thread."""
        return decode_input(data, self.bands, max_pixels=max_pixels, bit_depth=self.bit_depth, warn=warn)

    def decode_batch(
        self,
        files: Sequence[bytes],
        *,
        max_pixels: int = MAX_PIXELS,
        warn: Callable[[int, str], None] | None = None,
    ) -> list[NDArray[Any] | ImageError]:
        """Decode one file after the other on the calling thread."""
        return [
            decoded_or_error(
                data,
                self.bands,
                max_pixels=max_pixels,
                bit_depth=self.bit_depth,
                warn=warn and partial(warn, index),
            )
            for index, data in enumerate(files)
        ]

    def upload(self, image: NDArray[Any]) -> NDArray[Any]:
        """Return the image itself."""
        return image

    def preprocess(self, image: Any, spec: InputSpec) -> tuple[NDArray[np.float32], tuple[float, float]]:
        """Resize and normalize on the calling thread."""
        return preprocess(image if spec.bands is not None else np.ascontiguousarray(image), spec)

    def queue(self) -> AbstractContextManager[Any]:
        """Return a context that does nothing: each call finishes its work before it returns."""
        return nullcontext()

    def constant(self, array: NDArray[Any]) -> NDArray[Any]:
        """Return the array itself."""
        return array

    def download(self, *arrays: Any) -> list[NDArray[Any]]:
        """Return the arrays themselves."""
        return list(arrays)

    def __repr__(self) -> str:
        return "images and kernels on the CPU (Numba)"


HOST = HostBackend()
"""The backend of every predictor whose session runs on the CPU."""
