"""Measuring a bundle: its images are read as for labeling."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

import maskmill
from maskmill.errors import UsageError

from ..models import color_bundle

TRUTH = np.random.default_rng(0).integers(0, 3, (16, 24), np.uint8)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Photos of 12 bits in 16, whose colors differ by ten steps, with true labels and the model of colors."""
    color_bundle(tmp_path)
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    colors = (3000 + 60 * np.eye(3)[TRUTH]).astype(np.uint16)
    assert cv2.imwrite(str(tmp_path / "images" / "a.png"), colors[..., ::-1])
    assert cv2.imwrite(str(tmp_path / "images" / "a.tif"), colors)
    Image.fromarray(TRUTH).save(tmp_path / "labels" / "a.png")
    return tmp_path


def test_photos_are_read_with_the_bits_that_they_fill(home: Path) -> None:
    options = {"images": home / "images", "image_ending": "png"}
    assert maskmill.evaluate(home / "bundle", home / "labels", bit_depth=12, **options).accuracy_kept == 1
    assert maskmill.evaluate(home / "bundle", home / "labels", **options).accuracy_kept < 0.5


def test_a_store_has_been_read_already(home: Path) -> None:
    maskmill.label(home / "bundle", home / "images" / "a.png", home / "store")
    with pytest.raises(UsageError, match="bit_depth does not apply to a label store"):
        maskmill.evaluate(home / "store", home / "labels", bit_depth=12)
