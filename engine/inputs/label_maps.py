"""Reading one label map: an image file that holds a class index, or a color, per pixel.

Indices are read as they are stored: palette images give their indices, gray images of 1, 2 or 4 bits are not scaled to
8 bits, gray stored as RGB gives its one channel. Colors need a :class:`maskmill.engine.model.color_tables.ColorTable`.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...errors import ImageError, UsageError
from ..model.color_tables import TABLE_NAMES, ColorTable
from ..model.png import can_hold_samples
from ..reading.access import current_access
from ..reading.local import read_local
from .image_formats import damage, open_image, quiet_pillow

if TYPE_CHECKING:
    from PIL import Image

LABEL_EXTENSIONS = (".png", ".tif", ".tiff", ".bmp", ".gif")
"""Endings of label maps: lossless formats only, since lossy ones change indices and colors."""

MAX_LABELS = 1 << 30
"""Pixels of the largest label map that is read."""

_GRAY = ("L", "1", "I;16", "I;16B", "I;16L", "I", "F", "LA")
_PHOTOMETRIC, _BITS = 262, 258


def read_label_map(path: str | os.PathLike[str], colors: ColorTable | None = None) -> NDArray[Any]:
    """Read a label map file as label indices (H, W), uint8 or uint16; see :func:`decode_label_map`."""
    try:
        data = read_local(os.fspath(path), current_access().max_bytes)
    except OSError as error:
        raise UsageError(f"cannot read the label map {path}: {error.strerror or error}") from error
    except ImageError as error:
        raise UsageError(f"cannot read the label map {path}: {error}") from error
    return decode_label_map(data, str(path), colors)


def decode_label_map(data: bytes, name: str, colors: ColorTable | None = None) -> NDArray[Any]:
    """Decode a label map's bytes to label indices (H, W), uint8 or uint16.

    With ``colors`` every pixel's color is looked up, in palette images too. ``name`` is the file in messages.

    Raises :class:`UsageError` for a file that cannot be read, holds colors without a table or values that are no
    indices, and :class:`TaxonomyError` for a color that the table does not list.
    """
    try:
        image = decode_map(data)
    except ImageError as error:
        raise UsageError(f"cannot read the label map {name}: {error}") from error
    with quiet_pillow():
        return _indices(image, name, data) if colors is None else _from_colors(image, name, colors)


def decode_map(data: bytes) -> Image.Image:
    """Return the Pillow image of a map's bytes, decoded and not turned by EXIF.

    Raises :class:`ImageError`, also for a header that promises more than the file can hold.
    """
    with quiet_pillow():
        image = open_image(data, MAX_LABELS)
        if image.format == "PNG" and not can_hold_samples(data, *image.size):
            size = f"{image.width}x{image.height}"
            raise ImageError("truncated", f"damaged PNG file: {len(data):,} bytes cannot hold {size} pixels")
        try:
            image.load()
        except Exception as error:
            # damaged files raise nearly every exception from inside Pillow's decoders
            raise damage(image.format, error) from error
        return image


def _from_colors(image: Any, name: str, colors: ColorTable) -> NDArray[Any]:
    if image.mode in _GRAY:
        raise UsageError(
            f"{name} holds gray values, but the taxonomy reads colors; remove `colors` from the taxonomy if the "
            "values are label indices"
        )
    return colors.encode(np.asarray(image.convert("RGB")), name)


def _indices(image: Any, name: str, data: bytes) -> NDArray[Any]:
    if image.mode == "P":
        return np.array(image)
    if image.mode in ("RGB", "RGBA", "LA"):
        return _one_channel(np.asarray(image), name, alpha=image.mode.endswith("A"))
    if image.mode not in _GRAY:
        raise UsageError(f"{name} is a {image.mode} image; a label map holds one label index per pixel (L or P)")
    values = np.asarray(image)
    if values.dtype == np.bool_:
        return values.astype(np.uint8)
    if values.dtype == np.uint8:
        return _unscaled(image, values, data)
    if image.mode == "F" and not np.array_equal(values, np.trunc(values)):
        raise UsageError(f"{name} holds fractions; a label map holds one label index per pixel")
    if values.min(initial=0) < 0 or values.max(initial=0) > 65535:
        raise UsageError(f"{name} holds values outside 0 to 65535; a label map holds one label index per pixel")
    return values.astype(np.uint16)


def _one_channel(pixels: NDArray[np.uint8], name: str, *, alpha: bool) -> NDArray[np.uint8]:
    """Return the single channel of gray that is stored as RGB."""
    if alpha and (pixels[..., -1] != 255).any():
        raise UsageError(
            f"{name} has transparent pixels; a label map holds one label index per pixel: save it without alpha"
        )
    channels = pixels[..., :-1] if alpha else pixels
    different = (channels != channels[..., :1]).any(axis=-1)
    if different.any():
        red, green, blue = channels[different][0].tolist()
        raise UsageError(
            f"{name} holds colors, e.g. {red}, {green}, {blue}; give their classes in the taxonomy, with [colors] and "
            "lines "
            f'like "{red}, {green}, {blue}" = "TARGET", or colors = "{TABLE_NAMES[0]}" ({", ".join(TABLE_NAMES)})'
        )
    return np.ascontiguousarray(channels[..., 0])


def _unscaled(image: Any, values: NDArray[np.uint8], data: bytes) -> NDArray[np.uint8]:
    """Undo what Pillow does to gray for display: scaling of 2 and 4 bits to 8, and inverting TIFF's white-is-zero."""
    bits = 8
    if image.format == "PNG":
        bits = data[24]
    elif image.format == "TIFF":
        bits = image.tag_v2.get(_BITS, (8,))[0]
        if image.tag_v2.get(_PHOTOMETRIC) == 0:
            values = 255 - values
    return values if bits == 8 else values // np.uint8(255 // ((1 << bits) - 1))
