"""Identity of an image and of its labels: hashes of the file's bytes; parts of a source by a hash of the uri."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

from ...errors import UsageError


class Named(Protocol):
    """Something with a uri, such as an item of a source."""

    @property
    def uri(self) -> str:
        """Stable name."""
        ...


T = TypeVar("T", bound=Named)


def content_id(data: bytes) -> str:
    """Return the name of an image file's bytes: 32 hexadecimal digits of BLAKE2b."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def labels_id(data: bytes, condition: str = "") -> str:
    """Return the name of an image's labels: that of the bytes, or of bytes and condition if there is one.

    ``condition`` is text that decides the labels besides the pixels, for instance the image-level labels: the same
    photo with other image-level labels is another image.
    """
    return content_id(f"{content_id(data)}\0{condition}".encode()) if condition else content_id(data)


def shard(items: Iterable[T], index: int, count: int) -> Iterator[T]:
    """Yield the items of shard ``index`` of ``count``, from 0; a hash of the uri decides, so that all runs agree."""
    if count < 1 or not 0 <= index < count:
        raise UsageError(
            f"shards are counted from 0: expected 0 <= I < N, as in 0/{max(count, 1)}; got {index}/{count}"
        )
    return (item for item in items if _bucket(item.uri, count) == index)


def _bucket(uri: str, count: int) -> int:
    return int.from_bytes(hashlib.blake2b(uri.encode(), digest_size=8).digest(), "big") % count
