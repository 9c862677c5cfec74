"""Pictures in label files, opened by Pillow: of formats that run no program, and within a size."""

from __future__ import annotations

import io
from typing import Any

from PIL import Image

from ...errors import UsageError

FORMATS = ("PNG", "TIFF", "BMP", "GIF", "JPEG", "WEBP", "AVIF", "PPM", "JPEG2000")
"""Formats that are read. Pillow knows others that run programs: Ghostscript for EPS."""
MAX_PIXELS = 1 << 30
"""Pixels of the largest picture that is read."""
_MOST_INFLATED = 1100
"""Bytes that one compressed byte of a PNG file can stand for, with a margin: deflate reaches 1,032."""


def open_picture(data: bytes, where: str, *, header_only: bool = False) -> Any:
    """Return the Pillow image of a file's bytes, decoded unless only its header is needed.

    ``where`` names it in messages. Raises :class:`UsageError` for other formats, damage, more than :data:`MAX_PIXELS`,
    or a header that promises more than the file can hold.
    """
    Image.init()
    fault = f"cannot read the picture {where}:"
    # not Image.open(): it warns, or refuses, by a limit that is global to the process
    for name in filter(Image.OPEN.__contains__, FORMATS):
        factory, accept = Image.OPEN[name]
        if accept is not None and accept(data[:16]) is True:
            break
    else:
        raise UsageError(f"{fault} it is none of {', '.join(FORMATS)}; it starts with {data[:8]!r}")
    try:
        image = factory(io.BytesIO(data), "")
        if image.width * image.height > MAX_PIXELS:
            raise UsageError(f"{fault} it has {image.width}x{image.height} pixels, more than {MAX_PIXELS:,}")
        if not header_only:
            if name == "PNG" and image.width * image.height * (data[24] / 8) > _MOST_INFLATED * len(data):
                raise UsageError(f"{fault} {len(data):,} bytes cannot hold {image.width}x{image.height} pixels")
            image.load()
    except (UsageError, MemoryError):
        raise
    except Exception as error:
        # damaged files raise nearly every exception from inside Pillow's decoders
        raise UsageError(f"{fault} it is cut short or damaged ({error})") from error
    return image
