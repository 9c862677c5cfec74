"""The backend protocol: images and scores of a predictor reside on a backend, the host or an NVIDIA GPU.

Decoding, preprocessing, the array library and the copy to the host differ between the two, so predictors and label runs
call them through their backend::

    image = backend.decode(data)
    tensor, covers = backend.preprocess(image, bundle.input)
    with backend.queue():
        label = ...
        (label,) = backend.download(label)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from types import ModuleType
from typing import Any, Protocol

from numpy.typing import NDArray

from ...errors import ImageError
from ...kernels.types import BackendArray
from ..inputs.images import MAX_PIXELS
from ..model.input_spec import BandSpec, InputSpec


class Backend(Protocol):
    """Memory for images and scores, and the functions that process them there. It is thread-safe."""

    @property
    def form(self) -> str:
        """Name of the code that decodes images and scores, ``cpu`` or ``cuda…``.

        It is recorded with labels and calibrations, since the last bits of scores differ between forms.
        """
        ...

    @property
    def xp(self) -> ModuleType:
        """The array library: NumPy or CuPy."""
        ...

    @property
    def queued(self) -> bool:
        """True if a call returns before its work is done."""
        ...

    @property
    def bit_depth(self) -> int | None:
        """Number of bits in use in images of more than 8 bits; see :func:`maskmill.engine.inputs.images.decode_image`.

        None: all bits of their type. It is recorded with labels and calibrations.
        """
        ...

    @property
    def bands(self) -> BandSpec | None:
        """Bands that images are decoded to, (H, W, C) on the host in their sample type; None: HWC uint8 RGB."""
        ...

    @property
    def decode_size(self) -> int:
        """Number of files per call of :meth:`decode_batch`."""
        ...

    @property
    def keep_limit(self) -> int:
        """Bytes of results that may stay on the backend until the end of a run; 0: keep them in files."""
        ...

    def decode(
        self, data: bytes, *, max_pixels: int = MAX_PIXELS, warn: Callable[[str], None] | None = None
    ) -> BackendArray:
        """Decode an image file as :func:`maskmill.engine.inputs.images.decode_image`, to the host or to the backend."""
        ...

    def decode_batch(
        self,
        files: Sequence[bytes],
        *,
        max_pixels: int = MAX_PIXELS,
        warn: Callable[[int, str], None] | None = None,
    ) -> list[Any | ImageError]:
        """Decode several files at once; if a file cannot be decoded, its error is returned in place of its image.

        ``warn`` is called with the index of a file and a text.
        """
        ...

    def upload(self, image: Any) -> BackendArray:
        """Return an image, HWC uint8 RGB, on the backend, for several calls of :meth:`preprocess`."""
        ...

    def preprocess(self, image: Any, spec: InputSpec) -> tuple[Any, tuple[float, float]]:
        """Compute a model input as :func:`maskmill.engine.inputs.images.preprocess`, from an image on host or backend.

        The tensor is on the backend and may be used, and dropped, by work inside :meth:`queue`.
        """
        ...

    def queue(self) -> AbstractContextManager[Any]:
        """Return a context in which work is queued in order with all other work of this backend."""
        ...

    def constant(self, array: NDArray[Any]) -> BackendArray:
        """Return the values of a host array on the backend, to be read only; equal arrays are uploaded once."""
        ...

    def download(self, *arrays: Any) -> list[NDArray[Any]]:
        """Copy arrays to the host and wait for the copies."""
        ...

    def __repr__(self) -> str:
        """Describe the code that runs and its device, for the first line of a log."""
        ...
