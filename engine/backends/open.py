"""Choose the backend that holds a model's images and scores."""

from __future__ import annotations

from ..runtimes.open import ON_GPU, Provider
from .base import Backend
from .host import HOST


def open_backend(provider: Provider) -> Backend:
    """Return the backend beside ``provider``'s session; raises :class:`MissingPackageError` for a GPU without CuPy."""
    if provider not in ON_GPU:
        return HOST
    from .cuda import CudaBackend

    return CudaBackend()
