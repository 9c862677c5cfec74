"""Calibration by several workers: equal to that of one process, bit for bit, whoever dies."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from maskmill.engine.calibration.calibrate import calibrate
from maskmill.engine.calibration.calibration import Calibration
from maskmill.engine.cluster.calibration import worker as worker_module
from maskmill.engine.cluster.calibration.collect import calibrate_array, work_folder
from maskmill.engine.cluster.calibration.worker import FIT_RECORD, RECORD, ObservationJob, ObservationWorker
from maskmill.engine.cluster.leases import Leases
from maskmill.engine.inputs.labeled_source import pair_images
from maskmill.engine.inputs.labels import LabelFolder
from maskmill.engine.inputs.sources import open_source
from maskmill.engine.labeling.run_log import RunLog
from maskmill.engine.model import storage
from maskmill.engine.model.bundle import Bundle
from maskmill.engine.model.taxonomy import Taxonomy
from maskmill.engine.predictors.semantic import SemanticPredictor
from maskmill.engine.runtimes.onnx_runtime import OnnxSession
from maskmill.engine.store.waiting.presence import identity
from maskmill.errors import CalibrationError, StoreError, UsageError

from ....models import color_bundle
from .photos import write_labeled_photos

pytestmark = pytest.mark.usefixtures("short_pauses")

NUM_PHOTOS = 13


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return color_bundle(tmp_path_factory.mktemp("model"), size=(16, 24), gain=6.0)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_labeled_photos(tmp_path_factory.mktemp("photos"), NUM_PHOTOS)


@pytest.fixture(autouse=True)
def short_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "LEASE_IMAGES", 3)
    monkeypatch.setattr(worker_module, "POLL_SECONDS", 0.01)


def open_model(bundle: Bundle, batch: int = 1) -> tuple[Any, Taxonomy]:
    return SemanticPredictor(bundle, OnnxSession(bundle), batch=batch), Taxonomy.of_model(bundle)


def fit_of(bundle: Bundle, photos: Path, *, batch: int = 1, **options: Any) -> Any:
    predictor, classes = open_model(bundle, batch)
    source, labels = open_source(photos / "images"), LabelFolder(photos / "labels")
    return partial(calibrate, predictor, source, labels, classes, **{"alpha": "0.2", **options})


def pair(photos: Path, classes: Taxonomy) -> Any:
    source = open_source(photos / "images")
    return source, pair_images(source, LabelFolder(photos / "labels"), classes), classes


class JoinedWorker(ObservationWorker):
    """Worker that tells when it has joined the calibration."""

    joined: threading.Event

    def work(self, sample: worker_module.Sample) -> bool:
        self.joined.set()
        return super().work(sample)


def start_worker(bundle: Bundle, photos: Path, output: Path, **options: Any) -> threading.Thread:
    """Work in a thread until the calibration is written; returns when the worker has joined."""
    folder = work_folder(output)
    job = ObservationJob(opening=partial(open_model, bundle), pairing=partial(pair, photos), store=folder, **options)
    worker = JoinedWorker(job, Leases(folder), token=f"{id(job):x}", threads=1)
    worker.joined = threading.Event()
    is_over = lambda: not (Path(folder) / RECORD).exists()  # noqa: E731
    thread = threading.Thread(target=worker.run, kwargs={"is_over": is_over})
    thread.start()
    assert worker.joined.wait(600)
    return thread


@pytest.mark.parametrize(
    ("num_workers", "options"),
    [
        (1, {"group": "class"}),
        (2, {"group": "class", "rule": "auto"}),
        (3, {"group": "pooled", "unit": "image"}),
        (2, {"group": "position", "grid": (8, 8)}),
    ],
)
def test_any_number_of_workers_gives_the_calibration_of_one_process(
    bundle: Bundle, photos: Path, tmp_path: Path, num_workers: int, options: dict[str, Any]
) -> None:
    fit = fit_of(bundle, photos, **options)
    fit().save(tmp_path / "local.json")
    output = tmp_path / "shared.json"
    grid = options.get("grid") if options["group"] == "position" else None
    threads = [start_worker(bundle, photos, output, grid=grid) for _ in range(num_workers - 1)]
    calibrate_array(fit, output, threads=1)
    for thread in threads:
        thread.join(600)
    assert output.read_bytes() == (tmp_path / "local.json").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["local.json", "shared.json"]


def test_a_batch_is_never_cut_by_a_lease(bundle: Bundle, photos: Path, tmp_path: Path) -> None:
    fit = fit_of(bundle, photos, batch=4)
    fit().save(tmp_path / "local.json")
    calibrate_array(fit, tmp_path / "shared.json")
    assert (tmp_path / "shared.json").read_bytes() == (tmp_path / "local.json").read_bytes()


@pytest.mark.parametrize("fault", ["dead worker", "damaged file", "finished file"])
def test_work_that_others_left_is_finished(
    bundle: Bundle, photos: Path, tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit, output = fit_of(bundle, photos), tmp_path / "shared.json"
    fit().save(tmp_path / "local.json")
    leases = Leases(work_folder(output))
    interrupt(fit, output, monkeypatch)
    finished = leases.finished()
    assert len(finished) == 2
    if fault == "damaged file":
        path = Path(work_folder(output)) / "leases" / "done" / finished[0].name
        path.write_bytes(path.read_bytes()[:-7])
    elif fault == "dead worker":
        leases.beat(
            "dead", {**identity(), "process": 2**22 - 1, "beat": 1, "leases": {}, "state": "labeling", "time": 0.0}
        )
        free = next(name for name in leases.open_names() if name not in leases.claims())
        assert leases.take(free, "dead")
    calibrate_array(fit, output)
    assert output.read_bytes() == (tmp_path / "local.json").read_bytes()


def test_a_process_with_other_options_is_refused(bundle: Bundle, photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "shared.json"
    worker = open_model(bundle)[0]
    source, labeled, classes = pair(photos, Taxonomy.of_model(bundle))
    sample = worker_module.Sample(predictor=worker, source=source, labeled=labeled, taxonomy=classes)
    sample.join(work_folder(output))
    with pytest.raises(
        UsageError, match=r"unfinished work of another calibration \(different: batch, images per lease\)"
    ):
        calibrate_array(fit_of(bundle, photos, batch=2), output)


def interrupt(fit: Any, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calibrate until the third lease is observed."""
    hand_back, handed = Leases.hand_back, []

    def die(self: Leases, *arguments: Any) -> None:
        if len(handed) == 2:
            raise KeyboardInterrupt
        handed.append(hand_back(self, *arguments))

    with monkeypatch.context() as patch:
        patch.setattr(Leases, "hand_back", die)
        with pytest.raises(KeyboardInterrupt):
            calibrate_array(fit, output)


