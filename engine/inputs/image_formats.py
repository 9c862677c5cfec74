"""Image formats: opening a file's bytes with Pillow, and converting any pixel type to 8-bit RGB.

Samples of more than 8 bits keep the highest 8 bits of their type, or of a bit depth that is stated, as in 12 for a
camera that fills 12 of 16 bits. Formats that Pillow misreads are read differently: 16-bit colors by OpenCV, since
Pillow keeps only their high bytes, and uncompressed or deflated TIFF with separate planes by this module.

HEIC and JPEG XL are read if pillow-heif and pillow-jxl-plugin are installed (extra ``heif``).
"""

from __future__ import annotations

import ctypes
import importlib
import io
import logging
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from ...errors import ImageError, install_command
from ..model.files import inflate
from ..reading.tiff_bands import other_bands

if TYPE_CHECKING:
    from PIL import Image

# photo formats only: Pillow also opens formats that run other programs (EPS) or hold no photos
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM", "JPEG2000")

OPTIONAL_ENDINGS = {".heic": "HEIC", ".heif": "HEIC", ".hif": "HEIC", ".jxl": "JPEG XL"}
"""Endings of formats that another package reads."""
_PLUGINS = {"HEIC": ("pillow_heif", "HEIF"), "JPEG XL": ("pillow_jxl", "JXL")}
"""Package of each of these formats, and its name in Pillow."""
_HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")

MOST_SCANS = 30
"""Number of scans of a progressive JPEG that are always read; encoders write about ten …"""
MOST_SCANNED_PIXELS = 4_000_000_000
"""… and more if pixels times scans are no more than this: an empty scan takes 0.4 ns per pixel."""

BAND_PIXELS = 1 << 20
"""Pixels that are converted at once, so that a conversion takes little memory besides its result."""


@cache
def optional_formats() -> dict[str, str]:
    """Load the packages of optional formats that are installed; returns Pillow's name of each format."""
    names = {}
    for format, (package, pillow_name) in _PLUGINS.items():
        try:
            module = importlib.import_module(package)
        except ImportError:
            continue
        if package == "pillow_heif":
            module.register_heif_opener()
        names[format] = pillow_name
    return names


@cache
def readable_endings() -> frozenset[str]:
    """Return the endings of optional formats that can be read here."""
    return frozenset(ending for ending, format in OPTIONAL_ENDINGS.items() if format in optional_formats())


def open_image(data: bytes, max_pixels: int) -> Image.Image:
    """Open an image with Pillow: its header is read and its size checked, its pixels are not decoded.

    Raises :class:`ImageError`.
    """
    if not data:
        raise ImageError("empty", "the file is empty (0 bytes)")
    Image.init()
    names = (*FORMATS, *optional_formats().values())
    _silence_libraries()
    # not Image.open(): it warns or raises according to a limit that is global to the process
    for name in filter(Image.OPEN.__contains__, names):
        factory, accept = Image.OPEN[name]
        accepted = accept(data[:16]) if accept else True
        if isinstance(accepted, str):
            raise ImageError("unsupported", f"this installation of Pillow cannot read {name}: {accepted}")
        if accepted:
            try:
                image = factory(io.BytesIO(data), "")
            except Exception as error:
                # damaged headers raise nearly every exception from inside Pillow's parsers
                raise (other_bands(name, data, error) or damage(name, error)) from error
            break
    else:
        raise _no_format(data)
    width, height = image.size
    if width < 1 or height < 1:
        raise ImageError("truncated", f"damaged {name} file: its size is {width}x{height}")
    if width * height > max_pixels:
        raise ImageError(
            "too-large",
            f"the image is {width}x{height} pixels, {width * height:,} in all; at most {max_pixels:,} are read "
            "(--max-pixels)",
        )
    return image


