from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maskmill.engine.labeling.selection import select_segments
from maskmill.engine.predictors.segment_everything import (
    EverythingSettings,
    SegmentEverything,
    SegmentMap,
    bounding_boxes,
    paint,
    stability,
    without_duplicates,
    without_overlapping_boxes,
)
from maskmill.engine.runtimes.onnx_runtime import OnnxSession
from maskmill.errors import UsageError

from ...models import color_image, sam_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return sam_bundle(tmp_path_factory.mktemp("sam"))


def segment(bundle: Any, image: np.ndarray, **options: Any) -> np.ndarray:
    settings = EverythingSettings(**{"side": 8, "min_score": 0.6} | options)
    sessions = (OnnxSession(bundle, role=role) for role in ("encoder", "decoder"))
    model = SegmentEverything(bundle, *sessions, settings=settings)
    return paint(model.run([model.prepare(image)])[0])


def test_each_color_becomes_one_segment(bundle: Any) -> None:
    colors = np.zeros((32, 48), np.int64)
    colors[:, 16:32], colors[:, 32:] = 1, 2
    label = segment(bundle, color_image(colors))
    assert label.dtype == np.uint16
    assert set(np.unique(label)) - {0} == {1, 2, 3}
    assert (label == 0).mean() < 0.1  # between two segments neither need be sure
    for index in range(3):
        inside = label[:, 16 * index + 2 : 16 * index + 14]
        assert len(np.unique(inside)) == 1
    assert len(np.unique(label[16, [8, 24, 40]])) == 3


def test_what_the_model_scores_low_is_no_segment(bundle: Any) -> None:
    assert (segment(bundle, color_image(np.zeros((32, 48), np.int64)), min_score=0.95) == 0).all()


def test_masks_of_nothing_are_no_segments(bundle: Any) -> None:
    assert (segment(bundle, np.zeros((32, 48, 3), np.uint8)) == 0).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (64, 20)])
def test_images_of_any_shape(bundle: Any, size: tuple[int, int]) -> None:
    assert (segment(bundle, color_image(np.ones(size, np.int64))) == 1).all()


def test_of_masks_that_overlap_the_best_stays() -> None:
    masks = np.zeros((4, 4, 10), bool)
    masks[0, :, :5] = masks[1, :, :6] = masks[2, :, 5:] = True
    masks[3, :, :3] = True
    kept = without_duplicates(masks, np.array([0.5, 0.9, 0.7, 0.6], np.float32), 0.7)
    # mask 0 lies in mask 1 with an IoU of 5/6, mask 3 with one of 1/2
    assert kept.tolist() == [1, 2, 3]
    assert without_duplicates(masks[:0], np.zeros(0, np.float32), 0.7).tolist() == []


def test_stability_compares_two_thresholds_of_the_logits() -> None:
    logits = np.full((3, 1, 10), -5.0, np.float32)
    logits[0, 0, :4] = 5
    logits[1, 0, :2], logits[1, 0, 2:4] = 5, 0.5
    np.testing.assert_allclose(stability(logits), [1, 0.5, 0])


def test_smaller_segments_lie_on_top() -> None:
    logits = np.full((2, 8, 8), -5, np.float16)
    logits[0] = 5
    logits[1, 2:6, 2:6] = 5
    segments = SegmentMap(logits=logits, scores=np.array([0.9, 1.2], np.float32), size=(16, 16), extent=(8.0, 8.0))
    label = paint(segments)
    assert label[8, 8] == 2
    assert label[0, 0] == 1
    (found,) = select_segments([segments])
    assert found.kept == 1
    assert found.counts.tolist() == [256]
    assert 0 <= found.confidence <= 1


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(UsageError, match="side must be a whole number of at least 1"):
        EverythingSettings(side=0)
    with pytest.raises(UsageError, match="max_overlap must be a number at least 0"):
        EverythingSettings(max_overlap=2)


def test_the_options_are_part_of_the_settings(bundle: Any, tmp_path: Path) -> None:
    sessions = [OnnxSession(bundle, role=role) for role in ("encoder", "decoder")]
    one = SegmentEverything(bundle, *sessions).settings
    assert one != SegmentEverything(bundle, *sessions, settings=EverythingSettings(side=32)).settings


def test_with_the_filters_of_segment_anything_each_color_is_still_a_segment(bundle: Any) -> None:
    colors = np.zeros((32, 48), np.int64)
    colors[:, 16:32], colors[:, 32:] = 1, 2
    label = segment(bundle, color_image(colors), filters="boxes")
    assert len(np.unique(label[16, [8, 24, 40]])) == 3


def test_boxes_hold_their_masks() -> None:
    masks = np.zeros((2, 5, 6), bool)
    masks[0, 1:3, 2:6] = masks[1, 4, 0] = True
    assert bounding_boxes(masks.any(axis=2), masks.any(axis=1)).tolist() == [[1, 2, 3, 6], [4, 0, 5, 1]]


def test_a_box_that_overlaps_a_better_one_is_dropped() -> None:
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 8], [0, 0, 10, 7], [20, 20, 30, 30]])
    scores = np.array([0.9, 0.95, 0.99, 0.8], np.float32)
    # the IoU is .7 of the first and third, .8 and .875 with the second
    assert without_overlapping_boxes(boxes, scores, 0.7).tolist() == [2, 0, 3]
    assert without_overlapping_boxes(boxes, scores, 0.9).tolist() == [2, 1, 0, 3]
    assert without_overlapping_boxes(boxes[:0], scores[:0], 0.7).tolist() == []


def test_filters_of_another_name_are_refused() -> None:
    with pytest.raises(UsageError, match="filters must be one of masks, boxes"):
        EverythingSettings(filters="none")  # type: ignore[arg-type]
