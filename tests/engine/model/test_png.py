from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as stn
from numpy.typing import NDArray
from PIL import Image

from maskmill.engine.model.png import decode_png, encode_png

maps = stn.arrays(st.sampled_from([np.uint8, np.uint16]), stn.array_shapes(min_dims=2, max_dims=2, max_side=40))


@given(maps)
def test_maps_come_back_bit_exact(values: NDArray[np.uint8]) -> None:
    decoded = decode_png(encode_png(values))
    assert decoded.dtype == values.dtype
    np.testing.assert_array_equal(decoded, values)


@given(maps)
def test_other_programs_read_the_same_map(values: NDArray[np.uint8]) -> None:
    data = encode_png(values)
    np.testing.assert_array_equal(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED), values)
    with Image.open(io.BytesIO(data)) as image:
        np.testing.assert_array_equal(np.asarray(image), values)


def test_views_are_encoded_as_seen() -> None:
    values = np.arange(48, dtype=np.uint16).reshape(6, 8)
    for view in (values[::2, ::-1], values.T, values[1:, 3:]):
        np.testing.assert_array_equal(decode_png(encode_png(view)), view)


def test_runs_of_equal_labels_take_little_room() -> None:
    values = np.zeros((213, 320), dtype=np.uint8)
    values[50:100, 80:200] = 255
    assert len(encode_png(values)) < 1000


def test_decoded_maps_are_writable() -> None:
    assert decode_png(encode_png(np.zeros((2, 2), np.uint8))).flags.writeable


@pytest.mark.parametrize(
    "values",
    [np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2), np.int32), np.zeros((0, 2), np.uint8), np.zeros(4, np.uint8)],
)
def test_other_arrays_are_refused(values: NDArray[np.uint8]) -> None:
    with pytest.raises(ValueError, match=r"\(H, W\) uint8 or uint16"):
        encode_png(values)


def test_damage_is_noticed() -> None:
    values = np.random.default_rng(0).integers(0, 255, (20, 30), dtype=np.uint8)
    data = encode_png(values)
    for cut in range(0, len(data) - 12, 7):
        with pytest.raises(ValueError, match="map"):
            decode_png(data[:cut])
    flipped = bytearray(data)
    flipped[60] ^= 1
    with pytest.raises(ValueError, match="checksum"):
        decode_png(bytes(flipped))
    with pytest.raises(ValueError, match="not a map"):
        decode_png(cv2.imencode(".jpg", values)[1].tobytes())


def test_a_palette_shows_colors_and_keeps_indices() -> None:
    values = np.arange(12, dtype=np.uint8).reshape(3, 4)
    palette = np.arange(768, dtype=np.uint16).astype(np.uint8).reshape(256, 3)
    with Image.open(io.BytesIO(encode_png(values, palette))) as image:
        assert image.mode == "P"
        assert (np.asarray(image) == values).all()
        assert (np.asarray(image.convert("RGB")) == palette[values]).all()
