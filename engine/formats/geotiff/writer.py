"""GeoTIFF label maps: class indices with the coordinates of the file that was labeled.

``NAME.tif`` has the size, coordinate reference system and transform of its source, one band of class indices in VOC's
colors, and the ignore value as its nodata value; band tags ``class_0``, ``class_1``, … hold the names of the classes.
Pixels without data in the source have no label. Windows of one source become one file; if windows overlap, a pixel is
taken from the window whose border is farther away.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ....errors import UsageError
from ...model.files import refuse_overwriting
from ...model.png import decode_png, encode_png
from ...model.publishing import published_file
from ...reading.geotiff import SETTINGS, Window, has_tiff_ending, rasterio_for, split_window
from ..base import FileSink, LabelClasses, LabeledImage, Writer
from ..mask_folders import index_palette

if TYPE_CHECKING:
    from rasterio import DatasetReader

_BLOCK = 512


class _Part(NamedTuple):
    """Label map of a source file or of one window of it."""

    stem: str
    path: str
    window: Window
    png: str
    """Class indices, PNG as base64."""


class GeotiffWriter(Writer):
    """Writes ``NAME.tif`` and ``classes.txt``; needs rasterio."""

    format = "geotiff"
    marks_ignored = True
    merges_windows = True
    image_modes = ("none",)

    def write(self, index: int, images: Sequence[LabeledImage], sink: FileSink) -> str:
        """Check that the image has coordinates, and return its labels."""
        (image,) = images
        if image.path is None or not has_tiff_ending((split_window(image.path) or (image.path,))[0]):
            raise UsageError(
                f"{image.name} is not a local GeoTIFF file, so its labels have no coordinates; use --format png"
            )
        height, width = image.label.shape
        path, window = split_window(image.path) or (image.path, Window(0, 0, height, width))
        with _source(path) as source:
            if window.row + height > source.height or window.column + width > source.width:
                raise UsageError(f"{path} has changed since it was labeled; run `maskmill label` again")
        png = base64.b64encode(encode_png(image.label)).decode()
        return json.dumps(_Part(image.stem, path, window, png))

    def finish(self, parts: Callable[[], Iterator[str]], sink: FileSink) -> None:
        """Write one file per source, window by window."""
        windows: dict[str, list[Window]] = {}
        for part in _read(parts()):
            windows.setdefault(part.stem, []).append(part.window)
        for stem, group in groupby(_read(parts()), key=lambda part: part.stem):
            temporary = sink.folder / f".{os.path.basename(stem)}.tif"
            _write_file(temporary, group, windows[stem], self.options.classes)
            target = sink.folder / f"{stem}.tif"
            target.parent.mkdir(parents=True, exist_ok=True)
            sink.adopt(f"{stem}.tif", temporary)
        sink.save("classes.txt", "".join(f"{name}\n" for name in self.names).encode())


def write_label_map(
    target: str | os.PathLike[str], source: str | os.PathLike[str], label: NDArray[Any], classes: LabelClasses
) -> None:
    """Write labels (H, W) as a GeoTIFF file with the coordinates of ``source``, the file that was labeled.

    Raises :class:`UsageError` if the source has no coordinates, or the target cannot be written or is the source.
    """
    refuse_overwriting(target, [source])
    rasterio = rasterio_for("writing GeoTIFF files")
    window = Window(0, 0, *label.shape)
    part = _Part("", os.fspath(source), window, base64.b64encode(encode_png(label)).decode())
    try:
        with published_file(Path(target)) as path:
            _write_file(path, iter([part]), [window], classes)
    except (OSError, rasterio.errors.RasterioError) as error:
        raise UsageError(f"cannot write {target}: {error}") from error


def _write_file(target: Path, parts: Iterator[_Part], windows: Sequence[Window], classes: LabelClasses) -> None:
    rasterio = rasterio_for("writing GeoTIFF files")
    from rasterio.windows import Window as RasterWindow

    first = next(parts)
    rows = _cores([(window.row, window.height) for window in windows])
    columns = _cores([(window.column, window.width) for window in windows])
    with _source(first.path) as source, rasterio.Env(**SETTINGS):
        # blocks that no window fills read as the nodata value
        layout = {"tiled": True, "blockxsize": _BLOCK, "blockysize": _BLOCK, "compress": "deflate"}
        with rasterio.open(
            target, "w", driver="GTiff", height=source.height, width=source.width, count=1,
            dtype=classes.dtype.name, nodata=classes.ignore, crs=source.crs, transform=source.transform,
            sparse_ok=True, bigtiff="if_safer", **layout,
        ) as file:  # fmt: skip
            file.update_tags(1, **{f"class_{index}": name for index, name in enumerate(classes.names)})
            if classes.dtype == np.uint8:
                palette = index_palette(len(classes.names)).tolist()
                file.write_colormap(1, {value: (*color, 255) for value, color in enumerate(palette)})
            for part in (first, *parts):
                label = decode_png(base64.b64decode(part.png))
                (top, bottom), (left, right) = rows[part.window.row], columns[part.window.column]
                bottom, right = (
                    min(bottom, part.window.row + len(label)),
                    min(right, part.window.column + label.shape[1]),
                )
                core = RasterWindow(left, top, right - left, bottom - top)
                cut = _cut(label, top - part.window.row, bottom - top, left - part.window.column, right - left)
                cut = np.where(source.dataset_mask(window=core) == 0, cut.dtype.type(classes.ignore), cut)
                file.write(cut, 1, window=core)


def _read(lines: Iterator[str]) -> Iterator[_Part]:
    for line in lines:
        stem, path, window, png = json.loads(line)
        yield _Part(stem, path, Window(*window), png)


def _cut(label: NDArray[Any], row: int, height: int, column: int, width: int) -> NDArray[Any]:
    return np.ascontiguousarray(label[row : row + height, column : column + width])


def _cores(sides: Sequence[tuple[int, int]]) -> dict[int, tuple[int, int]]:
    """Return, for each start along one axis, the part [first, last) that its windows contribute to the merged map.

    ``sides`` are (start, length); an overlap is split in the middle.
    """
    ends = {start: start + length for start, length in sides}
    starts = sorted(ends)
    cores = {}
    for index, start in enumerate(starts):
        first, last = start, ends[start]
        if index:
            first = max(first, (start + ends[starts[index - 1]]) // 2)
        if index + 1 < len(starts):
            last = min(last, (starts[index + 1] + last) // 2)
        cores[start] = first, max(first, last)
    return cores


def _source(path: str) -> DatasetReader:
    """Open the file that was labeled; raises :class:`UsageError` if it has no coordinates or no longer exists."""
    rasterio = rasterio_for("writing GeoTIFF files")
    try:
        with rasterio.Env(**SETTINGS):
            source = rasterio.open(path, driver="GTiff")
    except rasterio.errors.RasterioError as error:
        raise UsageError(f"cannot read the coordinates of {path}: {error}") from error
    if source.crs is None:
        source.close()
        raise UsageError(f"{path} has no coordinate reference system; use --format png")
    return source
