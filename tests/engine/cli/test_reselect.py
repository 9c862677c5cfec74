"""`label --keep-scores` and `reselect` as a user calls them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from maskmill.cli import app
from maskmill.engine.store.label_store import LabelStore
from maskmill.errors import MaskmillError

from ...models import color_bundle, color_image


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, labeled photos in a folder with a space in its name, their calibration, and a store with kept scores."""
    folder = tmp_path_factory.mktemp("home")
    label_home(folder, {"labels.store": ()})
    return folder


def label_home(folder: Path, stores: dict[str, tuple[str, ...]]) -> None:
    """Make a model and labeled photos, calibrate, and label the photos into each of ``stores`` with its own options."""
    color_bundle(folder, size=(16, 24), gain=6.0, background="red")
    (folder / "my photos").mkdir()
    (folder / "labels").mkdir()
    rng = np.random.default_rng(0)
    for index in range(12):
        label = np.broadcast_to((np.arange(24) // 6 + index) % 3, (16, 24)).copy()
        photo = color_image(label, strength=150) + 50 + rng.normal(0, 90, (16, 24, 3))
        Image.fromarray(np.clip(photo, 0, 255).astype(np.uint8)).save(folder / "my photos" / f"{index}.png")
        Image.fromarray(label.astype(np.uint8)).save(folder / "labels" / f"{index}.png")
    photos, model = str(folder / "my photos"), str(folder / "bundle")
    calibration = str(folder / "c.json")
    call("calibrate", model, "--images", photos, "--labels", folder / "labels", "--alpha", "0.1", "-o", calibration)
    for name, options in stores.items():
        call(
            "label", model, photos, "--select", "conformal", "--calibration", calibration, "--keep-scores", "0.1",
            "-o", folder / name, *options,
        )  # fmt: skip


def call(*words: Any) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    return result.output


def fault(*words: Any) -> str:
    error = CliRunner().invoke(app, [str(word) for word in words]).exception
    assert isinstance(error, MaskmillError)
    return str(error)


def test_another_alpha_gives_another_store(home: Path) -> None:
    output = call("reselect", home / "labels.store", "-o", home / "a20", "--alpha", "0.2", "--json")
    summary = json.loads(output.strip().splitlines()[-1])
    assert (summary["images"], summary["interrupted"]) == (12, False)
    assert LabelStore.open(home / "a20").run["calibration"]["alpha"] == "0.2"
    again = call("reselect", home / "labels.store", "-o", home / "a20", "--alpha", "0.2")
    assert "nothing to do" in again


def test_faults_are_one_line_that_says_what_to_do(home: Path) -> None:
    assert "the kept scores are not enough for this selection" in fault(
        "reselect", home / "labels.store", "-o", home / "x", "--alpha", "0.05"
    )
    assert "nowhere" in fault("reselect", home / "nowhere", "-o", home / "x")
    assert "--keep-scores ALPHA needs --select conformal" in fault(
        "label", home / "bundle", home / "my photos", "--keep-scores", "0.1", "-o", home / "x"
    )
    assert not (home / "x").exists()


def test_options_that_a_calibration_file_decides_are_refused(home: Path) -> None:
    words = ("calibrate", "--calibration", home / "c.json", "--alpha", "0.2", "-o", home / "d.json")
    assert "leave out --control, --min-images" in fault(*words, "--min-images", "2", "--control", "false-label-rate")
    assert "leave out BUNDLE" in fault(*words, home / "bundle")
    assert not (home / "d.json").exists()


def test_a_calibration_is_not_overwritten(home: Path) -> None:
    before = (home / "c.json").read_bytes()
    labeled = ("--images", home / "my photos", "--labels", home / "labels", "-o", home / "c.json")
    assert "c.json exists already" in fault("calibrate", home / "bundle", *labeled, "--alpha", "0.2")
    assert "c.json exists already" in fault("choose", home / "bundle", *labeled)
    assert (home / "c.json").read_bytes() == before
