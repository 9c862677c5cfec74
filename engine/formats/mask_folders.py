"""Folders of index maps: maskmill's own ``png``, PASCAL VOC, ADE20K and FiftyOne's ImageSegmentationDirectory.

============  =======================================================================================================
``png``       ``labels/NAME.png`` (palette images of class indices, 255 ignored), ``weights/NAME.png``, ``classes.txt``;
              also read: ``NAME.png`` without ``labels/``, and ``classes.txt`` in the folder above
``voc``       ``SegmentationClass/NAME.png``, ``JPEGImages/``, ``ImageSets/Segmentation/*.txt``, ``labelmap.txt``
``ade20k``    ``annotations/SPLIT/NAME.png``, ``images/SPLIT/``, ``objectInfo150.txt``; 0 is "other" and ignored
``fiftyone``  ``labels/NAME.png``, ``data/NAME.jpg``, ``mask_targets.json``
============  =======================================================================================================
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...errors import UsageError
from ..model.files import parse_class_names
from ..model.png import encode_png
from .base import BACKGROUND, IGNORE, FileSink, LabeledImage, LabelReader, Writer, voc_palette
from .files import FileTree, open_picture

VOC_NAMES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
"""Names of PASCAL VOC's values 0 to 20."""
CLASS_LIST_RULE = "classes.txt, with one class name per line or `index name`, in the folder or the one above it"
"""Rule for the class list of a folder of index maps, for messages."""
_BORDER = (224, 224, 192)
"""VOC's color of borders and difficult objects, value 255."""


class VocReader(LabelReader):
    """Reads a VOC folder; palette images give their indices, color images go through ``labelmap.txt``."""

    format = "voc"
    stored_values = True

    def __init__(self, location: str) -> None:
        self.path, self._tree = location, FileTree(location)
        files = [name for name in self._tree.with_suffix(".png") if "SegmentationClass" in name.split("/")[:-1]]
        if not files:
            raise UsageError(f"{location} has no SegmentationClass/*.png")
        self._files = {_below(name, "SegmentationClass"): name for name in files}
        self.image_names: Sequence[str] = list(self._files)
        maps = [name for name in self._tree.names if name.rsplit("/", 1)[-1] == "labelmap.txt"]
        self._colors: dict[int, int] | None = None
        if maps:
            entries = _labelmap(self._tree.read(maps[0]).decode("utf-8-sig"), self._tree.path(maps[0]))
            values = [255 if name == IGNORE else value for value, (name, _) in enumerate(entries)]
            self._colors = {_packed(_BORDER): 255}
            self._colors |= {_packed(color): value for value, (_, color) in zip(values, entries, strict=True)}
            self.class_names: Mapping[int, str] = {
                value: name for value, (name, _) in zip(values, entries, strict=True) if value < 255
            }
            self.notes: tuple[str, ...] = (f"class names and colors come from {maps[0]}",)
        else:
            self.class_names: Mapping[int, str] = dict(enumerate(VOC_NAMES))
            self.notes: tuple[str, ...] = ("class names are those of PASCAL VOC; 255 is ignored",)

    def decode_labels(self, name: str, size: tuple[int, int] | None = None) -> NDArray[Any]:
        """Read an index map, or translate the colors of a color map."""
        file = self._files[name]
        with _open(self._tree, file) as image:
            if image.mode in ("P", "L"):
                label = np.asarray(image)
            elif self._colors is not None and image.mode in ("RGB", "RGBA"):
                label = _indices(np.asarray(image.convert("RGB")), self._colors, self._tree.path(file))
            else:
                raise UsageError(
                    f"{self._tree.path(file)} holds colors ({image.mode}); add labelmap.txt with a line "
                    "`name:red,green,blue::` for each class"
                )
        _check_values(label, self.class_names, self._tree.path(file))
        return label


