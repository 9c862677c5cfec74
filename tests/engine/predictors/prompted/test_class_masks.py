from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from maskmill.engine.predictors.prompted.class_masks import (
    Answered,
    ClassMask,
    MaskSettings,
    agreement,
    confidence,
    merge_masks,
    pick_masks,
    score_map,
)
from maskmill.engine.predictors.prompted.prompts import Prompts
from maskmill.errors import UsageError

from .official_s2c import SENTINEL, official_labels, official_scores

SIZE = (8, 10)


def mask(rows: slice, columns: slice, logit: float = 10.0) -> np.ndarray:
    values = np.full(SIZE, -logit, np.float32)
    values[rows, columns] = logit
    return values


LEFT, RIGHT, TOP = mask(slice(2, 6), slice(0, 4)), mask(slice(2, 6), slice(6, 10)), mask(slice(0, 4), slice(0, 10))
EMPTY = np.full(SIZE, -10, np.float32)


def prompts(targets: list[int], groups: list[int] | None = None) -> Prompts:
    num = len(targets)
    return Prompts(
        image=np.zeros(num, np.int64),
        target=np.array(targets),
        group=np.array(groups or [0] * num),
        points=np.zeros((num, 1, 2), np.float32),
        labels=np.ones((num, 1), np.float32),
    )


def cams(*values: np.ndarray) -> np.ndarray:
    return np.stack(values).astype(np.float32)


def merged(logits: np.ndarray, asked: Prompts, maps: np.ndarray, **options: Any) -> list[ClassMask]:
    """The merged masks of one image; ``maps`` are counted by the prompts' targets."""
    return merge_masks([Answered(prompts=asked, masks=logits, maps=maps[asked.target])], **options)[0]


def test_the_confidence_is_the_mean_of_the_map_inside_the_mask() -> None:
    cam = np.zeros(SIZE, np.float32)
    cam[2:4, 0:4] = 1.0
    np.testing.assert_allclose(confidence(np.stack([LEFT, EMPTY]), cam[None]), [0.5, 0.0])


def test_agreement_is_the_iou_with_the_map_above_the_threshold() -> None:
    cam = (LEFT > 0) * 0.6
    np.testing.assert_allclose(agreement(np.stack([LEFT, RIGHT, EMPTY]), cam[None], 0.5), [1, 0, 0])
    assert agreement(LEFT[None], cam[None], 0.7)[0] == 0


@pytest.mark.parametrize(("pick", "expected"), [("score", RIGHT), ("agreement", LEFT), (2, TOP)])
def test_one_mask_of_a_prompt_is_picked(pick, expected) -> None:
    masks, scores = np.stack([LEFT, RIGHT, TOP])[None], np.array([[0.1, 0.9, 0.5]], np.float32)
    found = pick_masks(masks, scores, cams(LEFT > 0), pick=pick, threshold=0.5)
    np.testing.assert_array_equal(found[0], expected)


def test_an_index_that_the_model_has_no_mask_for_is_refused() -> None:
    with pytest.raises(UsageError, match="returns 1 mask\\(s\\) per prompt, so there is none with the index 2"):
        pick_masks(LEFT[None, None], np.ones((1, 1)), cams(LEFT > 0), pick=2, threshold=0.5)


def test_masks_of_a_class_are_merged() -> None:
    cam = ((LEFT > 0) | (RIGHT > 0)) * 0.8
    (found,) = merged(np.stack([LEFT, RIGHT]), prompts([0, 0]), cams(cam), keep=0.5, threshold=0.4)
    np.testing.assert_array_equal(found.claim > 0.5, (LEFT > 0) | (RIGHT > 0))
    np.testing.assert_allclose(found.score[found.claim > 0.5], 0.8, atol=1e-4)


def test_a_mask_of_the_surroundings_is_dropped() -> None:
    cam = np.where(LEFT > 0, 1.0, 0.1)
    (found,) = merged(np.stack([LEFT, -LEFT]), prompts([0, 0]), cams(cam), keep=0.5, threshold=0.4)
    np.testing.assert_array_equal(found.claim > 0.5, LEFT > 0)
    (everything,) = merged(np.stack([LEFT, -LEFT]), prompts([0, 0]), cams(cam), keep=0.0, threshold=0.4)
    assert (everything.claim > 0.5).all()


