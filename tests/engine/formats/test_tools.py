"""Files that we write, read by the library of their format, and the other way round; run by ``make test-formats``.

These libraries install beside maskmill's own versions; those that do not are in ``test_tools_apart.py``.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskmill.engine.formats.coco import to_supervision
from maskmill.engine.formats.open import open_reader
from maskmill.engine.formats.rle import mask_of_row_counts, row_counts

from .builders import CLASSES, nested_map, read, write

pytestmark = [
    pytest.mark.libraries,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
MAPS = [nested_map(), np.flip(nested_map())]


def test_cvat_sdk_encodes_and_decodes_the_same_rows() -> None:
    from cvat_sdk.masks import decode_mask, encode_mask

    rng = np.random.default_rng(0)
    for _ in range(100):
        mask = rng.random((int(rng.integers(1, 12)), int(rng.integers(1, 12)))) < 0.4
        mask[rng.integers(len(mask)), 0] = True
        *counts, left, top, right, bottom = (int(value) for value in encode_mask(mask))
        part = mask[top : bottom + 1, left : right + 1]
        assert row_counts(part) == counts
        assert (mask_of_row_counts(counts, *part.shape) == part).all()
        ours = [*row_counts(part), left, top, right, bottom]
        assert (decode_mask(ours, image_width=mask.shape[1], image_height=mask.shape[0]) == mask).all()


def test_datasets_reads_our_parquet_files(tmp_path: Path) -> None:
    from datasets import load_dataset

    images = write(tmp_path / "out", "huggingface", MAPS, weights=True)
    rows = load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    assert rows["name"][:] == [image.name for image in images]
    for row, image in zip(rows, images, strict=True):
        assert (np.asarray(row["label"]) == image.label).all()
        assert (np.asarray(row["weight"]) == image.weight).all()
        assert row["image"].size == (31, 20)


def test_we_read_parquet_files_that_datasets_writes(tmp_path: Path) -> None:
    from datasets import Dataset, Features, Value
    from datasets import Image as ImageFeature

    features = Features({"file_name": Value("string"), "image": ImageFeature(), "annotation": ImageFeature()})
    rows = [
        {"file_name": f"{index}.jpg", "image": Image.new("RGB", (31, 20)), "annotation": Image.fromarray(label)}
        for index, label in enumerate(MAPS)
    ]
    Dataset.from_list(rows, features=features).to_parquet(str(tmp_path / "data.parquet"))
    reader = open_reader(tmp_path / "data.parquet")
    assert list(reader.names()) == ["0.jpg", "1.jpg"]
    for index, label in enumerate(MAPS):
        assert (reader.read_labels(f"{index}.jpg") == label).all()


def test_webdataset_reads_our_shards(tmp_path: Path) -> None:
    import webdataset

    images = write(tmp_path, "webdataset", MAPS, weights=True)
    samples = list(webdataset.WebDataset(str(tmp_path / "000000.tar"), shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == [image.stem for image in images]
    for sample, image in zip(samples, images, strict=True):
        assert (np.asarray(Image.open(io.BytesIO(sample["label.png"]))) == image.label).all()
        assert (np.asarray(Image.open(io.BytesIO(sample["weight.png"]))) == image.weight).all()
        assert sample["png"] == image.data


@pytest.mark.parametrize("format", ["coco", "coco-polygons"])
def test_supervision_reads_our_coco_files(format: str, tmp_path: Path) -> None:
    import supervision

    images = write(tmp_path, format, MAPS)  # type: ignore[arg-type]
    dataset = supervision.DetectionDataset.from_coco(
        images_directory_path=str(tmp_path / "images"),
        annotations_path=str(tmp_path / "annotations" / "instances.json"),
        force_masks=True,
    )
    for path, _, detections in dataset:
        (image,) = [image for image in images if path.endswith(image.name)]
        drawn = np.full(image.label.shape, 255)
        for mask, number in zip(detections.mask, detections.class_id, strict=True):
            if dataset.classes[number] != "ignore":
                drawn[mask] = CLASSES.names.index(dataset.classes[number])
        # supervision fills polygons with OpenCV, whose borders are a pixel wide
        wrong = (drawn != image.label).mean()
        assert wrong == 0 if format == "coco" else wrong < 0.35


def test_we_read_yolo_files_that_supervision_writes(tmp_path: Path) -> None:
    import supervision

    label = np.zeros((40, 60), dtype=np.uint8)
    label[5:30, 10:40] = 1
    (tmp_path / "photos").mkdir()
    photo = tmp_path / "photos" / "a.png"
    Image.new("RGB", (60, 40)).save(photo)
    detections = to_supervision(np.where(label == 0, 255, label), CLASSES)
    dataset = supervision.DetectionDataset(list(CLASSES.names), [str(photo)], {str(photo): detections})
    dataset.as_yolo(str(tmp_path / "y" / "images"), str(tmp_path / "y" / "labels"), str(tmp_path / "y" / "data.yaml"))
    drawn = read(open_reader(tmp_path / "y"), "a")
    # supervision's corners are centers of pixels, so that the right and lower border is lost
    assert (drawn != label).sum() <= 25 + 30


def test_supervision_detections_hold_the_map() -> None:
    label = nested_map()
    detections = to_supervision(label, CLASSES)
    drawn = np.full(label.shape, 255)
    for mask, number in zip(detections.mask, detections.class_id, strict=True):
        drawn[mask] = number
    assert (drawn == label).all()
    assert detections.data["class_name"].tolist() == list(CLASSES.names)
    assert len(to_supervision(np.full((2, 2), 255, np.uint8), CLASSES)) == 0