class IndexReader(LabelReader):
    """Reads ``labels/*.png`` as :class:`PngWriter` and :class:`FiftyoneWriter` write them, and flat folders of maps."""

    stored_values = True

    def __init__(self, location: str, format: Literal["png", "fiftyone"]) -> None:
        self.path, self._tree = location, FileTree(location)
        self.format = format
        if format == "png":
            names = read_class_list(location)
            if names is None:
                raise UsageError(f"{location} needs {CLASS_LIST_RULE}")
            self.class_names: Mapping[int, str] = names
        else:
            targets = json.loads(self._tree.read("mask_targets.json"))
            self.class_names: Mapping[int, str] = {int(value): str(name) for value, name in targets.items()}
        self._files = {_below(name, "labels"): name for name in self._tree.names if name.startswith("labels/")}
        if format == "png" and not self._files:
            self._files = {name.rsplit(".", 1)[0]: name for name in self._tree.with_suffix(".png")}
        self.image_names: Sequence[str] = list(self._files)
        self.notes: tuple[str, ...] = (f"{65535 if len(self.class_names) > 255 else 255} is ignored",)

    def decode_labels(self, name: str, size: tuple[int, int] | None = None) -> NDArray[Any]:
        """Read a map of class indices."""
        with _open(self._tree, self._files[name]) as image:
            label = np.asarray(image)
        if label.ndim != 2:
            raise UsageError(f"{self._tree.path(self._files[name])} holds colors, expected a class index per pixel")
        label = label if label.dtype == np.uint8 else label.astype(np.uint16)
        _check_values(label, self.class_names, self._tree.path(self._files[name]))
        return label


def read_class_list(location: str) -> dict[int, str] | None:
    """Read the ``classes.txt`` of a folder of label maps, or else of the folder above it; None if there is neither."""
    above = location.rstrip("/").rpartition("/")[0] if "://" in location else os.path.dirname(os.path.abspath(location))
    for folder in (location, above):
        tree = FileTree(folder)
        try:
            data = tree.read("classes.txt")
        except UsageError:  # every filesystem reports a missing file in its own way
            continue
        try:
            return parse_class_names(data.decode("utf-8-sig"), tree.path("classes.txt"))
        except UnicodeDecodeError as error:
            raise UsageError(f"{tree.path('classes.txt')} is not UTF-8 text; save it as UTF-8") from error
    return None


class Ade20kReader(LabelReader):
    """Reads the folder of the ADE20K scene parsing challenge: value 0 is ignored, value i is class i."""

    format = "ade20k"
    stored_values = True

    def __init__(self, location: str) -> None:
        self.path, self._tree = location, FileTree(location)
        files = [name for name in self._tree.with_suffix(".png") if "annotations" in name.split("/")[:-1]]
        lists = [name for name in self._tree.names if name.rsplit("/", 1)[-1] == "objectInfo150.txt"]
        if not files or not lists:
            raise UsageError(f"{location} needs annotations/*.png and objectInfo150.txt (the scene parsing challenge)")
        rows = self._tree.read(lists[0]).decode("utf-8-sig").splitlines()[1:]
        self.class_names: Mapping[int, str] = {
            int(row.split("\t")[0]): row.split("\t")[-1].split(",")[0].strip() for row in rows if row
        }
        self._files = {_below(name, "annotations"): name for name in files}
        self.image_names: Sequence[str] = list(self._files)
        self.notes: tuple[str, ...] = ("value 0 is ignored, values 1 to 150 are the classes of objectInfo150.txt",)

    def decode_labels(self, name: str, size: tuple[int, int] | None = None) -> NDArray[Any]:
        """Read a map; 0 becomes 255."""
        file = self._files[name]
        with _open(self._tree, file) as image:
            label = np.array(image.convert("L") if image.mode == "P" and image.palette is None else image)
        label[label == 0] = 255
        _check_values(label, self.class_names, self._tree.path(file))
        return label


class PngWriter(Writer):
    """Writes index maps with a palette, weights, and ``classes.txt`` with ``index name`` per line."""

    format = "png"
    marks_ignored = True
    holds_weights = True

    def write(self, index: int, images: Sequence[LabeledImage], sink: FileSink) -> str:
        """Write the label map and, if requested, the weight map."""
        (image,) = images
        self.place_image(sink, image, f"images/{image.name}")
        sink.save(f"labels/{image.stem}.png", encode_png(image.label, index_palette(len(self.names))))
        if image.weight is not None:
            sink.save(f"weights/{image.stem}.png", encode_png(image.weight))
        return ""

    def finish(self, parts: Callable[[], Iterator[str]], sink: FileSink) -> None:
        """Write the class list."""
        sink.save("classes.txt", "".join(f"{index} {name}\n" for index, name in enumerate(self.names)).encode())


