from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maskmill.engine.calibration.binned import BinnedScores
from maskmill.engine.calibration.candidates import (
    Candidate,
    Measured,
    default_candidates,
    measure_candidates,
    recommend,
)
from maskmill.engine.calibration.goal import Goal
from maskmill.engine.calibration.scores.observe import Observations, true_scores
from maskmill.engine.calibration.scores.pixel_samples import Draw, PixelSamples, class_values, draw_pixels
from maskmill.engine.calibration.scores.score_counts import ScoreCounts, counts_of, queue_counts
from maskmill.engine.calibration.sharing import share_thresholds
from maskmill.engine.model.taxonomy import Taxonomy
from maskmill.engine.predictors.base import ScoreMap
from maskmill.errors import CalibrationError, UsageError

TAXONOMY = Taxonomy(targets=("background", "cat", "dog"), background=0, model=(0, 1, 2))
RAW = Candidate(method="argmax")


def observed(folder: Path, num: int = 30, seed: int = 0) -> tuple[BinnedScores, PixelSamples]:
    """Images whose logits are the truth and noise; every third image has no dog."""
    rng = np.random.default_rng(seed)
    samples, parts = PixelSamples(folder, TAXONOMY), []
    for index in range(num):
        truth = rng.choice(2 if index % 3 == 0 else 3, (16, 16), p=[0.6, 0.4] if index % 3 == 0 else [0.5, 0.3, 0.2])
        logits = (np.eye(3)[truth] * 2 + rng.normal(0, 1.2, (16, 16, 3))).astype(np.float32)
        score_map = ScoreMap(
            scores=logits, layout="HWC", activation="softmax", size=(16, 16), region=(0.0, 0.0, 16.0, 16.0)
        )
        truth = truth.astype(np.uint8)
        scores = true_scores(score_map, truth, TAXONOMY)
        parts.append(counts_of(str(index), queue_counts(score_map, truth, scores, TAXONOMY), np.zeros(9)))
        draw = draw_pixels(truth, 255, index)
        samples.append(draw, class_values(score_map, truth.shape, draw), "softmax")
    samples.finish()
    return BinnedScores(ScoreCounts.merge(parts), 3), samples


def point(kept: float, accuracy: float, miou: float, **candidate: Any) -> Measured:
    options = {"method": "threshold", "confidence": kept, **candidate}
    return Measured(
        candidate=Candidate(**options), kept=kept, accuracy=accuracy, miou=miou, kept_interval=(0, 1),
        accuracy_interval=(accuracy - 0.01, accuracy + 0.01),
    )  # fmt: skip


POINTS = [
    point(1.0, 0.90, 0.60, method="argmax"), point(0.95, 0.93, 0.70), point(0.9, 0.96, 0.69), point(0.8, 0.97, 0.75),
    point(0.6, 0.99, 0.55), point(0.99, 0.85, 0.80),
]  # fmt: skip


@pytest.mark.parametrize(
    ("goal", "kept"),
    [("miou", 0.8), ("accuracy 0.95", 0.9), ("accuracy 0.97", 0.8), ("kept 0.9", 0.95), ("kept 0.97", 1.0)],
)
def test_the_recommendation_serves_the_goal_and_is_no_worse_than_the_raw_labels(goal: str, kept: float) -> None:
    # the last point has the best mIoU, with less accurate labels than the raw ones
    assert recommend(POINTS, Goal.parse(goal)).recommended.kept == kept


def test_a_goal_out_of_reach_is_said_to_be() -> None:
    choice = recommend(POINTS, Goal.parse("accuracy 0.999"))
    assert choice.recommended.accuracy == 0.99
    assert "no candidate reaches accuracy 0.999" in choice.notes[0]
    assert "worse than the top class of every pixel" in choice.notes[1]  # its mIoU is
    alone = recommend(POINTS[:1], Goal.parse("miou"))
    assert alone.recommended is POINTS[0]
    assert "no selection is better" in alone.notes[0]


def test_the_case_of_a_goal_does_not_matter() -> None:
    assert Goal.parse("mIoU") == Goal.parse("miou")
    assert Goal.parse("Accuracy 0.9") == Goal.parse("accuracy 0.9")


def test_a_full_temporary_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "samples.f32").symlink_to("/dev/full")
    draw = Draw(cells=np.zeros(1, np.int64), classes=np.zeros(1, np.int64), weights=np.ones(1))
    message = f"temporary folder {tmp_path.parent}: No space left .* set TMPDIR"
    with Observations(tmp_path, TAXONOMY) as observations:
        observations.samples.append(draw, np.zeros((1, 3), np.float32), "softmax")
        with pytest.raises(CalibrationError, match=message):
            observations.finish()


@pytest.mark.parametrize("text", ["speed", "accuracy", "accuracy much", "miou 0.3", "kept 0.8 0.9", ""])
def test_texts_that_are_no_goal_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="expected a goal such as"):
        Goal.parse(text)


