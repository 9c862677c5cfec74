"""Numbers out of range: every public function refuses them as its command does, before it does any work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import maskmill
from maskmill.engine.labeling.export_labels import export_labels
from maskmill.errors import UsageError
from maskmill.export.gate.judge import GateImages

from .engine.corpus import label_folder, write_photos
from .models import color_bundle


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a bundle, photos, label maps and a label store."""
    folder = tmp_path_factory.mktemp("home")
    bundle = color_bundle(folder)
    photos = write_photos(folder / "photos", 2)
    (folder / "labels").mkdir()
    for photo in photos:
        with Image.open(photo) as image:
            Image.new("L", image.size).save(folder / "labels" / f"{photo.stem}.png")
    label_folder(bundle, folder / "photos", folder / "store")
    return folder


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        ("calibrate", {"min_images": 0}, "min_images must be a whole number of at least 1, got 0"),
        ("calibrate", {"alpha": "1/0"}, "alpha must be a number above 0 and below 1"),
        ("calibrate", {"workers": 0}, "workers must be a whole number of at least 1, got 0"),
        ("calibrate", {"tile": 4}, "tile must be a whole number of at least 16, got 4"),
        ("choose", {"goal": "accuracy 1.2"}, "the accuracy of a goal must be"),
        ("choose", {"workers": -1}, "workers must be"),
        ("label", {"overlap": 5}, "the overlap of 5 px is that of tiles: give their side as tile"),
        ("label", {"tile": 32, "overlap": 32}, "overlap must be less than the tile of 32 px, got 32"),
        ("label", {"tile": 32.5}, "tile must be a whole number"),
        ("label", {"limit": 0}, "limit must be a whole number of at least 1, got 0"),
        ("label", {"workers": 0}, "workers must be"),
        ("label", {"threshold": 1.5}, "threshold must be a number above 0 and at most 1, got 1.5"),
        ("label", {"weight_levels": 2}, "weight levels must be a whole number from 3 to 256, got 2"),
        ("label", {"instances": True, "min_score": 2}, "min_score must be a number at least 0 and at most 1, got 2"),
        ("label", {"provider": "gpu"}, "provider must be one of cpu, cuda"),
        ("evaluate", {"images": "photos", "overlap": 5}, "the overlap of 5 px is that of tiles"),
        ("rank", {"budget": -1}, "budget must be a whole number of at least 0, got -1"),
        ("rank", {"budget": 2, "workers": 0}, "workers must be"),
        ("report", {"pictures": 0}, "pictures must be a whole number of at least 1, got 0"),
        ("report", {"workers": 0}, "workers must be"),
    ],
)
def test_numbers_out_of_range_are_refused(
    home: Path, monkeypatch: pytest.MonkeyPatch, function: str, arguments: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(home)
    first = {
        "calibrate": ("bundle", "photos", "labels"),
        "choose": ("bundle", "photos", "labels"),
        "label": ("bundle", "photos", "new"),
        "evaluate": ("bundle", "labels"),
        "rank": ("store",),
        "report": ("store", "new.html"),
    }
    alpha = {"alpha": "0.1"} if function == "calibrate" else {}
    with pytest.raises(UsageError, match=message):
        getattr(maskmill, function)(*first[function], **{**alpha, **arguments})
    assert not (home / "new").exists()
    assert not (home / "new.html").exists()


def test_siblings_of_the_public_functions_refuse_them_too(home: Path, tmp_path: Path) -> None:
    store = maskmill.LabelStore.open(home / "store")
    with pytest.raises(UsageError, match="min_kept must be a number at least 0 and at most 1, got 7"):
        export_labels(store, tmp_path / "new", "png", min_kept=7)
    with pytest.raises(UsageError, match="the number of images must be a whole number of at least 1, got 0"):
        GateImages.open(str(home / "photos"), limit=0)
    with pytest.raises(UsageError, match="opacity must be a number at least 0 and at most 1, got 2"):
        maskmill.overlay(np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), np.uint8), ["a", "b"], opacity=2)
    with pytest.raises(UsageError, match="alpha must be a number above 0 and below 1"):
        maskmill.calibrate_objects(store, home / "labels", alpha="1/0")
