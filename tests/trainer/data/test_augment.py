from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskmill.engine.predictors.resampling import resample_nearest
from maskmill.trainer.data.augment import ColorSettings, Move
from maskmill.trainer.data.datasets import augment

HEIGHT, WIDTH, CROP = 6, 9, 4


def position_image(height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """(H, W, 3): a pixel says where it is."""
    rows, columns = np.mgrid[:height, :width].astype(np.uint8)
    return np.stack([rows, columns, rows * width + columns], axis=-1)


@settings(deadline=None)
@given(seed=st.integers(0, 10_000))
def test_without_scaling_image_class_map_and_weights_move_alike(seed: int) -> None:
    image = position_image()
    label, weight = image[..., 2].copy(), 255 - image[..., 2]
    rng = np.random.default_rng(seed)
    move = augment.draw_move(rng, (HEIGHT, WIDTH), crop=CROP + seed % 7, scale=(1, 1), flip=0.5)
    moved = augment.move_image(image, move, fill=(0, 0, 77))
    moved_label, moved_weight = augment.move_map(label, move, 77), augment.move_map(weight, move, 99)
    inside = augment.inside(move)
    np.testing.assert_array_equal(moved_label, moved[..., 2])
    np.testing.assert_array_equal(moved_weight[inside], 255 - moved_label[inside])
    assert (moved_weight[~inside] == 99).all()
    assert (moved_label[~inside] == 77).all()


@pytest.mark.parametrize("size", [(6, 9), (12, 18), (3, 5), (7, 10), (23, 4)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_maps_are_scaled_by_nearest_neighbor_with_half_pixel_centers(size: tuple[int, int], dtype: type) -> None:
    label = position_image()[..., 2].astype(dtype)
    side = max(size)
    move = Move(size=size, top=0, left=0, crop=side, flip=False)
    expected = np.full((side, side), 255, dtype)
    expected[: size[0], : size[1]] = resample_nearest(label, size)
    np.testing.assert_array_equal(augment.move_map(label, move, 255), expected)


def test_a_class_edge_lies_at_the_same_place_in_the_scaled_image_and_its_map() -> None:
    label = np.zeros((40, 40), np.uint8)
    label[:, 20:] = 1
    image = np.repeat(label[..., None] * 200, 3, axis=2)
    for size in ((80, 80), (20, 20), (60, 60), (30, 30)):
        move = Move(size=size, top=0, left=0, crop=size[0], flip=True)
        bright = augment.move_image(image, move)[..., 0] > 100
        np.testing.assert_array_equal(bright, augment.move_map(label, move, 255) == 1)


def test_a_flip_mirrors_the_crop_and_its_padding() -> None:
    image = position_image(2, 3)
    plain = Move(size=(2, 3), top=0, left=0, crop=4, flip=False)
    flipped = Move(size=(2, 3), top=0, left=0, crop=4, flip=True)
    np.testing.assert_array_equal(augment.move_image(image, flipped), augment.move_image(image, plain)[:, ::-1])
    np.testing.assert_array_equal(augment.inside(flipped), [[0, 1, 1, 1]] * 2 + [[0] * 4] * 2)


def test_scales_and_places_span_their_ranges() -> None:
    rng = np.random.default_rng(0)
    moves = [augment.draw_move(rng, (100, 200), crop=50, scale=(0.5, 2.0), flip=0.25) for _ in range(500)]
    heights = [move.size[0] for move in moves]
    assert 50 <= min(heights) < 55
    assert 195 < max(heights) <= 200
    assert all(0 <= move.top <= move.size[0] - 50 and 0 <= move.left <= move.size[1] - 50 for move in moves)
    assert 0.2 < np.mean([move.flip for move in moves]) < 0.3


@pytest.mark.parametrize("size", [(100, 200), (200, 100), (31, 31)])
def test_a_scale_of_the_long_side_is_its_length_in_pixels(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    moves = [augment.draw_move(rng, size, crop=50, scale=(64, 128), flip=0, scaling="long-side") for _ in range(200)]
    lengths = [max(move.size) for move in moves]
    assert 64 <= min(lengths) < 68
    assert 124 < max(lengths) <= 128
    assert all(abs(move.size[0] / move.size[1] - size[0] / size[1]) < 0.05 for move in moves)


def test_recoloring_leaves_the_image_alone_where_nothing_is_drawn() -> None:
    image = position_image(20, 30)
    still = ColorSettings(jitter=0, gray=0, blur=0)
    np.testing.assert_array_equal(augment.recolor(image, np.random.default_rng(0), still), image)


def test_gray_takes_all_color() -> None:
    gray = augment.recolor(position_image(20, 30), np.random.default_rng(0), ColorSettings(jitter=0, gray=1, blur=0))
    assert (gray[..., 0] == gray[..., 1]).all()
    assert (gray[..., 1] == gray[..., 2]).all()


def test_a_turn_of_the_hue_by_a_third_changes_red_to_green_or_blue() -> None:
    red = np.zeros((4, 4, 3), np.uint8)
    red[..., 0] = 255
    only_hue = ColorSettings(brightness=0, contrast=0, saturation=0, hue=1 / 3, jitter=1, gray=0, blur=0)
    turned = {tuple(augment.recolor(red, np.random.default_rng(seed), only_hue)[0, 0].tolist()) for seed in range(50)}
    assert len(turned) > 10
    assert all(max(color) == 255 and min(color) == 0 for color in turned)


def test_the_same_seed_recolors_alike() -> None:
    image = position_image(20, 30)
    first, second, other = (augment.recolor(image, np.random.default_rng(seed)) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, second)
    assert (first != other).any()


def test_cutmix_boxes_lie_inside_and_have_the_areas_of_unimatch() -> None:
    rng = np.random.default_rng(0)
    boxes = np.array([augment.draw_cutmix_box(rng, 64, 1.0) for _ in range(300)])
    heights, widths = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    assert boxes.min() >= 0
    assert boxes.max() <= 64
    areas = heights * widths / 64**2
    assert areas.min() > 0.01
    assert areas.max() <= 0.4
    assert augment.draw_cutmix_box(rng, 64, 0.0) == (0, 0, 0, 0)


def test_cells_cover_the_share_that_was_asked_for() -> None:
    rng = np.random.default_rng(0)
    assert augment.draw_cells(rng, 321, cell=32, cover=0.7).shape == (10, 10)
    assert 0.65 < np.mean([augment.draw_cells(rng, 321, cell=32, cover=0.7).mean() for _ in range(50)]) < 0.75
