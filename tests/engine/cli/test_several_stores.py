"""Commands that read several stores as one, and what they write into each."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskmill.engine.store.label_store import LabelStore

from .test_reselect import call, fault, label_home


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, 12 photos, and their labels in one store and in two halves, with corrected labels in both."""
    folder = tmp_path_factory.mktemp("home")
    label_home(folder, {"all": (), "a": ("--shard", "0/2"), "b": ("--shard", "1/2")})
    call("export-labels", folder / "all", "--format", "png", "-o", folder / "files", "--images", "none")
    for path in (folder / "files").rglob("*.png"):
        pixels = np.array(Image.open(path))
        pixels[:2] = 1
        Image.fromarray(pixels).save(path)
    return folder


def stores(home: Path) -> list[Path]:
    return [home / "a", home / "b"]


def test_corrections_go_to_the_stores_that_hold_the_images(home: Path) -> None:
    output = call("import-labels", *stores(home), home / "files", "--reviewer", "ana")
    numbers = [len(LabelStore.open(path).current_reviews()) for path in stores(home)]
    assert sum(numbers) == 12
    assert min(numbers) > 0
    for path, number in zip(stores(home), numbers, strict=True):
        assert f"{path}: received {number} reviews" in output
    alone = call("calibrate", home / "bundle", "--reviewed", home / "a", "--alpha", "0.2", "-o", home / "1.json")
    both = call(
        "calibrate", home / "bundle", "--reviewed", home / "a", "--reviewed", home / "b", "--alpha", "0.2", "-o",
        home / "2.json", "--json",
    )  # fmt: skip
    assert f"{numbers[0]} images" in alone
    assert json.loads(both)["num_images"] == 12
    assert json.loads(call("evaluate", *stores(home), "--reviewed", "--json"))["num_images"] == 12
    assert "12 reviews withdrawn" in call("import-labels", *stores(home), "--withdraw")
    assert not any(LabelStore.open(path).current_reviews() for path in stores(home))


def test_show_prints_them_as_one_and_draws_an_image_of_any(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    assert "12 images of 12 inputs" in call("show", "a", "b")
    for name in range(12):
        assert f"wrote {name}-labels.png" in call("show", "a", "b", f"{name}.png")
    assert "hold no image 99" in fault("show", "a", "b", "99").replace("holds", "hold")


def test_another_selection_of_them_is_one_new_store(home: Path) -> None:
    call("reselect", *stores(home), "-o", home / "joined", "--alpha", "0.2")
    call("reselect", home / "all", "-o", home / "whole", "--alpha", "0.2")
    joined, whole = (
        {row.id: (row.label, row.weight) for row in LabelStore.open(home / name).iter_rows()}
        for name in ("joined", "whole")
    )
    assert joined == whole
    assert "is an input and would be overwritten" in fault("reselect", *stores(home), "-o", home / "b")


def test_stores_with_and_without_kept_scores_are_read_together_but_not_merged(home: Path) -> None:
    call(
        "label", home / "bundle", home / "my photos", "--select", "conformal", "--calibration", home / "c.json", "-o",
        home / "plain", "--shard", "1/2",
    )  # fmt: skip
    kept = [home / "a", home / "plain"]
    for order in (kept, kept[::-1]):
        call("report", *order, "-o", home / "together.html")
        assert "12 images" in (home / "together.html").read_text()
    assert fault("merge", *kept, "-o", home / "merged").startswith("a keeps scores, plain does not")
