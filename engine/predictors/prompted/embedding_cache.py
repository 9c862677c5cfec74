"""A folder of image embeddings with a size limit, so that new prompts do not need the encoder again.

::

    cache = EmbeddingCache("embeddings", encoder=bundle.file("encoder").sha256, max_bytes=20 << 30)
    key = cache.key(image)
    if (embeddings := cache.get(key)) is None:
        cache.put(key, embeddings := rounded(encode(image)))

Embeddings are kept as float16 under the hash of the decoded pixels, in one folder per encoder. Beyond the limit the
least recently used are removed. Any number of threads and processes may share a folder. Everything here is in main
memory, except the arguments of :func:`rounded`.
"""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from ....errors import UsageError
from ...inputs.identity import content_id
from ...model.publishing import write_atomically

_SPARE = 0.1  # share of the limit that a clean-up frees, so that clean-ups are rare


def rounded(embeddings: Sequence[Any], xp: Any = np) -> list[Any]:
    """Round an image's embeddings to float32 values that 16 bits hold; unchanged if one of them is too large.

    Decoders receive rounded embeddings with and without a cache, so that labels do not depend on it. ``xp`` is the
    library of the embeddings; the call does not synchronize with a device.
    """
    with np.errstate(over="ignore"):
        half = [values.astype(np.float16) for values in embeddings]
    fits = xp.stack([xp.isfinite(values).all() for values in half]).all()
    return [xp.where(fits, small, values) for small, values in zip(half, embeddings, strict=True)]


class EmbeddingCache:
    """Stores the embeddings of one encoder in ``folder``, which is created with the first of them.

    Parameters
    ----------
    folder
        Folder of the embeddings of all encoders.
    encoder
        Hash of the encoder's file.
    max_bytes
        Limit of ``folder`` in bytes.
    """

    def __init__(self, folder: str | os.PathLike[str], *, encoder: str, max_bytes: int) -> None:
        if max_bytes < 1:
            raise UsageError(f"the cache needs room for at least one embedding, got {max_bytes} bytes")
        self._root = Path(folder)
        self._folder = self._root / encoder[:16]
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._bytes: int | None = None
        self.hits = 0
        """Number of embeddings found so far."""
        self.misses = 0
        """Number of requests without a stored embedding so far."""

    @staticmethod
    def key(image: NDArray[np.uint8]) -> str:
        """Hash an image's pixels, (H, W, 3) uint8."""
        return content_id(str(image.shape).encode() + np.ascontiguousarray(image).tobytes())

    def get(self, key: str) -> list[NDArray[np.float16]] | None:
        """Load the embeddings of an image, without the batch axis; None if they are absent or damaged."""
        path = self._folder / f"{key}.npz"
        embeddings = None
        with (
            suppress(OSError, ValueError, KeyError, EOFError, BadZipFile),
            np.load(io.BytesIO(path.read_bytes())) as arrays,
        ):
            embeddings = [arrays[f"arr_{index}"] for index in range(len(arrays.files))]
            os.utime(path)
        with self._lock:
            self.hits, self.misses = self.hits + (embeddings is not None), self.misses + (embeddings is None)
        return embeddings

    def put(self, key: str, embeddings: Sequence[NDArray[Any]]) -> None:
        """Store the embeddings of an image, as :func:`rounded` returns them, unless one is too large for 16 bits.

        A full disk is not an error: the cache stays as it is.
        """
        with np.errstate(over="ignore"):
            half = [values.astype(np.float16) for values in embeddings]
        if not all(np.isfinite(values).all() for values in half):
            return
        buffer = io.BytesIO()
        np.savez(buffer, *half)
        data = buffer.getvalue()
        with self._lock, suppress(OSError):
            if self._bytes is None:
                self._bytes = sum(size for _, size, _ in self._files())
            if self._bytes + len(data) > self._max_bytes:
                self._make_room(len(data))
            if self._bytes + len(data) <= self._max_bytes:
                self._folder.mkdir(parents=True, exist_ok=True)
                write_atomically(self._folder / f"{key}.npz", data)
                self._bytes += len(data)

    def _files(self) -> list[tuple[float, int, Path]]:
        """List (time of last use, bytes, path) of all files, least recently used first."""
        files = []
        for path in self._root.glob("*/*.npz"):
            with suppress(OSError):  # another process may have deleted it
                status = path.stat()
                files.append((status.st_mtime, status.st_size, path))
        return sorted(files)

    def _make_room(self, num_bytes: int) -> None:
        files = self._files()
        total = sum(size for _, size, _ in files)
        for _, size, path in files:
            if total + num_bytes <= self._max_bytes * (1 - _SPARE):
                break
            path.unlink(missing_ok=True)
            total -= size
        self._bytes = total
