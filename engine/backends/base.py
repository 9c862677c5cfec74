"""Where a predictor's images and scores lie: on the host here, on a GPU in :mod:`maskmill.engine.backends.cuda`.

The stages ask their place for what differs between the two and are otherwise the same code: decoding, preprocessing, an
array library, and the way back to the host::

    image = place.decode(data)
    with place.queue():
        tensor, covers = place.preprocess(image, bundle.input)
        (label,) = place.download(label)
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..model.bundle import InputSpec
from ..inputs.images import MAX_PIXELS, decode_image, preprocess


class Place(Protocol):
    """Where images and scores lie, and what works on them there. Several threads may use one place."""

    @property
    def form(self) -> str:
        """What decodes photos and scores, ``cpu`` or ``cuda…``: recorded with labels, since last bits differ."""
        ...

    @property
    def xp(self) -> Any:
        """The array library: NumPy or CuPy."""
        ...

    @property
    def queued(self) -> bool:
        """Whether a call returns before its work is done."""
        ...

    def decode(self, data: bytes, *, max_pixels: int = MAX_PIXELS) -> Any:
        """As :func:`maskmill.engine.inputs.images.decode_image`; the array may lie on the device."""
        ...

    def preprocess(self, image: Any, spec: InputSpec) -> tuple[Any, tuple[float, float]]:
        """As :func:`maskmill.engine.inputs.images.preprocess`, of an image on the host or in this place."""
        ...

    def queue(self) -> AbstractContextManager[Any]:
        """Work inside is queued in order with all other work of this place."""
        ...

    def download(self, *arrays: Any) -> list[NDArray[Any]]:
        """The arrays on the host; waits until they are there."""
        ...

    def __repr__(self) -> str:
        """What runs where, for the log's first line."""
        ...


class Host:
    """Processor and main memory: Pillow, OpenCV, NumPy, Numba."""

    form = "cpu"
    xp = np
    queued = False

    def decode(self, data: bytes, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
        """Decode on the calling thread."""
        return decode_image(data, max_pixels=max_pixels)

    def preprocess(self, image: Any, spec: InputSpec) -> tuple[NDArray[np.float32], tuple[float, float]]:
        """Resize and normalise on the calling thread."""
        return preprocess(image, spec)

    def queue(self) -> AbstractContextManager[Any]:
        """Nothing: work is done when a call returns."""
        return nullcontext()

    def download(self, *arrays: Any) -> list[NDArray[Any]]:
        """The arrays themselves."""
        return list(arrays)

    def __repr__(self) -> str:
        return "images and kernels on the processor (Numba)"


HOST = Host()
"""The place of every predictor whose session runs on the processor."""
