"""Thresholds against plain order statistics and a plain search."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskmill.engine.calibration.scores.score_spill import NO_CLASS, ScoreSpill
from maskmill.engine.calibration.sharing import Fallback, Group, Unseen, share_thresholds
from maskmill.engine.calibration.thresholds import Thresholds, count_classes, fit_thresholds
from maskmill.errors import CalibrationError

ALPHA = Fraction(1, 10)


def spill_of(folder: Path, images: list[tuple[Any, Any]], grid: tuple[int, int] | None = None) -> ScoreSpill:
    spill = ScoreSpill(folder, grid=grid)
    for scores, classes in images:
        spill.append(np.asarray(scores, np.float32), np.asarray(classes))
    spill.finish()
    return spill


def fit(
    spill: ScoreSpill,
    indices: list[int] | None = None,
    *,
    group: Group = "class",
    min_images: int = 1,
    num_targets: int = 3,
    num_scored: int = 4,
    background: int | None = None,
    fallback: Fallback = "pooled",
    unseen: Unseen = "pooled",
    **options: Any,
) -> Thresholds:
    indices = list(range(len(spill))) if indices is None else indices
    _, num_images = count_classes(spill, indices, num_targets)
    sharing = share_thresholds(
        group, num_images, min_images=min_images, background=background, fallback=fallback, unseen=unseen
    )
    defaults = {"alpha": ALPHA, "unit": "pixel", "on_small_n": "inf"}
    return fit_thresholds(spill, indices, sharing, num_scored=num_scored, **{**defaults, **options})


def random_images(num: int, pixels: int, seed: int, classes: int = 3) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [
        (rng.random(pixels).astype(np.float32) ** 3, rng.integers(0, classes, pixels).astype(np.uint16))
        for _ in range(num)
    ]


@pytest.mark.parametrize("unit", ["pixel", "image"])
def test_windows_of_one_file_are_one_image(tmp_path: Path, unit: str) -> None:
    images = random_images(9, 60, seed=3)
    (tmp_path / "whole").mkdir()
    whole = spill_of(tmp_path / "whole", images)
    windows = ScoreSpill(tmp_path)
    for scores, classes in images:
        for number, part in enumerate((slice(0, 10), slice(10, 15), slice(15, 60))):
            windows.append(scores[part], classes[part], joined=number > 0)
    windows.finish()
    assert len(windows) == 9
    assert [part.tolist() for part in windows.image(4)] == [part.tolist() for part in images[4]]
    first, second = (fit(spill, alpha=Fraction(1, 5), unit=unit) for spill in (whole, windows))
    assert np.array_equal(first.values, second.values)
    assert np.array_equal(first.num_images, second.num_images)


def order_statistic(scores: np.ndarray, alpha: Fraction) -> float:
    rank = -((-(len(scores) + 1) * (1 - alpha)) // 1)
    return float(np.sort(scores)[int(rank) - 1]) if rank <= len(scores) else np.inf


def test_class_and_pooled_thresholds_are_exact_order_statistics(tmp_path: Path) -> None:
    images = random_images(7, 400, seed=1)
    found = fit(spill_of(tmp_path, images))
    scores, classes = (np.concatenate(part) for part in zip(*images, strict=True))
    for target in range(3):
        assert found.values[target] == np.float32(order_statistic(scores[classes == target], ALPHA))
    assert found.pooled == order_statistic(scores, ALPHA)
    assert found.values[3] == np.float32(found.pooled)  # "none of these"
    assert found.num_pixels.tolist() == np.bincount(classes, minlength=3).tolist()
    assert found.num_images.tolist() == [7, 7, 7]


def test_pooled_uses_one_threshold_everywhere(tmp_path: Path) -> None:
    found = fit(spill_of(tmp_path, random_images(3, 200, seed=2)), group="pooled")
    assert (found.values == np.float32(found.pooled)).all()


def test_a_class_in_too_few_images_takes_the_pooled_threshold(tmp_path: Path) -> None:
    images = [([0.1, 0.2], [0, 1]), ([0.3, 0.4], [0, 0]), ([0.5, 0.6], [0, 0])]
    found = fit(spill_of(tmp_path, images), min_images=2, alpha=Fraction(1, 2))
    assert found.values[1] == found.values[2] == np.float32(found.pooled)


def test_a_class_in_too_few_images_shares_the_threshold_of_the_foreground(tmp_path: Path) -> None:
    # 0 is the background, with far lower scores; 1 is seen often enough, 2 and 3 are not
    rng = np.random.default_rng(0)
    images = [
        (np.concatenate([rng.random(50) / 100, rng.random(50)]), np.repeat([0, 1 if index else 2], 50))
        for index in range(6)
    ]
    spill = spill_of(tmp_path, images)
    options: dict[str, Any] = {"num_targets": 4, "num_scored": 4, "background": 0, "min_images": 2}
    shared = fit(spill, **options, fallback="foreground", unseen="never")
    foreground = np.concatenate([scores[50:] for scores, _ in images]).astype(np.float32)
    assert shared.values[2] == np.float32(order_statistic(foreground, ALPHA))
    assert shared.values[2] > 10 * shared.values[0]
    assert np.isneginf(shared.values[3])  # never seen, never emitted
    pooled = fit(spill, **options, fallback="pooled", unseen="pooled")
    assert pooled.values[2] == pooled.values[3] == np.float32(pooled.pooled)


def test_too_few_samples_are_refused_with_the_smallest_alpha_that_they_allow(tmp_path: Path) -> None:
    spill = spill_of(tmp_path, random_images(8, 50, seed=6))
    with pytest.raises(CalibrationError, match=r"needs at least 9 images and there are 8 images.*--alpha 0\.1112 or"):
        fit(spill, unit="image", on_small_n="refuse")
    allowed = fit(spill, unit="image", alpha=Fraction("0.1112"), on_small_n="refuse")
    largest = fit(spill, unit="image", on_small_n="max")
    np.testing.assert_array_equal(allowed.values, largest.values)
    for target in range(3):
        scores = [image[0][image[1] == target] for image in random_images(8, 50, seed=6)]
        assert largest.values[target] == max(part.max() for part in scores)


def test_cells_with_too_few_images_take_the_pooled_threshold(tmp_path: Path) -> None:
    full = [([0.1 * index, np.nan], [0, NO_CLASS]) for index in range(9)]
    spill = spill_of(tmp_path, [*full, ([0.95, 0.2], [0, 0])], grid=(1, 2))
    found = fit(spill, group="position", on_small_n="refuse")
    assert found.values[0, 0] == np.float32(0.95)
    assert found.values[0, 1] == np.float32(found.pooled)
    with pytest.raises(CalibrationError, match="needs at least 99 images and there are 10 images"):
        fit(spill, group="position", alpha=Fraction(1, 100), on_small_n="refuse")


def test_cells_with_similar_scores_share_the_order_statistic_of_their_cluster(tmp_path: Path) -> None:
    # columns 0 and 1 hold low scores, columns 2 and 3 high ones; no image shows column 4
    rng = np.random.default_rng(0)
    low, high = rng.random((6, 2)) / 10, 0.8 + rng.random((6, 2)) / 10
    images = [(np.array([*low[i], *high[i], np.nan]), np.array([0, 0, 0, 0, NO_CLASS])) for i in range(6)]
    found = fit(spill_of(tmp_path, images, grid=(1, 5)), group="position", clusters=2)
    expected = [np.float32(order_statistic(part.astype(np.float32).ravel(), ALPHA)) for part in (low, low, high, high)]
    assert found.values[0].tolist() == [*expected, np.float32(found.pooled)]
    (tmp_path / "one").mkdir()
    one = fit(spill_of(tmp_path / "one", images, grid=(1, 5)), group="position", clusters=1)
    assert set(one.values[0].tolist()) == {one.pooled}


def test_too_few_pixels_for_the_level_give_an_infinite_threshold(tmp_path: Path) -> None:
    found = fit(spill_of(tmp_path, [([0.1, 0.2, 0.3], [0, 0, 0])]))
    assert np.isinf(found.values).all()
    assert np.isinf(found.pooled)


def test_a_subset_of_images_is_a_calibration_of_its_own(tmp_path: Path) -> None:
    images = random_images(6, 100, seed=3)
    (tmp_path / "all").mkdir()
    (tmp_path / "some").mkdir()
    subset = fit(spill_of(tmp_path / "all", images), [1, 4, 5])
    alone = fit(spill_of(tmp_path / "some", [images[i] for i in (1, 4, 5)]))
    np.testing.assert_array_equal(subset.values, alone.values)


def test_hundreds_of_classes_are_counted_in_blocks(tmp_path: Path) -> None:
    images = random_images(4, 20_000, seed=4, classes=300)
    found = fit(spill_of(tmp_path, images), num_targets=300, num_scored=300)
    scores, classes = (np.concatenate(part) for part in zip(*images, strict=True))
    expected = [np.float32(order_statistic(scores[classes == target], ALPHA)) for target in range(300)]
    np.testing.assert_array_equal(found.values, expected)
    assert found.pooled == order_statistic(scores, ALPHA)


def risk(images: list[tuple[np.ndarray, np.ndarray]], target: int | None, threshold: float) -> tuple[float, int]:
    """Sum of the images' shares of missed pixels, and the number of images."""
    misses = []
    for scores, classes in images:
        chosen = scores[classes == target] if target is not None else scores[classes != NO_CLASS]
        if len(chosen):
            misses.append(float((chosen > np.float32(threshold)).mean()))
    return sum(misses), len(misses)


