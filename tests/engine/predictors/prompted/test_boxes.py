"""A detector in front of a promptable model: its boxes become masks, scores and objects."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from maskmill.cli import app
from maskmill.engine.predictors.open import PromptedOptions, open_prompted, prompted_taxonomy
from maskmill.engine.predictors.prompted.boxes import BoxDetector, BoxSettings, choose_boxes
from maskmill.engine.runtimes.onnx_runtime import OnnxSession
from maskmill.engine.store.label_store import LabelStore
from maskmill.errors import UsageError

from ....models import detector_bundle, sam_bundle
from .test_given_prompts import GREEN, RED, maps_of, photos, picture

assert photos  # the fixture
BOXES = [(4.0, 4.0, 20.0, 20.0), (26.0, 12.0, 42.0, 28.0), (28.0, 4.0, 44.0, 20.0), (6.0, 12.0, 22.0, 28.0)]
"""The red and the green square, and where they are in the mirror image."""


def test_boxes_of_one_class_that_overlap_are_one_and_weak_ones_none() -> None:
    boxes = np.float32([[0.1, 0.1, 0.5, 0.5], [0.12, 0.1, 0.5, 0.5], [0.12, 0.1, 0.5, 0.5], [0.6, 0.6, 0.9, 0.9]])
    scores = np.float32([[0.8, 0], [0.9, 0.1], [0.1, 0.7], [0.2, 0.1]])
    found = choose_boxes(boxes, scores, (1.0, 0.5), BoxSettings())
    # the image covers the left half of the input
    np.testing.assert_allclose(found.boxes, [[0.24, 0.1, 1, 0.5]] * 2)
    assert (found.classes.tolist(), found.scores.tolist()) == ([0, 1], [np.float32(0.9), np.float32(0.7)])
    assert len(choose_boxes(boxes, scores, (1.0, 1.0), BoxSettings(box_overlap=1))) == 3
    assert len(choose_boxes(boxes, scores, (1.0, 1.0), BoxSettings(max_boxes=1))) == 1
    assert len(choose_boxes(boxes, scores, (1.0, 1.0), BoxSettings(box_score=0.95))) == 0
    assert len(choose_boxes(boxes, scores * np.nan, (1.0, 1.0), BoxSettings())) == 0


@pytest.mark.parametrize("batch", [1, 3])
def test_a_photo_becomes_masks_of_what_the_detector_finds(tmp_path: Path, photos: Path, batch: int) -> None:
    detector, sam = detector_bundle(tmp_path, BOXES), sam_bundle(tmp_path, name="sam")
    arguments = ["label-prompted", str(photos), "--detector", str(detector.path), "--sam", str(sam.path)]
    arguments += ["-o", str(tmp_path / "store"), "--instances", "--batch", str(batch), "--set", "box_score=0.6"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    store = LabelStore.open(tmp_path / "store")
    assert store.classes["targets"] == ["background", "red", "green"]
    truth = np.zeros((32, 48), np.uint8)
    truth[RED], truth[GREEN] = 1, 2
    maps = maps_of(store)
    assert (maps["a 1.png"] == truth).mean() > 0.93  # the masks are averaged over 2 pixels
    assert (maps["b.png"] == truth[:, ::-1]).mean() > 0.93
    assert not maps["empty.png"].any()
    run = store.run["detector"]
    assert (run["box_score"], run["artifact"]) == (0.6, detector.file().sha256)


def test_the_encoder_sees_only_photos_with_boxes_and_the_detector_one_batch(tmp_path: Path) -> None:
    detector, sam = detector_bundle(tmp_path, BOXES), sam_bundle(tmp_path, name="sam")
    options = PromptedOptions(sam=sam.path, detector=detector.path, prompt=("box_score=0.6",))
    predictor, taxonomy = open_prompted(options)
    assert taxonomy == prompted_taxonomy(options)
    maps = predictor.run([predictor.prepare(image) for image in (picture(), np.full((32, 48, 3), 90, np.uint8))])
    assert predictor.encoded == 1
    objects = [score_map.objects for score_map in maps]
    assert [len(found.scores) for found in objects if found is not None] == [2, 0]


def test_other_bundles_and_settings_are_refused(tmp_path: Path) -> None:
    sam = sam_bundle(tmp_path, name="sam")
    with pytest.raises(UsageError, match="is a promptable bundle; boxes need a detector"):
        BoxDetector(sam, OnnxSession(sam, role="encoder"))
    with pytest.raises(UsageError, match="boxes need a detector"):
        open_prompted(PromptedOptions(sam=sam.path, detector=sam.path))
    with pytest.raises(UsageError, match="box_score must be from 0 to 1, got 2"):
        BoxSettings(box_score=2)
    with pytest.raises(UsageError, match="prompts have one source; give one of --detector, --boxes"):
        PromptedOptions(sam=sam.path, detector=tmp_path, boxes=tmp_path)
