from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskmill.engine.inputs.label_maps import decode_label_map, read_label_map
from maskmill.engine.model.color_tables import ColorTable, named_table
from maskmill.errors import TaxonomyError, UsageError

from ...builders import encoded, gray_png

INDICES = np.array([[0, 1, 2], [3, 2, 1]], np.uint8)


def put(path: Path, values: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((2, 3), np.uint8) if values is None else values).save(path)
    return path


def test_palette_maps_give_indices_not_colors(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1], [2, 255]], np.uint8), mode="L").convert("P")
    image.putpalette([channel for index in range(256) for channel in (index, 255 - index, 7)])
    indices = np.asarray(image)
    image.save(tmp_path / "1.png")
    np.testing.assert_array_equal(read_label_map(tmp_path / "1.png"), indices)


def test_16_bit_maps_keep_their_values(tmp_path: Path) -> None:
    values = np.array([[0, 300], [65535, 7]], np.uint16)
    read = read_label_map(put(tmp_path / "1.png", values))
    assert read.dtype == np.uint16
    np.testing.assert_array_equal(read, values)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_gray_of_few_bits_is_not_scaled(bits: int) -> None:
    indices = INDICES & np.uint8((1 << bits) - 1)
    np.testing.assert_array_equal(decode_label_map(gray_png(indices, bits), "1.png"), indices)


@pytest.mark.parametrize(("bits", "white_is_zero"), [(2, 0), (4, 0), (4, 1), (8, 1)])
def test_gray_tiff_keeps_the_stored_values(bits: int, white_is_zero: int) -> None:
    rows = np.zeros((2, 4), np.uint8)
    rows[:, :3] = INDICES
    packed = np.packbits(np.unpackbits(rows[..., None], axis=-1)[..., 8 - bits :].reshape(2, -1), axis=1).tobytes()
    tags = {256: 4, 257: 2, 258: bits, 259: 1, 262: 1 - white_is_zero, 273: 8, 277: 1, 278: 2, 279: len(packed)}
    directory = struct.pack("<H", len(tags)) + b"".join(
        struct.pack("<HHII", tag, 4 if tag in (273, 279) else 3, 1, value) for tag, value in tags.items()
    )
    data = b"II*\0" + struct.pack("<I", 8 + len(packed)) + packed + directory + struct.pack("<I", 0)
    np.testing.assert_array_equal(decode_label_map(data, "1.tif"), rows)


def test_gray_stored_as_rgb_gives_its_indices() -> None:
    for channels in (INDICES[..., None].repeat(3, axis=-1), np.dstack([INDICES] * 3 + [np.full_like(INDICES, 255)])):
        np.testing.assert_array_equal(decode_label_map(encoded(channels, "PNG"), "1.png"), INDICES)


def test_colors_without_a_table_are_refused_with_the_way_on() -> None:
    colors = np.array([[[0, 0, 0], [220, 0, 0]]], np.uint8)
    with pytest.raises(UsageError, match=r"a/1\.png holds colors, e\.g\. 220, 0, 0; give their classes .* \[colors\]"):
        decode_label_map(encoded(colors, "PNG"), "a/1.png")


@pytest.mark.parametrize("name", ["voc", "cityscapes", "ade20k", "camvid"])
def test_named_tables_map_their_colors_to_labels(name: str) -> None:
    table = named_table(name)
    for index in set(table.indices):
        color = table.colors[table.indices.index(index)]
        if color == (140, 140, 140) and name == "ade20k":
            continue
        first = table.indices[table.colors.index(color)]
        assert table.encode(np.array([[color]], np.uint8), "1.png").tolist() == [[first]]


def test_tables_hold_the_data_sets_own_values() -> None:
    values = {
        "voc": [((128, 0, 0), 1), ((192, 128, 128), 15), ((224, 224, 192), 255)],
        "cityscapes": [((128, 64, 128), 7), ((0, 0, 142), 26), ((119, 11, 32), 33)],
        "ade20k": [((120, 120, 120), 1), ((92, 0, 255), 150), ((0, 0, 0), 0)],
        "camvid": [((128, 128, 128), 21), ((0, 0, 0), 30)],
    }
    for name, pairs in values.items():
        colors, indices = zip(*pairs, strict=True)
        encoded_map = named_table(name).encode(np.array([colors], np.uint8), "1.png")
        assert encoded_map.tolist() == [list(indices)], name


def test_a_color_that_is_not_listed_is_named_with_its_pixels() -> None:
    pixels = np.zeros((3, 3, 3), np.uint8)
    pixels[:2] = (7, 8, 9)
    with pytest.raises(
        TaxonomyError, match=r"a/1\.png holds the color 7, 8, 9 on 6 pixels, which .*'voc' does not list"
    ):
        decode_label_map(encoded(pixels, "PNG"), "a/1.png", named_table("voc"))


def test_a_color_of_two_classes_is_named() -> None:
    with pytest.raises(TaxonomyError, match="140, 140, 140 .4 pixels. stands for road and skyscraper"):
        named_table("ade20k").encode(np.full((2, 2, 3), 140, np.uint8), "1.png")


def test_palette_images_are_read_by_color_if_there_is_a_table() -> None:
    image = Image.fromarray(np.array([[[128, 0, 0], [0, 0, 0]]], np.uint8)).quantize(2)
    table = ColorTable(name="", colors=((0, 0, 0), (128, 0, 0)), indices=(4, 9), names={})
    assert decode_label_map(encoded(image, "PNG"), "1.png", table).tolist() == [[9, 4]]
    with pytest.raises(UsageError, match="holds gray values, but the taxonomy reads colors"):
        decode_label_map(encoded(INDICES, "PNG"), "1.png", table)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"nothing", "cannot read the label map 1.png"),
        (encoded(np.full((2, 2, 4), 7, np.uint8), "PNG"), "has transparent pixels"),
        (encoded(np.full((2, 2), 0.5, np.float32), "TIFF"), "holds fractions"),
        (encoded(np.full((2, 2), 70_000, np.int32), "TIFF"), "values outside 0 to 65535"),
        (encoded(Image.new("CMYK", (2, 2)), "TIFF"), "CMYK image; a label map holds one label index per pixel"),
    ],
)
def test_other_files_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        decode_label_map(data, "1.png")


def test_integral_floats_are_indices() -> None:
    read = decode_label_map(encoded(INDICES.astype(np.float32), "TIFF"), "1.tif")
    np.testing.assert_array_equal(read, INDICES)


def test_gray_png_builder_writes_png() -> None:
    data = gray_png(INDICES, 4)
    assert zlib.crc32(data[12:29]) == struct.unpack(">I", data[29:33])[0]


def test_a_header_of_more_pixels_than_the_file_can_hold_is_refused_before_memory_is_taken() -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((4, 6), np.uint8)).save(buffer, "PNG")
    data = bytearray(buffer.getvalue())
    data[16:24] = struct.pack(">II", 30_000, 30_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    with pytest.raises(UsageError, match="bytes cannot hold 30000x30000 pixels"):
        decode_label_map(bytes(data), "a.png")
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((3000, 3000), np.uint8)).save(buffer, "PNG", compress_level=9)
    assert decode_label_map(buffer.getvalue(), "a.png").shape == (3000, 3000)