@pytest.mark.parametrize("text", ["kept 1.5", "accuracy 97", "accuracy -0.1", "accuracy nan"])
def test_goals_out_of_range_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match=f"the {text.split()[0]} of a goal must be a number at least 0 and at most 1"):
        Goal.parse(text)


def test_candidates_are_measured_out_of_sample(tmp_path: Path) -> None:
    scores, samples = observed(tmp_path)
    candidates = [
        RAW, Candidate(method="threshold", confidence=0.8),
        Candidate(method="conformal", rule="agree", group="class", alpha="0.1"),
    ]  # fmt: skip
    raw, sure, agree = measure_candidates(scores, samples, candidates)
    counts = scores.counts
    assert raw.kept == 1.0
    assert raw.accuracy == pytest.approx(counts.hits.sum() / counts.true.sum(), abs=1e-6)  # every pixel is sampled
    assert sure.kept < 1
    assert sure.accuracy > raw.accuracy
    assert agree.accuracy > raw.accuracy
    assert raw.accuracy_interval is not None
    assert raw.accuracy_interval[0] < raw.accuracy < raw.accuracy_interval[1]
    assert not sure.dominated


def test_selections_with_the_same_figures_are_listed_once_and_the_recommendation_always() -> None:
    twins = [point(0.95, 0.93, 0.70), point(0.9504, 0.9304, 0.6996), point(0.9496, 0.9304, 0.7004)]
    choice = recommend([*POINTS[:1], *twins, *POINTS[2:]], Goal.parse("kept 0.945"))
    assert choice.recommended.kept == 0.9496  # the best mIoU
    rows = [(row.kept, row.miou) for row in choice.leading]
    assert rows == [(1.0, 0.60), (0.99, 0.80), (0.9496, 0.7004)]
    assert choice.leading[2] is choice.recommended  # others keep more with a better mIoU, but worse labels
    assert recommend(POINTS[:1], Goal.parse("miou")).leading == POINTS[:1]


def test_the_default_candidates_have_different_names() -> None:
    names = [str(candidate) for candidate in default_candidates()]
    assert len(set(names)) == len(names) > 200


def test_similar_classes_form_clusters_and_the_background_stays_alone(tmp_path: Path) -> None:
    scores, _ = observed(tmp_path, num=30)
    num_images = (scores.pixels > 0).sum(axis=0)
    assert num_images.tolist() == [30, 30, 20]
    options: dict[str, Any] = {"background": 0, "counts": scores.counts}
    apart = share_thresholds("cluster", num_images, min_images=19, **options)
    assert len(set(apart.group_of.tolist())) == 3
    joined = share_thresholds("cluster", num_images, min_images=25, **options)
    assert joined.group_of[1] == joined.group_of[2] != joined.group_of[0]
    assert joined.source_name(2, TAXONOMY.targets) == "cat+dog"


def rare_dog(num: int = 40) -> BinnedScores:
    """Images of the cat, which the model finds, and one of the dog, of which it is very sure."""
    rng = np.random.default_rng(0)
    parts = []
    for index in range(num):
        logits = rng.normal(0, 1, (8, 8, 3)).astype(np.float32)
        truth = np.full((8, 8), 1 if index else 2, np.uint8)
        logits[..., truth[0, 0]] += 1.0 if index else 6.0
        score_map = ScoreMap(scores=logits, layout="HWC", activation="softmax", size=(8, 8), region=(0, 0, 8, 8))
        scores = true_scores(score_map, truth, TAXONOMY)
        parts.append(counts_of(str(index), queue_counts(score_map, truth, scores, TAXONOMY), np.zeros(9)))
    return BinnedScores(ScoreCounts.merge(parts), 3)


def fitted(scores: BinnedScores, group: Any, **options: Any) -> np.ndarray:
    """Bins of the three classes at alpha .1."""
    num_images, weights = (scores.pixels > 0).sum(axis=0), np.ones((1, scores.counts.num_images))
    sharing = share_thresholds(group, num_images, min_images=1, background=0, **options)
    return scores.thresholds(sharing, weights, alpha=0.1, unit="pixel")[0]


def test_shrinkage_moves_thresholds_towards_the_constant_one_that_keeps_as_many_pixels() -> None:
    scores = rare_dog()
    own, shrunk = fitted(scores, "class"), fitted(scores, "shrunk")
    constant = scores.constant_bins(own[None], np.ones((1, 40)))[0]
    assert own[2] < constant <= own[1]
    assert shrunk[2] == round(0.75 * own[2] + 0.25 * constant)
    assert shrunk[1] == round(0.75 * own[1] + 0.25 * constant)
    assert own[0] == shrunk[0] == -1  # never seen


def test_a_class_never_seen_is_emitted_at_a_constant_confidence_if_asked_for() -> None:
    scores = rare_dog()
    own, confident = fitted(scores, "class"), fitted(scores, "class", unseen="confident")
    assert confident[0] == scores.constant_bins(own[None], np.ones((1, 40)))[0]
    np.testing.assert_array_equal(confident[1:], own[1:])
