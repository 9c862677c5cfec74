"""Opening label files of any format, and the table of formats.

::

    reader = open_reader("export.zip")                      # the format is detected
    reader = open_reader("labels", format="yolo-seg")       # or named
    writer = WRITERS["coco"](WriterOptions(classes=classes))

A plain folder of index maps is not handled here: :mod:`maskmill.engine.inputs` pairs its files with images.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from typing import Literal, get_args

from ...checks import check_choice
from ...errors import UsageError
from .base import BACKGROUND, LabelReader, ShapeOptions, Writer, damage_named
from .cityscapes import CityscapesReader, CityscapesWriter
from .coco import CocoPolygonWriter, CocoReader, CocoWriter
from .coco_panoptic import CocoPanopticReader, CocoPanopticWriter
from .cvat import CvatReader, CvatWriter
from .files import FileTree, is_folder, json_elements, json_members, json_start, read_bytes
from .geotiff.writer import GeotiffWriter
from .label_studio import LabelStudioReader, LabelStudioWriter
from .labelme import LabelmeReader, LabelmeWriter
from .mask_folders import (
    CLASS_LIST_RULE,
    Ade20kReader,
    FiftyoneWriter,
    IndexReader,
    PngWriter,
    VocReader,
    VocWriter,
    read_class_list,
)
from .shards import HuggingFaceReader, HuggingFaceWriter, WebDatasetWriter
from .yolo_seg import YoloReader, YoloWriter

InputFormat = Literal[
    "png",
    "coco",
    "coco-datumaro",
    "coco-panoptic",
    "voc",
    "cityscapes",
    "ade20k",
    "yolo-seg",
    "cvat",
    "label-studio",
    "labelme",
    "huggingface",
    "fiftyone",
]
"""Formats that can be read."""
OutputFormat = Literal[
    "png",
    "coco",
    "coco-polygons",
    "coco-panoptic",
    "voc",
    "cityscapes",
    "yolo-seg",
    "cvat",
    "label-studio",
    "labelme",
    "webdataset",
    "huggingface",
    "fiftyone",
    "geotiff",
]
"""Formats that can be written."""

CERTIFICATE = "labels.cert.json"
"""File that records how the labels in a folder were made."""

WRITERS: dict[OutputFormat, type[Writer]] = {
    "png": PngWriter,
    "coco": CocoWriter,
    "coco-polygons": CocoPolygonWriter,
    "coco-panoptic": CocoPanopticWriter,
    "voc": VocWriter,
    "cityscapes": CityscapesWriter,
    "yolo-seg": YoloWriter,
    "cvat": CvatWriter,
    "label-studio": LabelStudioWriter,
    "labelme": LabelmeWriter,
    "webdataset": WebDatasetWriter,
    "huggingface": HuggingFaceWriter,
    "fiftyone": FiftyoneWriter,
    "geotiff": GeotiffWriter,
}
"""Writer of each format."""


def open_reader(
    location: str | os.PathLike[str], format: InputFormat | None = None, options: ShapeOptions | None = None
) -> LabelReader:
    """Open a label file, folder or fsspec URL.

    Raises :class:`UsageError` if the format cannot be detected, or the labels cannot be read.
    """
    location = os.fspath(location)
    options = options or ShapeOptions()
    if format is None:
        format = detect(location, options.option)
        maps = format is None and is_folder(location) and FileTree(location).with_suffix(".png")
        if maps and read_class_list(location) is not None:
            format = "png"
        if format is None:
            hint = f"; PNG label maps need {CLASS_LIST_RULE}" if maps else ""
            raise UsageError(
                f"{location} holds no label format that maskmill knows ({', '.join(get_args(InputFormat))}); "
                f"name one with {options.option}{hint}"
            )
    with damage_named(location):
        return _reader(_main_file(location, format), format, options)


def _reader(location: str, format: InputFormat, options: ShapeOptions) -> LabelReader:
    shapes = _own_options(location, options)
    check_choice("format", format, InputFormat)
    match format:
        case "coco":
            return CocoReader(location, shapes)
        case "coco-datumaro":
            return CocoReader(location, replace(shapes, crowds="object"))
        case "coco-panoptic":
            return CocoPanopticReader(location)
        case "voc":
            return VocReader(location)
        case "cityscapes":
            return CityscapesReader(location)
        case "ade20k":
            return Ade20kReader(location)
        case "yolo-seg":
            return YoloReader(location, shapes)
        case "cvat":
            return CvatReader(location, shapes)
        case "label-studio":
            return LabelStudioReader(location, shapes)
        case "labelme":
            return LabelmeReader(location, shapes)
        case "huggingface":
            return HuggingFaceReader(location)
        case "png" | "fiftyone":
            return IndexReader(location, format)


def detect(location: str, option: str = "--labels-format") -> InputFormat | None:
    """Detect the format of a label file or folder; None for a folder of index maps, or something unknown.

    ``option`` is the command's option that names the format, for messages. Raises :class:`UsageError` if there is
    nothing, or signs of several formats.
    """
    if not is_folder(location):
        return _of_file(location)
    names = FileTree(location).names
    folders = {part for name in names for part in name.split("/")[:-1]}
    files = {name.rsplit("/", 1)[-1] for name in names}
    suffixes = {file.rsplit(".", 1)[-1].lower() for file in files}
    signs: dict[InputFormat, bool] = {
        "cvat": bool(files & {"annotations.xml", "cvat.zip"}),
        "label-studio": "tasks.json" in files,
        "yolo-seg": bool(files & {"data.yaml", "data.yml"}) and "labels" in folders,
        "cityscapes": any(file.endswith(("_gtFine_labelIds.png", "_gtFine_polygons.json")) for file in files),
        "voc": "SegmentationClass" in folders,
        "ade20k": "objectInfo150.txt" in files and "annotations" in folders,
        "huggingface": "parquet" in suffixes,
        "coco": "annotations/instances.json" in names,
        "coco-panoptic": "annotations/panoptic.json" in names,
        "png": "classes.txt" in names and any(name.startswith("labels/") for name in names),
        "fiftyone": "mask_targets.json" in names and any(name.startswith("labels/") for name in names),
    }
    formats: list[InputFormat] = [format for format, present in signs.items() if present]
    if len(formats) > 1:
        raise UsageError(f"{location} looks like {' and '.join(formats)}; name the format with {option}")
    if formats:
        return formats[0]
    json_files = [name for name in names if name.lower().endswith(".json") and not name.endswith(CERTIFICATE)]
    return _of_file(f"{location.rstrip('/')}/{json_files[0]}", in_folder=len(json_files)) if json_files else None


def _of_file(location: str, in_folder: int = 0) -> InputFormat | None:
    suffix = location.rsplit(".", 1)[-1].lower()
    if suffix in ("xml", "zip"):
        return "cvat"
    if suffix == "parquet":
        return "huggingface"
    if suffix != "json":
        return None
    raw = read_bytes(location)
    if json_start(raw) == "[":
        return "label-studio"
    members = json_members(raw, location)
    if "shapes" in members:
        if not in_folder:
            raise UsageError(f"{location} is one image's labelme file; give the folder")
        return "labelme"
    if "annotations" not in members or in_folder > 1:
        return None
    first = json_elements(raw, members["annotations"], "annotations", 1).tolist()
    return "coco-panoptic" if first and b'"segments_info"' in raw[first[0][0] : first[0][1]] else "coco"


def _main_file(location: str, format: InputFormat) -> str:
    """Return the path of the JSON file of a format that has one, if its folder was given."""
    standard = {
        "coco": "annotations/instances.json",
        "coco-datumaro": "annotations/instances.json",
        "coco-panoptic": "annotations/panoptic.json",
        "label-studio": "tasks.json",
    }.get(format)
    if standard is None or not is_folder(location):
        return location
    names = FileTree(location).with_suffix(".json")
    if standard not in names:
        names = [name for name in names if not name.endswith(CERTIFICATE)]
        if len(names) != 1:
            raise UsageError(f"{location} holds {len(names)} JSON files; give the one with the labels")
        standard = names[0]
    return f"{location.rstrip('/')}/{standard}"


def _own_options(location: str, options: ShapeOptions) -> ShapeOptions:
    """Resolve ``auto`` for labels that maskmill exported: their certificate records the label of unshaped pixels."""
    if options.uncovered != "auto":
        return options
    folder = location.rstrip("/")
    for _ in range(3):
        if is_exported(folder):
            record = json.loads(FileTree(folder).read(CERTIFICATE)).get("export", {})
            return replace(
                options,
                uncovered=record.get("uncovered", "auto"),
                background=record.get("background") or BACKGROUND,
            )
        folder = folder.rpartition("/")[0]
        if not folder or folder.endswith(":/"):
            break
    return options


def is_exported(folder: str) -> bool:
    """Return True for the folder of an export of maskmill."""
    try:
        return not is_folder(f"{folder}/{CERTIFICATE}")
    except UsageError:
        return False
