from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from numpy.typing import NDArray
from pycocotools import mask as coco

from maskmill.engine.formats import rle
from maskmill.errors import UsageError

from .builders import label_maps, nested_map


def columns_of(mask: NDArray[Any]) -> NDArray[np.bool_]:
    return mask.ravel(order="F")


@settings(deadline=None)
@given(label_maps)
def test_all_classes_of_a_map_are_encoded_as_pycocotools_encodes_each(label: NDArray[Any]) -> None:
    masks = rle.encode_classes(label)
    assert [mask.value for mask in masks] == np.unique(label).tolist()
    for mask in masks:
        expected = coco.encode(np.asfortranarray(label == mask.value, dtype=np.uint8))
        assert mask.counts == expected["counts"].decode()
        assert mask.area == coco.area(expected)
        assert list(mask.box) == coco.toBbox(expected).tolist()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_map_of_any_width_and_one_value_is_encoded(dtype: type) -> None:
    for size in range(1, 20):
        (mask,) = rle.encode_classes(np.full((1, size), 254, dtype=dtype))
        assert mask.counts == coco.encode(np.ones((1, size), dtype=np.uint8, order="F"))["counts"].decode()


def test_the_largest_value_of_16_bits_is_encoded() -> None:
    label = np.array([[0, 65535], [65535, 0]], dtype=np.uint16)
    assert [(mask.value, mask.area) for mask in rle.encode_classes(label)] == [(0, 2), (65535, 2)]


@settings(deadline=None)
@given(label_maps)
def test_strings_are_decoded_to_the_counts_they_were_made_from(label: NDArray[Any]) -> None:
    for mask in rle.encode_classes(label):
        counts = rle.string_to_counts(mask.counts)
        assert rle.counts_to_string(counts) == mask.counts
        painted = np.zeros(label.size, dtype=np.uint8)
        rle.paint_runs(painted, rle.runs_of_counts(counts, label.size), 1)
        assert (painted == columns_of(label == mask.value)).all()


@settings(deadline=None)
@given(label_maps)
def test_runs_rows_and_brushes_come_back_exactly(label: NDArray[Any]) -> None:
    mask = label == label.flat[0]
    painted = np.zeros(label.size, dtype=np.uint8)
    rle.paint_runs(painted, rle.runs_of_mask(mask), 1)
    assert (painted == columns_of(mask)).all()
    assert (rle.mask_of_row_counts(rle.row_counts(mask), *mask.shape) == mask).all()
    assert (rle.mask_of_brush(rle.brush_of_mask(mask), *mask.shape) == mask).all()


def test_row_counts_begin_with_unset_pixels() -> None:
    assert rle.row_counts(np.array([[1, 1, 0], [0, 0, 1]])) == [0, 2, 3, 1]
    assert rle.row_counts(np.array([[0, 1], [0, 0]])) == [1, 1, 2]
    assert rle.row_counts(np.zeros((2, 2))) == [4]


def test_a_brush_of_a_long_run_and_of_single_values_is_read() -> None:
    mask = np.zeros((300, 300), dtype=bool)
    mask[1:] = True
    assert (rle.mask_of_brush(rle.brush_of_mask(mask), 300, 300) == mask).all()
    # one literal of eight values: R, G, B, A of two pixels, the second one's alpha set
    bits = f"{8:032b}{7:05b}" + "".join(f"{size - 1:04b}" for size in (3, 4, 8, 16)) + "0" + "00" + f"{7:03b}"
    bits += "".join(f"{value:08b}" for value in (9, 9, 9, 0, 0, 0, 0, 128))
    data = [int(bits[start : start + 8].ljust(8, "0"), 2) for start in range(0, len(bits), 8)]
    assert rle.mask_of_brush(data, 1, 2).tolist() == [[False, True]]


@pytest.mark.parametrize("text", ["\x7f", "o", "0o", "a b", "é"])
def test_a_damaged_string_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="damaged"):
        rle.string_to_counts(text)


def test_counts_of_another_size_are_refused() -> None:
    with pytest.raises(UsageError, match="add up to 7 pixels, expected 6"):
        rle.runs_of_counts([3, 4], 6)
    with pytest.raises(UsageError, match="add up"):
        rle.runs_of_counts([7, -1], 6)


def test_a_damaged_brush_is_refused() -> None:
    data = rle.brush_of_mask(nested_map() == 1)
    with pytest.raises(UsageError, match="original_width"):
        rle.mask_of_brush(data, 20, 30)
    for cut in range(0, len(data) - 1, 7):
        with pytest.raises(UsageError, match="brush"):
            rle.mask_of_brush(data[:cut], 20, 31)
    with pytest.raises(UsageError, match="list of bytes"):
        rle.mask_of_brush([300], 20, 31)
