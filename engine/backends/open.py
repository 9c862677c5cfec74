"""Choose the backend that images and scores of a model live on."""

from __future__ import annotations

from typing import Any

from ..runtimes.open import ON_GPU


def open_backend(provider: str) -> Any:
    """Where images and scores of a model that ``provider`` runs lie: beside it. CuPy must be there for a GPU."""
    from ..backends.cuda import CudaBackend
    from ..backends.host import HOST

    return CudaBackend() if provider in ON_GPU else HOST