class VocWriter(Writer):
    """Writes a VOC folder; ignored pixels are 255, drawn in VOC's border color."""

    format = "voc"
    marks_ignored = True

    def write(self, index: int, images: Sequence[LabeledImage], sink: FileSink) -> str:
        """Write the map; return the image's line of the list."""
        (image,) = images
        if image.label.dtype != np.uint8:
            raise UsageError("VOC's maps hold at most 255 classes; use png, coco or huggingface")
        self.place_image(sink, image, f"JPEGImages/{image.stem}.{image.name.rsplit('.', 1)[-1]}")
        sink.save(f"SegmentationClass/{image.stem}.png", encode_png(image.label, index_palette(len(self.names))))
        return image.stem

    def finish(self, parts: Callable[[], Iterator[str]], sink: FileSink) -> None:
        """Write the list of images and the class names with their colors."""
        sink.save("ImageSets/Segmentation/train.txt", "".join(f"{part}\n" for part in parts()).encode())
        colors = self.options.classes.colors.tolist()
        lines = [f"{name}:{red},{green},{blue}::" for name, (red, green, blue) in zip(self.names, colors, strict=True)]
        lines.append(f"{IGNORE}:{','.join(map(str, _BORDER))}::")
        sink.save("labelmap.txt", "\n".join(["# label:color_rgb:parts:actions", *lines, ""]).encode())


class FiftyoneWriter(Writer):
    """Writes FiftyOne's ImageSegmentationDirectory with ``mask_targets.json``; 255 has no target."""

    format = "fiftyone"
    marks_ignored = True
    image_modes = ("copy", "link", "none")

    def write(self, index: int, images: Sequence[LabeledImage], sink: FileSink) -> str:
        """Write the map under the photo's stem."""
        (image,) = images
        self.place_image(sink, image, f"data/{image.stem}.{image.name.rsplit('.', 1)[-1]}")
        sink.save(f"labels/{image.stem}.png", encode_png(image.label))
        return ""

    def finish(self, parts: Callable[[], Iterator[str]], sink: FileSink) -> None:
        """Write the names of the values."""
        targets = {str(index): name for index, name in enumerate(self.names)}
        sink.save("mask_targets.json", json.dumps(targets, ensure_ascii=False, indent=1).encode())


def index_palette(num_classes: int) -> NDArray[np.uint8]:
    """Return VOC's palette (256, 3) uint8 RGB, with VOC's border color for 255 unless that is a class."""
    palette = voc_palette(256)
    if num_classes <= 255:
        palette[255] = _BORDER
    return palette


def _open(tree: FileTree, file: str) -> Image.Image:
    return open_picture(tree.read(file), tree.path(file))


def _below(name: str, folder: str) -> str:
    """Return the path below a folder, without extension."""
    parts = name.rsplit(".", 1)[0].split("/")
    return "/".join(parts[parts.index(folder) + 1 :])


def _labelmap(text: str, where: str) -> list[tuple[str, tuple[int, int, int]]]:
    """Return names and colors of a labelmap.txt in the order of their values: background first, "ignore" last.

    A class without a color has that of VOC's palette.
    """
    rows = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        name, _, fields = line.partition(":")
        color = fields.split(":")[0].strip()
        try:
            rows.append((name.strip(), tuple(int(value) for value in color.split(",")) if color else None))
        except ValueError as error:
            raise UsageError(f"{where}, line {number}: expected name:red,green,blue::, got {line[:60]!r}") from error
    rows.sort(key=lambda row: (row[0] == IGNORE, row[0] != BACKGROUND))
    palette = voc_palette(max(len(rows), 1)).tolist()
    return [(name, color or tuple(palette[value])) for value, (name, color) in enumerate(rows)]


def _packed(color: Sequence[int]) -> int:
    return color[0] | color[1] << 8 | color[2] << 16


def _indices(colors: NDArray[np.uint8], table: dict[int, int], where: str) -> NDArray[np.uint8]:
    packed = colors[..., 0].astype(np.uint32) | colors[..., 1].astype(np.uint32) << 8
    packed |= colors[..., 2].astype(np.uint32) << 16
    values, index = np.unique(packed, return_inverse=True)
    if unknown := [value for value in values.tolist() if value not in table]:
        color = unknown[0] & 255, unknown[0] >> 8 & 255, unknown[0] >> 16
        raise UsageError(f"{where} holds the color {color}, which labelmap.txt does not name")
    return np.array([table[value] for value in values.tolist()], dtype=np.uint8)[index].reshape(packed.shape)


def _check_values(label: NDArray[Any], classes: Any, where: str) -> None:
    ignore = 255 if label.dtype == np.uint8 else 65535
    unknown = [value for value in np.unique(label).tolist() if value not in classes and value != ignore]
    if unknown:
        raise UsageError(f"{where} holds the value {unknown[0]}, which has no class name")
