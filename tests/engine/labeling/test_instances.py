"""Objects of a model: found, stored, exported, and filtered at a controlled share of wrong ones."""

from __future__ import annotations

import json
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.mask import area

from maskmill.engine.backends.host import HOST
from maskmill.engine.calibration.objects import ObjectThresholds, calibrate_objects, held_out, lowest_value, match
from maskmill.engine.formats.base import Instance
from maskmill.engine.formats.coco import TrueObject
from maskmill.engine.formats.rle import encode_classes, runs_of_counts, string_to_counts
from maskmill.engine.inputs.sources import open_source
from maskmill.engine.labeling.export_labels import export_labels
from maskmill.engine.labeling.instances import InstanceSettings, find_instances
from maskmill.engine.labeling.label_run import label
from maskmill.engine.labeling.selection import Selection
from maskmill.engine.model.taxonomy import Taxonomy
from maskmill.engine.predictors.base import Objects, ScoreMap
from maskmill.engine.predictors.semantic import SemanticPredictor
from maskmill.engine.report.display import print_object_thresholds
from maskmill.engine.runtimes.onnx_runtime import OnnxSession
from maskmill.engine.store.instances import decode_instances, encode_instances
from maskmill.engine.store.label_store import LabelStore
from maskmill.errors import CalibrationError, StoreError, UsageError

from ...builders import label_row
from ...models import color_bundle, color_image, object_bundle

TAXONOMY = Taxonomy(targets=("ground", "cow", "horse"), background=0, model=(0, 1, 2))
SIZE = (24, 36)


def boxes(*corners: tuple[int, int, int, int]) -> np.ndarray:
    """Masks (K, 24, 36) of boxes (top, left, bottom, right)."""
    masks = np.zeros((len(corners), *SIZE), bool)
    for mask, (top, left, bottom, right) in zip(masks, corners, strict=True):
        mask[top:bottom, left:right] = True
    return masks


def score_map(masks: np.ndarray, scores: list[float], classes: list[int], **changes: Any) -> ScoreMap:
    objects = Objects(
        scores=np.float32(scores), classes=np.float32(classes), masks=np.where(masks, 6, -6).astype(np.float32)
    )
    values: dict[str, Any] = {
        "scores": np.zeros((3, *SIZE), np.float32), "layout": "CHW", "activation": "none", "size": SIZE,
        "region": (0.0, 0.0, *map(float, SIZE)), "backend": HOST, "objects": objects,
    }  # fmt: skip
    return ScoreMap(**values | changes)


def test_pixels_belong_to_the_best_object_and_copies_are_dropped() -> None:
    masks = boxes((2, 2, 12, 12), (3, 2, 12, 12), (2, 8, 12, 20), (15, 0, 20, 9), (15, 20, 20, 30))
    found = find_instances(
        score_map(masks, [0.9, 0.8, 0.7, 0.4, 0.6], [1, 1, 2, 1, 0]), TAXONOMY, InstanceSettings(min_score=0.5)
    )
    # the second is a copy of the first, the fourth is too weak, the last is background
    assert [(instance.target, round(instance.score, 3)) for instance in found] == [(1, 0.9), (2, 0.7)]
    assert (found[0].box, found[0].area) == ((2, 2, 10, 10), 100)
    assert (found[1].box, found[1].area) == ((12, 2, 8, 10), 80)


def test_masks_are_upsampled_as_scores_are() -> None:
    import cv2

    rng = np.random.default_rng(0)
    logits = cv2.resize(rng.normal(size=(6, 9)).astype(np.float32), SIZE[::-1], interpolation=cv2.INTER_CUBIC)
    objects = Objects(scores=np.float32([0.9]), classes=np.float32([1]), masks=logits[None])
    for size in ((24, 36), (101, 73), (11, 13)):
        (instance,) = find_instances(
            score_map(boxes(), [], [], objects=objects, size=size), TAXONOMY, InstanceSettings(min_area=1)
        )
        expected = cv2.resize(logits, size[::-1], interpolation=cv2.INTER_LINEAR) > 0
        assert abs(instance.area - int(expected.sum())) <= 1


def test_padding_is_not_part_of_an_object() -> None:
    # the image covers the upper half of the map
    masks = boxes((0, 0, 24, 36))
    (instance,) = find_instances(
        score_map(masks, [0.9], [1], region=(0.0, 0.0, 12.0, 36.0), size=(50, 150)), TAXONOMY, InstanceSettings()
    )
    assert (instance.box, instance.area) == ((0, 0, 150, 50), 7500)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(3):
        map = np.full(SIZE, index, np.uint8)
        Image.fromarray(color_image(map)).save(folder / f"{index}.png")
    return folder


