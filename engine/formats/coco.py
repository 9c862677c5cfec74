"""COCO instances: ``instances.json`` with polygons and run-length encoded masks.

Reading: an annotation's polygons are filled as pycocotools fills them and united; ``iscrowd`` regions are ignored; of
overlapping annotations the smaller is on top, or the later one. Writing: one annotation per class and image, run-length
encoded (``coco``), or one per region as a polygon (``coco-polygons``); ignored pixels are an ``iscrowd`` annotation of
a category named ``ignore``. With objects, ``coco`` holds one annotation per object, with its score; the pixels of
objects that thresholds leave out are one ``iscrowd`` annotation per class, and share no pixel with the others.
Weights do not fit into COCO files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...errors import MissingPackageError, UsageError
from .base import (
    IGNORE,
    FileSink,
    LabelClasses,
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
from .files import json_document, json_elements, json_members, load_json, read_bytes
from .polygons import outlines, runs_of_polygon
from .rle import encode_classes, paint_runs, runs_of_counts, string_to_counts

if TYPE_CHECKING:
    import supervision

FILE = "annotations/instances.json"
_VALUE = re.compile(rb'\s*:\s*("(?:[^"\\]|\\.)*"|[^\s,}\]]+)')


@dataclass(frozen=True, kw_only=True)
class TrueObject:
    """One labeled object of an image, or a crowd of them."""

    target: int
    """Index of its class."""
    runs: NDArray[np.int64]
    """(R, 2) runs of its pixels down the columns: first position, and one past the last."""
    crowd: bool = False
    """True for an ``iscrowd`` region, in which objects are not told apart."""


class CocoReader(LabelReader):
    """Reads a COCO instances file: the file is memory-mapped, and only an image's own annotations are decoded."""

    format = "coco"

    def __init__(self, location: str, options: ShapeOptions) -> None:
        self.path = location
        self._overlaps: Overlaps = options.overlaps or "smaller"
        self._crowds, self._option = options.crowds, options.option
        self._raw = read_bytes(location)
        members = json_members(self._raw, location)
        if missing_members := {"images", "annotations", "categories"} - set(members):
            raise UsageError(f"{location} is not a COCO file: it has no {', '.join(sorted(missing_members))}")
        categories = load_json(self._raw, members["categories"], f"the categories of {location}")
        self._categories = category_names(categories, location)
        self._images: dict[str, tuple[int, int, int]] = {}
        numbers: dict[str, int] = {}
        for number, span in enumerate(json_elements(self._raw, members["images"], "images").tolist()):
            image = load_json(self._raw, span, f"image {number} of {location}")
            try:
                name, key = str(image["file_name"]).replace("\\", "/"), _key(image["id"])
            except (TypeError, KeyError) as error:
                raise UsageError(f"{location}, image {number}: it needs an id and a file_name") from error
            if name in self._images or key in numbers:
                raise UsageError(f"{location} lists the image {name} or its id {key} twice")
            height, width = check_size(image.get("height"), image.get("width"), f"{location}, {name}")
            self._images[name] = number, height, width
            numbers[key] = number
        self._spans = json_elements(self._raw, members["annotations"], "annotations")
        owners, used_names = self._owners(numbers)
        self._order = np.argsort(owners, kind="stable")
        self._first = np.searchsorted(owners[self._order], np.arange(len(numbers) + 1))
        self._classes = ShapeClasses(self._categories.values(), options, used_names=used_names)
        self.class_names: Mapping[int, str] = self._classes.by_value
        self.image_names: Sequence[str] = list(self._images)
        fate = "ignored" if self._crowds == "ignore" else "objects like any other"
        self.notes: tuple[str, ...] = (
            self._classes.note,
            f"{self._num_crowds} iscrowd regions are {fate}",
            f"overlaps: {self._overlaps} on top",
        )

    def _owners(self, numbers: dict[str, int]) -> tuple[NDArray[np.int64], set[str]]:
        """Find the image of every annotation, and the names of the classes that are drawn."""
        owners, used_names, crowds = np.empty(len(self._spans), np.int64), set(), 0
        ids: dict[int, int] = {}  # index by the id's hash, which takes less memory than the id
        for index, (start, stop) in enumerate(self._spans.tolist()):
            text = self._raw[start:stop]
            members = [_member(text, key) for key in (b'"image_id"', b'"category_id"', b'"iscrowd"', b'"id"')]
            if None in members[:2] or (members[2] is None and b'"iscrowd"' in text):
                annotation = load_json(text, (0, len(text)), f"annotation {index} of {self.path}")
                try:
                    members = [_key(annotation[key]) for key in ("image_id", "category_id")]
                except (TypeError, KeyError) as error:
                    raise UsageError(
                        f"{self.path}, annotation {index}: it needs an image_id and a category_id"
                    ) from error
                members += [_key(int(is_crowd(annotation, f"{self.path}, annotation {index}"))), self._id_of(index)]
            elif members[3] is None and b'"id"' in text:  # the key may occur within another object as well
                members[3] = self._id_of(index)
            image, category, crowd, id = members
            if image not in numbers or category not in self._categories:
                raise _unknown_owner(image, category, numbers, f"{self.path}, annotation {index}")
            first = index if id is None else ids.setdefault(hash(id), index)
            if first != index and self._id_of(first) == id:
                raise UsageError(
                    f"{self.path} holds the annotation id {id} twice (annotations {first} and {index}); was the file "
                    "put together from several? Give each annotation an id of its own"
                )
            owners[index] = numbers[image]
            used_names.add(category)
            crowds += crowd in ("1", "true")
        if crowds and crowds == len(owners) and self._crowds == "ignore":
            raise UsageError(
                f"every annotation of {self.path} is marked iscrowd, so all objects would be ignored; CVAT and "
                f"Datumaro mark masks like that: read it with {self._option} coco-datumaro"
            )
        self._num_crowds = crowds
        return owners, {self._categories[category] for category in used_names}

    def _id_of(self, index: int) -> str | None:
        """Return the id of an annotation; None if it has none."""
        where = f"annotation {index} of {self.path}"
        annotation = load_json(self._raw, tuple(self._spans[index].tolist()), where)
        return _key(annotation["id"]) if isinstance(annotation, dict) and "id" in annotation else None

    def decode_labels(self, name: str, size: tuple[int, int] | None = None) -> NDArray[Any]:
        """Rasterize the annotations of an image."""
        number, height, width = self._images[name]
        shapes = []
        for index in self._order[self._first[number] : self._first[number + 1]].tolist():
            where = f"{self.path}, annotation {index} ({name})"
            annotation = load_json(self._raw, tuple(self._spans[index].tolist()), where)
            crowd = is_crowd(annotation, where) and self._crowds == "ignore"
            label = IGNORE if crowd else self._categories[_key(annotation["category_id"])]
            runs = _runs(annotation.get("segmentation"), height, width, where)
            shapes.append(Shape(self._classes.values[label], runs))
        return paint_shapes(shapes, height, width, self._classes, self._overlaps)

    def read_objects(self, name: str, targets: Sequence[str]) -> list[TrueObject]:
        """Return the objects of an image whose class is one of ``targets``, ``iscrowd`` regions included."""
        number, height, width = self._images[name]
        objects = []
        for index in self._order[self._first[number] : self._first[number + 1]].tolist():
            where = f"{self.path}, annotation {index} ({name})"
            annotation = load_json(self._raw, tuple(self._spans[index].tolist()), where)
            label = self._categories[_key(annotation["category_id"])]
            if label in targets:
                runs = _runs(annotation.get("segmentation"), height, width, where)
                crowd = is_crowd(annotation, where)
                objects.append(TrueObject(target=targets.index(label), runs=runs, crowd=crowd))
        return objects


