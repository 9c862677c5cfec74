"""Numba's ``njit`` as the kernels use it: without Python's lock, and with machine code kept on disk.

    @compiled(error_model="numpy")
    def loop(values): ...

Numba takes kept machine code for valid while the file of its function is unchanged. The kernels' loops inline functions
of other files and take constants from more, so here the sources of the whole package decide.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from numba import njit
from numba.core.caching import CompileResultCacheImpl, FunctionCache


@cache
def sources_stamp() -> bytes:
    """Digest of the names and contents of every Python file of :mod:`maskmill.kernels`."""
    package = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package).as_posix()}\0{path.stat().st_size}\0".encode())
        digest.update(path.read_bytes())
    return digest.digest()


def _by_sources(locator: type) -> type:
    """The locator of cache files, with the stamp of all sources beside its own."""

    class Located(locator):
        def get_source_stamp(self):
            return super().get_source_stamp(), sources_stamp()

    return Located


class _CacheFiles(CompileResultCacheImpl):
    _locator_classes = [_by_sources(locator) for locator in CompileResultCacheImpl._locator_classes]  # noqa: RUF012


class _PackageCache(FunctionCache):
    _impl_class = _CacheFiles


def compiled(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """``njit(nogil=True, **options)`` whose disk cache sees a change of any source of the kernels."""

    def decorate(function: Callable[..., Any]) -> Any:
        dispatcher = njit(nogil=True, **options)(function)
        # What the dispatcher's enable_caching() does with Numba's own cache.
        dispatcher._cache = _PackageCache(function)
        return dispatcher

    return decorate
