from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskmill.engine.inputs.label_maps import LabelFolder, image_id, read_ids, read_label_map, select_ids
from maskmill.errors import UsageError


def put(path: Path, values: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((2, 3), np.uint8) if values is None else values).save(path)
    return path


def test_maps_are_found_by_name_wherever_the_image_lies(tmp_path: Path) -> None:
    put(tmp_path / "a" / "1.png")
    put(tmp_path / "2.png")
    folder = LabelFolder(tmp_path)
    assert folder.find("/photos/elsewhere/1.jpg") == tmp_path / "a" / "1.png"
    assert folder.find("s3://bucket/x/2.jpeg") == tmp_path / "2.png"
    assert folder.find("shard-0.tar::deep/2.jpg") == tmp_path / "2.png"
    assert folder.find("/photos/3.jpg") is None
    assert len(folder) == 2


def test_equal_names_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    first, second = put(tmp_path / "a" / "1.png"), put(tmp_path / "b" / "1.png")
    folder = LabelFolder(tmp_path)
    assert folder.find("/photos/a/1.jpg") == first
    assert folder.find("/photos/b/1.jpg") == second
    with pytest.raises(UsageError, match="matches 2 label maps"):
        folder.find("/photos/c/1.jpg")


def test_a_missing_or_empty_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        LabelFolder(tmp_path / "none")
    with pytest.raises(UsageError, match="holds no label map"):
        LabelFolder(tmp_path)


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


def test_color_images_and_damaged_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a RGB image; a label map holds one class index a pixel"):
        read_label_map(put(tmp_path / "1.png", np.zeros((2, 2, 3), np.uint8)))
    (tmp_path / "2.png").write_bytes(b"nothing")
    with pytest.raises(UsageError, match="cannot read the label map"):
        read_label_map(tmp_path / "2.png")


def test_ids_are_names_without_folder_and_extension(tmp_path: Path) -> None:
    assert image_id("/a/b/1_10_s.jpg") == image_id("x.tar::q/1_10_s.png") == image_id("1_10_s") == "1_10_s"
    listing = tmp_path / "ids.txt"
    listing.write_text("a/1.jpg\n\n2\n")
    assert read_ids(listing) == {"1", "2"}
    assert select_ids(["p/1.png", "p/2.png", "p/3.png"], read_ids(listing)) == ["p/1.png", "p/2.png"]
    assert select_ids(["p/1.png"], None) == ["p/1.png"]
    with pytest.raises(UsageError, match="1 of the 2 listed images are not there: 2"):
        select_ids(["p/1.png"], {"1", "2"})
    listing.write_text("\n")
    with pytest.raises(UsageError, match="is empty"):
        read_ids(listing)