def _crowds(image: LabeledImage, ignore: int) -> NDArray[Any]:
    """Return a map (H, W) of the classes of doubtful objects, ``ignore`` elsewhere."""
    columns = np.full(image.label.size, ignore, image.label.dtype)
    for instance in image.doubtful:
        paint_runs(columns, runs_of_counts(string_to_counts(instance.counts), columns.size), instance.target)
    return columns.reshape(image.label.shape[::-1]).T


def _runs(segmentation: Any, height: int, width: int, where: str) -> NDArray[np.int64]:
    try:
        if isinstance(segmentation, list) and segmentation:
            return np.concatenate([runs_of_polygon(part, height, width) for part in segmentation])
        if isinstance(segmentation, dict):
            size, counts = segmentation.get("size"), segmentation.get("counts")
            if size is not None and list(size) != [height, width]:
                raise UsageError(f"the mask is {size} (height, width), the image {[height, width]}")
            if isinstance(counts, str):
                counts = string_to_counts(counts)
            if counts is not None:
                return runs_of_counts(counts, height * width)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error
    raise UsageError(
        f"{where}: expected polygons or a run-length encoded mask in `segmentation`; boxes alone are not a label map"
    )


def category_names(categories: Iterable[Mapping[str, Any]], location: object) -> dict[str, str]:
    """Return the names of a COCO file's categories by their ids; raises :class:`UsageError` if an id is given twice."""
    names: dict[str, str] = {}
    for number, category in enumerate(categories):
        key, name = _entry(category, ("id", "name"), f"{location}, category {number}")
        if key in names:
            raise UsageError(f"{location} lists the category id {key} twice; give each category an id of its own")
        names[key] = name
    return names


