"""YOLO segmentation: a text file per image, one polygon per line in shares of width and height, names in data.yaml.

A region with holes is written as one polygon that follows a bridge to the hole and back. Of overlapping polygons the
smaller is on top, as in Ultralytics' training. Files that hold boxes instead of polygons are refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import UsageError
from .base import FileSink, LabeledImage, LabelReader, Overlaps, Shape, ShapeClasses, ShapeOptions, Writer, paint_shapes
from .files import FileTree, open_picture
from .polygons import outlines, runs_of_polygon

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


class YoloReader(LabelReader):
    """Reads a folder with data.yaml, ``labels/`` and, for the sizes of images, ``images/``."""

    format = "yolo-seg"

    def __init__(self, location: str, options: ShapeOptions) -> None:
        self.path = location
        self._overlaps: Overlaps = options.overlaps or "smaller"
        self._tree = FileTree(location)
        config = next((name for name in self._tree.names if name.endswith(("data.yaml", "data.yml"))), None)
        if config is None:
            raise UsageError(f"{location} has no data.yaml, which names the classes of YOLO label files")
        class_names = read_names(self._tree.read(config).decode("utf-8-sig"), self._tree.path(config))
        files = [name for name in self._tree.with_suffix(".txt") if "labels" in name.split("/")[:-1]]
        self._files = {_image_stem(name): name for name in files}
        if not files:
            raise UsageError(f"{location} has no labels/*.txt")
        used_names = {class_names.get(number, "") for name in files for number in _class_numbers(self._tree.read(name))}
        self._names = class_names
        self._classes = ShapeClasses(class_names.values(), options, used_names=used_names)
        self.class_names: Mapping[int, str] = self._classes.by_value
        self.image_names: Sequence[str] = list(self._files)
        self.notes: tuple[str, ...] = (self._classes.note, f"overlaps: {self._overlaps} on top")
        self._images = {name.rsplit(".", 1)[0]: name for name in self._tree.with_suffix(*IMAGE_SUFFIXES)}

    def decode_labels(self, name: str, size: tuple[int, int] | None = None) -> NDArray[Any]:
        """Rasterize the polygons of an image; its size is read from the image beside the labels unless given."""
        file = self._files[name]
        height, width = size or self._size_of(file)
        shapes = []
        for number, line in enumerate(self._tree.read(file).decode("utf-8-sig", "replace").splitlines(), start=1):
            if not line.strip():
                continue
            where = f"{self._tree.path(file)}, line {number}"
            try:
                index, *coordinates = (float(value) for value in line.split())
            except ValueError as error:
                raise UsageError(f"{where}: expected a class number and coordinates, got {line[:40]!r}") from error
            if len(coordinates) == 4:
                raise UsageError(f"{where} holds a box; boxes are not label maps, expected polygons (YOLO-seg)")
            if len(coordinates) < 6 or len(coordinates) % 2:
                raise UsageError(f"{where}: expected x and y of at least three corners, got {len(coordinates)} numbers")
            if int(index) not in self._names:
                raise UsageError(f"{where}: class {int(index)} has no name in data.yaml ({len(self._names)} names)")
            points = np.asarray(coordinates).reshape(-1, 2)
            if points.min() < -0.01 or points.max() > 1.01:
                raise UsageError(f"{where}: coordinates are shares in [0, 1], got {points.max():g}")
            runs = runs_of_polygon(points * (width, height), height, width)
            shapes.append(Shape(self._classes.values[self._names[int(index)]], runs))
        return paint_shapes(shapes, height, width, self._classes, self._overlaps)

    def _size_of(self, file: str) -> tuple[int, int]:
        parts = file.rsplit(".", 1)[0].split("/")
        position = len(parts) - 2 - parts[-2::-1].index("labels")
        image = self._images.get("/".join([*parts[:position], "images", *parts[position + 1 :]]))
        if image is None:
            raise UsageError(f"the size of {file} is unknown: put its image under images/, beside labels/")
        header = open_picture(self._tree.read(image), self._tree.path(image), header_only=True)
        return header.height, header.width


def _image_stem(file: str) -> str:
    """Return the path of an image below images/ without its extension."""
    parts = file.rsplit(".", 1)[0].split("/")
    return "/".join(parts[len(parts) - parts[::-1].index("labels") :])


def _class_numbers(data: bytes) -> set[int]:
    return {int(match) for match in re.findall(rb"^\s*(\d+)", data, re.MULTILINE)}


def read_names(text: str, where: str) -> dict[int, str]:
    """Read ``names`` of a data.yaml: a list or a mapping from numbers, in one line or several.

    Raises :class:`UsageError` if there are none.
    """
    match = re.search(r"^names[ \t]*:[ \t]*(.*(?:\n(?:[ \t]+.*|-.*|\}|\]|[ \t]*))*)", text, re.MULTILINE)
    body = match[1] if match else ""
    inline = re.match(r"\s*([\[{])(.*?)[\]}]", body, re.DOTALL)
    if inline:
        entries = [entry for entry in re.findall(r"""(?:"[^"]*"|'[^']*'|[^,])+""", inline[2]) if entry.strip()]
    else:
        lines = [re.sub(r"\s+#.*", "", line).strip() for line in body.splitlines()]
        entries = [line.removeprefix("-").strip() for line in lines if line and not line.startswith("#")]
    names = {}
    for index, entry in enumerate(entries):
        pair = re.match(r"\s*(\d+)\s*:\s+(.*)", entry, re.DOTALL)
        is_mapping = pair is not None and (inline is None or inline[1] == "{")
        key, value = (int(pair[1]), pair[2]) if pair is not None and is_mapping else (index, entry)
        names[key] = _unquoted(value.strip())
    if not names:
        raise UsageError(f"{where} has no `names`; expected a list of class names or `0: name` per line")
    return names


