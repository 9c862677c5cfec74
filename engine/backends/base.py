"""Where a predictor's images and scores lie: on the host here, on a GPU in :mod:`maskmill.engine.backends.cuda`.

The stages ask their backend for what differs between the two and are otherwise the same code: decoding,
preprocessing, an
array library, and the way back to the host::

    image = backend.decode(data)
    with backend.queue():
        tensor, covers = backend.preprocess(image, bundle.input)
        (label,) = backend.download(label)
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol

from numpy.typing import NDArray

from ..inputs.images import MAX_PIXELS
from ..model.bundle import InputSpec


class Backend(Protocol):
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
        """As :func:`maskmill.engine.inputs.images.preprocess`, of an image on the host or in this backend."""
        ...

    def queue(self) -> AbstractContextManager[Any]:
        """Work inside is queued in order with all other work of this backend."""
        ...

    def download(self, *arrays: Any) -> list[NDArray[Any]]:
        """The arrays on the host; waits until they are there."""
        ...

    def __repr__(self) -> str:
        """What runs where, for the log's first line."""
        ...
