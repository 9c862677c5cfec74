"""The choice of runtime and precision: measured, judged, recorded, and read by labeling."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskmill import LabelStore, label
from maskmill.engine.model.bundle import Bundle
from maskmill.engine.model.verdicts import Tolerances
from maskmill.engine.runtimes import tuned
from maskmill.engine.runtimes.tuned import TunedChoice, machine_name, read_choice, write_choice
from maskmill.errors import BundleError, UsageError
from maskmill.export.gate.bench import Row, measure
from maskmill.export.gate.judge import GateImages
from maskmill.export.precision import tune as module
from maskmill.export.precision.tune import tune

from ...models import color_bundle, color_image
from ...test_cli import maskmill, ok


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A bundle and four photos."""
    color_bundle(tmp_path, stride=2)
    (tmp_path / "photos").mkdir()
    for index in range(4):
        label = np.zeros((16, 24), np.uint8)
        label[2 + index : 10, 4:12], label[12:, 14:] = 1, 2
        Image.fromarray(color_image(label)).save(tmp_path / "photos" / f"{index}.png")
    return tmp_path


def test_the_fastest_that_passes_is_chosen_and_recorded(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, photos = Bundle.load(home / "bundle"), GateImages.open(str(home / "photos"))
    limits = Tolerances(min_images=4)
    speeds = {("cpu", "fp32"): 10.0, ("cpu", "fp16"): 8.0, ("openvino", "fp32"): 12.0, ("openvino", "fp16"): 14.0}

    def measured(*args: object, **options: object) -> list[Row]:
        rows = measure(*args, **{**options, "seconds": 0.01})  # type: ignore[arg-type]
        rows = [
            dataclasses.replace(row, images_per_second=speeds.get((row.provider, row.precision), 0.0), ratio=2.0)
            for row in rows
        ]
        # what does not pass is not chosen, however fast it is
        return [*rows, dataclasses.replace(rows[-1], images_per_second=1e6, verdict=None, gate="worst IoU below 0.95")]

    monkeypatch.setattr(module, "measure", measured)
    choice, rows = tune(bundle, photos, precisions=["fp16"], tolerances=limits)
    assert {row.precision for row in rows} == {"fp32", "fp16"}
    best = max((row for row in rows if row.gate.startswith(("original", "passes"))), key=lambda r: r.images_per_second)
    assert (choice.provider, choice.precision) == (best.provider, best.precision)
    assert read_choice(Bundle.load(home / "bundle")) == choice
    if choice.provider != "cpu":  # its verdict is recorded, so that labeling needs no further proof
        assert any(verdict["passed"] for verdict in Bundle.load(home / "bundle").verdicts)


def test_labeling_reads_the_choice_and_never_guesses(home: Path) -> None:
    result = maskmill("label", "bundle", "photos", "-o", "labels", "--provider", "auto", cwd=home)
    assert result.returncode == 2
    assert "has not been tuned on this machine" in result.stderr
    output = ok("tune", "bundle", "--images", "photos", "--min-images", "4", "--seconds", "0.1", cwd=home)
    assert "`label --provider auto` uses it" in output.replace("\n", " ")
    assert "tuned for this machine" in ok("label", "bundle", "photos", "-o", "labels", "--provider", "auto", cwd=home)
    progress = label(home / "bundle", home / "photos", home / "again", provider="auto")
    assert progress.images == 4
    assert LabelStore.open(home / "again").run["session"] == LabelStore.open(home / "labels").run["session"]
    result = maskmill("label", "bundle", "photos", "-o", "x", "--provider", "auto", "--precision", "fp32", cwd=home)
    assert "leave --precision out" in result.stderr


def test_a_choice_holds_for_its_machine_and_its_file(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = Bundle.load(home / "bundle")
    choice = TunedChoice(
        machine=machine_name(), provider="cpu", precision="fp32", artifact=bundle.files[0].sha256,
        images_per_second=1.0, ratio=1.0,
    )  # fmt: skip
    write_choice(bundle, dataclasses.replace(choice, machine="another"))
    with pytest.raises(UsageError, match="it knows: another"):
        read_choice(bundle)
    write_choice(bundle, dataclasses.replace(choice, artifact="0" * 64))
    with pytest.raises(UsageError, match="has changed since it was tuned"):
        read_choice(bundle)
    write_choice(bundle, choice)
    assert read_choice(bundle) == choice
    assert len(json.loads((home / "bundle" / "tuned.json").read_text())["choices"]) == 2
    monkeypatch.setattr(tuned, "usable_processors", lambda: 99)
    with pytest.raises(UsageError, match="99 processor"):
        read_choice(bundle)
    (home / "bundle" / "tuned.json").write_text('{"choices": [{"machine": 1}]}')
    with pytest.raises(BundleError, match="delete it"):
        read_choice(bundle)
