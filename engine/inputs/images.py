"""One image: bytes → HWC uint8 RGB → the model's input. Hostile bytes raise :class:`ImageError` and nothing else.

::

    image = decode_image(data)                          # (H, W, 3) uint8 RGB, upright
    tensor, region = preprocess(image, bundle.input)    # float32 in the bundle's layout

Everything heavy (decoding, resizing, normalizing) runs without the interpreter lock.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...errors import ImageError, UsageError
from ..model.input_spec import BandSpec, InputSpec
from .image_formats import damage, open_image, orientation, pixels_of, quiet_pillow
from .rasters.bands import NPY, decode_bands, photo_of_npy, raster_size

Decoded = TypeVar("Decoded")

MAX_PIXELS = 178_956_970
"""Default limit on an image's pixels: half a gigabyte as RGB."""

LOW_RANGE_SHARE = 1 / 16
"""Share of a sample type's range below which an image probably uses fewer bits than its type has."""

_PIL_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "area": Image.Resampling.BOX,
}
_CV2_FILTERS = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}


def decode_image(
    data: bytes,
    *,
    max_pixels: int = MAX_PIXELS,
    bit_depth: int | None = None,
    warn: Callable[[str], None] | None = None,
) -> NDArray[np.uint8]:
    """Decode a photo's bytes to an (H, W, 3) uint8 RGB array, [0, 255], turned upright by its EXIF orientation.

    JPEG (progressive and CMYK too), PNG, WebP, AVIF, GIF, BMP, TIFF, PPM and JPEG 2000; HEIC and JPEG XL if their
    packages are installed. Of an animation the first frame is decoded. Gray and palette images are expanded; alpha is
    dropped and the stored colors kept, as OpenCV and torchvision do.

    Samples of more than 8 bits keep the highest 8 of ``bit_depth`` bits (9 to 32), by default of all value bits of
    their type; ``warn`` is called with a text if an image uses less than 1/16 of its type's range. Float samples are
    read as [0, 1] if none exceeds 1, else as [0, 255], and clipped.

    The size is checked in the header, before memory is allocated; decoding takes at most about 20 bytes per pixel.

    Raises :class:`ImageError` with the kind ``empty``, ``not-an-image``, ``truncated`` (cut short or damaged),
    ``too-large`` (more than ``max_pixels``) or ``unsupported``.
    """
    if bit_depth is not None and not 9 <= bit_depth <= 32:
        raise UsageError(f"the bit depth must be from 9 to 32, got {bit_depth}")
    if data.startswith(NPY):
        return photo_of_npy(data, max_pixels)
    with quiet_pillow():
        image = open_image(data, max_pixels)
        try:
            pixels, share = pixels_of(image, data, bit_depth)
        except ImageError:
            raise
        except Exception as error:
            # damaged files raise nearly every exception from inside Pillow's decoders
            raise damage(image.format, error) from error
    if warn is not None and bit_depth is None and share < LOW_RANGE_SHARE:
        warn(
            f"it uses {share:.1%} of its type's range and becomes nearly black; state the bits that are used with "
            "--bit-depth"
        )
    return pixels


def decode_input(
    data: bytes,
    bands: BandSpec | None,
    *,
    max_pixels: int = MAX_PIXELS,
    bit_depth: int | None = None,
    warn: Callable[[str], None] | None = None,
) -> NDArray[Any]:
    """Decode what a model takes: the ``bands`` of a file, (H, W, C) in their sample type, or a photo if None.

    Raises :class:`ImageError`, and :class:`MissingPackageError` for bands of a TIFF file without rasterio.
    """
    if bands is None:
        return decode_image(data, max_pixels=max_pixels, bit_depth=bit_depth, warn=warn)
    return decode_bands(data, bands, max_pixels=max_pixels)


