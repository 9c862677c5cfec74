"""Sound files with other contents and settings: half of the inputs of the targets whose files have checksums or syntax.

Each function returns a file and the part of it that is unusual.
"""

from __future__ import annotations

import io
import random
import re
import struct
import tarfile
import warnings
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

Variant = Callable[[bytes, random.Random], tuple[bytes, tuple[Any, ...]]]


def png_chunks(original: bytes, chance: random.Random) -> tuple[bytes, tuple[Any, ...]]:
    """Change a chunk of a PNG, or add one; checksums are right, and pixels are compressed again."""
    chunks, place = [], 8
    while place < len(original):
        (size,) = struct.unpack(">I", original[place : place + 4])
        chunks.append((original[place + 4 : place + 8], bytearray(original[place + 8 : place + 8 + size])))
        place += 12 + size
    names = [name for name, _ in chunks]
    part = chance.choice(("pixels", "pixels", "pixels", "level", "split", "extra", "extra", "header"))
    first = names.index(b"IDAT")
    pixels = bytearray(zlib.decompress(b"".join(data for name, data in chunks if name == b"IDAT")))
    if part == "pixels":
        # the filter of a row and its pixels; a filter beyond 4 is refused
        place = chance.randrange(len(pixels))
        pixels[place] = chance.randrange(5)
    elif part == "header":
        header = chunks[0][1]
        place = chance.randrange(len(header))
        header[place] = chance.choice((0, 1, 2, 3, 4, 6, 8, 16, 255))
    data = zlib.compress(bytes(pixels), chance.randrange(10))
    pieces = [data]
    if part == "split":
        cut = chance.randrange(len(data))
        pieces = [data[:cut], data[cut:]]
    others = [chunk for chunk in chunks if chunk[0] != b"IDAT"]
    chunks = [*others[:first], *((b"IDAT", bytearray(piece)) for piece in pieces), *others[first:]]
    if part == "extra":
        name = chance.choice((b"tEXt", b"pHYs", b"gAMA", b"tIME", b"iCCP", b"eXIf", b"abCd", b"tRNS", b"zTXt", b"cHRM"))
        data = bytearray(chance.randbytes(chance.choice((0, 4, 9, 40))))
        chunks.insert(chance.randrange(1, len(chunks)), (name, data))
    written = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    ]
    return original[:8] + b"".join(written), (part,)


def encoded_image(format: str) -> Variant:
    """Return a function that encodes another image in a format, with other settings."""

    def variant(original: bytes, chance: random.Random) -> tuple[bytes, tuple[Any, ...]]:
        modes = {"JPEG": ("RGB", "L", "CMYK"), "WEBP": ("RGB", "RGBA")}
        mode = chance.choice(modes.get(format, ("RGB", "L", "P", "1")))
        size = chance.choice((1, 2, 7, 8, 9, 33)), chance.choice((1, 2, 7, 8, 9, 33))
        values = np.frombuffer(chance.randbytes(size[0] * size[1] * 3), np.uint8)
        image = Image.fromarray(values.reshape(size[1], size[0], 3)).convert(mode)
        options: dict[str, Any] = {
            "JPEG": {"quality": chance.randrange(1, 100), "progressive": chance.random() < 0.5, "comment": b"x" * 9},
            "WEBP": {"quality": chance.randrange(100), "lossless": chance.random() < 0.5},
            "TIFF": {"compression": chance.choice((None, "tiff_lzw", "tiff_adobe_deflate", "packbits"))},
            "GIF": {"comment": b"x" * chance.choice((1, 300)), "interlace": chance.random() < 0.5},
        }.get(format, {})
        if format in ("JPEG", "WEBP") and chance.random() < 0.6:
            exif = Image.Exif()
            exif[0x0112] = chance.choice((0, 1, 3, 6, 8, 9, 65535))
            exif[0x010E] = "x" * chance.choice((0, 1, 1000))
            options["exif"] = exif
        buffer = io.BytesIO()
        image.save(buffer, format, **options)
        return buffer.getvalue(), (mode,)

    return variant


