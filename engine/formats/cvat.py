"""CVAT for images 1.1: ``annotations.xml``, alone, in a folder or in a task's zip file.

A mask's run lengths go along the rows of its box and begin with unset pixels; shapes of a higher ``z_order`` are on
top. Rectangles, skeletons and lines are refused, since they do not define pixels. Written masks are one per class and
image.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from xml.etree import ElementTree
from xml.parsers import expat
from xml.sax.saxutils import escape, quoteattr

import numpy as np
from numpy.typing import NDArray

from ...errors import UsageError
from .base import (
    FileSink,
    LabeledImage,
    LabelReader,
    Shape,
    ShapeClasses,
    ShapeOptions,
    Writer,
    check_size,
    paint_shapes,
    voc_palette,
)
from .files import FileTree, is_folder, read_bytes
from .polygons import runs_of_polygon
from .rle import encode_classes, mask_of_row_counts, row_counts, runs_of_mask
from .yolo_seg import undrawn

FILE = "annotations.xml"
ARCHIVE = "cvat.zip"
MAX_XML = 1 << 30
"""Largest XML file in an archive, in bytes."""
_REFUSED = ("box", "polyline", "points", "ellipse", "cuboid", "skeleton")


class CvatReader(LabelReader):
    """Reads a CVAT export; only the elements of the image that is read are decoded."""

    format = "cvat"

    def __init__(self, location: str, options: ShapeOptions) -> None:
        self.path = location
        self._raw = _annotations(location)
        self._spans: dict[str, tuple[int, int]] = {}
        declared, used_names = self._index()
        # labels of shapes that the task did not declare come last
        self._classes = ShapeClasses([*declared, *sorted(used_names)], options, used_names=used_names)
        self.class_names: Mapping[int, str] = self._classes.by_value
        self.image_names: Sequence[str] = list(self._spans)
        self.notes: tuple[str, ...] = (self._classes.note, "overlaps: the higher z_order on top")

    def _index(self) -> tuple[list[str], set[str]]:
        """Find every image element; returns the task's labels and those of shapes."""
        parser, path, text = expat.ParserCreate(), [], []
        declared: list[str] = []
        used_names: set[str] = set()
        current: list[Any] = []

        def start(tag: str, attributes: dict[str, str]) -> None:
            path.append(tag)
            text.clear()
            if tag == "image":
                current[:] = [attributes.get("name", ""), parser.CurrentByteIndex]
            elif "label" in attributes and path[-2:-1] == ["image"] and tag != "tag":
                used_names.add(attributes["label"])

        def end(tag: str) -> None:
            if path[-3:] == ["labels", "label", "name"]:
                declared.append("".join(text))
            if tag == "image":
                name, begin = current
                if not name or name in self._spans:
                    raise UsageError(f"{self.path}: the image {name!r} has no name, or occurs twice")
                stop = parser.CurrentByteIndex
                # the end of `<image .../>` is reported after it, that of `<image ...></image>` before its end tag
                closed = self._raw[stop : stop + 2] == b"</"
                self._spans[name] = begin, self._raw.find(b">", stop) + 1 if closed else stop
            path.pop()

        parser.StartElementHandler = start
        parser.EndElementHandler = end
        parser.CharacterDataHandler = text.append
        try:
            parser.Parse(bytes(self._raw), True)
        except expat.ExpatError as error:
            raise UsageError(f"{self.path} is not valid XML: {error}") from error
        return declared, used_names

    def decode_labels(self, name: str, size: tuple[int, int] | None = None) -> NDArray[Any]:
        """Rasterize the shapes of an image."""
        begin, end = self._spans[name]
        where = f"{self.path}, image {name}"
        try:
            image = ElementTree.fromstring(self._raw[begin:end])
        except ElementTree.ParseError as error:
            raise UsageError(f"{where}: {error}") from error
        height, width = check_size(image.get("height"), image.get("width"), where)
        shapes = []
        for element in image:
            if element.tag in _REFUSED:
                raise UsageError(
                    f"{where} holds a {element.tag} of {element.get('label')}, which is not a label map; expected "
                    "masks and polygons"
                )
            if element.tag in ("mask", "polygon"):
                runs = _runs(element, height, width, where)
                value = self._classes.values[element.get("label", "")]
                shapes.append((int(element.get("z_order", "0")), Shape(value, runs)))
        shapes.sort(key=lambda entry: entry[0])
        return paint_shapes((shape for _, shape in shapes), height, width, self._classes)