@pytest.mark.parametrize(
    ("change", "name"), [("pixels", "labels"), ("mapping", "label mapping"), ("lease", "images per lease")]
)
def test_unfinished_work_with_other_labels_is_refused(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str, name: str
) -> None:
    photos, output = write_labeled_photos(tmp_path, NUM_PHOTOS), tmp_path / "shared.json"
    interrupt(fit_of(bundle, photos), output, monkeypatch)
    fit = fit_of(bundle, photos)
    if change == "pixels":
        Image.fromarray(np.zeros((16, 24), np.uint8)).save(photos / "labels" / "0.png")
        fit = fit_of(bundle, photos)
    elif change == "mapping":
        classes = replace(fit.args[3], labels={**fit.args[3].labels, 2: -1}, assumed=False)
        fit = partial(calibrate, *fit.args[:3], classes, **fit.keywords)
    else:
        monkeypatch.setattr(worker_module, "LEASE_IMAGES", 4)
    with pytest.raises(UsageError, match=rf"another calibration \(different: {name}\).*or delete that folder"):
        calibrate_array(fit, output)


@pytest.mark.parametrize(
    "options", [{"alpha": "0.4"}, {"group": "pooled"}, {"rule": "auto"}, {"unseen": "pooled"}, {"min_images": 5}]
)
def test_a_process_that_fits_with_other_options_is_refused(
    bundle: Bundle, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    output = tmp_path / "shared.json"
    interrupt(fit_of(bundle, photos), output, monkeypatch)
    with pytest.raises(UsageError, match=rf"other options \(different: {next(iter(options))}\)"):
        calibrate_array(fit_of(bundle, photos, **options), output)
    (Path(work_folder(output)) / FIT_RECORD).unlink()  # as the message says
    calibrate_array(fit_of(bundle, photos, **options), output)
    fit_of(bundle, photos, **options)().save(tmp_path / "local.json")
    assert output.read_bytes() == (tmp_path / "local.json").read_bytes()


@pytest.mark.parametrize("record", ["{", "[]", ""])
def test_a_damaged_record_is_one_line(bundle: Bundle, photos: Path, tmp_path: Path, record: str) -> None:
    folder = Path(work_folder(tmp_path / "shared.json"))
    folder.mkdir()
    (folder / RECORD).write_text(record)
    with pytest.raises(StoreError, match=r"calibration\.json is damaged; delete that folder"):
        calibrate_array(fit_of(bundle, photos), tmp_path / "shared.json")


def test_stray_files_among_finished_leases_are_ignored(bundle: Bundle, photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "shared.json"
    done = Path(work_folder(output)) / "leases" / "done"
    done.mkdir(parents=True)
    for name in ("evil", "a~b~c", "00000000~b~", "~~1"):
        (done / name).touch()
    calibrate_array(fit_of(bundle, photos), output)
    fit_of(bundle, photos)().save(tmp_path / "local.json")
    assert output.read_bytes() == (tmp_path / "local.json").read_bytes()


def test_a_full_disk_is_reported_for_the_calibration(
    bundle: Bundle, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage, "write_atomically", fail)
    with pytest.raises(
        StoreError, match=r"unfinished work of the calibration in .*shared\.json\.work: the disk is full"
    ):
        calibrate_array(fit_of(bundle, photos), tmp_path / "shared.json")


def test_an_image_that_cannot_be_used_is_named(bundle: Bundle, tmp_path: Path) -> None:
    photos = write_labeled_photos(tmp_path, 4)
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(photos / "labels" / "2.png")
    with pytest.raises(CalibrationError, match=r"2\.png is 4x4 px and its image"):
        calibrate_array(fit_of(bundle, photos), tmp_path / "shared.json")


def test_tasks_that_fit_nothing_return_what_was_written(bundle: Bundle, photos: Path, tmp_path: Path) -> None:
    fit, output = fit_of(bundle, photos), tmp_path / "shared.json"
    expected = fit()
    leases = Leases(work_folder(output))
    results: list[Calibration] = []
    task = threading.Thread(target=lambda: results.append(calibrate_array(fit, output)))
    leases.beat("other", {**identity(), "beat": 1, "leases": {}, "state": "labeling", "time": 0.0})
    assert leases.take("merge", "other")
    task.start()  # as long as another process holds the fit, it waits
    while len(leases.finished()) < 5:
        assert task.is_alive()
    expected.save(output)
    (Path(work_folder(output)) / RECORD).unlink()
    task.join(600)
    assert results[0].thresholds.tolist() == expected.thresholds.tolist()


def test_a_log_notes_the_leases_of_each_process(bundle: Bundle, photos: Path, tmp_path: Path) -> None:
    log = RunLog(tmp_path / "log.jsonl")
    with log.noted(tmp_path / "shared.json", "array") as counts:
        counts.images = calibrate_array(fit_of(bundle, photos), tmp_path / "shared.json", log=log).counts.num_images
    events = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    names = [event["event"] for event in events]
    assert names == ["start", *["lease claimed", "lease finished"] * 5, "end"]
    assert sum(event.get("inputs", 0) for event in events) == NUM_PHOTOS
    assert (events[-1]["state"], events[-1]["images"]) == ("finished", NUM_PHOTOS)