def _unquoted(value: str) -> str:
    if value[:1] == '"':
        # YAML has two escapes that JSON lacks
        value = re.sub(r"\\x([0-9a-fA-F]{2})", r"\\u00\1", value)
        value = re.sub(r"\\U([0-9a-fA-F]{8})", lambda match: chr(int(match[1], 16)), value)
        try:
            return json.loads(value)
        except ValueError as error:
            raise UsageError(f"cannot read the class name {value} of data.yaml: {error}") from error
    return value[1:-1].replace("''", "'") if value[:1] == "'" else value


class YoloWriter(Writer):
    """Writes data.yaml, ``labels/*.txt`` and photos under ``images/``, including regions too small for Ultralytics."""

    format = "yolo-seg"

    def write(self, index: int, images: Sequence[LabeledImage], sink: FileSink) -> str:
        """Write one text file, empty for an image without shapes."""
        (image,) = images
        suffix = image.name.rsplit(".", 1)[-1]
        self.place_image(sink, image, f"images/{image.stem}.{suffix}")
        height, width = image.label.shape
        skipped_values = undrawn(self)
        lines = []
        for outline in outlines(self.labels(image)):
            if outline.value not in skipped_values:
                shares = (outline.points / (width, height)).reshape(-1).tolist()
                lines.append(f"{outline.value} " + " ".join(f"{share:.8g}" for share in shares) + "\n")
        sink.save(f"labels/{image.stem}.txt", "".join(lines).encode())
        return ""

    def finish(self, parts: Callable[[], Iterator[str]], sink: FileSink) -> None:
        """Write data.yaml."""
        names = "".join(f"  {index}: {json.dumps(name, ensure_ascii=False)}\n" for index, name in enumerate(self.names))
        sink.save("data.yaml", f"path: .\ntrain: images\nval: images\nnames:\n{names}".encode())


def undrawn(writer: Writer) -> set[int]:
    """Return the values without a shape: ignored pixels, and background unless unshaped pixels mean ignored."""
    classes = writer.options.classes
    values = set() if writer.options.ignored == "class" else {classes.ignore}
    if writer.options.ignored != "drop" and classes.background is not None:
        values.add(classes.background)
    return values
