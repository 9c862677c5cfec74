"""Cityscapes: ``gtFine/SPLIT/CITY/NAME_gtFine_labelIds.png`` and ``_polygons.json``, ``leftImg8bit/`` beside it.

Class ids are those of Cityscapes; its ids 0 to 3 (unlabeled, ego vehicle, rectification border, out of roi) are ignored
pixels. Classes that Cityscapes does not have are written with ids from 34 and listed in ``labels.json``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import UsageError
from ..model.png import encode_png
from ..model.schema import decode_json
from .base import FileSink, LabelClasses, LabeledImage, LabelReader, Shape, Writer, check_size
from .files import FileTree, open_picture
from .polygons import outlines, runs_of_polygon
from .rle import paint_runs

NAMES = (
    *("unlabeled", "ego vehicle", "rectification border", "out of roi", "static", "dynamic", "ground", "road"),
    *("sidewalk", "parking", "rail track", "building", "wall", "fence", "guard rail", "bridge", "tunnel", "pole"),
    *("polegroup", "traffic light", "traffic sign", "vegetation", "terrain", "sky", "person", "rider", "car", "truck"),
    *("bus", "caravan", "trailer", "train", "motorcycle", "bicycle"),
)
"""Names of Cityscapes' ids 0 to 33."""
_IGNORED = range(4)
_IDS = "_gtFine_labelIds.png"
_POLYGONS = "_gtFine_polygons.json"


class CityscapesReader(LabelReader):
    """Reads label id maps or, for images without one, polygon files."""

    format = "cityscapes"
    stored_values = True

    def __init__(self, location: str) -> None:
        self.path, self._tree = location, FileTree(location)
        self._files: dict[str, str] = {}
        for suffix in (_POLYGONS, _IDS):
            for name in self._tree.with_suffix(suffix.lower()):
                self._files[_image_name(name, suffix)] = name
        if not self._files:
            raise UsageError(f"{location} has no *{_IDS} and no *{_POLYGONS}")
        names = dict(enumerate(NAMES))
        if "labels.json" in self._tree:
            names |= {int(key): value for key, value in decode_json(self._tree.read("labels.json")).items()}
        self._values = {name: value for value, name in names.items()}
        self.class_names: Mapping[int, str] = {value: name for value, name in names.items() if value not in _IGNORED}
        self.image_names: Sequence[str] = list(self._files)
        self.notes: tuple[str, ...] = ("ids 0 to 3 are ignored",)

    def decode_labels(self, name: str, size: tuple[int, int] | None = None) -> NDArray[Any]:
        """Read the ids of an image, or fill its polygons in the order of the file."""
        file = self._files[name]
        where = self._tree.path(file)
        if file.endswith(".png"):
            image = open_picture(self._tree.read(file), where)
            if image.mode != "L":
                raise UsageError(f"{where} is a {image.mode} image; label ids are 8-bit gray")
            label = np.array(image)
        else:
            label = self._filled(decode_json(self._tree.read(file)), where)
        label[label < len(_IGNORED)] = 255
        if unknown := [value for value in np.unique(label).tolist() if value not in self.class_names and value != 255]:
            raise UsageError(f"{where} holds the id {unknown[0]}, which Cityscapes does not have")
        return label

    def _filled(self, raw: dict[str, Any], where: str) -> NDArray[np.uint8]:
        height, width = check_size(raw.get("imgHeight"), raw.get("imgWidth"), where)
        columns = np.zeros(height * width, dtype=np.uint8)
        for entry in raw["objects"]:
            name = entry["label"]
            # a group of objects is named like its members, with the suffix "group"
            value = self._values.get(name, self._values.get(name.removesuffix("group"), -1))
            if value < 0 and name != "license plate":
                raise UsageError(f"{where}: the label {name!r} is not one of Cityscapes'")
            if value >= 0 and not entry.get("deleted"):
                paint_runs(columns, Shape(value, runs_of_polygon(entry["polygon"], height, width)).runs, value)
        return np.ascontiguousarray(columns.reshape(width, height).T)


def _image_name(file: str, suffix: str) -> str:
    """Return CITY/NAME of a label file, below the folder of its split."""
    parts = file[: -len(suffix)].split("/")
    return "/".join(parts[parts.index("gtFine") + 2 :] if "gtFine" in parts[:-2] else parts)


class CityscapesWriter(Writer):
    """Writes label id maps, polygon files and ``labels.json``."""

    format = "cityscapes"
    marks_ignored = True

    def write(self, index: int, images: Sequence[LabeledImage], sink: FileSink) -> str:
        """Write an image's two files; a photo keeps its extension."""
        (image,) = images
        ids = class_ids(self.options.classes)
        stem = image.stem if "/" in image.stem else f"all/{image.stem}"
        extension = image.name.rsplit(".", 1)[-1]
        self.place_image(sink, image, f"leftImg8bit/train/{stem}_leftImg8bit.{extension}")
        table = np.zeros(self.options.classes.ignore + 1, dtype=np.uint8)
        table[: len(ids)] = ids
        label = table[image.label]
        sink.save(f"gtFine/train/{stem}{_IDS}", encode_png(label))
        names = {value: name for value, name in zip(ids, self.names, strict=True)} | {0: NAMES[0]}
        height, width = label.shape
        objects = [{"label": names[outline.value], "polygon": outline.points.tolist()} for outline in outlines(label)]
        document = {"imgHeight": height, "imgWidth": width, "objects": objects}
        sink.save(f"gtFine/train/{stem}{_POLYGONS}", json.dumps(document, ensure_ascii=False).encode())
        return ""

    def finish(self, parts: Callable[[], Iterator[str]], sink: FileSink) -> None:
        """Write the names of all ids."""
        names = {str(value): name for value, name in zip(class_ids(self.options.classes), self.names, strict=True)}
        sink.save("labels.json", json.dumps(names, ensure_ascii=False, indent=1).encode())


def class_ids(classes: LabelClasses) -> list[int]:
    """Return Cityscapes' id of each class, and ids from 34 for at most 222 classes that it does not have."""
    id_of = {name: value for value, name in enumerate(NAMES) if value not in _IGNORED}
    ids, following = [], len(NAMES)
    for name in classes.names:
        ids.append(id_of.get(name, following))
        following += name not in id_of
    if following > 255:
        raise UsageError(f"Cityscapes' maps hold ids below 255, these labels need {following}; use png or coco")
    return ids