def image_files(images: Iterable[Mapping[str, Any]], location: object) -> dict[str, str]:
    """Return the file names of a COCO file's images by their ids, with ``/`` between folders.

    Raises :class:`UsageError` if an id or a name is given twice.
    """
    files: dict[str, str] = {}
    names: set[str] = set()
    for number, image in enumerate(images):
        key, name = _entry(image, ("id", "file_name"), f"{location}, image {number}")
        name = name.replace("\\", "/")
        if key in files or name in names:
            raise UsageError(f"{location} lists the image {name} or its id {key} twice")
        files[key] = name
        names.add(name)
    return files


def owner_of(
    annotation: Mapping[str, Any], images: Mapping[str, str], categories: Mapping[str, str], where: str
) -> tuple[str, str]:
    """Return the image's file and the category's name of an annotation; raises :class:`UsageError` for unknown ids."""
    image, category = _entry(annotation, ("image_id", "category_id"), where)
    if image not in images or category not in categories:
        raise _unknown_owner(image, category, images, where)
    return images[image], categories[category]


def is_crowd(annotation: Mapping[str, Any], where: str) -> bool:
    """Return ``iscrowd`` of an annotation, False without it; raises :class:`UsageError` unless it is 0 or 1."""
    value = annotation.get("iscrowd")
    if value is not None and (not isinstance(value, int | float) or value not in (0, 1)):
        raise UsageError(f"{where}: iscrowd must be 0 or 1, got {value!r:.80}")
    return bool(value)


def _entry(raw: Mapping[str, Any], keys: tuple[str, str], where: str) -> tuple[str, str]:
    try:
        first, second = (_key(raw[key]) for key in keys)
    except (TypeError, KeyError) as error:
        raise UsageError(f"{where}: it needs {keys[0]} and {keys[1]} ({error!r:.200})") from error
    return first, second


def _unknown_owner(image: object, category: object, images: Container[object], where: str) -> UsageError:
    missing = f"category {category}" if image in images else f"image {image}"
    return UsageError(f"{where}: the {missing} is not in the file")


def _key(value: Any) -> str:
    return str(value)


def _member(text: bytes, key: bytes) -> str | None:
    """Return the value of a key that occurs once in an object's text, and not within another object; else None.

    Searching is much faster than decoding, since most of the text is coordinates.
    """
    position = text.find(key)
    if position < 0 or text.find(key, position + 1) >= 0 or text.find(b"{", 1, position) >= 0:
        return None
    match = _VALUE.match(text, position + len(key))
    if match is None:
        return None
    return str(json.loads(match[1])) if match[1][:1] == b'"' else match[1].decode("ascii", "replace")


