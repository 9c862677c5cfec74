"""Reading the scores of one image from files that another program has written, within limits of size and kind."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import ImageError, MissingPackageError
from ..inputs.label_maps import decode_map
from ..inputs.rasters.npy import read_npy_header
from ..model.schema import read_json_object, read_value
from ..reading.local import read_local

MAX_VALUES = 1 << 30
"""Most scores of one image, in all its classes."""
_MAX_BYTES = 1 << 32
_MAX_METADATA = 1 << 20
_CODECS = frozenset(
    (
        *("bytes", "blosc", "zstd", "gzip", "zlib", "lz4", "bz2", "lzma", "crc32", "crc32c", "transpose", "shuffle"),
        *("sharding_indexed", "delta", "fixedscaleoffset", "quantize"),
    )
)
"""Codecs of zarr arrays that are read: all that give numbers back; others unpickle what a file holds."""


def read_array(path: Path) -> NDArray[np.float32]:
    """Read a ``.npy`` file of numbers as float32; raises :class:`ImageError`, :class:`ValueError` and ``OSError``."""
    data = read_local(str(path), _MAX_BYTES)
    stream = io.BytesIO(data)
    shape, in_fortran_order, dtype = read_npy_header(stream)
    _check(shape, dtype)
    count = math.prod(shape)
    if len(data) - stream.tell() < count * dtype.itemsize:
        raise ValueError("the .npy file is cut short: scores are missing")
    array = np.frombuffer(data, dtype, count, stream.tell()).reshape(shape, order="F" if in_fortran_order else "C")
    return np.ascontiguousarray(array, np.float32)


def read_zarr(path: Path) -> NDArray[np.float32]:
    """Read a zarr array of numbers as float32; raises :class:`ImageError` and :class:`ValueError`."""
    try:
        import zarr
    except ImportError as error:
        raise MissingPackageError("zarr", "zarr", "scores from zarr arrays") from error
    _check_codecs(path)
    try:
        array: Any = zarr.open_array(path, mode="r")
        _check(array.shape, np.dtype(array.dtype))
        return np.ascontiguousarray(array[:], np.float32)
    except (MemoryError, ImageError):
        raise
    except Exception as error:
        # each codec raises exceptions of its own
        raise ValueError(f"the zarr array is damaged: {error}") from error


def read_maps(folder: Path, names: Sequence[str], confidences: Path | None) -> dict[str, NDArray[np.float32]]:
    """Read ``CLASS.png`` of every class that has one: score maps, or masks with the ``confidences`` of a JSON file.

    Raises :class:`ImageError`, :class:`ValueError`, :class:`UsageError` for another JSON file, and ``OSError``.
    """
    shares: Mapping[str, float] | None = None
    if confidences is not None:
        shares = read_value(dict[str, float], read_json_object(confidences, max_bytes=_MAX_METADATA), confidences.name)
    maps: dict[str, NDArray[np.float32]] = {}
    for name in names:
        if not (file := folder / f"{name}.png").is_file():
            continue
        values = np.asarray(decode_map(read_local(str(file), _MAX_BYTES)))
        if shares is None:
            largest = {"uint8": 255, "bool": 1}.get(values.dtype.name, 65535)
            maps[name] = values.astype(np.float32) / np.float32(largest)
        elif name in shares:
            maps[name] = (values != 0).astype(np.float32) * np.float32(shares[name])
        else:
            raise ValueError(f"{confidences} has no confidence of the class {name!r}")
        first = next(iter(maps))
        if maps[name].ndim != 2 or maps[name].shape != maps[first].shape:
            raise ValueError(f"{file.name} has the shape {maps[name].shape}, {first}.png {maps[first].shape}")
    if maps and len(names) * next(iter(maps.values())).size > MAX_VALUES:
        raise ImageError("too-large", f"its scores are more than {MAX_VALUES:,} values")
    return maps


def _check(shape: Sequence[int], dtype: np.dtype[Any]) -> None:
    if dtype.kind not in "fiu":
        raise ValueError(f"scores are numbers, such as float32; got {dtype}")
    if math.prod(shape) > MAX_VALUES:
        raise ImageError("too-large", f"its scores have the shape {tuple(shape)}, more than {MAX_VALUES:,} values")


def _check_codecs(path: Path) -> None:
    """Refuse an array whose metadata name a codec that may run code, in either version of the format."""
    for name in (".zarray", "zarr.json"):
        if (file := path / name).exists():
            text = read_local(str(file), _MAX_METADATA)
            try:
                raw = json.loads(text)
            except RecursionError as error:
                raise ValueError(f"{name} is nested too deeply") from error
            for codec in _codec_names(raw):
                if codec.removeprefix("numcodecs.") not in _CODECS:
                    raise ValueError(f"{name} names the codec {codec!r:.80}, which is not read")


def _codec_names(raw: Any) -> list[str]:
    """Return all values named ``id`` in the filters and the compressor, and ``name`` in the codecs."""
    if not isinstance(raw, dict):
        raise ValueError("the metadata of the zarr array are no JSON object")
    names: list[str] = []
    waiting = [raw.get(key) for key in ("filters", "compressor", "codecs")]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            names += [str(value[key]) for key in ("id", "name") if key in value]
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
    return names
