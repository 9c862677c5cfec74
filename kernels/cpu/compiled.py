"""Numba's ``njit`` as the kernels use it: Python's lock released, and machine code cached on disk.

    @compiled(error_model="numpy")
    def loop(values): ...

Numba considers cached machine code valid as long as the file of its function is unchanged. The kernels' loops inline
functions and constants of other files, so here a change of any source of the package invalidates it.
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
    """Return a digest of the names and contents of every Python file of :mod:`maskmill.kernels`."""
    package = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package).as_posix()}\0{path.stat().st_size}\0".encode())
        digest.update(path.read_bytes())
    return digest.digest()


def _by_sources(locator: type) -> type:
    """Extend Numba's locator of cache files: its stamp includes the stamp of all sources."""

    class PackageLocator(locator):
        def get_source_stamp(self):
            return super().get_source_stamp(), sources_stamp()

    return PackageLocator


class _CacheFiles(CompileResultCacheImpl):
    _locator_classes = [_by_sources(locator) for locator in CompileResultCacheImpl._locator_classes]  # noqa: RUF012


class _PackageCache(FunctionCache):
    _impl_class = _CacheFiles


def compiled(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Apply ``njit(nogil=True, **options)`` with a disk cache that any change of the kernels' sources invalidates."""

    def decorate(function: Callable[..., Any]) -> Any:
        dispatcher = njit(nogil=True, **options)(function)
        # The dispatcher's enable_caching() does the same with Numba's own cache.
        dispatcher._cache = _PackageCache(function)
        return dispatcher

    return decorate