def labeled(tmp_path: Path, photos: Path, batch: int = 1, **settings: float) -> LabelStore:
    masks = boxes((2, 2, 12, 12), (2, 8, 12, 20), (15, 0, 20, 9))
    bundle = object_bundle(tmp_path, masks, scores=[0.9, 0.7, 0.6], indices=[1, 2, 1], classes=TAXONOMY.targets,
                           background="ground")  # fmt: skip
    predictor = SemanticPredictor(bundle, OnnxSession(bundle), batch=batch)
    selection = Selection.argmax(instances=InstanceSettings(**settings))
    label(predictor, open_source(str(photos)), tmp_path / "store", TAXONOMY, selection)
    return LabelStore.open(tmp_path / "store")


@pytest.mark.parametrize("batch", [1, 2])
def test_objects_are_stored_beside_the_maps_and_exported(tmp_path: Path, photos: Path, batch: int) -> None:
    store = labeled(tmp_path, photos, batch)
    assert store.run["instances"]["min_score"] == 0.5
    for row in store.iter_rows(extras=True):
        assert row.instances is not None
        assert [instance.target for instance in decode_instances(row, 3)] == [1, 2, 1]

    export_labels(store, tmp_path / "coco", "coco", instances=True)
    coco = COCO(str(tmp_path / "coco/annotations/instances.json"))
    assert len(coco.anns) == 9
    first = coco.loadAnns(coco.getAnnIds(imgIds=1))
    assert [(entry["category_id"], entry["score"], entry["bbox"]) for entry in first] == [
        (2, 0.9, [2, 2, 10, 10]), (3, 0.7, [12, 2, 8, 10]), (2, 0.6, [0, 15, 9, 5])
    ]  # fmt: skip
    assert [int(area(coco.annToRLE(entry))) for entry in first] == [100, 80, 45]

    export_labels(store, tmp_path / "panoptic", "coco-panoptic", instances=True)
    raw = json.loads((tmp_path / "panoptic/annotations/panoptic.json").read_text())
    colors = np.asarray(Image.open(tmp_path / "panoptic/annotations/panoptic/1.png")).astype(int)
    ids = colors @ [1, 256, 65536]
    segments = {segment["id"]: segment for segment in raw["annotations"][1]["segments_info"]}
    assert set(np.unique(ids)) == set(segments)
    assert {number: int((ids == number).sum()) for number in segments} == {
        number: segment["area"] for number, segment in segments.items()
    }
    # the photo is a cow everywhere: what no object covers is a crowd
    assert [(s["category_id"], s["iscrowd"]) for s in segments.values()] == [(2, 1), (2, 0), (3, 0), (2, 0)]
    with pytest.raises(UsageError, match="cannot distinguish objects of the same class"):
        export_labels(store, tmp_path / "png", "png", instances=True)


def test_models_and_stores_without_objects_are_refused(tmp_path: Path, photos: Path) -> None:
    bundle = color_bundle(tmp_path, size=SIZE, classes=TAXONOMY.targets)
    predictor = SemanticPredictor(bundle, OnnxSession(bundle))
    with pytest.raises(UsageError, match="gives classes only"):
        label(
            predictor, open_source(str(photos)), tmp_path / "a", TAXONOMY,
            Selection.argmax(instances=InstanceSettings()),
        )  # fmt: skip
    label(predictor, open_source(str(photos)), tmp_path / "b", TAXONOMY, Selection.argmax())
    with pytest.raises(UsageError, match="holds no objects"):
        export_labels(LabelStore.open(tmp_path / "b"), tmp_path / "out", "coco", instances=True)


def truth(path: Path) -> Path:
    """Of the store's objects the first cow and the horse are right on every photo, the second cow on photo 0 alone."""
    images = [{"id": index, "file_name": f"{index}.png", "height": 24, "width": 36} for index in range(3)]
    box = lambda top, left, bottom, right: [left, top, right, top, right, bottom, left, bottom]  # noqa: E731
    annotations = [
        {"id": 10 * index + number, "image_id": index, "category_id": category, "segmentation": [corners], "iscrowd": 0}
        for index in range(3)
        for number, (category, corners) in enumerate(
            [(1, box(2, 2, 12, 12)), (2, box(2, 12, 12, 20)), *([(1, box(15, 0, 20, 9))] if index == 0 else [])]
        )
    ]
    categories = [{"id": 1, "name": "cow"}, {"id": 2, "name": "horse"}]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