class CocoWriter(Writer):
    """Writes ``annotations/instances.json``, with photos under ``images/``; one run-length mask per class."""

    format = "coco"
    marks_ignored = True
    holds_instances = True

    def write(self, index: int, images: Sequence[LabeledImage], sink: FileSink) -> str:
        """Return the image's entry and annotations; ids are given at the end."""
        (image,) = images
        self.place_image(sink, image, f"images/{image.name}")
        height, width = image.label.shape
        entry = {"file_name": image.name, "height": height, "width": width}
        return json.dumps({"image": entry, "annotations": self._annotations(image)}, ensure_ascii=False)

    def _annotations(self, image: LabeledImage) -> list[dict[str, Any]]:
        size = list(image.label.shape)
        if image.instances is not None:
            entries = [
                self._annotation(instance.target, instance.area, instance.box)
                | {"segmentation": {"size": size, "counts": instance.counts}, "score": instance.score}
                for instance in image.instances
            ]
            crowds = encode_classes(_crowds(image, self.options.classes.ignore)) if image.doubtful else []
            return entries + [
                self._annotation(mask.value, mask.area, mask.box)
                | {"segmentation": {"size": size, "counts": mask.counts}, "iscrowd": 1}
                for mask in crowds
                if mask.value != self.options.classes.ignore
            ]
        return [
            self._annotation(mask.value, mask.area, mask.box) | {"segmentation": {"size": size, "counts": mask.counts}}
            for mask in encode_classes(image.label)
        ]

    def _annotation(self, value: int, area: int, box: tuple[int, int, int, int]) -> dict[str, Any]:
        ignored = value == self.options.classes.ignore
        category = len(self.names) + 1 if ignored else value + 1
        return {"category_id": category, "iscrowd": int(ignored), "area": area, "bbox": list(box)}

    def finish(self, parts: Callable[[], Iterator[str]], sink: FileSink) -> None:
        """Number images and annotations from 1 and write the file."""
        categories = [{"id": index, "name": name} for index, name in enumerate(self.names, start=1)]
        categories.append({"id": len(self.names) + 1, "name": IGNORE, "supercategory": "void"})
        head = {"info": {"description": "labels made with maskmill"}, "licenses": [], "categories": categories}
        (sink.folder / "annotations").mkdir(parents=True, exist_ok=True)
        temporary = sink.folder / f"{FILE}.tmp"
        start = json.dumps(head, ensure_ascii=False)[:-1]
        json_document(_image_entries(parts()), temporary, f'{start}, "images": [', "\n],")
        with temporary.open("a", encoding="utf-8") as stream:
            stream.write('\n"annotations": [')
            for number, text in enumerate(_annotation_entries(parts())):
                stream.write((",\n" if number else "\n") + text)
            stream.write("\n]}\n")
        sink.adopt(FILE, temporary)


class CocoPolygonWriter(CocoWriter):
    """Writes one polygon annotation per region; ignored pixels are run-length encoded."""

    format = "coco-polygons"
    holds_instances = False

    def _annotations(self, image: LabeledImage) -> list[dict[str, Any]]:
        ignore = self.options.classes.ignore
        shapes = [
            self._annotation(outline.value, outline.area, outline.box)
            | {"segmentation": [outline.points.reshape(-1).tolist()]}
            for outline in outlines(image.label)
            if outline.value != ignore
        ]
        return shapes + [shape for shape in super()._annotations(image) if shape["iscrowd"]]


def _image_entries(parts: Iterator[str]) -> Iterator[str]:
    for number, part in enumerate(parts, start=1):
        yield json.dumps({"id": number} | json.loads(part)["image"], ensure_ascii=False)


def _annotation_entries(parts: Iterator[str]) -> Iterator[str]:
    number = 0
    for image, part in enumerate(parts, start=1):
        for annotation in json.loads(part)["annotations"]:
            number += 1
            yield json.dumps({"id": number, "image_id": image} | annotation)


def to_supervision(label: NDArray[Any], classes: LabelClasses) -> supervision.Detections:
    """Convert a label map (H, W) to ``supervision.Detections``: one mask, box and class name per class that occurs.

    Raises :class:`MissingPackageError` without the package supervision.
    """
    try:
        import supervision
    except ImportError as error:
        raise MissingPackageError("supervision", "coco", "supervision.Detections") from error
    masks = [mask for mask in encode_classes(label) if mask.value != classes.ignore]
    boxes = np.array([mask.box for mask in masks], dtype=np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return supervision.Detections(
        xyxy=boxes,
        mask=np.stack([label == mask.value for mask in masks]) if masks else np.zeros((0, *label.shape), np.bool_),
        class_id=np.array([mask.value for mask in masks], dtype=np.int64),
        data={"class_name": np.array([classes.names[mask.value] for mask in masks], dtype=str)},
    )
