"""Builders of small photos, hostile files and store rows."""

from __future__ import annotations

import io
import os
import random
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from maskmill.engine.calibration.calibration import Calibration
from maskmill.engine.calibration.scores.score_counts import ScoreCounts
from maskmill.engine.labeling.kept.keep import ScoreKeeper
from maskmill.engine.model.png import encode_png
from maskmill.engine.store.label_store import InputRow, LabelRow, content_id


def photo(height: int = 12, width: int = 20, seed: int = 0) -> NDArray[np.uint8]:
    """A smooth (H, W, 3) uint8 picture: lossy formats keep it within a few levels."""
    rng = np.random.default_rng(seed)
    corners = Image.fromarray(rng.integers(0, 256, (2, 2, 3), dtype=np.uint8))
    return np.array(corners.resize((width, height), Image.Resampling.BILINEAR))


def encoded(pixels: NDArray[Any] | Image.Image, format: str, **options: Any) -> bytes:
    """Encode an image file."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def gray_png(values: NDArray[np.uint8], bits: int) -> bytes:
    """A gray PNG of 1, 2, 4 or 8 bits per sample, which Pillow does not write."""
    height, width = values.shape
    samples = np.unpackbits(values[..., None], axis=-1)[..., 8 - bits :].reshape(height, -1)
    rows = b"".join(b"\0" + row.tobytes() for row in np.packbits(samples, axis=1))
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    return _PNG + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(rows)) + _chunk(b"IEND", b"")


def label_row(name: str, *, labels: NDArray[Any] | None = None, weights: NDArray[np.uint8] | None = None) -> LabelRow:
    """Labels of the image whose bytes are ``name``."""
    labels = np.full((2, 3), 7, dtype=np.uint8) if labels is None else labels
    weights = np.full(labels.shape, 200, dtype=np.uint8) if weights is None else weights
    return LabelRow(
        id=content_id(name.encode()),
        width=labels.shape[1],
        height=labels.shape[0],
        label=encode_png(labels),
        weight=encode_png(weights),
        counts=np.bincount(labels.ravel(), minlength=8).astype(np.int64),
        kept=1.0,
        confidence=0.5,
    )


def input_row(name: str, *, uri: str | None = None, size: int | None = 3, stamp: str = "1") -> InputRow:
    """The labeled input ``uri`` with the bytes ``name``."""
    return InputRow(uri=uri or name, size=size, stamp=stamp, id=content_id(name.encode()), error=None, message=None)


def reject_row(uri: str, *, error: str = "truncated", size: int | None = 3, stamp: str = "1") -> InputRow:
    """The rejected input ``uri``."""
    return InputRow(uri=uri, size=size, stamp=stamp, id=None, error=error, message="cut short")


def hostile_files() -> Iterator[tuple[str, bytes]]:
    """Yield (name, bytes) of hostile files: each is decoded, or refused with a reason."""
    sound = dict(_sound_files())
    rng = random.Random(0)
    for name, data in sound.items():
        yield f"sound {name}", data
        for share in (0.01, 0.1, 0.4, 0.7, 0.99):
            yield f"{name} cut to {share:.0%}", data[: int(len(data) * share)]
        for damage in range(2):
            broken = bytearray(data)
            for _ in range(8):
                broken[rng.randrange(len(broken))] = rng.randrange(256)
            yield f"{name} with damage {damage}", bytes(broken)
    yield "empty", b""
    yield "one byte", b"\xff"
    yield "zeros", bytes(4096)
    yield "random bytes", rng.randbytes(4096)
    yield "text", b"this is a list of photos\n" * 20
    yield "html", b"<!DOCTYPE html><html><body>404 Not Found</body></html>"
    yield "svg", b'<svg xmlns="http://www.w3.org/2000/svg" width="99999" height="99999"/>'
    yield "zip", b"PK\x03\x04" + rng.randbytes(400)
    yield "pdf", b"%PDF-1.7\n" + rng.randbytes(400)
    yield "postscript", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file\n"
    for name, signature in (
        ("jpeg", b"\xff\xd8\xff"),
        ("png", _PNG),
        ("tiff", b"II*\0"),
        ("webp", b"RIFF\0\0\0\0WEBP"),
    ):
        yield f"{name} signature and nothing", signature
        yield f"{name} signature and noise", signature + rng.randbytes(2000)
    for size in ((100_000, 100_000), (2**31 - 1, 2**31 - 1), (0, 0), (0, 9), (2**31, 1)):
        yield f"png of {size}", _png(*size)
    yield "gif of 65535x65535", b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0x80, 0, 0) + bytes(6) + b";"
    yield "gif of 0x0", b"GIF89a" + struct.pack("<HHBBB", 0, 0, 0x80, 0, 0) + bytes(6) + b";"
    frame = b"," + struct.pack("<HHHHB", 65000, 65000, 65000, 65000, 0) + b"\x08\x02\x4c\x01\x00;"
    yield "gif with a frame far outside", b"GIF89a" + struct.pack("<HHBBB", 4, 4, 0x80, 0, 0) + bytes(6) + frame
    yield "ppm of 1e6 x 1e6", b"P6 1000000 1000000 255\n" + bytes(30)
    yield "ppm of 0 x 0", b"P6 0 0 255\n"
    yield "ppm of -4 x 4", b"P6 -4 4 255\n" + bytes(48)
    yield "ppm with a maximum of 0", b"P6 2 2 0\n" + bytes(12)
    for width, height in ((2**30, 2**30), (0, 0), (-5, 5), (5, -(2**31))):
        header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
        yield f"bmp of {width}x{height}", b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + header + bytes(64)
    jpeg = sound["jpeg"]
    frame_at = jpeg.index(b"\xff\xc0")
    for height, width in ((65535, 65535), (0, 8), (8, 0)):
        yield (
            f"jpeg of {width}x{height}",
            jpeg[: frame_at + 5] + struct.pack(">HH", height, width) + jpeg[frame_at + 9 :],
        )
    webp = b"VP8X" + struct.pack("<II", 10, 0) + (2**24 - 1).to_bytes(3, "little") * 2
    yield "webp of 16777216x16777216", b"RIFF" + struct.pack("<I", len(webp) + 4) + b"WEBP" + webp
    for name, exif in _hostile_exif():
        yield f"jpeg with exif: {name}", jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:]
        chunk = _chunk(b"eXIf", exif[6:])
        yield f"png with exif: {name}", sound["png"][:33] + chunk + sound["png"][33:]
    for name, entries, following in _hostile_tiff():
        yield f"tiff with {name}", _tiff(entries, following)
    bomb = zlib.compress(bytes(50_000_000), 9)
    yield "png with a text bomb", sound["png"][:33] + _chunk(b"zTXt", b"a\0\0" + bomb) + sound["png"][33:]
    yield (
        "png without pixels",
        _PNG + _chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 8, 2, 0, 0, 0)) + _chunk(b"IEND", b""),
    )
    yield "png with a wrong checksum", sound["png"][:30] + b"\0\0\0" + sound["png"][33:]
    yield "png of an unknown color type", _png(4, 4, color=5)
    yield "png of 7 bits", _png(4, 4, bits=7)
    yield "png with a palette that is missing", _png(4, 4, color=3)
    yield "apng without frames", sound["png"][:33] + _chunk(b"acTL", struct.pack(">II", 0, 0)) + sound["png"][33:]


def hostile_paths(folder: Path) -> list[Path]:
    """Return names in ``folder`` that cannot be read as files, or only with difficulty."""
    paths = [
        folder / name for name in ("folder.jpg", "dangling.jpg", "loop.jpg", "pipe.jpg", "huge.jpg", "it's \n 1.jpg")
    ]
    directory, dangling, loop, pipe, huge, odd = paths
    directory.mkdir()
    dangling.symlink_to(folder / "nothing.jpg")
    loop.symlink_to(loop)
    os.mkfifo(pipe)
    with open(huge, "wb") as file:
        file.truncate(3 << 30)
    odd.write_bytes(b"")
    raw = Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.jpg"))
    raw.write_bytes(b"")
    return [*paths, raw]


_PNG = b"\x89PNG\r\n\x1a\n"


def _sound_files() -> Iterator[tuple[str, bytes]]:
    picture = photo(24, 32)
    gray = picture[:, :, 0]
    yield "jpeg", encoded(picture, "JPEG")
    yield "progressive jpeg", encoded(picture, "JPEG", progressive=True)
    yield "cmyk jpeg", encoded(Image.fromarray(picture).convert("CMYK"), "JPEG")
    yield "png", encoded(picture, "PNG")
    yield "16-bit png", encoded(gray.astype(np.uint16) * 257, "PNG")
    yield "palette png", encoded(Image.fromarray(picture).convert("P"), "PNG", transparency=bytes(range(256)))
    yield "gif", encoded(Image.fromarray(picture), "GIF", save_all=True, append_images=[Image.fromarray(255 - picture)])
    yield "webp", encoded(picture, "WEBP")
    yield "bmp", encoded(picture, "BMP")
    yield "tiff", encoded(picture, "TIFF")
    yield "lzw tiff", encoded(picture, "TIFF", compression="tiff_lzw")
    yield "float tiff", encoded(gray.astype(np.float32) / 255, "TIFF")
    yield "ppm", encoded(picture, "PPM")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(width: int, height: int, *, bits: int = 8, color: int = 2) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    return _PNG + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(bytes(500))) + _chunk(b"IEND", b"")


def _hostile_exif() -> Iterator[tuple[str, bytes]]:
    start = b"Exif\0\0MM\0*"
    yield "noise", b"Exif\0\0" + random.Random(1).randbytes(60)
    yield "nothing", b"Exif\0\0"
    yield "directory outside", start + struct.pack(">I", 2**31)
    yield "65535 entries", start + struct.pack(">IH", 8, 65535) + b"\x01\x12" * 9
    orientation = struct.pack(">HHI", 0x0112, 3, 1)
    yield "orientation 99", start + struct.pack(">IH", 8, 1) + orientation + struct.pack(">HHI", 99, 0, 0)
    yield "orientation as text", start + struct.pack(">IHHHI", 8, 1, 0x0112, 2, 4) + b"up!\0" + bytes(4)
    yield "orientation a million times", start + struct.pack(">IHHHII", 8, 1, 0x0112, 3, 10**6, 8) + bytes(4)
    yield "directory in a circle", start + struct.pack(">IHHHIII", 8, 1, 0x8769, 4, 1, 8, 8)


def _hostile_tiff() -> Iterator[tuple[str, dict[int, tuple[int, int, int]], int]]:
    # tag → (type, count, value)
    sound = {256: (3, 1, 4), 257: (3, 1, 4), 258: (3, 1, 8), 259: (3, 1, 1), 262: (3, 1, 1), 273: (4, 1, 8)}
    sound |= {277: (3, 1, 1), 278: (3, 1, 4), 279: (4, 1, 16)}
    yield "a million columns", sound | {256: (4, 1, 10**6), 257: (4, 1, 10**6)}, 0
    yield "no columns", sound | {256: (3, 1, 0)}, 0
    yield "no size at all", {tag: entry for tag, entry in sound.items() if tag not in (256, 257)}, 0
    yield "pixels outside the file", sound | {273: (4, 1, 2**31)}, 0
    yield "255 samples a pixel", sound | {277: (3, 1, 255)}, 0
    yield "64-bit samples", sound | {258: (3, 1, 64)}, 0
    yield "an unknown compression", sound | {259: (3, 1, 4242)}, 0
    yield "deflated noise", sound | {259: (3, 1, 8)}, 0
    yield "a tag of 4 billion values", sound | {320: (3, 2**32 - 1, 8)}, 0
    yield "a tag outside the file", sound | {700: (1, 5000, 10**6)}, 0
    yield "a text for its width", sound | {256: (2, 4, 0x41414141)}, 0
    yield "4000 tags", sound | {tag: (4, 1, 8) for tag in range(40_000, 44_000)}, 0
    yield "directories in a circle", sound, 8 + 16
    yield "a next directory outside", sound, 2**31
    yield "tiles of nothing", sound | {322: (3, 1, 0), 323: (3, 1, 0), 324: (4, 1, 8), 325: (4, 1, 16)}, 0


def _tiff(entries: dict[int, tuple[int, int, int]], following: int) -> bytes:
    pixels = bytes(range(16))
    data = b"II*\0" + struct.pack("<I", 8 + len(pixels)) + pixels + struct.pack("<H", len(entries))
    for tag, (kind, count, value) in sorted(entries.items()):
        data += struct.pack("<HHII", tag, kind, count, value)
    return data + struct.pack("<I", following)


def score_keeper(thresholds: NDArray[np.float32], *, alpha: str = "0.05") -> ScoreKeeper:
    """A keeper of scores up to ``thresholds`` (Ke,), with a calibration of the same thresholds and no images."""
    calibration = Calibration(
        alpha=alpha, group="class", unit="pixel", rule="agree", thresholds=thresholds, pooled=1.0, made_with={},
        report={}, min_images=9, targets=tuple(f"class {index}" for index in range(len(thresholds))), background=None,
        counts=ScoreCounts.empty(),
    )  # fmt: skip
    return ScoreKeeper(alpha=alpha, limits=thresholds, calibration=calibration)