def test_few_of_the_kept_objects_are_wrong(tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = labeled(tmp_path, photos, min_score=0.1)
    thresholds = calibrate_objects(store, truth(tmp_path / "truth.json"), alpha="0.3", by="score")
    assert thresholds.measured["cow"]["objects"] == 6
    assert thresholds.measured["cow"]["right"] == 4
    # (0 + 1) / (3 + 1) <= .3 with the best cow of each image; (0 + 1/2 + 1/2 + 1) / 4 with both
    assert thresholds.thresholds == {"cow": pytest.approx(0.9), "horse": pytest.approx(0.7)}
    thresholds.save(tmp_path / "objects.json")
    again = ObjectThresholds.load(tmp_path / "objects.json")
    assert again == thresholds
    export_labels(store, tmp_path / "kept", "coco", instances=True, object_thresholds=again)
    coco = COCO(str(tmp_path / "kept/annotations/instances.json"))
    entries = [
        (entry["category_id"], entry["iscrowd"], entry["area"]) for entry in coco.loadAnns(coco.getAnnIds([0 + 1]))
    ]
    # the second cow is doubtful: a crowd, which shares no pixel with the others
    assert entries == [(2, 0, 100), (3, 0, 80), (2, 1, 45)]
    export_labels(store, tmp_path / "things", "coco-panoptic", instances=True, object_thresholds=again)
    raw = json.loads((tmp_path / "things/annotations/panoptic.json").read_text())
    kinds = [(segment["category_id"], segment["iscrowd"]) for segment in raw["annotations"][2]["segments_info"]]
    assert kinds == [(3, 1), (2, 0), (3, 0)]
    # three images cannot promise a tenth
    strict = calibrate_objects(store, tmp_path / "truth.json", alpha="0.1")
    assert set(strict.thresholds.values()) == {None}
    print_object_thresholds(strict, tmp_path / "strict.json")
    output = capsys.readouterr().out
    assert "cow: none kept, as alpha must be at least 0.25 with 3 images; 0 of 6 objects" in output
    assert "strict.json keeps no object: label more images, or choose a larger --alpha" in output
    assert "at most" not in output
    assert "±" not in output
    summary = export_labels(store, tmp_path / "none", "coco", instances=True, object_thresholds=strict)
    assert summary.num_objects == 0
    for options in ({"iou": 0.0}, {"by": "area"}, {"alpha": "2"}):
        with pytest.raises(UsageError):
            calibrate_objects(store, tmp_path / "truth.json", **{"alpha": "0.3"} | options)  # type: ignore[arg-type]
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(CalibrationError, match="calibrate-objects"):
        ObjectThresholds.load(tmp_path / "other.json")


def instance(box: np.ndarray, *, target: int = 1, score: float = 0.9, quality: float = 1.0) -> Instance:
    (mask,) = encode_classes(box.astype(np.uint8))[1:]
    return Instance(target=target, score=score, quality=quality, box=mask.box, counts=mask.counts, area=mask.area)


def true_object(box: np.ndarray, *, target: int = 1, crowd: bool = False) -> TrueObject:
    mask = encode_classes(box.astype(np.uint8))[1]
    return TrueObject(target=target, runs=runs_of_counts(string_to_counts(mask.counts), box.size), crowd=crowd)


def test_an_object_is_right_from_the_iou_that_is_asked_for() -> None:
    (first, half, other) = boxes((2, 2, 12, 12), (2, 2, 12, 8), (15, 0, 20, 9))
    objects = [instance(first), instance(half, score=0.8), instance(other, target=2)]
    size = SIZE[0] * SIZE[1]
    # the true object is 10 by 6 pixels: the IoU is .6, and the exact mask comes later
    matches = match(objects, [true_object(half)], size, 0.5)
    assert [(round(m.iou, 3), m.instance.target) for m in matches] == [(0.6, 1), (0.0, 2), (0.0, 1)]
    matches = match(objects, [true_object(half)], size, 0.75)
    assert [round(m.iou, 3) for m in matches] == [0.6, 0.0, 1.0]


def test_objects_in_a_crowd_are_neither_right_nor_wrong() -> None:
    crowd, single, outside = boxes((0, 0, 10, 20), (2, 2, 8, 8), (15, 0, 20, 9))
    objects = [instance(single), instance(outside, score=0.8), instance(single, target=2, score=0.7)]
    truth = [true_object(crowd, crowd=True)]
    matches = match(objects, truth, SIZE[0] * SIZE[1], 0.5)
    assert [m.instance.score for m in matches] == [0.8, 0.7]


def test_the_quality_of_a_mask_is_its_stability_or_what_the_model_predicts() -> None:
    logits = np.full((1, *SIZE), -6.0, np.float32)
    logits[0, 2:12, 2:12] = 0.5
    logits[0, 2:12, 2:7] = 6.0
    objects = Objects(scores=np.float32([0.875]), classes=np.float32([1]), masks=logits)
    (found,) = find_instances(score_map(boxes(), [], [], objects=objects), TAXONOMY, InstanceSettings())
    assert found.quality == 0.5
    predicted = replace(objects, qualities=np.float32([0.25]))
    (found,) = find_instances(score_map(boxes(), [], [], objects=predicted), TAXONOMY, InstanceSettings())
    assert found.quality == 0.25
    row = replace(label_row("a", labels=np.zeros(SIZE, np.uint8)), instances=encode_instances([found]))
    assert decode_instances(row, 3) == (found,)


DAMAGED = [
    b"",
    b"\x01",
    b"\x02not zlib",
    *(
        b"\x02" + zlib.compress(text)
        for text in (
            b"{",
            b"{}x",
            b"[" * 100_000,
            b"[[1, 2]]",
            b'[["a", 0.5, 0.5, 0, 0, 4, 4, 16, "04"]]',
            b'[[0, NaN, 0.5, 0, 0, 4, 4, 16, "04"]]',
            b'[[9, 0.5, 0.5, 0, 0, 4, 4, 16, "04"]]',
            b'[[-1, 0.5, 0.5, 0, 0, 4, 4, 16, "04"]]',
            b'[[0, 0.5, 0.5, -5, 0, 4, 4, 16, "04"]]',
            b'[[0, 0.5, 0.5, 0, 0, 1000000000, 4, 16, "04"]]',
            b'[[0, 0.5, 0.5, 0, 0, 4, 4, 16, "04"]]',
            b'[[0, 0.5, 0.5, 0, 0, 4, 4, 16, "zz"]]',
            b" " * (1 << 29),
        )
    ),
]


@pytest.mark.parametrize("data", DAMAGED, ids=range(len(DAMAGED)))
def test_damaged_objects_are_refused_in_one_line(data: bytes) -> None:
    with pytest.raises(StoreError, match="the objects of "):
        decode_instances(replace(label_row("a", labels=np.zeros(SIZE, np.uint8)), instances=data), 3)


def test_thresholds_apply_to_score_times_quality() -> None:
    (box,) = boxes((2, 2, 12, 12))
    objects = [instance(box, score=0.9, quality=0.5), instance(box, score=0.6, quality=0.9)]
    record: Any = {"alpha": "0.1", "iou": 0.5, "classes": ("ground", "cow"), "measured": {}}
    kept = {
        by: ObjectThresholds(by=by, thresholds={"cow": 0.5}, **record).keep(objects)
        for by in ("score", "quality", "both")
    }  # type: ignore[arg-type]
    assert {by: len(instances) for by, instances in kept.items()} == {"score": 2, "quality": 2, "both": 1}
    assert kept["both"] == (objects[1],)


def test_the_share_is_measured_on_images_that_thresholds_have_not_seen() -> None:
    rng = np.random.default_rng(0)
    images = [[(value, bool(rng.random() < value)) for value in rng.random(4)] for _ in range(80)]
    figures = held_out(images, 0.2, splits=30)
    assert 0.03 < figures["held_out_wrong"] <= 0.2
    assert figures["held_out_spread"] > 0
    assert 0 < figures["held_out_kept"] < 1
    assert held_out(images[:1], 0.2, splits=30) == {}


def test_the_share_of_wrong_objects_holds_on_new_images() -> None:
    rng = np.random.default_rng(3)

    def image() -> list[tuple[float, bool]]:
        scores = rng.uniform(size=rng.integers(1, 8))
        return [(float(score), bool(rng.uniform() < score)) for score in scores]

    shares = []
    for _ in range(150):
        limit = lowest_value([image() for _ in range(60)], 0.2)
        assert limit is not None
        kept = [[right for score, right in image() if score >= limit] for _ in range(60)]
        shares.append(np.mean([1 - np.mean(rights) if rights else 0.0 for rights in kept]))
    assert 0.1 < np.mean(shares) <= 0.2
