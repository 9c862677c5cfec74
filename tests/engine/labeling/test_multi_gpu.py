"""One process a device, all writing one store; on processors here, which several devices look like from outside."""

from __future__ import annotations

import importlib
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from maskmill.engine.labeling.multi_gpu import label_on_devices, label_share
from maskmill.engine.labeling.progress import Progress
from maskmill.engine.labeling.selection import Selection
from maskmill.engine.store.label_store import LabelStore
from maskmill.errors import SessionError, UsageError

from ...models import color_bundle
from ..corpus import write_photos

OPENING = """
import os
from pathlib import Path

from maskmill.engine.predictors.semantic import SemanticPredictor
from maskmill.engine.runtimes.open import open_session
from maskmill.engine.model.taxonomy import Taxonomy
from maskmill.errors import SessionError
from maskmill.engine.model.bundle import Bundle


def open_predictor(bundle, seen):
    device = os.environ["CUDA_VISIBLE_DEVICES"]
    (seen / device).touch()
    if device == "7":
        raise SessionError("no such device")
    model = Bundle.load(bundle)
    return SemanticPredictor(model, open_session(model)), Taxonomy.of_model(model)
"""
"""What each process calls, in a module that it can import; notes which device it was given."""


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "seen").mkdir()
    (tmp_path / "opening_predictors.py").write_text(OPENING)
    monkeypatch.syspath_prepend(tmp_path)
    write_photos(tmp_path / "photos", 12)
    function = importlib.import_module("opening_predictors").open_predictor
    opening = partial(function, color_bundle(tmp_path).path, tmp_path / "seen")
    yield partial(label_share, opening, Selection())
    del sys.modules["opening_predictors"]


def test_every_image_is_labeled_once_on_one_of_the_devices(make: Any, tmp_path: Path) -> None:
    looks: list[Progress] = []
    progress = label_on_devices(
        make,
        str(tmp_path / "photos"),
        tmp_path / "store",
        devices=(3, 5),
        workers=1,
        observer=looks.append,
    )
    assert (progress.images, progress.planned, progress.interrupted) == (12, 12, False)
    assert progress.kept.sum() == progress.pixels == 12 * 12 * 16
    assert {path.name for path in (tmp_path / "seen").iterdir()} == {"3", "5"}
    assert len(LabelStore.open(tmp_path / "store")) == 12
    assert looks[-1].images == 12
    assert {stage.threads for stage in progress.stages} == {2}


def test_an_error_on_one_device_is_raised_and_named(make: Any, tmp_path: Path) -> None:
    with pytest.raises(SessionError, match="device 7: no such device"):
        label_on_devices(make, str(tmp_path / "photos"), tmp_path / "store", devices=(7,))


@pytest.mark.parametrize("devices", [(), (0, 0), (-1,)])
def test_devices_are_different_numbers(make: Any, tmp_path: Path, devices: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="distinct device numbers"):
        label_on_devices(make, str(tmp_path / "photos"), tmp_path / "store", devices=devices)