@pytest.mark.parametrize("group", ["pooled", "class"])
def test_risk_control_finds_the_smallest_threshold_that_keeps_the_promise(tmp_path: Path, group: str) -> None:
    rng = np.random.default_rng(5)
    images = []
    for _ in range(40):
        pixels = int(rng.integers(5, 60))
        difficulty = rng.random() ** 2
        scores = (rng.random(pixels) * difficulty).round(3).astype(np.float32)
        images.append((scores, rng.choice([0, 1, 2], pixels, p=[0.8, 0.15, 0.05]).astype(np.uint16)))
    found = fit(spill_of(tmp_path, images), group=group, unit="image")
    for target in (0, 1, 2) if group == "class" else (None,):
        threshold = float(found.values[target or 0])
        total, num = risk(images, target, threshold)
        assert total + 1 <= ALPHA * (num + 1) + 1e-7
        below = np.nextafter(np.float32(threshold), np.float32(-1))
        total, num = risk(images, target, float(below))
        assert total + 1 > ALPHA * (num + 1)


def test_risk_control_with_one_pixel_an_image_is_the_plain_order_statistic(tmp_path: Path) -> None:
    for num in (9, 19, 92, 100):
        folder = tmp_path / str(num)
        folder.mkdir()
        scores = np.random.default_rng(num).random(num).astype(np.float32)
        spill = spill_of(folder, [([score], [0]) for score in scores])
        assert fit(spill, group="pooled", unit="image").pooled == order_statistic(scores, ALPHA)