def parquet_list(original: bytes, chance: random.Random) -> tuple[bytes, tuple[Any, ...]]:
    """Write the list with other types, compression, row groups and further columns."""
    columns: dict[str, Any] = {
        "path": pa.array(["1.jpg"] * chance.choice((1, 2, 300)), chance.choice((pa.string(), pa.large_string())))
    }
    rows = len(columns["path"])
    if chance.random() < 0.3:
        columns["path"] = columns["path"].dictionary_encode()
    others: dict[str, Callable[[], Any]] = {
        "size": lambda: pa.array([chance.choice((1, 2**62, None)) for _ in range(rows)], pa.int64()),
        "tags": lambda: pa.array([["x"]] * rows),
        "x" * chance.choice((1, 1000)): lambda: pa.nulls(rows),
        "number": lambda: pa.array([float("nan")] * rows),
        "part": lambda: pa.array([{"a": 1}] * rows),
    }
    name = chance.choice(list(others))
    columns[name] = others[name]()
    items = list(columns.items())
    chance.shuffle(items)
    buffer = io.BytesIO()
    compression = chance.choice(("none", "snappy", "zstd", "gzip", "lz4", "brotli"))
    pq.write_table(
        pa.table(dict(items)),
        buffer,
        compression=compression,
        row_group_size=chance.choice((1, 100)),
        use_dictionary=chance.random() < 0.5,
        data_page_version=chance.choice(("1.0", "2.0")),
    )
    return buffer.getvalue(), (name[:8],)


def text_numbers(original: bytes, chance: random.Random) -> tuple[bytes, tuple[Any, ...]]:
    """Replace one number of a text by another of the same kind."""
    numbers = list(re.finditer(rb"\d+\.\d+|\d+", original))
    index = chance.randrange(len(numbers))
    number = numbers[index]
    if b"." in number[0]:
        value = f"{chance.random():.{chance.choice((0, 1, 6, 17))}f}".encode()
    else:
        value = str(chance.choice((0, 1, 2, 3, 4, int(number[0])))).encode()
    return original[: number.start()] + value + original[number.end() :], (f"number {index}",)


def setting_texts(original: dict[str, str], chance: random.Random) -> tuple[dict[str, str], tuple[Any, ...]]:
    """Change the number, or the yes or no, of one setting."""
    name = chance.choice(list(original))
    text = original[name]
    if re.search(r"\d", text):
        text = text_numbers(text.encode(), chance)[0].decode()
    elif text in ("True", "False"):
        text = str(text == "False")
    return original | {name: text}, (name,)


def tar_headers(original: bytes, chance: random.Random) -> tuple[bytes, tuple[Any, ...]]:
    """Write the archive with another name, owner, time, kind or format of a member."""
    format = chance.choice((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT))
    buffer, place = io.BytesIO(), chance.choice(("name", "mode", "mtime", "owner", "kind", "size", "headers"))
    with tarfile.open(fileobj=buffer, mode="w", format=format) as tar:
        for number in range(3):
            info = tarfile.TarInfo(f"{number}.jpg")
            info.size = chance.choice((0, 1, 511, 512, 513)) if place == "size" else 700
            if number == 1:
                names = ("a" * 90 + ".jpg", "./b.jpg", "d/e.png", "é.jpg", " .jpg", "=1.jpg")
                values = {
                    "name": ("name", chance.choice(names)),
                    "mode": ("mode", chance.choice((0, 0o7777))),
                    "mtime": ("mtime", chance.choice((0, 2**33 - 1))),
                    "owner": ("uname", chance.choice(("", "x" * 31))),
                }
                if place in values:
                    setattr(info, *values[place])
                if place == "kind":
                    info.type = chance.choice((tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE, tarfile.DIRTYPE))
                    info.size = 0
                if place == "headers" and format == tarfile.PAX_FORMAT:
                    info.pax_headers = {"comment": "x" * chance.choice((1, 5000)), "mtime": "1.5"}
            tar.addfile(info, io.BytesIO(bytes(info.size)))
    return buffer.getvalue(), (place,)


def checkpoint(original: bytes, chance: random.Random) -> tuple[bytes, tuple[Any, ...]]:
    """Save a checkpoint with other tensors and plain data."""
    import torch

    kind = chance.choice((torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool))
    shape = [chance.choice((0, 1, 3, 17)) for _ in range(chance.randrange(4))]
    weights = {"w": torch.zeros(shape, dtype=kind), "x" * chance.choice((1, 900)): torch.ones(2)}
    plain = chance.choice((None, 3, 0.5, "x", [1, 2], {"a": (1, 2)}, True))
    content = {"model": weights, "ema": chance.choice((None, weights)), "step": plain, "best": plain}
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=chance.random() < 0.8)
    return buffer.getvalue(), (str(kind),)


