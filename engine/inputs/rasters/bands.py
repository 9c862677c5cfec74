"""Files of many bands: decode bytes to HWC samples, and convert samples to RGB for pictures.

::

    bands = BandSpec(numbers=(4, 3, 2, 8), sample_type="uint16", display=(4, 3, 2), display_range=(0, 10_000))
    image = decode_bands(Path("chip.npy").read_bytes(), bands, max_pixels=10**8)    # (H, W, 4) uint16
    picture = display_of(image, bands)                                              # (H, W, 3) uint8 RGB

TIFF is read by rasterio (extra ``geo``), NumPy's ``.npy`` and 8- and 16-bit photos without it.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....errors import ImageError
from ...model.input_spec import BandSpec
from ...reading.geotiff import SETTINGS, is_tiff, missing_samples, rasterio_for
from ..image_formats import damage, open_image, quiet_pillow
from .npy import read_npy_header

NPY = b"\x93NUMPY"
"""First bytes of a NumPy file."""
_MAX_NPY_BANDS = 65_535
_PHOTO_BANDS = (3, 1, 4)
_LEAST_SIDE = 16


def decode_bands(data: bytes, bands: BandSpec, *, max_pixels: int) -> NDArray[Any]:
    """Decode the bands of a file to (H, W, C), in their sample type and in the order of ``bands``.

    If samples are nodata or not finite, the result is a masked array whose mask is True for these.

    Files: TIFF; ``.npy`` of (bands, H, W), (H, W, bands), (H, W) or (1, bands, H, W), see :func:`band_axis`; and photos
    without EXIF orientation whose samples Pillow keeps as they are (8 bits, or 16 bits of gray).

    Raises :class:`ImageError` with the kinds of :func:`maskmill.engine.inputs.images.decode_image`: ``unsupported``
    for samples of another type or a file with too few bands; and ``no-data`` if no pixel has data in all bands. Raises
    :class:`MissingPackageError` for TIFF without rasterio.
    """
    if not data:
        raise ImageError("empty", "the file is empty (0 bytes)")
    if is_tiff(data):
        planes, missing_samples = _tiff_samples(data, bands.numbers, bands.sample_type, max_pixels)
        image = np.ascontiguousarray(planes.transpose(1, 2, 0))
    else:
        is_npy = data.startswith(NPY)
        samples, missing_samples = (
            _npy_samples(data, max_pixels, (max(bands.numbers),))
            if is_npy
            else (_photo_samples(data, max_pixels), None)
        )
        _check_bands(samples.shape[2], samples.dtype, bands.numbers, bands.sample_type)
        channels = [number - 1 for number in bands.numbers]
        image = np.ascontiguousarray(samples[..., channels])
        missing_samples = None if missing_samples is None else missing_samples[channels]
    faults = None if missing_samples is None else missing_samples.transpose(1, 2, 0)
    if image.dtype.kind == "f":
        infinite = ~np.isfinite(image)
        faults = infinite if faults is None else faults | infinite
    if faults is None or not faults.any():
        return image
    if faults.any(axis=2).all():
        raise ImageError("no-data", "no pixel has data in all bands of the model: samples are nodata or not finite")
    return np.ma.MaskedArray(image, np.ascontiguousarray(faults))


def pixels_with_data(image: Any) -> NDArray[np.bool_] | None:
    """Return (H, W), True for pixels whose samples (H, W, C) are data and finite; None if all are."""
    faults = np.ma.getmask(image)
    if image.dtype.kind == "f":
        faults = faults | ~np.isfinite(np.ma.getdata(image))
    return ~faults.any(axis=2) if np.any(faults) else None


def _check_bands(count: int, dtype: Any, numbers: tuple[int, ...], sample_type: str) -> None:
    """Raise :class:`ImageError` unless a file has all bands, in the sample type."""
    if max(numbers) > count:
        raise ImageError("unsupported", f"the file has {count} band(s), and the model takes band {max(numbers)}")
    if str(np.dtype(dtype)) != sample_type:
        raise ImageError(
            "unsupported", f"its samples are {np.dtype(dtype)}, and the model takes {sample_type}; convert the file"
        )


def display_of(image: NDArray[Any], bands: BandSpec) -> NDArray[np.uint8]:
    """Convert (H, W, C) samples to (H, W, 3) uint8 RGB: the display bands, scaled by the display range."""
    colors = np.ma.getdata(image)[..., list(bands.display_channels)]
    low, high = bands.display_range
    if bands.sample_type == "uint8" and (low, high) == (0.0, 255.0):
        return np.ascontiguousarray(colors)
    # clipped first: samples near the largest float would overflow
    inside = np.clip(colors.astype(np.float32), np.float32(low), np.float32(high))
    levels = (inside - np.float32(low)) * np.float32(255 / (high - low))
    return np.rint(np.clip(np.nan_to_num(levels, nan=0.0), 0, 255)).astype(np.uint8)


def photo_of_npy(data: bytes, max_pixels: int) -> NDArray[np.uint8]:
    """Return the photo (H, W, 3) uint8 RGB of a ``.npy`` file: its first three bands, or one as gray."""
    samples, _ = _npy_samples(data, max_pixels, _PHOTO_BANDS)
    if samples.dtype != np.uint8:
        raise ImageError(
            "unsupported",
            f"its samples are {samples.dtype}, and photos have 8 bits; import the model with --bands and --sample-type",
        )
    colors = samples[..., :3] if samples.shape[2] >= 3 else samples[..., :1].repeat(3, axis=2)
    return np.ascontiguousarray(colors)


def _tiff_samples(
    data: bytes, numbers: Sequence[int], sample_type: str, max_pixels: int
) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
    """Read bands of a TIFF file in memory: (len(numbers), H, W), and a mask of those without data."""
    rasterio = rasterio_for("reading TIFF files of several bands")
    try:
        with rasterio.Env(**SETTINGS), rasterio.MemoryFile(data) as memory, memory.open(driver="GTiff") as file:
            if file.width * file.height > max_pixels:
                raise ImageError(
                    "too-large",
                    f"the image is {file.width}x{file.height} pixels; at most {max_pixels:,} are read: label it by "
                    "windows (--windows), or raise --max-pixels",
                )
            types = {file.dtypes[number - 1] for number in numbers if number <= file.count}
            _check_bands(file.count, types.pop() if len(types) == 1 else "O", tuple(numbers), sample_type)
            return file.read(indexes=list(numbers)), missing_samples(file, numbers)
    except ImageError:
        raise
    except Exception as error:
        # damaged files raise nearly every exception of GDAL's
        raise ImageError("truncated", f"the TIFF file is cut short or damaged: {error}") from error


def band_axis(shape: tuple[int, ...], expected: Sequence[int]) -> int:
    """Return the axis of the bands of an array with three axes: 0 of (bands, H, W), or 2 of (H, W, bands).

    ``expected`` are the likely numbers of bands: the highest that a model takes, or those of photos. The axis is the
    one with such a number; otherwise the short one of an array whose other axes are at least 16 and at least twice as
    long. Raises :class:`ImageError` for all other arrays, which are ambiguous.
    """
    exact = [axis for axis in (0, 2) if shape[axis] in expected]
    if len(exact) == 1:
        return exact[0]
    few, many = (0, 2) if shape[0] < shape[2] else (2, 0)
    if not exact and max(2 * shape[few], _LEAST_SIDE) <= min(shape[1], shape[many]):
        return few
    raise ImageError(
        "unsupported",
        f"the .npy array {shape} may be {shape[0]} bands of {shape[1]}x{shape[2]} or {shape[2]} bands of "
        f"{shape[0]}x{shape[1]} samples; save it as (1, bands, rows, columns)",
    )


def _npy_samples(
    data: bytes, max_pixels: int, expected: Sequence[int]
) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
    """Return (H, W, bands) of a ``.npy`` file, after its size was checked in the header.

    The second array (1, bands, H, W) of a window of a TIFF file is True for samples without data; None without it.
    """
    stream = io.BytesIO(data)
    try:
        shape, in_fortran_order, dtype = read_npy_header(stream)
    except ValueError as error:
        raise ImageError("truncated", str(error)) from error
    has_batch_axis = len(shape) == 4 and shape[0] == 1
    if dtype.hasobject or not (has_batch_axis or len(shape) in (2, 3)) or min(shape) < 1:
        raise ImageError(
            "unsupported", f"a .npy image holds 2 or 3 axes of numbers, or (1, bands, H, W), got {dtype}{shape}"
        )
    planes = shape[1:] if has_batch_axis else (*shape, 1) if len(shape) == 2 else shape
    axis = 0 if has_batch_axis else 2 if len(shape) == 2 else band_axis(shape, expected)
    if planes[axis] > _MAX_NPY_BANDS:
        raise ImageError("unsupported", f"a .npy image has at most {_MAX_NPY_BANDS:,} bands, got {planes[axis]:,}")
    sides = [side for index, side in enumerate(planes) if index != axis]
    if sides[0] * sides[1] > max_pixels:
        raise ImageError(
            "too-large", f"the image is {sides[1]}x{sides[0]} pixels; at most {max_pixels:,} are read (--max-pixels)"
        )
    count = math.prod(shape)
    if len(data) - stream.tell() < count * dtype.itemsize:
        raise ImageError("truncated", "the .npy file is cut short: samples are missing")
    array = np.frombuffer(data, dtype, count, stream.tell()).reshape(shape, order="F" if in_fortran_order else "C")
    if not dtype.isnative:
        array = array.astype(dtype.newbyteorder("="))
    array = array.reshape(planes)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|b1", "fortran_order": False, "shape": shape})
    start, missing_samples = stream.tell() + count * dtype.itemsize, None
    if has_batch_axis and data.startswith(header.getvalue(), start) and len(data) - start >= header.tell() + count:
        missing_samples = np.frombuffer(data, np.uint8, count, start + header.tell()).reshape(planes) != 0
    return (np.moveaxis(array, 0, 2) if axis == 0 else array), missing_samples


def _photo_samples(data: bytes, max_pixels: int) -> NDArray[Any]:
    """Return (H, W, bands) of a photo, in its own number type."""
    with quiet_pillow():
        image = open_image(data, max_pixels)
        deep = image.format == "PNG" and data[24:25] == b"\x10" and image.mode != "I;16"
        if deep or image.mode not in ("L", "RGB", "RGBA", "I;16"):
            raise ImageError(
                "unsupported", f"bands are read from TIFF and .npy, not from {image.format} files of this kind"
            )
        try:
            image.load()
        except Exception as error:
            # damaged files raise nearly every exception from inside Pillow's decoders
            raise damage(image.format, error) from error
    samples = np.asarray(image)
    return samples[..., None] if samples.ndim == 2 else samples


def raster_size(data: bytes) -> tuple[int, int] | None:
    """Return the (height, width) of a ``.npy`` file, or of a TIFF file that Pillow cannot open; None for others."""
    if data.startswith(NPY):
        height, width = _npy_samples(data, 1 << 40, _PHOTO_BANDS)[0].shape[:2]
        return height, width
    if not is_tiff(data):
        return None
    try:
        with quiet_pillow():
            open_image(data, 1 << 40)
    except ImageError:
        rasterio = rasterio_for("reading TIFF files of several bands")
        try:
            with rasterio.Env(**SETTINGS), rasterio.MemoryFile(data) as memory, memory.open(driver="GTiff") as file:
                return file.height, file.width
        except Exception as error:
            # damaged files raise nearly every exception of GDAL's
            raise ImageError("truncated", f"the TIFF file is cut short or damaged: {error}") from error
    return None
