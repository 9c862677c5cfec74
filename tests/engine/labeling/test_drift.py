"""A calibrated run: the sample first, the same watch for every way to finish it, and a stop at an alarm."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from maskmill.engine.calibration.calibrate import calibrate
from maskmill.engine.calibration.calibration import Calibration
from maskmill.engine.calibration.drift.watch import order_key
from maskmill.engine.inputs.labels import open_labels
from maskmill.engine.inputs.sources import open_source
from maskmill.engine.labeling import drift as module
from maskmill.engine.labeling.drift import drift_record, watch_store
from maskmill.engine.labeling.selection import Selection
from maskmill.engine.model.bundle import Bundle
from maskmill.engine.model.taxonomy import Taxonomy
from maskmill.engine.predictors.semantic import SemanticPredictor
from maskmill.engine.report.contents import describe_store
from maskmill.engine.runtimes.onnx_runtime import OnnxSession
from maskmill.engine.store.label_store import LabelStore
from maskmill.errors import UsageError

from ...models import color_bundle
from ..corpus import label_folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return color_bundle(tmp_path_factory.mktemp("model"), gain=6.0)


def write(folder: Path, num: int, *, seed: int, factor: float = 1.0) -> Path:
    """Noisy photos of random brightness, with the strongest channel as their label."""
    rng = np.random.default_rng(seed)
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    for index in range(num):
        color = rng.integers(60, 256, (1, 1, 3)) * rng.uniform(0.7, 1.0)
        pixels = np.clip((color + rng.normal(0, 12, (16, 24, 3))) * factor, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{index:04d}.png")
        Image.fromarray(pixels.argmax(axis=2).astype(np.uint8)).save(folder / "labels" / f"{index:04d}.png")
    return folder / "images"


@pytest.fixture(scope="module")
def calibration(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Calibration:
    folder = tmp_path_factory.mktemp("calibration")
    write(folder, 60, seed=0)
    predictor = SemanticPredictor(bundle, OnnxSession(bundle))
    labels = open_labels(folder / "labels")
    return calibrate(predictor, open_source(folder / "images"), labels, Taxonomy.of_model(bundle), alpha="0.1")


def label(bundle: Bundle, photos: Path, store: Path, calibration: Calibration, **options: Any) -> Any:
    return label_folder(bundle, photos, store, selection=Selection.conformal(calibration), **options)


def test_images_like_the_calibrations_raise_no_alarm_and_dark_ones_do(
    bundle: Bundle, calibration: Calibration, tmp_path: Path
) -> None:
    reports = {}
    for name, factor in (("same", 1.0), ("dark", 0.5)):
        photos = write(tmp_path / name, 80, seed=1, factor=factor)
        run = label(bundle, photos, tmp_path / f"{name}-labels", calibration)
        assert (run.images, run.drifted, run.interrupted) == (80, False, False)
        reports[name] = watch_store(tmp_path / f"{name}-labels")
    assert reports["same"].alarm is None
    assert reports["same"].images == 80
    assert reports["dark"].alarm < 30
    assert "brightness" in {change.statistic for change in reports["dark"].changes}
    lines = describe_store(LabelStore.open(tmp_path / "dark-labels"))
    assert any(line.startswith("drift: these images do not look like the calibration images") for line in lines)


def test_the_sample_is_labeled_first_and_in_its_order(
    bundle: Bundle, calibration: Calibration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = write(tmp_path, 40, seed=2)
    monkeypatch.setattr(module, "SAMPLE", 15)
    run = label(bundle, photos, tmp_path / "store", calibration, limit=10, workers=1)
    assert run.images == 10
    uris = [str(path) for path in photos.iterdir()]
    first = sorted(uris, key=order_key)[:10]
    assert {row.uri for row in LabelStore.open(tmp_path / "store").inputs()} == set(first)
    label(bundle, photos, tmp_path / "store", calibration)
    report = watch_store(tmp_path / "store")
    assert report is not None
    assert report.images == 15


def test_parts_and_resumed_runs_give_the_report_of_one_run(
    bundle: Bundle, calibration: Calibration, tmp_path: Path
) -> None:
    photos = write(tmp_path, 50, seed=3, factor=0.8)
    label(bundle, photos, tmp_path / "one", calibration, workers=1)
    for limit in (7, 20, None):
        label(bundle, photos, tmp_path / "resumed", calibration, limit=limit, workers=2)
    for part in (2, 0, 1):
        label(bundle, photos, tmp_path / "parts", calibration, shard_of=(part, 3))
    reports = [watch_store(tmp_path / name) for name in ("one", "resumed", "parts")]
    assert reports[0] is not None
    assert reports[0] == reports[1] == reports[2]


def test_an_alarm_stops_the_run_and_nothing_is_lost(bundle: Bundle, calibration: Calibration, tmp_path: Path) -> None:
    photos, store = write(tmp_path, 200, seed=4, factor=0.4), tmp_path / "store"
    run = label(bundle, photos, store, calibration, on_drift="stop", workers=1)
    report = watch_store(store)
    assert run.drifted
    assert report is not None
    assert report.alarm is not None
    assert report.alarm <= run.images < 200
    assert len(LabelStore.open(store)) == run.images
    again = label(bundle, photos, store, calibration, on_drift="stop")
    assert (again.drifted, again.inputs) == (True, 0)
    rest = label(bundle, photos, store, calibration, on_drift="warn")
    assert (rest.drifted, rest.images) == (False, 200 - run.images)
    finished = watch_store(store)
    assert finished is not None
    assert finished.alarm == report.alarm


def test_a_part_stops_at_an_alarm_that_needs_the_other_part(
    bundle: Bundle, calibration: Calibration, tmp_path: Path
) -> None:
    photos, store = write(tmp_path, 60, seed=4, factor=0.4), tmp_path / "store"
    assert not label(bundle, photos, store, calibration, shard_of=(0, 2)).drifted
    assert label(bundle, photos, store, calibration, shard_of=(1, 2), on_drift="stop", workers=1).drifted


def test_duplicates_count_once_and_rejects_do_not_block_the_watch(
    bundle: Bundle, calibration: Calibration, tmp_path: Path
) -> None:
    photos = write(tmp_path, 30, seed=5, factor=0.4)
    for path in list(photos.iterdir()):
        (photos / f"copy-{path.name}").write_bytes(path.read_bytes())
    for index in range(10):
        (photos / f"broken-{index}.png").write_bytes(b"no picture")
    run = label(bundle, photos, tmp_path / "store", calibration, on_drift="stop")
    assert run.drifted
    label(bundle, photos, tmp_path / "store", calibration)
    report = watch_store(tmp_path / "store")
    assert report is not None
    assert report.images == 30


def test_a_run_without_calibration_has_no_watch(bundle: Bundle, tmp_path: Path) -> None:
    photos = write(tmp_path, 3, seed=6)
    label_folder(bundle, photos, tmp_path / "store")
    store = LabelStore.open(tmp_path / "store")
    assert "drift" not in store.run
    assert watch_store(store) is None
    assert next(store.iter_rows(extras=True)).statistics is None


def test_the_choice_is_not_part_of_the_labels(bundle: Bundle, calibration: Calibration, tmp_path: Path) -> None:
    photos = write(tmp_path, 3, seed=7)
    label(bundle, photos, tmp_path / "store", calibration, on_drift="stop")
    assert "stop" not in json.dumps(LabelStore.open(tmp_path / "store").run)
    with pytest.raises(UsageError, match="on_drift must be one of warn, stop"):
        label(bundle, photos, tmp_path / "store", calibration, on_drift="halt")


def test_a_calibration_without_statistics_is_not_watched(
    bundle: Bundle, calibration: Calibration, tmp_path: Path
) -> None:
    photos = write(tmp_path, 3, seed=8)
    label(bundle, photos, tmp_path / "store", replace(calibration, counts=calibration.counts.subset([])))
    assert watch_store(tmp_path / "store") is None
    assert drift_record(Selection.conformal(calibration))["drift"]["sample"] == 2000
    assert drift_record(Selection.argmax()) == {}
