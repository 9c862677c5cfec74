from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from maskmill.engine.predictors.prompted.prompts import (
    BOX_END,
    BOX_START,
    NO_PROMPTS,
    PADDING,
    POSITIVE,
    Prompts,
    PromptSettings,
    find_peaks,
    grid_prompts,
    join_prompts,
    point_prompts,
    prompts_of,
)
from maskmill.errors import UsageError


def cam(*peaks: tuple[int, int, float], size: tuple[int, int] = (40, 60)) -> np.ndarray:
    """A map that falls off around each (row, column, height)."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    bumps = [height * np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / 8) for row, column, height in peaks]
    return np.max([np.zeros(size), *bumps], axis=0).astype(np.float32)


def asked(maps: np.ndarray, settings: PromptSettings, **options: Any) -> Prompts:
    """Prompts for one image."""
    return prompts_of([maps], settings, **options)[0]


def test_all_peaks_of_a_class_are_one_prompt() -> None:
    prompts = asked(np.stack([cam((12, 15, 1.0), (25, 40, 0.8))]), PromptSettings(mode="points"))
    assert len(prompts) == 1
    np.testing.assert_array_equal(prompts.points[0], [[15.5, 12.5], [40.5, 25.5]])
    np.testing.assert_array_equal(prompts.labels[0], [POSITIVE, POSITIVE])


def test_each_peak_is_a_prompt_of_its_own_strongest_first() -> None:
    prompts = asked(np.stack([cam((12, 15, 0.8), (25, 40, 1.0))]), PromptSettings(mode="peaks"))
    np.testing.assert_array_equal(prompts.points[:, 0], [[40.5, 25.5], [15.5, 12.5]])


def test_points_are_in_pixels_of_the_encoders_input() -> None:
    prompts = asked(np.stack([cam((12, 15, 1.0))]), PromptSettings(), scale=(4.0, 2.0))
    np.testing.assert_array_equal(prompts.points[0, 0], [15.5 * 2, 12.5 * 4])


def test_peaks_in_the_border_are_left_out_but_the_highest_on_request() -> None:
    maps = np.stack([cam((20, 30, 1.0), (3, 3, 0.9)), cam((3, 3, 1.0), (20, 30, 0.9))])
    assert find_peaks(maps, PromptSettings())[1].tolist() == [1, 1]
    peaks, counts = find_peaks(maps, PromptSettings(maximum=True))
    np.testing.assert_array_equal(counts, [1, 2])
    np.testing.assert_array_equal(peaks[0, :2], [[20, 30], [-1, -1]])
    np.testing.assert_array_equal(peaks[1, :2], [[20, 30], [3, 3]])


@pytest.mark.parametrize("corner", [(0, 0), (0, 59), (39, 0), (39, 59)])
@pytest.mark.parametrize("mode", ["points", "peaks", "box", "box+points", "best"])
def test_a_peak_in_a_corner_is_asked_for(corner: tuple[int, int], mode: str) -> None:
    prompts = asked(np.stack([cam((*corner, 1.0))]), PromptSettings(mode=mode, maximum=True))  # type: ignore[arg-type]
    assert len(prompts) == (4 if mode == "best" else 1)
    assert (prompts.points >= 0).all()
    assert (prompts.points <= [60, 40]).all()


def test_peaks_at_or_below_tau_are_left_out() -> None:
    maps = np.stack([cam((12, 15, 1.0), (25, 40, 0.6))])
    assert find_peaks(maps, PromptSettings(tau=0.5))[1].tolist() == [2]
    assert find_peaks(maps, PromptSettings(tau=0.7))[1].tolist() == [1]


def test_forty_peaks_of_one_class() -> None:
    places = [(12 + 12 * (index // 8), 12 + 12 * (index % 8), 0.6 + index / 100) for index in range(40)]
    maps = np.stack([cam(*places, size=(80, 120)), cam((20, 20, 1.0), size=(80, 120))])
    together = asked(maps, PromptSettings(mode="points"))
    assert together.num_points.tolist() == [40, 1]
    assert (together.labels[1, 1:] == PADDING).all()
    apart = asked(maps, PromptSettings(mode="peaks"))
    assert np.bincount(apart.target).tolist() == [40, 1]
    few = asked(maps, PromptSettings(mode="points", max_peaks=3))
    assert few.num_points.tolist() == [3, 1]
    # the strongest come first
    np.testing.assert_array_equal(few.points[0, 0], [places[39][1] + 0.5, places[39][0] + 0.5])


def test_a_map_without_a_positive_value_gives_no_prompt() -> None:
    maps = np.stack([np.zeros((40, 60), np.float32), cam((12, 15, 1.0))])
    prompts = asked(maps, PromptSettings(mode="best"))
    assert set(prompts.target.tolist()) == {1}
    assert len(asked(maps[:1], PromptSettings())) == 0
    assert len(asked(maps[:0], PromptSettings())) == 0


@pytest.mark.parametrize("size", [(1, 1), (1, 200), (200, 1)])
@pytest.mark.parametrize("peaks", ["paper", "official"])
def test_maps_of_one_row_or_column(size: tuple[int, int], peaks: str) -> None:
    maps = np.ones((1, *size), np.float32)
    prompts = asked(maps, PromptSettings(peaks=peaks, maximum=True))  # type: ignore[arg-type]
    assert prompts.num_points.tolist() == [1]


def test_a_box_goes_around_each_part_of_a_map() -> None:
    maps = np.zeros((1, 40, 60), np.float32)
    maps[0, 5:15, 10:30] = 1
    maps[0, 20:35, 40:50] = 0.7
    prompts = asked(maps, PromptSettings(mode="box", box_threshold=0.5))
    np.testing.assert_array_equal(prompts.points, [[[10, 5], [30, 15]], [[40, 20], [50, 35]]])
    np.testing.assert_array_equal(prompts.labels, [[BOX_START, BOX_END]] * 2)
    assert len(asked(maps, PromptSettings(mode="box", box_threshold=0.8))) == 1


def test_parts_too_small_to_matter_get_no_box() -> None:
    maps = np.zeros((1, 40, 60), np.float32)
    maps[0, 5:25, 10:30] = 1
    maps[0, 30:33, 50:53] = 1
    assert len(asked(maps, PromptSettings(mode="box"))) == 1


def test_a_box_with_points_holds_the_peaks_inside_it() -> None:
    maps = np.stack([cam((15, 15, 1.0), (15, 21, 0.9), (28, 45, 0.8))])
    settings = PromptSettings(mode="box+points", min_distance=5, box_threshold=0.3)
    prompts = asked(maps, settings)
    assert prompts.num_points.tolist() == [4, 3]
    np.testing.assert_array_equal(prompts.points[1, 2], [45.5, 28.5])
    assert prompts.labels[1].tolist() == [BOX_START, BOX_END, POSITIVE, PADDING]


def test_the_official_mode_takes_the_maximum_for_the_first_peak() -> None:
    maps = np.stack([cam((3, 3, 1.0), (30, 30, 0.9), (30, 56, 0.8), size=(80, 80))])
    peaks, counts = find_peaks(maps, PromptSettings(peaks="official"))
    # the filter of three pixels moves a peak up and left; the strongest within the border gives way to the maximum
    assert peaks[0, : counts[0]].tolist() == [[3, 3], [29, 55]]


def test_prompts_of_several_images_lie_in_one_array() -> None:
    first, second = point_prompts(np.ones((2, 1, 2))), point_prompts(np.ones((1, 3, 2)))
    joined = join_prompts([first, NO_PROMPTS, second])
    assert joined.image.tolist() == [0, 0, 2]
    assert joined.num_points.tolist() == [1, 1, 3]
    assert joined.labels[0].tolist() == [POSITIVE, PADDING, PADDING]
    assert len(join_prompts([])) == 0


def test_a_grid_of_points_lies_in_the_middle_of_its_cells() -> None:
    prompts = grid_prompts(2, 100, 200)
    assert prompts.points[:, 0].tolist() == [[50, 25], [150, 25], [50, 75], [150, 75]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "lines"}, "mode must be one of points, peaks, box, box\\+points, best"),
        ({"peaks": "mine"}, "peaks must be one of paper, official"),
        ({"tau": 1.0}, "tau must be a number at least 0 and below 1"),
        ({"min_distance": 0}, "min_distance must be a whole number of at least 1"),
        ({"max_peaks": 0}, "max_peaks must be a whole number of at least 1"),
    ],
)
def test_settings_out_of_range_are_refused(options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        PromptSettings(**options)


def test_a_maximum_in_the_border_is_a_peak_only_on_request() -> None:
    maps = np.stack([cam((2, 3, 1.0), (25, 40, 0.8)), cam((2, 3, 1.0))])
    assert find_peaks(maps, PromptSettings(maximum=True))[1].tolist() == [2, 1]
    assert find_peaks(maps, PromptSettings())[1].tolist() == [1, 0]


def test_a_single_box_is_around_all_parts_with_a_peak() -> None:
    maps = np.zeros((1, 60, 60), np.float32)
    maps[0, 12:20, 15:25], maps[0, 40:46, 30:50], maps[0, 50:52, 2:4] = 0.6, 0.7, 0.5
    maps[0, 15, 20], maps[0, 43, 40] = 1.0, 0.9
    prompts = asked(maps, PromptSettings(mode="single-box", box_threshold=0.4))
    assert prompts.points.tolist() == [[[15, 12], [50, 46]]]
    assert prompts.labels.tolist() == [[2, 3]]


def test_the_map_above_the_threshold_is_a_mask_prompt_without_points() -> None:
    maps = np.stack([cam((2, 3, 1.0)), cam((12, 15, 1.0), (25, 40, 0.8))])
    prompts = asked(maps, PromptSettings(mode="mask", box_threshold=0.4), grid=(48, 60))
    assert prompts.target.tolist() == [1]  # a map without a peak has no prompt
    assert prompts.labels.tolist() == [[PADDING]]
    assert prompts.masks is not None
    assert prompts.masks.shape == (1, 48, 60)
    np.testing.assert_array_equal(prompts.masks[0, :40] > 0, maps[1] > 0.4)
    assert (prompts.masks[0, 40:] < 0).all()