def npy_of_bands(chance: random.Random) -> bytes:
    """Return a ``.npy`` file of four bands in one of the layouts, most often of 16 bits."""
    kind = chance.choice(("<u2", "<u2", "<u2", ">u2", "<u2", "<f4"))
    shape = chance.choice(((4, 9, 12), (9, 12, 4), (5, 11, 10), (12, 12), (4, 6, 5), (1, 4, 3, 2), (1, 5, 9, 9)))
    values = np.frombuffer(chance.randbytes(int(np.prod(shape)) * 4), "<u4").astype(kind).reshape(shape)
    stream = io.BytesIO()
    np.save(stream, np.asfortranarray(values) if chance.random() < 0.3 else values)
    return stream.getvalue()


def bands_npy(original: bytes, chance: random.Random) -> tuple[bytes, tuple[Any, ...]]:
    """Write another array of bands."""
    data = npy_of_bands(chance)
    return data, (data[data.index(b"(") : data.index(b")")].decode(),)


def tiff_of_bands(seed: int, **options: Any) -> bytes:
    """Return a GeoTIFF file of four bands of 40 x 24 samples of 16 bits."""
    import rasterio

    values = np.random.default_rng(seed).integers(0, 9000, (4, 24, 40), dtype=np.uint16)
    with warnings.catch_warnings(), rasterio.MemoryFile() as memory:
        warnings.simplefilter("ignore")
        with memory.open(driver="GTiff", count=4, height=24, width=40, dtype="uint16", **options) as file:
            file.write(values)
        return memory.read()


def bands_tiff(original: bytes, chance: random.Random) -> tuple[bytes, tuple[Any, ...]]:
    """Write the samples with another compression, layout, byte order or nodata value."""
    part = chance.choice(("compress", "interleave", "tiled", "endianness", "bigtiff", "nodata", "predictor"))
    choices: dict[str, dict[str, Any]] = {
        "compress": {"compress": chance.choice(("deflate", "lzw", "packbits", "zstd", "lerc"))},
        "interleave": {"interleave": chance.choice(("band", "pixel"))},
        "tiled": {"tiled": True, "blockxsize": 16, "blockysize": 16},
        "endianness": {"ENDIANNESS": "BIG"},
        "bigtiff": {"bigtiff": "yes"},
        "nodata": {"nodata": chance.choice((0, 1, 65535))},
        "predictor": {"compress": "deflate", "predictor": 2},
    }
    return tiff_of_bands(chance.randrange(4), **choices[part]), (part,)


def image_rows(chance: random.Random) -> bytes:
    """Return a Parquet file of images as ``datasets`` writes them, or as a column of bytes."""
    rows = chance.choice((1, 3, 40))
    data = [chance.randbytes(chance.choice((0, 9, 300))) for _ in range(rows)]
    names = [chance.choice(("1.jpg", "a/b.png", "", "é.jpg", None)) for _ in range(rows)]
    columns: dict[str, Any] = {"image": [{"bytes": part, "path": name} for part, name in zip(data, names, strict=True)]}
    if chance.random() < 0.5:
        columns = {"jpg": data, "__key__": names}
    if chance.random() < 0.3:
        columns["image_id"] = list(range(rows))
    buffer = io.BytesIO()
    pq.write_table(
        pa.table(columns), buffer, compression=chance.choice(("none", "snappy", "zstd")),
        row_group_size=chance.choice((1, 7, 100)),
    )  # fmt: skip
    return buffer.getvalue()


def image_table(original: bytes, chance: random.Random) -> tuple[bytes, tuple[Any, ...]]:
    """Write other rows of images."""
    data = image_rows(chance)
    return data, (len(data).bit_length(),)


def manifest(original: bytes, chance: random.Random) -> tuple[bytes, tuple[Any, ...]]:
    """Write the manifest with another value in one of its columns."""
    table = pq.read_table(io.BytesIO(original))
    name = chance.choice(table.column_names)
    field = table.schema.field(name)
    numbers = (None, 0, 5, 2**62, -1)
    texts = ("1.jpg", "a::b.jpg", "x.tif::window=0,0,16,16", "http://127.0.0.1:9/1.jpg", "", "é", None)
    value = chance.choice(texts if pa.types.is_string(field.type) else numbers)
    column = pa.array([value] * len(table), field.type)
    buffer = io.BytesIO()
    pq.write_table(table.set_column(table.schema.get_field_index(name), field, column), buffer)
    return buffer.getvalue(), (name,)
