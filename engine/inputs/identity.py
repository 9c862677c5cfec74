"""Identity of an image and of its labels: hashes of the file's bytes."""

from __future__ import annotations

import hashlib


def content_id(data: bytes) -> str:
    """Return the name of an image file's bytes: 32 hexadecimal digits of BLAKE2b."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def labels_id(data: bytes, condition: str = "") -> str:
    """Return the name of an image's labels: that of the bytes, or of bytes and condition if there is one.

    ``condition`` is text that decides the labels besides the pixels, for instance the image-level labels: the same
    photo with other image-level labels is another image.
    """
    return content_id(f"{content_id(data)}\0{condition}".encode()) if condition else content_id(data)
