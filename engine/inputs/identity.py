"""The identity of an image: a hash of its bytes."""

from __future__ import annotations

import hashlib


def content_id(data: bytes) -> str:
    """The name of an image file's bytes: 32 hexadecimal digits of BLAKE2b."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()