def test_risk_control_with_too_few_images_gives_an_infinite_threshold(tmp_path: Path) -> None:
    found = fit(spill_of(tmp_path, random_images(8, 50, seed=6)), unit="image")  # 1/9 > 1/10
    assert np.isinf(found.values).all()


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 30), st.integers(0, 2**32 - 1))
def test_position_thresholds_are_order_statistics_of_their_cell(
    tmp_path_factory: pytest.TempPathFactory, num: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    cells = rng.random((num, 4, 5)).astype(np.float32)
    cells[rng.random(cells.shape) < 0.3] = np.nan
    classes = np.where(np.isnan(cells), NO_CLASS, 0)
    spill = spill_of(
        tmp_path_factory.mktemp("spill"),
        [(image.ravel(), which.ravel()) for image, which in zip(cells, classes, strict=True)],
        grid=(4, 5),
    )
    found = fit(spill, group="position")
    for row, column in np.ndindex(4, 5):
        seen = cells[:, row, column][~np.isnan(cells[:, row, column])]
        expected = order_statistic(seen, ALPHA) if len(seen) else found.pooled
        assert found.values[row, column] == np.float32(expected)


def test_ignored_cells_of_a_grid_do_not_count(tmp_path: Path) -> None:
    spill = spill_of(tmp_path, [([0.2, np.nan], [0, NO_CLASS]), ([0.4, np.nan], [1, NO_CLASS])], grid=(1, 2))
    found = fit(spill, group="position", alpha=Fraction(1, 2))
    assert found.num_pixels.tolist() == [1, 1, 0]
    assert found.values[0, 0] == np.float32(0.4)
    assert found.values[0, 1] == np.float32(found.pooled)
