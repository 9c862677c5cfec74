"""As ``test_tools.py``, for libraries that want older versions of OpenCV, Pillow and PyArrow than maskmill's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maskmill.engine.formats.base import ShapeOptions
from maskmill.engine.formats.open import open_reader
from maskmill.engine.formats.rle import brush_of_mask, mask_of_brush
from maskmill.errors import UsageError

from .builders import CLASSES, nested_map, read, write

pytestmark = [
    pytest.mark.libraries,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]
MAPS = [nested_map(), np.flip(nested_map())]


def test_label_studio_sdk_encodes_and_decodes_the_same_brush() -> None:
    from label_studio_sdk.converter.brush import decode_rle, mask2rle

    rng = np.random.default_rng(0)
    masks = [rng.random((int(rng.integers(1, 20)), int(rng.integers(1, 20)))) < 0.5 for _ in range(40)]
    masks += [nested_map() == 1, np.zeros((150, 160), bool), np.ones((150, 160), bool)]
    for mask in masks:
        theirs = mask2rle(mask.astype(np.uint8) * 255)
        assert brush_of_mask(mask) == theirs
        assert (mask_of_brush(theirs, *mask.shape) == mask).all()
        assert (decode_rle(brush_of_mask(mask)).reshape(*mask.shape, 4)[..., 3] == mask * 255).all()


def test_label_studio_accepts_our_tasks_with_our_labeling_configuration(tmp_path: Path) -> None:
    from label_studio_sdk.label_interface import LabelInterface

    write(tmp_path, "label-studio", MAPS)
    interface = LabelInterface((tmp_path / "label_config.xml").read_text())
    for task in json.loads((tmp_path / "tasks.json").read_text()):
        (prediction,) = task["predictions"]
        assert interface.validate_prediction(prediction)


def pixels(item: object, names: list[str], shape: tuple[int, int]) -> np.ndarray:
    """Draw a datumaro item's masks as indices of CLASSES."""
    drawn = np.full(shape, 255)
    for annotation in item.annotations:  # type: ignore[attr-defined]
        if (
            hasattr(annotation, "image")
            and names[annotation.label] in CLASSES.names
            and not annotation.attributes.get("is_crowd")
        ):
            drawn[annotation.image.astype(bool)] = CLASSES.names.index(names[annotation.label])
    return drawn


@pytest.mark.parametrize(
    ("format", "theirs"),
    [("coco", "coco_instances"), ("coco-panoptic", "coco_panoptic"), ("voc", "voc_segmentation"), ("cvat", "cvat")],
)
def test_datumaro_reads_what_we_write(format: str, theirs: str, tmp_path: Path) -> None:
    from datumaro import Dataset

    images = write(tmp_path / "out", format, MAPS, ignored="drop" if format == "cvat" else None)  # type: ignore[arg-type]
    path = tmp_path / "out"
    if format == "coco":
        (path / "annotations" / "instances.json").rename(path / "annotations" / "instances_train.json")
    if format == "coco-panoptic":
        (path / "annotations" / "panoptic.json").rename(path / "annotations" / "panoptic_train.json")
        (path / "annotations" / "panoptic").rename(path / "annotations" / "panoptic_train")
    if format == "cvat":
        import zipfile

        zipfile.ZipFile(path / "cvat.zip").extractall(path)
    dataset = Dataset.import_from(str(path), theirs)
    names = [label.name for label in dataset.categories()[_label_type()]]
    items = {item.id: item for item in dataset}
    for image in images:
        (item,) = [item for name, item in items.items() if name in (image.stem, image.name)]
        assert (pixels(item, names, image.label.shape) == image.label).all()


@pytest.mark.parametrize(
    ("theirs", "format"),
    [("coco_instances", "coco"), ("coco_panoptic", "coco-panoptic"), ("voc_segmentation", "voc"), ("cvat", "cvat")],
)
def test_we_read_what_datumaro_writes(theirs: str, format: str, tmp_path: Path) -> None:
    from datumaro import Dataset, DatasetItem
    from datumaro.components.annotation import Mask
    from datumaro.components.media import Image

    items = []
    for index, label in enumerate(MAPS):
        masks = [
            Mask(image=label == value, label=int(value), id=100 * index + int(value) + 1, group=int(value) + 1)
            for value in np.unique(label)
            if value != 255
        ]
        media = Image.from_numpy(data=np.zeros((*label.shape, 3), np.uint8))
        items.append(DatasetItem(id=f"{index}", subset="train", media=media, annotations=masks))
    dataset = Dataset.from_iterable(items, categories=list(CLASSES.names))
    dataset.export(str(tmp_path / "out"), theirs, save_media=True)
    folder = tmp_path / "out"
    if format in ("coco", "coco-panoptic"):
        (folder,) = [path for path in (tmp_path / "out" / "annotations").glob("*.json")]
    if format == "cvat":
        (folder,) = [path for path in (tmp_path / "out").rglob("*.xml")]
    named: Any = "coco-datumaro" if format == "coco" else format
    if format == "coco":
        with pytest.raises(UsageError, match="every annotation .* is marked iscrowd"):
            open_reader(folder)
    reader = open_reader(folder, named, options=ShapeOptions(uncovered="ignore"))
    for index, label in enumerate(MAPS):
        (name,) = [name for name in reader.names() if name.rsplit(".", 1)[0].endswith(str(index))]
        ignored = 0 if format == "voc" else 255
        # VOC has no value for pixels without a label but background
        assert (read(reader, name) == np.where(label == 255, ignored, label)).all()


def _label_type() -> object:
    from datumaro.components.annotation import AnnotationType

    return AnnotationType.label