def image_size(data: bytes, *, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Return the (height, width) that :func:`decode_image` would give, from the header alone; the same errors."""
    if (size := raster_size(data)) is not None:
        return size
    with quiet_pillow():
        image = open_image(data, max_pixels)
        width, height = image.size
        is_turned = orientation(image) >= 5 and image.format != "TIFF"
        return (width, height) if is_turned else (height, width)


def preprocess(
    image: NDArray[Any], spec: InputSpec, out: NDArray[np.float32] | None = None
) -> tuple[NDArray[np.float32], tuple[float, float]]:
    """Resize and normalize an (H, W, 3) uint8 RGB image for a model; returns (tensor, region).

    A model with bands takes (H, W, C) in their sample type: they are resized as floats, without rounding. Samples that
    are masked or not finite become the mean of the others in their band first, or the padding value if there are none.

    The tensor is float32, (C, height, width) or (height, width, C), without a batch axis, in ``out`` if given.
    ``region`` is the share of its height and of its width that the image covers: (1.0, 1.0) when stretched; with
    ``longest-side`` the image is at the top left and the rest holds the padding value. With antialiasing the resize
    is Pillow's, else OpenCV's half-pixel interpolation. Raises :class:`UsageError` for arrays of another shape or type.
    """
    if spec.bands is not None:
        return _preprocess_bands(image, spec, spec.bands, out)
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
        raise UsageError(f"an image must be (H, W, 3) uint8 and not empty, got {image.dtype}{image.shape}")
    nhwc = spec.layout == "NHWC"
    shape = (spec.height, spec.width, 3) if nhwc else (3, spec.height, spec.width)
    if out is None:
        out = np.empty(shape, dtype=np.float32)
    elif out.shape != shape or out.dtype != np.float32:
        raise UsageError(f"out must be float32{shape}, got {out.dtype}{out.shape}")
    height, width = resized_size(image.shape[0], image.shape[1], spec)
    resized_image = _resize(image, height, width, spec)
    table, padding = _lookup(spec)
    if (height, width) != (spec.height, spec.width):
        rows, columns = (out[height:], out[:height, width:]) if nhwc else (out[:, height:], out[:, :height, width:])
        rows[...] = columns[...] = padding if nhwc else padding[:, None, None]
    # a table of 256 values per channel: exact, and faster than arithmetic on widened pixels
    if nhwc:
        channels = resized_image if spec.channels == "RGB" else cv2.cvtColor(resized_image, cv2.COLOR_RGB2BGR)
        cv2.LUT(channels, table.T[None], dst=out[:height, :width])
    else:
        for channel in range(3):
            source = channel if spec.channels == "RGB" else 2 - channel
            plane = cv2.extractChannel(resized_image, source)
            cv2.LUT(plane, table[channel][None], dst=out[channel, :height, :width])
    return out, (height / spec.height, width / spec.width)


def image_covers(height: int, width: int, spec: InputSpec) -> tuple[float, float]:
    """Return the ``region`` that :func:`preprocess` gives for an image of this size, from the size alone."""
    rows, columns = resized_size(height, width, spec)
    return rows / spec.height, columns / spec.width


def resized_size(height: int, width: int, spec: InputSpec) -> tuple[int, int]:
    """Return the (height, width) of an image of this size in the model's input, before padding, in pixels."""
    if spec.resize == "stretch":
        return spec.height, spec.width
    scale = min(spec.height / height, spec.width / width)
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def _resize(image: NDArray[np.uint8], height: int, width: int, spec: InputSpec) -> NDArray[np.uint8]:
    if image.shape[:2] == (height, width):
        return np.ascontiguousarray(image)
    if spec.antialias or spec.resize_filter == "nearest":
        resized_image = Image.fromarray(image).resize((width, height), _PIL_FILTERS[spec.resize_filter])
        return np.asarray(resized_image)
    return np.asarray(
        cv2.resize(image, (width, height), interpolation=_CV2_FILTERS[spec.resize_filter]), dtype=np.uint8
    )


def _preprocess_bands(
    image: NDArray[Any], spec: InputSpec, bands: BandSpec, out: NDArray[np.float32] | None
) -> tuple[NDArray[np.float32], tuple[float, float]]:
    number = len(bands.numbers)
    if image.ndim != 3 or image.shape[2] != number or str(image.dtype) != bands.sample_type or 0 in image.shape:
        raise UsageError(
            f"an image of this model must be (H, W, {number}) {bands.sample_type} and not empty, got "
            f"{image.dtype}{image.shape}"
        )
    shape = (number, spec.height, spec.width) if spec.layout == "NCHW" else (spec.height, spec.width, number)
    if out is None:
        out = np.empty(shape, np.float32)
    elif out.shape != shape or out.dtype != np.float32:
        raise UsageError(f"out must be float32{shape}, got {out.dtype}{out.shape}")
    height, width = resized_size(image.shape[0], image.shape[1], spec)
    planes = out if spec.layout == "NCHW" else np.moveaxis(out, 2, 0)
    padding = np.broadcast_to(np.asarray(spec.pad_value, np.float64), number)
    values, mask = np.ma.getdata(image), np.ma.getmaskarray(image) if np.ma.is_masked(image) else None
    for channel, plane in enumerate(planes):
        factor, mean, std = spec.scale / spec.std[channel], spec.mean[channel], spec.std[channel]
        offset = -mean / std
        samples = values[..., channel].astype(np.float32)
        faults = None if mask is None else mask[..., channel]
        if bands.sample_type == "float32":
            infinite = ~np.isfinite(samples)
            faults = infinite if faults is None else faults | infinite
        if faults is not None and faults.any():
            # the mean keeps missing samples from distorting their neighbors
            samples[faults] = padding[channel] if faults.all() else samples[~faults].mean(dtype=np.float64)
        resized_plane = _resize_plane(samples, height, width, spec)
        plane[height:] = plane[:height, width:] = padding[channel] * factor + offset
        np.multiply(resized_plane, np.float32(factor), out=plane[:height, :width])
        plane[:height, :width] += np.float32(offset)
    return out, (height / spec.height, width / spec.width)


def _resize_plane(samples: NDArray[np.float32], height: int, width: int, spec: InputSpec) -> NDArray[np.float32]:
    if samples.shape == (height, width):
        return samples
    if spec.antialias or spec.resize_filter == "nearest":
        return np.asarray(Image.fromarray(samples).resize((width, height), _PIL_FILTERS[spec.resize_filter]))
    resized_plane = cv2.resize(samples, (width, height), interpolation=_CV2_FILTERS[spec.resize_filter])
    return np.asarray(resized_plane, dtype=np.float32)


@lru_cache(maxsize=16)
def _lookup(spec: InputSpec) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the value of every pixel level, (3, 256), and of the padding, (3,), in the model's channel order."""
    mean = np.asarray(spec.mean, dtype=np.float64)[:, None]
    std = np.asarray(spec.std, dtype=np.float64)[:, None]
    padding = np.broadcast_to(np.asarray(spec.pad_value, np.float64), 3)[:, None]
    levels = np.concatenate([np.broadcast_to(np.arange(256, dtype=np.float64), (3, 256)), padding], axis=1)
    values = ((levels * spec.scale - mean) / std).astype(np.float32)
    return np.ascontiguousarray(values[:, :256]), values[:, 256]


def unless_without_data(decode: Callable[[], Decoded], name: str) -> Decoded | None:
    """Decode an image; None if no pixel of it has data. Raises :class:`ImageError` that names the image."""
    try:
        return decode()
    except ImageError as error:
        if error.kind == "no-data":
            return None
        raise ImageError(error.kind, f"cannot read {name}: {error}") from error
