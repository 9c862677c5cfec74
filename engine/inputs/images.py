"""One image: bytes → HWC uint8 RGB → the model's input. Hostile bytes end in an :class:`ImageError` and nothing else.

::

    image = decode_image(data)                          # (H, W, 3) uint8 RGB, upright
    tensor, region = preprocess(image, bundle.input)    # float32 in the bundle's layout

Everything heavy (decoding, resizing, normalizing) runs without the interpreter lock.
"""

from __future__ import annotations

import io
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from ...errors import ImageError, UsageError
from ..model.bundle import InputSpec

MAX_PIXELS = 178_956_970
"""Default limit on an image's pixels: half a gigabyte as RGB."""

# formats of photos only: Pillow also opens formats that run other programs (EPS) or hold no photos
_FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM", "JPEG2000")

_PIL_FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "area": Image.Resampling.BOX,
}
_CV2_FILTERS = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}

_ROTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode_image(data: bytes, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Decode a photo's bytes to an (H, W, 3) uint8 RGB array, [0, 255], turned upright by its EXIF orientation.

    JPEG (progressive and CMYK too), PNG, WebP, AVIF, GIF, BMP, TIFF, PPM and JPEG 2000. Of an animation the first frame
    is taken. Gray and palette images are expanded; alpha is dropped and the stored colors kept, as OpenCV and
    torchvision do; of 16-bit samples the high byte is kept; float samples are read as [0, 1] where none exceeds 1, else
    as [0, 255], and clipped. The size is checked in the header, before memory is taken.

    Raises :class:`ImageError` with the kind ``empty``, ``not-an-image``, ``truncated`` (cut short or damaged),
    ``too-large`` (more than ``max_pixels``) or ``unsupported``.
    """
    with _quiet_pillow():
        image, orientation = _open(data, max_pixels)
        try:
            image.load()
            # TIFF is turned by Pillow itself
            if orientation in _ROTATIONS and image.format != "TIFF":
                return np.array(_to_rgb(image).transpose(_ROTATIONS[orientation]))
            return np.array(_to_rgb(image))
        except ImageError:
            raise
        except Exception as error:
            # damaged files raise nearly every exception from inside Pillow's decoders
            raise _damaged(image.format, error) from error


def image_size(data: bytes, *, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """(height, width) that :func:`decode_image` would return, from the header alone; the same errors."""
    with _quiet_pillow():
        image, orientation = _open(data, max_pixels)
        width, height = image.size
        turned = orientation >= 5 and image.format != "TIFF"
        return (width, height) if turned else (height, width)


def preprocess(
    image: NDArray[np.uint8], spec: InputSpec, out: NDArray[np.float32] | None = None
) -> tuple[NDArray[np.float32], tuple[float, float]]:
    """Resize and normalize an (H, W, 3) uint8 RGB image as a bundle says; returns (tensor, region).

    The tensor is float32, (3, height, width) or (height, width, 3), without a batch axis, in ``out`` where given.
    ``region`` is the share of its height and of its width that the image covers: (1.0, 1.0) when stretched; with
    ``longest-side`` the image lies at the top left and the rest holds the padding value. With antialiasing the resize
    is Pillow's, else OpenCV's half-pixel interpolation.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
        raise UsageError(f"an image must be (H, W, 3) uint8 and not empty, got {image.dtype}{image.shape}")
    nhwc = spec.layout == "NHWC"
    shape = (spec.height, spec.width, 3) if nhwc else (3, spec.height, spec.width)
    if out is None:
        out = np.empty(shape, dtype=np.float32)
    elif out.shape != shape or out.dtype != np.float32:
        raise UsageError(f"out must be float32{shape}, got {out.dtype}{out.shape}")
    height, width = resized_size(image.shape[0], image.shape[1], spec)
    resized = _resize(image, height, width, spec)
    table, padding = _lookup(spec)
    if (height, width) != (spec.height, spec.width):
        rows, columns = (out[height:], out[:height, width:]) if nhwc else (out[:, height:], out[:, :height, width:])
        rows[...] = columns[...] = padding if nhwc else padding[:, None, None]
    # a table of 256 values a channel: exact, and faster than arithmetic on widened pixels
    if nhwc:
        ordered = resized if spec.channels == "RGB" else cv2.cvtColor(resized, cv2.COLOR_RGB2BGR)
        cv2.LUT(ordered, table.T[None], dst=out[:height, :width])
    else:
        for channel in range(3):
            source = channel if spec.channels == "RGB" else 2 - channel
            plane = cv2.extractChannel(resized, source)
            cv2.LUT(plane, table[channel][None], dst=out[channel, :height, :width])
    return out, (height / spec.height, width / spec.width)


def image_covers(height: int, width: int, spec: InputSpec) -> tuple[float, float]:
    """The ``region`` that :func:`preprocess` gives for an image of this size, without touching pixels."""
    rows, columns = resized_size(height, width, spec)
    return rows / spec.height, columns / spec.width


def resized_size(height: int, width: int, spec: InputSpec) -> tuple[int, int]:
    """(height, width) that an image of this size has in the model's input, before padding, in pixels."""
    if spec.resize == "stretch":
        return spec.height, spec.width
    scale = min(spec.height / height, spec.width / width)
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def _resize(image: NDArray[np.uint8], height: int, width: int, spec: InputSpec) -> NDArray[np.uint8]:
    if image.shape[:2] == (height, width):
        return np.ascontiguousarray(image)
    if spec.antialias:
        resized = Image.fromarray(image).resize((width, height), _PIL_FILTERS[spec.resize_filter])
        return np.asarray(resized)
    return np.asarray(
        cv2.resize(image, (width, height), interpolation=_CV2_FILTERS[spec.resize_filter]), dtype=np.uint8
    )


@lru_cache(maxsize=16)
def _lookup(spec: InputSpec) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The value of every pixel level, (3, 256), and of the padding, (3,), in the model's channel order."""
    mean = np.asarray(spec.mean, dtype=np.float64)[:, None]
    std = np.asarray(spec.std, dtype=np.float64)[:, None]
    padding = np.broadcast_to(np.asarray(spec.pad_value, np.float64), 3)[:, None]
    levels = np.concatenate([np.broadcast_to(np.arange(256, dtype=np.float64), (3, 256)), padding], axis=1)
    values = ((levels * spec.scale - mean) / std).astype(np.float32)
    return np.ascontiguousarray(values[:, :256]), values[:, 256]


def _open(data: bytes, max_pixels: int) -> tuple[Any, int]:
    """The image with its header read and its size checked, and its EXIF orientation (1 to 8)."""
    if not data:
        raise ImageError("empty", "the file is empty (0 bytes)")
    Image.init()
    # not Image.open(): it warns, or refuses, by a limit that is global to the process
    for name in filter(Image.OPEN.__contains__, _FORMATS):
        factory, accept = Image.OPEN[name]
        accepted = accept(data[:16]) if accept else True
        if isinstance(accepted, str):
            raise ImageError("unsupported", f"this installation of Pillow cannot read {name}: {accepted}")
        if accepted:
            try:
                image = factory(io.BytesIO(data), "")
            except Exception as error:
                # damaged headers raise nearly every exception from inside Pillow's parsers
                raise _damaged(name, error) from error
            break
    else:
        raise ImageError(
            "not-an-image", f"no image format that is read ({', '.join(_FORMATS)}) starts with {data[:8]!r}"
        )
    width, height = image.size
    if width < 1 or height < 1:
        raise ImageError("truncated", f"damaged {name} file: its size is {width}x{height}")
    if width * height > max_pixels:
        raise ImageError(
            "too-large",
            f"the image is {width}x{height} pixels, {width * height:,} where at most {max_pixels:,} are read",
        )
    return image, _orientation(image)


def _orientation(image: Any) -> int:
    try:
        # not image.getexif(): PNG would decode the pixels to look behind them
        value = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
    except Exception:
        # a damaged EXIF block does not make the pixels worse: the image is taken as it lies
        return 1
    return value if value in _ROTATIONS else 1


def _to_rgb(image: Any) -> Any:
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):
        values = np.asarray(image)
        return Image.fromarray((np.clip(values, 0, 65535) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        values = np.nan_to_num(np.asarray(image), nan=0.0)
        levels = values * 255.0 if values.max() <= 1.0 else values
        return Image.fromarray(np.rint(np.clip(levels, 0.0, 255.0)).astype(np.uint8)).convert("RGB")
    try:
        return image.convert("RGB")
    except ValueError as error:
        raise ImageError("unsupported", f"{image.format} pixels of the kind {image.mode!r} are not read") from error


def _damaged(name: str | None, error: Exception) -> ImageError:
    if isinstance(error, Image.DecompressionBombError | MemoryError):
        return ImageError("too-large", f"the {name} image is too large: {error}")
    text = str(error) or type(error).__name__
    if "not identified by this driver" in text:
        text = "its header makes no sense"
    if isinstance(error, NotImplementedError) or re.search(r"unknown pixel mode|[Uu]nsupported|not available", text):
        return ImageError("unsupported", f"this kind of {name} file is not read: {text}")
    return ImageError("truncated", f"the {name} file is cut short or damaged: {text}")


_PILLOW_WARNINGS = ("ignore", None, Warning, re.compile(r"PIL\."), 0)
_quiet_lock = threading.Lock()
_quiet_depth = 0


@contextmanager
def _quiet_pillow() -> Iterator[None]:
    """Ignore Pillow's warnings (damaged EXIF, odd palettes) while any thread decodes.

    ``warnings.catch_warnings`` is not for threads: leaving it in another order than entering loses the filters.
    Here one entry is added by the first thread and taken away by the last.
    """
    global _quiet_depth
    with _quiet_lock:
        _quiet_depth += 1
        if _PILLOW_WARNINGS not in warnings.filters:
            warnings.filters.insert(0, _PILLOW_WARNINGS)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        with _quiet_lock:
            _quiet_depth -= 1
            if _quiet_depth == 0 and _PILLOW_WARNINGS in warnings.filters:
                warnings.filters.remove(_PILLOW_WARNINGS)  # type: ignore[attr-defined]