def _no_format(data: bytes) -> ImageError:
    if data[4:8] == b"ftyp" and data[8:12] in _HEIC_BRANDS:
        format = "HEIC"
    elif data[:12] == b"\0\0\0\x0cJXL \r\n\x87\n" or data[:2] == b"\xff\x0a":
        format = "JPEG XL"
    else:
        return ImageError(
            "not-an-image", f"no image format that is read ({', '.join(FORMATS)}) starts with {data[:8]!r}"
        )
    return ImageError("unsupported", f"{format} files need another package; install it with: {install_command('heif')}")


def orientation(image: Any) -> int:
    """Return the EXIF orientation of an opened image, 1 to 8; 1 if it has none, or an invalid or inapplicable one."""
    if image.format == "JXL":
        # its decoder applies the orientation already
        return 1
    try:
        # not image.getexif(): for PNG it decodes the pixels, to find metadata after them
        value = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
    except Exception:
        # with a damaged EXIF block the pixels are used as stored
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def orientation_of(data: bytes) -> int:
    """Return the EXIF orientation of an image file's bytes, 1 to 8; raises :class:`ImageError`.

    NumPy files and TIFF files of bands that Pillow does not know have none: 1.
    """
    if data.startswith(b"\x93NUMPY"):
        return 1
    with quiet_pillow():
        try:
            return orientation(open_image(data, 1 << 62))
        except ImageError:
            if data.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
                return 1
            raise


