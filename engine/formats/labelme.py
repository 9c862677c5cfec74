"""labelme: a JSON file per image with polygons, beside the image or with the image inside.

Polygons, rectangles and masks are read; of overlapping shapes the later is on top. Circles, lines and points are
refused. Groups join parts of one object and do not change a label map.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import UsageError
from ..model.schema import decode_json
from .base import (
    FileSink,
    LabeledImage,
    LabelReader,
    Overlaps,
    Shape,
    ShapeClasses,
    ShapeOptions,
    Writer,
    check_size,
    paint_shapes,
)
from .files import FileTree, open_picture
from .polygons import outlines, runs_of_polygon
from .rle import runs_of_mask
from .yolo_seg import undrawn

VERSION = "5.5.0"
"""Version of labelme whose format is written."""


class LabelmeReader(LabelReader):
    """Reads a folder of labelme files."""

    format = "labelme"

    def __init__(self, location: str, options: ShapeOptions) -> None:
        self.path = location
        self._overlaps: Overlaps = options.overlaps or "later"
        self._tree = FileTree(location)
        self._files: dict[str, str] = {}
        used_names: set[str] = set()
        for file in self._tree.with_suffix(".json"):
            raw = self._load(file)
            if raw is None:
                continue
            folder = file.rpartition("/")[0]
            name = str(raw.get("imagePath") or file).replace("\\", "/").rsplit("/", 1)[-1]
            self._files[f"{folder}/{name}" if folder else name] = file
            used_names.update(str(shape.get("label")) for shape in raw["shapes"])
        if not self._files:
            raise UsageError(f"{location} holds no labelme file (JSON with `shapes` and `imagePath`)")
        self._classes = ShapeClasses(sorted(used_names), options, used_names=used_names)
        self.class_names: Mapping[int, str] = self._classes.by_value
        self.image_names: Sequence[str] = list(self._files)
        self.notes: tuple[str, ...] = (self._classes.note, f"overlaps: {self._overlaps} on top")

    def _load(self, file: str) -> dict[str, Any] | None:
        try:
            raw = decode_json(self._tree.read(file))
        except ValueError as error:
            raise UsageError(f"{self._tree.path(file)} is not valid JSON: {error}") from error
        return raw if isinstance(raw, dict) and isinstance(raw.get("shapes"), list) else None

    def decode_labels(self, name: str, size: tuple[int, int] | None = None) -> NDArray[Any]:
        """Rasterize the shapes of an image."""
        file = self._files[name]
        raw, where = self._load(file) or {}, self._tree.path(file)
        height, width = self._size(raw, name, size, where)
        shapes = [
            Shape(self._classes.values[str(shape.get("label"))], _runs(shape, height, width, where))
            for shape in raw["shapes"]
        ]
        return paint_shapes(shapes, height, width, self._classes, self._overlaps)

    def _size(self, raw: dict[str, Any], name: str, size: tuple[int, int] | None, where: str) -> tuple[int, int]:
        if raw.get("imageHeight") and raw.get("imageWidth"):
            return check_size(raw["imageHeight"], raw["imageWidth"], where)
        if size is not None:
            return size
        if raw.get("imageData"):
            data = base64.b64decode(raw["imageData"])
        elif name in self._tree:
            data = self._tree.read(name)
        else:
            raise UsageError(f"{where} does not state the image's size, and {name} is not beside it")
        image = open_picture(data, f"of {where}", header_only=True)
        return image.height, image.width


def _runs(shape: dict[str, Any], height: int, width: int, where: str) -> NDArray[np.int64]:
    kind = shape.get("shape_type") or "polygon"
    try:
        points = np.asarray(shape["points"], dtype=np.float64).reshape(-1, 2)
        if kind == "polygon":
            return runs_of_polygon(points, height, width)
        if kind == "rectangle":
            (x0, y0), (x1, y1) = points
            return runs_of_polygon(np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]]), height, width)
        if kind == "mask":
            if not ((points[0] > -0.5) & (points[0] < (width, height))).all():
                raise ValueError(f"its mask begins at {points[0].tolist()}, outside of {width}x{height} pixels")
            left, top = np.rint(points[0]).astype(int).tolist()
            part = np.asarray(open_picture(base64.b64decode(shape["mask"]), f"of a shape in {where}"))
            mask = np.zeros((height, width), dtype=np.bool_)
            mask[top : top + part.shape[0], left : left + part.shape[1]] = part != 0
            return runs_of_mask(mask)
    except (KeyError, ValueError, TypeError, OSError) as error:
        reason = error if isinstance(error, UsageError) else repr(error)
        raise UsageError(f"{where}: a shape of {shape.get('label')} is damaged ({reason})") from error
    raise UsageError(f"{where} holds a {kind} of {shape.get('label')}; expected polygons, rectangles or masks")


class LabelmeWriter(Writer):
    """Writes one JSON file per image, beside its photo; one polygon per region."""

    format = "labelme"

    def write(self, index: int, images: Sequence[LabeledImage], sink: FileSink) -> str:
        """Write the image's file."""
        (image,) = images
        self.place_image(sink, image, image.name)
        skipped_values = undrawn(self)
        height, width = image.label.shape
        shapes = [
            {
                "label": self.names[outline.value],
                "points": outline.points.astype(float).tolist(),
                "group_id": None,
                "description": "",
                "shape_type": "polygon",
                "flags": {},
                "mask": None,
            }
            for outline in outlines(self.labels(image))
            if outline.value not in skipped_values
        ]
        document = {
            "version": VERSION,
            "flags": {},
            "shapes": shapes,
            "imagePath": image.name.rsplit("/", 1)[-1],
            "imageData": None,
            "imageHeight": height,
            "imageWidth": width,
        }
        sink.save(f"{image.stem}.json", json.dumps(document, ensure_ascii=False).encode())
        return ""