def test_of_several_groups_the_one_that_agrees_with_the_map_is_taken() -> None:
    cam = (LEFT > 0) * 1.0 + 0.1
    (found,) = merged(np.stack([TOP, LEFT, -LEFT]), prompts([3, 3, 3], [0, 1, 2]), np.stack([cam] * 4), keep=0.5,
                           threshold=0.5)  # fmt: skip
    assert found.target == 3
    np.testing.assert_array_equal(found.claim > 0.5, LEFT > 0)


def test_a_class_of_empty_masks_is_left_out() -> None:
    found = merged(np.stack([EMPTY, RIGHT]), prompts([0, 1]), cams(LEFT > 0, RIGHT > 0), keep=0.5, threshold=0.4)
    assert [one.target for one in found] == [1]


def test_overlaps_go_to_the_higher_score() -> None:
    found = merged(
        np.stack([LEFT, TOP]), prompts([0, 1]), cams((LEFT > 0) * 0.9, (TOP > 0) * 0.6), keep=0.5, threshold=0.4
    )
    label = score_map([ClassMask(target=m.target + 1, claim=m.claim, score=m.score) for m in found], SIZE, 3, 0).argmax(
        0
    )
    assert label[3, 2] == 1
    assert label[3, 8] == 2
    assert label[7, 9] == 0


def test_without_masks_everything_is_background() -> None:
    scores = score_map([], SIZE, 3, 1)
    assert (scores[1] == 1).all()
    assert (scores[[0, 2]] == 0).all()


unit = st.floats(0, 1, width=32)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(arrays(np.float32, (3, 4), elements=st.floats(-20, 20, width=32)), unit), max_size=4))
def test_the_background_wins_exactly_where_no_mask_covers_the_pixel(masks: list[tuple[np.ndarray, float]]) -> None:
    claims = [1 / (1 + np.exp(-logit)) for logit, _ in masks]
    found = [
        ClassMask(target=index + 1, claim=claim, score=claim * sure)
        for index, (claim, (_, sure)) in enumerate(zip(claims, masks, strict=True))
    ]
    scores = score_map(found, (3, 4), 5, 0)
    assert scores.min() >= 0
    assert scores.max() <= 1
    best, claim = scores[1:].max(axis=0), np.max([np.zeros((3, 4)), *claims], axis=0)
    assert (scores[0][claim < 0.499] > best[claim < 0.499]).all()
    assert (scores[0][claim > 0.501] <= best[claim > 0.501] + 1e-6).all()


def test_interpolated_scores_keep_a_masks_size_and_the_official_ones_do_not() -> None:
    """The trap of S2C's code: a sentinel outside the mask eats its edge when scores are resized."""
    logit = mask(slice(2, 6), slice(2, 8), logit=5.0)
    cam = (logit > 0).astype(np.float32)
    (found,) = merged(logit[None], prompts([0]), cam[None], keep=0.5, threshold=0.4)
    ours = score_map([ClassMask(target=1, claim=found.claim, score=found.score)], SIZE, 2, 0)
    large = np.stack([cv2.resize(one, (80, 64)) for one in ours]).argmax(axis=0)
    full_cam = cv2.resize(cam, (80, 64))[None]
    official = official_labels(official_scores(logit[None], full_cam, (64, 80)))
    interpolated = cv2.resize(official_scores(logit[None], cam[None], SIZE)[0], (80, 64)) > 0
    assert large.sum() == pytest.approx(official.sum(), rel=0.02)
    assert interpolated.sum() < 0.75 * official.sum()


def test_official_scores_are_logit_times_mean_map_inside_and_a_sentinel_outside() -> None:
    scores = official_scores(np.stack([LEFT, EMPTY]), cams((LEFT > 0) * 0.5, LEFT > 0), SIZE)
    assert (scores[0][LEFT > 0] == 5).all()
    assert (scores[0][LEFT < 0] == SENTINEL).all()
    assert (scores[1] == SENTINEL).all()
    np.testing.assert_array_equal(official_labels(scores), LEFT > 0)
    assert (official_labels(scores[:0]) == 0).all()


@pytest.mark.parametrize("options", [{"pick": "best"}, {"pick": -1}, {"keep": 1.5}])
def test_settings_out_of_range_are_refused(options: dict) -> None:
    with pytest.raises(UsageError):
        MaskSettings(**options)
