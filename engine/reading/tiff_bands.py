"""Describe the bands of a TIFF file that is not a photo."""

from __future__ import annotations

import io

from PIL import TiffImagePlugin

from ...errors import ImageError


def other_bands(name: str, data: bytes, error: Exception) -> ImageError | None:
    """Return the error for a TIFF file whose bands are not a photo's; None if ``error`` has another cause."""
    if name != "TIFF" or "unknown pixel mode" not in str(error):
        return None
    size = 16 if data[2:3] == b"\x2b" or data[3:4] == b"\x2b" else 8
    try:
        tags = TiffImagePlugin.ImageFileDirectory_v2(data[:size])
        stream = io.BytesIO(data)
        stream.seek(tags.next)
        tags.load(stream)
        bands, bits = int(tags.get(277, 1)), int(tags.get(258, (1,))[0])
        kind = {1: "uint", 2: "int", 3: "float"}[tags.get(339, (1,))[0]]
    except Exception:
        # damaged tags raise nearly every exception
        return None
    return ImageError(
        "unsupported", f"{bands} band{'s' * (bands != 1)} of {kind}{bits}; the model takes 3 colors; see --bands"
    )
