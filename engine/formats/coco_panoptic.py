"""COCO panoptic: a JSON file and one PNG per image whose colors are segment ids (red + 256 green + 65536 blue).

Pixels of id 0 have no label, nor do ``iscrowd`` segments. A label map alone is written as one segment per class, since
it does not distinguish objects. With objects, each object is a segment, on top of the classes; the remaining pixels of
a class that has objects in the image are an ``iscrowd`` segment.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...errors import UsageError
from .base import FileSink, LabelClasses, LabeledImage, LabelReader, Writer
from .coco import _annotation_entries, _image_entries, category_names, image_files, is_crowd
from .files import FileTree, json_document, json_elements, json_members, load_json, open_picture, read_bytes
from .rle import encode_classes, paint_runs, runs_of_counts, string_to_counts

FILE = "annotations/panoptic.json"
FOLDER = "annotations/panoptic"


class CocoPanopticReader(LabelReader):
    """Reads a panoptic JSON file and the PNGs in the folder of the same name beside it."""

    format = "coco-panoptic"

    def __init__(self, location: str) -> None:
        self.path = location
        self._raw = read_bytes(location)
        members = json_members(self._raw, location)
        categories = load_json(self._raw, members["categories"], f"the categories of {location}")
        names_by_id = category_names(categories, location)
        names = list(dict.fromkeys(names_by_id.values()))
        self._table = LabelClasses(names=tuple(names))
        self._values = {key: names.index(name) for key, name in names_by_id.items()}
        spans = json_elements(self._raw, members["images"], "images").tolist()
        images = image_files((load_json(self._raw, span, f"an image of {location}") for span in spans), location)
        self._spans: dict[str, tuple[int, int]] = {}
        for start, stop in json_elements(self._raw, members["annotations"], "annotations").tolist():
            annotation = load_json(self._raw, (start, stop), f"an annotation of {location}")
            image = str(annotation["image_id"])
            if image not in images:
                raise UsageError(f"{location}: an annotation names the image {image}, which is absent")
            if images[image] in self._spans:
                raise UsageError(f"{location} holds two annotations of the image {images[image]}; leave one out")
            self._spans[images[image]] = start, stop
        self._maps = FileTree(location.removesuffix(".json"))
        self.image_names: Sequence[str] = list(self._spans)
        self.class_names: Mapping[int, str] = dict(enumerate(names))
        self.notes: tuple[str, ...] = ("pixels without a segment and iscrowd segments are ignored",)

    def decode_labels(self, name: str, size: tuple[int, int] | None = None) -> NDArray[Any]:
        """Translate the segment ids of an image to classes."""
        annotation = load_json(self._raw, self._spans[name], f"the annotation of {name}")
        file = annotation["file_name"]
        image = open_picture(self._maps.read(file), self._maps.path(file))
        colors = np.asarray(image.convert("RGB"), dtype=np.uint32)
        segments = colors[..., 0] | colors[..., 1] << 8 | colors[..., 2] << 16
        ids, index = np.unique(segments, return_inverse=True)
        values = {0: self._table.ignore}
        for segment in annotation["segments_info"]:
            category = str(segment["category_id"])
            ignored = is_crowd(segment, f"{self.path}, {name}") or category not in self._values
            values[segment["id"]] = self._table.ignore if ignored else self._values[category]
        if unknown := set(ids.tolist()) - set(values):
            raise UsageError(f"{self._maps.path(file)} holds the segment {min(unknown)}, which {self.path} lacks")
        table = np.array([values[number] for number in ids.tolist()], dtype=self._table.dtype)
        return table[index].reshape(segments.shape)


class CocoPanopticWriter(Writer):
    """Writes ``annotations/panoptic.json`` and its PNGs; one segment per class of an image, its id the class plus 1."""

    format = "coco-panoptic"
    marks_ignored = True
    holds_instances = True

    def write(self, index: int, images: Sequence[LabeledImage], sink: FileSink) -> str:
        """Write the PNG; return the image's entry and its segments."""
        (image,) = images
        self.place_image(sink, image, f"images/{image.name}")
        ignore, num = self.options.classes.ignore, len(self.names)
        label, objects = image.label, image.instances or ()
        ids = np.where(label == ignore, 0, label.astype(np.uint32) + 1)
        if objects:
            columns = np.zeros(label.size, np.uint32)
            for number, instance in enumerate(objects, start=num + 1):
                paint_runs(columns, runs_of_counts(string_to_counts(instance.counts), label.size), number)
            painted = columns.reshape(label.shape[::-1]).T
            ids = np.where(painted > 0, painted, ids)
            label = np.where(painted > 0, label.dtype.type(ignore), label)
        colors = np.stack([ids & 255, ids >> 8 & 255, ids >> 16], axis=-1).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(colors).save(buffer, "PNG", compress_level=1)
        sink.save(f"{FOLDER}/{image.stem}.png", buffer.getvalue())
        things = {instance.target for instance in (*objects, *image.doubtful)}
        segments: list[dict[str, Any]] = [
            {
                "id": mask.value + 1,
                "category_id": mask.value + 1,
                "iscrowd": int(mask.value in things),
                "area": mask.area,
                "bbox": mask.box,
            }
            for mask in encode_classes(label)
            if mask.value != ignore
        ]
        segments += [
            {
                "id": number,
                "category_id": instance.target + 1,
                "iscrowd": 0,
                "area": instance.area,
                "bbox": instance.box,
                "score": instance.score,
            }
            for number, instance in enumerate(objects, start=num + 1)
        ]
        height, width = image.label.shape
        entry = {"file_name": image.name, "height": height, "width": width}
        annotation = {"file_name": f"{PurePosixPath(image.stem)}.png", "segments_info": segments}
        return json.dumps({"image": entry, "annotations": [annotation]}, ensure_ascii=False)

    def finish(self, parts: Callable[[], Iterator[str]], sink: FileSink) -> None:
        """Number the images from 1 and write the file."""
        background = self.options.classes.background
        categories = [
            {"id": index + 1, "name": name, "isthing": int(index != background), "color": color}
            for index, (name, color) in enumerate(zip(self.names, self.options.classes.colors.tolist(), strict=True))
        ]
        (sink.folder / "annotations").mkdir(parents=True, exist_ok=True)
        temporary = sink.folder / f"{FILE}.tmp"
        head = json.dumps({"categories": categories}, ensure_ascii=False)[:-1]
        json_document(_image_entries(parts()), temporary, f'{head}, "images": [', "\n],")
        with temporary.open("a", encoding="utf-8") as stream:
            stream.write('\n"annotations": [')
            for number, text in enumerate(_annotation_entries(parts())):
                stream.write((",\n" if number else "\n") + text)
            stream.write("\n]}\n")
        sink.adopt(FILE, temporary)
