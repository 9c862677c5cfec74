from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pycocotools import mask as coco

from maskmill.engine.formats.polygons import outlines, runs_of_polygon
from maskmill.engine.formats.rle import paint_runs
from maskmill.errors import UsageError

from .builders import label_maps, nested_map

# pycocotools' decode does not know NumPy 2's copy keyword
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

corners = st.lists(
    st.tuples(st.floats(-20, 50), st.floats(-20, 50)) | st.tuples(st.integers(-3, 30), st.integers(-3, 30)),
    min_size=3,
    max_size=9,
)


def filled(points: Any, height: int, width: int) -> NDArray[np.uint8]:
    columns = np.zeros(height * width, dtype=np.uint8)
    paint_runs(columns, runs_of_polygon(points, height, width), 1)
    return columns.reshape(width, height).T


@settings(deadline=None)
@given(corners, st.integers(1, 40), st.integers(1, 40))
def test_a_polygon_is_filled_as_pycocotools_fills_it(
    points: list[tuple[float, float]], height: int, width: int
) -> None:
    flat = np.array(points, dtype=float).reshape(-1).tolist()
    expected = coco.decode(coco.frPyObjects([flat], height, width))[:, :, 0]
    assert (filled(flat, height, width) == expected).all()


@settings(deadline=None)
@given(label_maps)
def test_outlines_filled_give_the_map_back(label: NDArray[Any]) -> None:
    height, width = label.shape
    columns = np.full(label.size, 9)
    for outline in outlines(label):
        runs = runs_of_polygon(outline.points, height, width)
        assert (runs[:, 1] - runs[:, 0]).sum() == outline.area
        paint_runs(columns, runs, outline.value)
    assert (label == columns.reshape(width, height).T).all()


def test_pycocotools_reads_outlines_with_holes_as_the_same_pixels() -> None:
    label = nested_map()
    painted = np.full(label.shape, 9)
    for outline in outlines(label):
        shape = coco.frPyObjects([outline.points.reshape(-1).astype(float).tolist()], *label.shape)
        painted[coco.decode(shape)[:, :, 0] == 1] = outline.value
        assert list(outline.box) == coco.toBbox(shape)[0].tolist()
    assert (painted == label).all()


def test_a_ring_is_one_outline_and_its_hole_another() -> None:
    label = np.zeros((5, 5), dtype=np.uint8)
    label[1:4, 1:4] = 1
    label[2, 2] = 0
    ring, hole = outlines(label)[1:]
    assert (ring.value, ring.area, hole.value, hole.area) == (1, 8, 0, 1)
    assert hole.points.tolist() == [[3, 2], [3, 3], [2, 3], [2, 2]]


def test_fewer_than_three_corners_cover_nothing() -> None:
    assert len(runs_of_polygon([1, 1, 5, 5], 9, 9)) == 0


@pytest.mark.parametrize("points", [[0, 0, 1], ["a", 1], [[0, 0], [1, float("nan")], [1, 1]], [0, 0, 1e300, 0, 1, 1]])
def test_what_is_no_polygon_is_refused(points: Any) -> None:
    with pytest.raises(UsageError, match="polygon"):
        runs_of_polygon(points, 9, 9)
