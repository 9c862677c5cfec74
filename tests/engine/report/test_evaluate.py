from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from maskmill.engine.inputs.labels import LabelFolder
from maskmill.engine.model.png import encode_png
from maskmill.engine.model.taxonomy import Taxonomy
from maskmill.engine.report.evaluate import confusion, evaluate_store, quality
from maskmill.engine.store.label_store import LabelStore
from maskmill.errors import UsageError

TAXONOMY = Taxonomy(targets=("a", "b", "c"), background=None, model=(0, 1, 2))
IGNORE = 255


def test_figures_on_a_map_that_can_be_counted_by_hand() -> None:
    truth = np.array([[0, 0, 0, 0], [1, 1, 1, IGNORE]], np.uint8)
    label = np.array([[0, 0, 1, IGNORE], [1, 1, IGNORE, 0]], np.uint8)
    found = quality([(label, truth)], TAXONOMY)
    assert found.confusion.tolist() == [[2, 1, 0, 1], [0, 2, 0, 1], [0, 0, 0, 0]]
    assert found.kept == pytest.approx(5 / 7)
    assert found.accuracy_kept == pytest.approx(4 / 5)
    # kept: a 2 / (3 + 2 - 2), b 2 / (2 + 3 - 2); c is not in the truth
    assert found.iou_kept[:2].tolist() == [pytest.approx(2 / 3), pytest.approx(2 / 3)]
    assert np.isnan(found.iou_kept[2])
    assert found.miou_kept == pytest.approx(2 / 3)
    # all: a 2 / (4 + 2 - 2), b 2 / (3 + 3 - 2)
    assert found.miou_all == pytest.approx((2 / 4 + 2 / 4) / 2)


def test_a_class_of_the_truth_without_a_kept_pixel_counts_zero() -> None:
    truth = np.array([[0, 1]], np.uint8)
    label = np.array([[0, IGNORE]], np.uint8)
    found = quality([(label, truth)], TAXONOMY)
    assert found.iou_kept[:2].tolist() == [1.0, 0.0]
    assert found.miou_kept == 0.5


def test_a_wrong_class_that_is_not_in_the_truth_still_counts_against_the_right_one() -> None:
    found = quality([(np.array([[0, 2]], np.uint8), np.array([[0, 0]], np.uint8))], TAXONOMY)
    assert found.miou_kept == 0.5
    assert found.accuracy_kept == 0.5


def test_images_add_up() -> None:
    rng = np.random.default_rng(0)
    pairs = [(rng.choice([0, 1, 2, 255], (5, 6)), rng.choice([0, 1, 2, 255], (5, 6))) for _ in range(4)]
    pairs = [(label.astype(np.uint8), truth.astype(np.uint8)) for label, truth in pairs]
    total = sum(confusion(label, truth, TAXONOMY) for label, truth in pairs)
    found = quality(pairs, TAXONOMY)
    np.testing.assert_array_equal(found.confusion, total)
    assert found.num_images == 4


def test_plain_data_has_no_undefined_number() -> None:
    nothing = np.full((2, 2), IGNORE, np.uint8)
    raw = quality([(nothing, nothing)], TAXONOMY).to_json()
    assert raw["miou_kept"] is None
    assert raw["accuracy_kept"] is None
    assert raw["kept"] is None
    assert [row["iou_kept"] for row in raw["classes"]] == [None] * 3


def test_intervals_are_over_images_and_hold_the_figures() -> None:
    rng = np.random.default_rng(0)
    truth = np.zeros((4, 50), np.uint8)
    shares = rng.random(40)
    labels = [np.where(rng.random(truth.shape) < share, 0, 1).astype(np.uint8) for share in shares]
    raw = quality([(label, truth) for label in labels], TAXONOMY).to_json()
    for key in ("accuracy_kept", "accuracy_all", "miou_kept"):
        low, high = raw[f"{key}_interval"]
        assert low < raw[key] < high
    assert raw["accuracy_kept"] == raw["accuracy_all"] == pytest.approx(shares.mean(), abs=0.02)
    # images vary by .29: their mean by .045, and not by the .006 of 8000 independent pixels
    low, high = raw["accuracy_all_interval"]
    assert 1 < (high - low) / (4 * shares.std() / np.sqrt(40)) < 1.5
    assert raw["kept_interval"][1] == 1.0


@pytest.mark.parametrize(("num_images", "has_interval"), [(1, False), (4, False), (5, True)])
def test_few_images_have_no_interval(num_images: int, has_interval: bool) -> None:
    truth = np.zeros((4, 50), np.uint8)
    raw = quality([(truth, truth)] * num_images, TAXONOMY).to_json()
    assert raw["kept"] == 1.0
    for key in ("kept", "accuracy_kept", "accuracy_all", "miou_kept"):
        assert (raw[f"{key}_interval"] is not None) == has_interval


def test_ignored_pixels_count_against_the_accuracy_of_all() -> None:
    found = quality([(np.array([[0, 0, IGNORE, IGNORE]], np.uint8), np.zeros((1, 4), np.uint8))], TAXONOMY)
    assert (found.accuracy_kept, found.accuracy_all) == (1.0, 0.5)


def test_an_empty_store_is_named(tmp_path: Path) -> None:
    store = LabelStore.create(tmp_path / "store", {"classes": TAXONOMY.to_json()})
    (tmp_path / "truth").mkdir()
    (tmp_path / "truth" / "a.png").write_bytes(encode_png(np.zeros((2, 2), np.uint8)))
    with pytest.raises(UsageError, match="store holds no labeled image yet"):
        evaluate_store(store, LabelFolder(tmp_path / "truth"), TAXONOMY)