def _runs(element: ElementTree.Element, height: int, width: int, where: str) -> NDArray[np.int64]:
    try:
        if element.tag == "polygon":
            corners = [[float(value) for value in pair.split(",")] for pair in element.attrib["points"].split(";")]
            return runs_of_polygon(np.array(corners), height, width)
        left, top, columns, rows = (int(element.attrib[key]) for key in ("left", "top", "width", "height"))
        counts = [int(value) for value in element.attrib["rle"].split(",")]
    except (KeyError, ValueError) as error:
        raise UsageError(f"{where}: a {element.tag} is damaged ({error!r})") from error
    if min(left, top) < 0 or left + columns > width or top + rows > height or min(rows, columns) < 1:
        raise UsageError(f"{where}: a mask at {left},{top} of {columns}x{rows} does not fit into {width}x{height}")
    mask = np.zeros((height, width), dtype=np.bool_)
    try:
        mask[top : top + rows, left : left + columns] = mask_of_row_counts(counts, rows, columns)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error
    return runs_of_mask(mask)


def _annotations(location: str) -> bytes | Any:
    if is_folder(location):
        names = [name for name in FileTree(location).names if name.rsplit("/", 1)[-1] in (FILE, ARCHIVE)]
        if not names:
            raise UsageError(f"{location} has no {FILE}")
        location = f"{location.rstrip('/')}/{min(names, key=len)}"
    raw = read_bytes(location)
    if raw[:2] != b"PK":
        return raw
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            with archive.open(FILE) as file:
                raw = file.read(MAX_XML + 1)
            if len(raw) > MAX_XML:
                raise UsageError(f"{location} holds an {FILE} of more than {MAX_XML:,} bytes; export fewer images")
            return raw
    except (KeyError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise UsageError(f"{location} is not a CVAT export: expected {FILE} in it ({error})") from error


class CvatWriter(Writer):
    """Writes ``cvat.zip``, to be uploaded as annotations of a task made from the photos (copied to ``images/``)."""

    format = "cvat"

    def write(self, index: int, images: Sequence[LabeledImage], sink: FileSink) -> str:
        """Return the image's element without its number."""
        (image,) = images
        self.place_image(sink, image, f"images/{image.name}")
        label, skipped_values = self.labels(image), undrawn(self)
        height, width = label.shape
        lines = [f'name={quoteattr(image.name)} width="{width}" height="{height}">']
        for mask in encode_classes(label):
            if mask.value in skipped_values:
                continue
            left, top, columns, rows = mask.box
            counts = row_counts(label[top : top + rows, left : left + columns] == mask.value)
            lines.append(
                f'<mask label={quoteattr(self.names[mask.value])} source="auto" occluded="0" '
                f'rle="{", ".join(map(str, counts))}" left="{left}" top="{top}" width="{columns}" height="{rows}" '
                'z_order="0"></mask>'
            )
        return "".join(lines) + "</image>"

    def finish(self, parts: Callable[[], Iterator[str]], sink: FileSink) -> None:
        """Number the images from 0 and write the zip file."""
        colors = voc_palette(len(self.names)).tolist()
        labels = "".join(
            f"<label><name>{escape(name)}</name><color>#{red:02x}{green:02x}{blue:02x}</color><type>mask</type>"
            "<attributes></attributes></label>\n"
            for name, (red, green, blue) in zip(self.names, colors, strict=True)
        )
        temporary = sink.folder / f"{ARCHIVE}.tmp"
        # the same export gives the same bytes
        entry = zipfile.ZipInfo(FILE)
        entry.compress_type = zipfile.ZIP_DEFLATED
        with (
            zipfile.ZipFile(temporary, "w") as archive,
            archive.open(entry, "w", force_zip64=True) as stream,
        ):
            stream.write(
                b'<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n'
                b"<meta><task><name>maskmill</name><labels>\n" + labels.encode() + b"</labels></task></meta>\n"
            )
            for number, part in enumerate(parts()):
                stream.write(f'<image id="{number}" {part}\n'.encode())
            stream.write(b"</annotations>\n")
        sink.adopt(ARCHIVE, temporary)