def turn_upright(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Rotate or flip stored pixels (H, W, …) according to their image's EXIF orientation."""
    return np.ascontiguousarray(_turned(pixels, orientation))


def _turned(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Return a rotated or flipped view of pixels (H, W, …)."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def pixels_of(image: Any, data: bytes, bit_depth: int | None) -> tuple[NDArray[np.uint8], float]:
    """Decode an opened image to upright (H, W, 3) uint8 RGB; returns it and the used share of its type's range.

    The share is 1.0 for 8-bit and float images. Raises :class:`ImageError`, and anything that Pillow raises for damage.
    """
    _check_scans(image, data)
    turn = orientation(image)
    layout = _TiffLayout(image) if image.format == "TIFF" else None
    image.load()
    if image.mode == "F":
        return _from_float(image, turn)
    # Pillow applies the orientation of TIFF itself
    remaining_turn = 1 if layout else turn
    if not _is_deep(image, data, layout):
        return turn_upright(_from_bytes(image), remaining_turn), 1.0
    samples = _deep_samples(image, data, layout, turn)
    if samples is None:
        if bit_depth is not None:
            raise ImageError(
                "unsupported",
                f"in this kind of {image.format} file only the highest 8 bits of a sample can be read; leave out "
                "--bit-depth, or store it uncompressed",
            )
        pixels = _from_bytes(image)
        return turn_upright(pixels, remaining_turn), (int(pixels.max(initial=0)) + 1) / 256
    bits = 16 if layout is None else layout.value_bits
    pixels, highest = _from_deep(samples, bit_depth or bits, inverted=layout is not None and layout.white_is_zero)
    return turn_upright(pixels, remaining_turn if samples.ndim == 2 else 1), highest / float((1 << bits) - 1)


def _check_scans(image: Any, data: bytes) -> None:
    """Refuse a progressive JPEG with so many tiny scans that decoding would take seconds."""
    if image.format != "JPEG" or not image.info.get("progressive"):
        return
    scans = data.count(b"\xff\xda")
    if scans > MOST_SCANS and scans * image.width * image.height > MOST_SCANNED_PIXELS:
        raise ImageError(
            "too-large", f"it is a progressive JPEG of {scans:,} scans, and at most {MOST_SCANS} are read at this size"
        )


def _from_bytes(image: Any) -> NDArray[np.uint8]:
    width, height = image.size
    out = np.empty((height, width, 3), np.uint8)
    for rows, band in _bands(image):
        try:
            out[rows] = np.asarray(band if band.mode == "RGB" else band.convert("RGB"))
        except ValueError as error:
            raise ImageError(
                "unsupported", f"{image.format} images with pixels of type {image.mode!r} are not read"
            ) from error
    return out


def _from_float(image: Any, turn: int) -> tuple[NDArray[np.uint8], float]:
    width, height = image.size
    out = np.empty((height, width, 3), np.uint8)
    largest = max(float(np.nan_to_num(np.asarray(band), nan=0.0).max()) for _, band in _bands(image))
    scale = 255.0 if largest <= 1.0 else 1.0
    for rows, band in _bands(image):
        levels = np.nan_to_num(np.asarray(band), nan=0.0) * scale
        out[rows] = np.rint(np.clip(levels, 0.0, 255.0)).astype(np.uint8)[..., None]
    return turn_upright(out, 1 if image.format == "TIFF" else turn), 1.0


def _bands(image: Any) -> Iterator[tuple[slice, Any]]:
    """Yield rows of a decoded image, and the image of these rows, about a million pixels at a time."""
    width, height = image.size
    step = max(1, BAND_PIXELS // width)
    for top in range(0, height, step):
        bottom = min(top + step, height)
        yield slice(top, bottom), image if step >= height else image.crop((0, top, width, bottom))


_DEFLATE = (8, 32946)


class _TiffLayout:
    """Tags of an opened TIFF that Pillow ignores."""

    def __init__(self, image: Any) -> None:
        tags = image.tag_v2
        self.bits = int(tags.get(258, (8,))[0])
        self.value_bits = self.bits - 1 if tags.get(339, (1,))[0] == 2 else self.bits
        """Bits of a sample, without the sign."""
        self.signed = self.value_bits < self.bits
        self.white_is_zero = tags.get(262) == 0
        self.samples = int(tags.get(277, 1))
        self.size = (image.size[1], image.size[0])
        self.separate_planes = (
            self.bits > 8 and self.samples > 1 and tags.get(284, 1) == 2 and tags.get(259, 1) in (1, *_DEFLATE)
        )
        self.deflated = tags.get(259, 1) in _DEFLATE
        self.differences = tags.get(317, 1) == 2
        self.strips = list(zip(tags.get(273, ()), tags.get(279, ()), strict=False))
        self.little_endian = image.tag_v2.prefix == b"II"
        self.stored_size = (int(tags.get(257, 0)), int(tags.get(256, 0)))


def _is_deep(image: Any, data: bytes, layout: _TiffLayout | None) -> bool:
    """Return True if a decoded image has samples of more than 8 bits."""
    if image.mode.startswith("I"):
        return True
    color = image.mode in ("RGB", "RGBA", "RGBX")
    return color and (layout.bits == 16 if layout is not None else image.format == "PNG" and data[24] == 16)


def _deep_samples(image: Any, data: bytes, layout: _TiffLayout | None, turn: int) -> NDArray[Any] | None:
    """Return samples of more than 8 bits: (H, W) as in Pillow, or (H, W, 3) upright; None if they are not available."""
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if layout is not None and layout.bits == 32 and not layout.signed:
            return values.view(np.uint32)
        return np.maximum(values, 0)
    if layout is not None and layout.separate_planes:
        return _turned(_planes(layout, data), turn)
    samples = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if samples is None or samples.dtype != np.uint16 or samples.ndim != 3:
        return None
    # OpenCV rotates some formats and confuses some layouts; Pillow's pixels, which are the high bytes, tell which
    high = np.asarray(image)[..., :3]
    upright = high if layout is not None else _turned(high, turn)
    for candidate in (samples[:, :, 2::-1], _turned(samples[:, :, 2::-1], turn)):
        if candidate.shape == upright.shape and _same_high_bytes(candidate, upright):
            return candidate
    return None


def _same_high_bytes(samples: NDArray[np.uint16], high: NDArray[np.uint8]) -> bool:
    step = max(1, BAND_PIXELS // samples.shape[1])
    rows = range(0, len(samples), step)
    return all(np.array_equal(samples[top : top + step] >> 8, high[top : top + step]) for top in rows)


def _planes(layout: _TiffLayout, data: bytes) -> NDArray[np.uint16]:
    if not layout.strips:
        raise ImageError("unsupported", "a 16-bit TIFF with tiles and separate planes is not supported")
    height, width = layout.stored_size
    strips = [data[start : start + size] for start, size in layout.strips]
    if layout.deflated:
        strips = [inflate(strip, 2 * height * width) for strip in strips]
    raw = b"".join(strips)
    samples = np.frombuffer(raw, "<u2" if layout.little_endian else ">u2")
    if samples.size < layout.samples * height * width:
        raise ImageError("truncated", "the TIFF file is cut short or damaged: its planes are incomplete")
    planes = samples[: layout.samples * height * width].reshape(layout.samples, height, width)[:3]
    if layout.deflated and layout.differences:
        planes = np.cumsum(planes, axis=2, dtype=np.uint16)
    return planes.transpose(1, 2, 0)


def _from_deep(samples: NDArray[Any], bits: int, *, inverted: bool) -> tuple[NDArray[np.uint8], float]:
    """Convert (H, W) or (H, W, 3) samples of ``bits`` bits to (H, W, 3) uint8 RGB; also returns the largest sample."""
    height, width = samples.shape[:2]
    out = np.empty((height, width, 3), np.uint8)
    step = max(1, BAND_PIXELS // width)
    highest = 0
    for top in range(0, height, step):
        values = samples[top : top + step].astype(np.int64)
        highest = max(highest, int(values.max(initial=0)))
        if inverted:
            values = (1 << bits) - 1 - values
        levels = np.clip(values >> (bits - 8), 0, 255).astype(np.uint8)
        out[top : top + step] = levels if levels.ndim == 3 else levels[..., None]
    return out, float(highest)


def damage(name: str | None, error: Exception) -> ImageError:
    """Return the :class:`ImageError` for an exception of Pillow's: unsupported, too large, or truncated or damaged."""
    if isinstance(error, Image.DecompressionBombError | MemoryError):
        return ImageError("too-large", f"the {name} image is too large: {error}")
    text = str(error) or type(error).__name__
    if "not identified by this driver" in text:
        text = "its header is invalid"
    cause = error if isinstance(error, KeyError) else error.__cause__
    # Pillow looks a compression up in a table; a missing tag is damage
    unknown = name == "TIFF" and isinstance(cause, KeyError) and cause.args[0] not in _TIFF_TAGS
    if unknown:
        text = f"its compression {text} is not known"
    if unknown or isinstance(error, NotImplementedError) or _UNSUPPORTED.search(text):
        return ImageError("unsupported", f"this kind of {name} file is not read: {text}")
    return ImageError("truncated", f"the {name} file is cut short or damaged: {text}")


_TIFF_TAGS = (256, 257, 258, 259, 262, 273, 277, 278, 279, 322, 323, 324, 325)
_UNSUPPORTED = re.compile(
    r"unknown pixel mode|[Uu]nsupported|not supported|not available|[Cc]annot handle|samples per pixel|not implemented"
)


@cache
def _silence_libraries() -> None:
    """Stop OpenCV and Pillow's copy of libtiff from writing to stderr without a file name; errors are raised anyway."""
    if hasattr(cv2.utils, "logging"):
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    else:
        cv2.setLogLevel(0)  # OpenCV 4; without any handler, logging prints errors itself
    logging.getLogger("PIL").addHandler(logging.NullHandler())
    for library in (Path(Image.__file__).parents[1] / "pillow.libs").glob("libtiff*"):
        libtiff = ctypes.CDLL(str(library))
        for name in ("TIFFSetErrorHandler", "TIFFSetWarningHandler"):
            function = getattr(libtiff, name)
            function.restype = ctypes.c_void_p
            function(None)


_PILLOW_WARNINGS = ("ignore", None, Warning, re.compile(r"PIL\."), 0)
_quiet_lock = threading.Lock()
_quiet_depth = 0


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Ignore Pillow's warnings (damaged EXIF, odd palettes) while any thread decodes.

    ``warnings.catch_warnings`` is not thread-safe: if threads exit it in another order than they entered it, filters
    are lost. Here the first thread adds one entry and the last one removes it.
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
