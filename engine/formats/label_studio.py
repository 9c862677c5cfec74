"""Label Studio: a JSON list of tasks with brush strokes and polygons, and the labeling configuration that shows them.

Written tasks carry the labels as predictions with a score. Their ``to_name`` and ``from_name`` are those of
``label_config.xml``, which the project must use: with other names Label Studio accepts the predictions but does not
show them. Of several annotations of a task the last updated one is used; cancelled ones are ignored.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import quoteattr

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
)
from .files import json_document, json_elements, json_start, load_json, read_bytes
from .polygons import runs_of_polygon
from .rle import brush_of_mask, encode_classes, mask_of_brush, runs_of_mask
from .yolo_seg import undrawn

FILE = "tasks.json"
CONFIG = "label_config.xml"
FROM_NAME, TO_NAME = "labels", "image"
_KINDS = {"brushlabels": "rle", "polygonlabels": "points"}
_UPLOAD = re.compile(r"^[0-9a-f]{8}-")


class LabelStudioReader(LabelReader):
    """Reads an export in the format JSON; only the task that is read is decoded as a whole."""

    format = "label-studio"

    def __init__(self, location: str, options: ShapeOptions) -> None:
        self.path = location
        self._raw = read_bytes(location)
        if json_start(self._raw) != "[":
            raise UsageError(f"{location} is not a list of Label Studio tasks; export the project as JSON")
        start = self._raw.find(b"[")
        self._tasks: dict[str, tuple[tuple[int, int], bool]] = {}
        used_names: set[str] = set()
        tasks = []
        for span in json_elements(self._raw, (start, len(self._raw)), location).tolist():
            task = load_json(self._raw, span, f"a task of {location}")
            tasks.append((image_name(task, location), tuple(span), _annotation(task) is not None))
            for source in ("annotations", "predictions"):
                for result in task.get(source) or ():
                    for region in result.get("result") or ():
                        used_names.update(_labels(region) or ())
        edited = any(annotated for _, _, annotated in tasks)
        for name, span, annotated in tasks:
            if annotated or (options.predictions and not edited):
                if name in self._tasks:
                    raise UsageError(f"{location} holds two tasks for the image {name}")
                self._tasks[name] = span, annotated
        self._classes = ShapeClasses(sorted(used_names), options, used_names=used_names)
        self.class_names: Mapping[int, str] = self._classes.by_value
        self.image_names: Sequence[str] = list(self._tasks)
        source = "annotations" if edited else "predictions, since nothing was annotated"
        self.notes: tuple[str, ...] = (
            self._classes.note,
            "overlaps: the later region on top",
            f"labels are the tasks' {source}",
        )

    def decode_labels(self, name: str, size: tuple[int, int] | None = None) -> NDArray[Any]:
        """Rasterize the regions of a task; one without regions needs ``size``."""
        span, annotated = self._tasks[name]
        task = load_json(self._raw, span, f"the task of {name}")
        result = (_annotation(task) if annotated else _latest(task.get("predictions"))) or {}
        where, shapes = f"{self.path}, task of {name}", []
        for region in result.get("result") or ():
            if (labels := _labels(region)) is None:
                continue
            if len(labels) != 1:
                raise UsageError(f"{where}: a region has {len(labels)} labels, expected one")
            own = check_size(region.get("original_height"), region.get("original_width"), where)
            if size is not None and size != own:
                raise UsageError(
                    f"{where}: a region is of an image of {own[1]}x{own[0]} px, expected {size[1]}x{size[0]}"
                )
            size = own
            if region.get("image_rotation"):
                raise UsageError(f"{where} was rotated in Label Studio by {region['image_rotation']}°; rotate it back")
            shapes.append(Shape(self._classes.values[labels[0]], _runs(region, own, where)))
        data = task["data"]
        if size is None and "height" in data and "width" in data:
            size = check_size(data["height"], data["width"], where)
        if size is None:
            raise UsageError(f"{where} has no region, so its size is unknown; read it with its image")
        return paint_shapes(shapes, *size, self._classes)


def _latest(results: Any) -> dict[str, Any] | None:
    return max(results, key=lambda result: str(result.get("updated_at") or ""), default=None) if results else None


def _annotation(task: dict[str, Any]) -> dict[str, Any] | None:
    return _latest([entry for entry in task.get("annotations") or () if not entry.get("was_cancelled")])


def _labels(region: dict[str, Any]) -> list[str] | None:
    """Return the labels of a region that has pixels; None for choices, texts and relations."""
    kind = str(region.get("type", "")).lower()
    value = region.get("value") or {}
    if kind in _KINDS:
        return [str(label) for label in value.get(kind) or ()]
    if kind in ("rectanglelabels", "ellipselabels", "keypointlabels"):
        raise UsageError(f"Label Studio's {kind} are not label maps; expected brushlabels and polygonlabels")
    return None


def _runs(region: dict[str, Any], size: tuple[int, int], where: str) -> NDArray[np.int64]:
    value = region["value"]
    try:
        if "rle" in value:
            return runs_of_mask(mask_of_brush(value["rle"], *size))
        points = np.asarray(value["points"], dtype=np.float64) / 100 * (size[1], size[0])
        return runs_of_polygon(points, *size)
    except (KeyError, ValueError, TypeError) as error:
        raise UsageError(f"{where}: {error}") from error


def image_name(task: dict[str, Any], location: str) -> str:
    """Return a task's image: ``data.name`` if there is one, else its path without Label Studio's prefixes."""
    data = task.get("data")
    if not isinstance(data, dict):
        raise UsageError(
            f"{location} is not Label Studio's JSON export: a task has no `data` (JSON-MIN cannot be read)"
        )
    if isinstance(data.get("name"), str):
        return data["name"]
    url = next((value for key, value in data.items() if key in ("image", "img", "photo", "url")), None)
    if not isinstance(url, str):
        raise UsageError(f"{location}: a task's data names no image; expected `image`, got {', '.join(data)}")
    parts = urlsplit(url)
    if local := parse_qs(parts.query).get("d"):
        return local[0]
    path = unquote(parts.path)
    folder, _, file = path.rpartition("/")
    return _UPLOAD.sub("", file) if "/data/upload/" in f"{folder}/" else f"{parts.netloc}{path}".lstrip("/")


class LabelStudioWriter(Writer):
    """Writes ``tasks.json`` with brush predictions, ``label_config.xml``, and photos under ``images/``.

    Tasks name photos as local files below the project's ``images`` storage.
    """

    format = "label-studio"

    def write(self, index: int, images: Sequence[LabeledImage], sink: FileSink) -> str:
        """Return the image's task."""
        (image,) = images
        self.place_image(sink, image, f"images/{image.name}")
        label, skipped_values = self.labels(image), undrawn(self)
        height, width = label.shape
        regions = [
            {
                "id": f"{index}_{mask.value}",
                "type": "brushlabels",
                "from_name": FROM_NAME,
                "to_name": TO_NAME,
                "original_width": width,
                "original_height": height,
                "image_rotation": 0,
                "value": {
                    "format": "rle",
                    "rle": brush_of_mask(label == mask.value),
                    "brushlabels": [self.names[mask.value]],
                },
            }
            for mask in encode_classes(label)
            if mask.value not in skipped_values
        ]
        task = {
            "data": {
                "image": f"/data/local-files/?d=images/{quote(image.name)}",
                "name": image.name,
                "width": width,
                "height": height,
            },
            "predictions": [{"model_version": "maskmill", "score": round(image.score, 6), "result": regions}],
        }
        return json.dumps(task, ensure_ascii=False)

    def finish(self, parts: Callable[[], Iterator[str]], sink: FileSink) -> None:
        """Write the list of tasks and the labeling configuration."""
        temporary = sink.folder / f"{FILE}.tmp"
        json_document(parts(), temporary, "[", "\n]\n")
        sink.adopt(FILE, temporary)
        colors = self.options.classes.colors.tolist()
        labels = "".join(
            f'    <Label value={quoteattr(name)} background="rgb({red},{green},{blue})"/>\n'
            for name, (red, green, blue) in zip(self.names, [*colors, [128, 128, 128]], strict=False)
        )
        sink.save(
            CONFIG,
            f'<View>\n  <Image name="{TO_NAME}" value="$image" zoom="true"/>\n'
            f'  <BrushLabels name="{FROM_NAME}" toName="{TO_NAME}">\n{labels}  </BrushLabels>\n</View>\n'.encode(),
        )
