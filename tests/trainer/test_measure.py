"""Measuring a bundle: its images are read as for labeling."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

import maskmill
from maskmill.engine.model.bundle import Bundle
from maskmill.engine.model.taxonomy import Taxonomy
from maskmill.errors import UsageError
from maskmill.trainer.data.parts import LabeledImages

from ..models import color_bundle
from ..test_cli import ok

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
    filled = maskmill.evaluate(home / "bundle", home / "labels", bit_depth=12, **options)
    dark = maskmill.evaluate(home / "bundle", home / "labels", **options)
    assert filled.accuracy_kept == 1
    assert dark.accuracy_kept < 0.5
    assert filled.source is not None
    assert dark.source is not None
    assert filled.source.low_range == []
    assert [Path(uri).name for uri in dark.source.low_range] == ["a.png"]


def test_a_run_and_a_new_scale_name_photos_of_fewer_bits_than_their_type(home: Path) -> None:
    taxonomy = Taxonomy.of_model(Bundle.load(home / "bundle"))
    labeled = LabeledImages.pair(home / "images" / "a.png", home / "labels", taxonomy)
    for _ in range(2):  # as by two epochs
        labeled.read(0)
    assert [Path(uri).name for uri in labeled.summary.low_range] == ["a.png"]
    arguments = ["rescale", "bundle", "--images", "images/a.png", "--labels", "labels", "-o", "new"]
    assert "become nearly black: 1: " in ok(*arguments, cwd=home)


def test_a_store_has_been_read_already(home: Path) -> None:
    maskmill.label(home / "bundle", home / "images" / "a.png", home / "store")
    with pytest.raises(UsageError, match="bit_depth does not apply to a label store"):
        maskmill.evaluate(home / "store", home / "labels", bit_depth=12)
