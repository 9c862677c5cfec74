"""Choose the backend that holds a model's images and scores."""

from __future__ import annotations

from ..model.input_spec import BandSpec
from ..runtimes.open import ON_GPU, Provider
from .base import Backend
from .host import HOST, HostBackend


def open_backend(provider: Provider, *, bit_depth: int | None = None, bands: BandSpec | None = None) -> Backend:
    """Return the backend for sessions of ``provider``; raises :class:`MissingPackageError` for a GPU without CuPy.

    ``bit_depth`` is the number of bits in use in images of more than 8 bits; None: all bits of their type.
    ``bands`` are the bands that a model takes in place of red, green and blue.
    """
    if provider not in ON_GPU:
        return HOST if bit_depth is None and bands is None else HostBackend(bit_depth=bit_depth, bands=bands)
    from .cuda import CudaBackend

    return CudaBackend(bit_depth=bit_depth, bands=bands)
