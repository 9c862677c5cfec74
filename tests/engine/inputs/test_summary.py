from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest

from maskmill.engine.inputs import summary as summary_module
from maskmill.engine.inputs.summary import SourceSummary
from maskmill.errors import install_command


def test_a_run_over_millions_of_dark_photos_keeps_few_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summary_module, "MAX_NAMES", 4)
    summary = SourceSummary(images=9)
    for index in range(9):
        summary.warner(f"{index}.png")("dark")
    assert summary.low_range == ["0.png", "1.png", "2.png", "3.png"]
    assert "at least 4, e.g. 0.png" in summary.line()


def test_everything_stands_in_one_line() -> None:
    summary = SourceSummary(
        images=1200,
        skipped=Counter({".heic": 3, "resource forks": 12}),
        rejected=Counter({"truncated": 2}),
        without_map=["/p/a/1.jpg", "/p/a/2.jpg", "/p/a/3.jpg", "/p/a/4.jpg"],
        without_image=["9.png"],
        rules={"suffix _mask": 1200},
    )
    summary.count_labels(np.array([[0, 1, 255, 1]], np.uint8), 255)
    summary.warner("/p/dim.tif")("too dark")
    assert summary.line() == (
        "1,200 images used; paired by suffix _mask (1,200); files skipped: 12 resource forks, "
        f"3 .heic (HEIC: {install_command('heif')}); not readable: 2 truncated; "
        "photos that use less than 1/16 of their type's range and become nearly black: 1: p/dim.tif; "
        "state the bits that are used, as in --bit-depth 12; photos without a map: 4, e.g. a/1.jpg, a/2.jpg, a/3.jpg; "
        "maps without a photo: 1: 9.png; "
        "25.0% of the label pixels ignored, a large share: check [labels] in the taxonomy"
    )
    assert "\n" not in summary.line()


def test_a_plain_set_says_little() -> None:
    assert SourceSummary(images=6, rules={"same name": 6}).line() == "6 images used"


def test_assumed_labels_are_doubted_if_the_accuracy_is_low() -> None:
    assumed = SourceSummary(images=6, assumed=True)
    assert "the accuracy is only 0.172" in assumed.doubt(0.172)
    assert "give --taxonomy FILE" in assumed.doubt(None)
    assert assumed.doubt(0.6) == SourceSummary(images=6).doubt(0.172) == ""


def test_plain_data_gives_the_same_summary_back() -> None:
    summary = SourceSummary(images=2, skipped=Counter({".txt": 1}), without_map=["a"], turned=1, labels_format="coco")
    summary.count_labels(np.array([[0, 255]], np.uint8), 255)
    raw = json.loads(json.dumps(summary.to_json()))
    assert SourceSummary.from_json(raw).line() == summary.line()
    assert SourceSummary.from_json(raw).to_json() == summary.to_json()
