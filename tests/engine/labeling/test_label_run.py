from __future__ import annotations

import gc
import itertools
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from maskmill.engine.calibration.calibration import Calibration, conditions
from maskmill.engine.calibration.scores.score_counts import ScoreCounts
from maskmill.engine.inputs.sources import Item, Source, open_source
from maskmill.engine.labeling import label_run as pipeline
from maskmill.engine.labeling.label_run import dry_run
from maskmill.engine.labeling.progress import Progress
from maskmill.engine.labeling.selection import Selection
from maskmill.engine.model.bundle import Bundle
from maskmill.engine.model.taxonomy import Taxonomy
from maskmill.engine.predictors.semantic import SemanticPredictor
from maskmill.engine.runtimes.onnx_runtime import OnnxSession
from maskmill.engine.store.label_store import LabelStore
from maskmill.errors import CalibrationMismatch, ImageError, SessionError, StoreMismatch, UsageError

from ...builders import hostile_files
from ...conftest import ROOT
from ...models import color_bundle, color_image
from ..corpus import label_folder, write_photos


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return color_bundle(tmp_path_factory.mktemp("model"))


def test_labels_are_what_the_model_says_at_the_photos_size(bundle: Bundle, tmp_path: Path) -> None:
    label = np.zeros((32, 48), np.int64)
    label[:, 16:32] = 1
    label[16:, 32:] = 2
    photo = tmp_path / "photos" / "1.png"
    photo.parent.mkdir()
    Image.fromarray(color_image(label)).save(photo)
    run = label_folder(bundle, photo.parent, tmp_path / "store")
    stored, weight = LabelStore.open(tmp_path / "store").read(str(photo))
    np.testing.assert_array_equal(stored, label)
    assert weight.shape == label.shape
    assert (run.images, run.kept_share) == (1, 1.0)
    assert run.kept.tolist() == [int((label == target).sum()) for target in range(3)]


def test_the_plan_does_not_stay_in_memory(bundle: Bundle, tmp_path: Path) -> None:
    counts: list[int] = []
    folder = str(tmp_path / "photos")  # items of other tests may still be there

    def count(progress: Progress) -> None:
        counts.append(sum(type(thing) is Item and folder in thing.uri for thing in gc.get_objects()))

    write_photos(tmp_path / "photos", 40)
    assert label_folder(bundle, tmp_path / "photos", tmp_path / "store", observer=count).images == 40
    assert counts[-1] < 5  # a thread that has ended may hold its last one


def test_a_second_run_has_nothing_to_do(bundle: Bundle, tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 5)
    assert label_folder(bundle, tmp_path / "photos", tmp_path / "store").images == 5
    assert label_folder(bundle, tmp_path / "photos", tmp_path / "store").inputs == 0


def test_new_and_changed_photos_are_labeled_by_the_next_run(bundle: Bundle, tmp_path: Path) -> None:
    paths = write_photos(tmp_path / "photos", 5)
    label_folder(bundle, tmp_path / "photos", tmp_path / "store")
    Image.fromarray(np.full((12, 16, 3), 7, np.uint8)).save(paths[2])
    Image.fromarray(np.full((12, 16, 3), 9, np.uint8)).save(tmp_path / "photos" / "new.png")
    assert label_folder(bundle, tmp_path / "photos", tmp_path / "store").images == 2
    store = LabelStore.open(tmp_path / "store")
    assert len(list(store.inputs())) == 6
    assert len(store) == 7  # the old content's labels stay


def test_equal_bytes_are_labeled_once(bundle: Bundle, tmp_path: Path) -> None:
    paths = write_photos(tmp_path / "photos", 8)
    for index, path in enumerate(paths):
        (tmp_path / "photos" / f"copy{index}.png").write_bytes(path.read_bytes())
    run = label_folder(bundle, tmp_path / "photos", tmp_path / "store", workers=4)
    assert (run.images, run.duplicates) == (8, 8)
    store = LabelStore.open(tmp_path / "store")
    assert len(store) == 8
    assert set(Counter(row.id for row in store.inputs()).values()) == {2}


def test_rejects_are_recorded_and_the_run_goes_on(bundle: Bundle, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    paths = write_photos(photos, 4)
    (photos / "empty.jpg").write_bytes(b"")
    (photos / "text.jpg").write_bytes(b"not an image")
    (photos / "text-again.jpg").write_bytes(b"not an image")
    (photos / "cut.png").write_bytes(paths[0].read_bytes()[:200])
    run = label_folder(bundle, photos, tmp_path / "store", workers=4)
    assert run.images == 4
    assert run.rejects == {"empty": 1, "not-an-image": 2, "truncated": 1}
    rejects = {Path(row.uri).name: row.error for row in LabelStore.open(tmp_path / "store").rejects()}
    assert rejects == {
        "empty.jpg": "empty", "text.jpg": "not-an-image", "text-again.jpg": "not-an-image", "cut.png": "truncated",
    }  # fmt: skip
    assert label_folder(bundle, photos, tmp_path / "store").inputs == 0
    again = label_folder(bundle, photos, tmp_path / "store")
    assert (again.inputs, again.rejects, again.earlier_rejects) == (0, {}, run.rejects)
    retried = label_folder(bundle, photos, tmp_path / "store", retry_rejects=True)
    assert (retried.rejects, retried.earlier_rejects) == (run.rejects, {})
    (photos / "text.jpg").write_bytes(paths[0].read_bytes())  # repaired: its size changed, so it is read again
    repaired = label_folder(bundle, photos, tmp_path / "store")
    assert (repaired.duplicates, repaired.inputs) == (1, 1)


def test_images_over_the_pixel_limit_are_rejected(bundle: Bundle, tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 2)
    run = label_folder(bundle, tmp_path / "photos", tmp_path / "store", max_pixels=100)
    assert run.rejects == {"too-large": 2}


def test_shards_share_the_work_without_overlap(bundle: Bundle, tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 30)
    counts = [
        label_folder(bundle, tmp_path / "photos", tmp_path / "store", shard_of=(index, 3)).images for index in range(3)
    ]
    assert sum(counts) == 30
    assert min(counts) > 0
    assert len(LabelStore.open(tmp_path / "store")) == 30


def test_a_limit_stops_early_and_the_next_run_goes_on(bundle: Bundle, tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 7)
    with pytest.raises(UsageError, match="limit must be a whole number of at least 1"):
        label_folder(bundle, tmp_path / "photos", tmp_path / "store", limit=-1)
    assert label_folder(bundle, tmp_path / "photos", tmp_path / "store", limit=3).images == 3
    assert label_folder(bundle, tmp_path / "photos", tmp_path / "store").images == 4


def test_other_options_never_mix_into_a_store(bundle: Bundle, tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 1)
    label_folder(bundle, tmp_path / "photos", tmp_path / "store")
    with pytest.raises(StoreMismatch, match="weight: 'pcos' there, 'none' now"):
        label_folder(bundle, tmp_path / "photos", tmp_path / "store", selection=Selection())


def test_a_calibration_made_with_another_model_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    taxonomy = Taxonomy.of_model(bundle)
    predictor = SemanticPredictor(bundle, OnnxSession(bundle))
    thresholds = np.ones(3, np.float32)
    calibration = Calibration(
        alpha="0.1", group="class", unit="pixel", rule="agree", thresholds=thresholds, pooled=1.0,
        made_with={**conditions(predictor, taxonomy), "bundle": "f" * 64, "batch": 1}, report={}, min_images=9,
        targets=taxonomy.targets, background=taxonomy.background, counts=ScoreCounts.empty(),
    )  # fmt: skip
    write_photos(tmp_path / "photos", 1)
    with pytest.raises(CalibrationMismatch, match="bundle: calibrated with ffffffffffff…, labeling with"):
        label_folder(
            bundle, tmp_path / "photos", tmp_path / "store", selection=Selection.conformal(calibration),
        )  # fmt: skip
    assert not (tmp_path / "store").exists()


class _NotFinite:
    """A session whose scores of dark images are NaN or infinite."""

    kind, artifact, max_batch, threads = "not-finite", "", 1, 1

    def __init__(self, bundle: Bundle, value: float) -> None:
        self._session, self._value = OnnxSession(bundle), value

    def run(self, batch: np.ndarray) -> list[np.ndarray]:
        (scores,) = self._session.run(batch)
        if batch.mean() < 0.1:
            scores = scores.copy()
            scores[0, 1, 5, 5] = self._value
        return [scores]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_image_with_scores_that_are_not_finite_is_a_reject(bundle: Bundle, tmp_path: Path, value: float) -> None:
    write_photos(tmp_path / "photos", 3)
    for name in ("dark.png", "dark-again.png"):
        Image.fromarray(np.zeros((12, 16, 3), np.uint8)).save(tmp_path / "photos" / name)
    predictor = SemanticPredictor(bundle, _NotFinite(bundle, value))
    source = open_source(tmp_path / "photos")
    run = pipeline.label(predictor, source, tmp_path / "store", Taxonomy.of_model(bundle), Selection.argmax())
    assert (run.images, run.rejects) == (3, {"not-finite": 2})
    store = LabelStore.open(tmp_path / "store")
    assert len(store) == 3
    assert {"NaN or infinite" in (row.message or "") for row in store.rejects()} == {True}


class _WithoutScores(SemanticPredictor):
    """A predictor that has no scores of dark images."""

    def run(self, prepared: Any) -> list[Any]:
        if any(image.tensors[0].max() == 0 for image in prepared):
            raise ImageError("no-scores", "no scores for it")
        return super().run(prepared)


@pytest.mark.parametrize("batch", [1, 4])
def test_an_image_without_scores_is_a_reject_and_its_batch_is_labeled(
    bundle: Bundle, tmp_path: Path, batch: int
) -> None:
    write_photos(tmp_path / "photos", 7)
    Image.fromarray(np.zeros((12, 16, 3), np.uint8)).save(tmp_path / "photos" / "dark.png")
    predictor = _WithoutScores(bundle, OnnxSession(bundle), batch=batch)
    source = open_source(tmp_path / "photos")
    run = pipeline.label(predictor, source, tmp_path / "store", Taxonomy.of_model(bundle), Selection.argmax())
    assert (run.images, run.rejects) == (7, {"no-scores": 1})


class _Failing:
    """A session that fails at the nth image."""

    kind, artifact, max_batch, threads = "failing", "", 1, 1

    def __init__(self, bundle: Bundle, after: int) -> None:
        self._session, self._left = OnnxSession(bundle), after

    def run(self, batch: np.ndarray) -> list[np.ndarray]:
        self._left -= 1
        if self._left < 0:
            raise SessionError("out of memory")
        return self._session.run(batch)


def test_an_error_is_raised_and_what_was_done_is_kept(bundle: Bundle, tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 20)
    predictor = SemanticPredictor(bundle, _Failing(bundle, after=8))
    source = open_source(tmp_path / "photos")
    with pytest.raises(SessionError, match="out of memory"):
        pipeline.label(predictor, source, tmp_path / "store", Taxonomy.of_model(bundle), Selection(), workers=1)
    kept = len(LabelStore.open(tmp_path / "store"))
    assert 5 <= kept <= 8


def test_an_interrupt_finishes_what_is_under_way(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_photos(tmp_path / "photos", 300)
    interrupted, reads, read = threading.Event(), itertools.count(), Source.read

    def slow(source: Source, item: Item) -> bytes:
        if next(reads) >= 50:  # the rest waits, so that the run cannot end before the interrupt
            interrupted.wait(600)
        return read(source, item)

    def interrupt(run: Progress) -> None:
        if run.interrupted:
            interrupted.set()
        elif run.images:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Source, "read", slow)
    run = label_folder(bundle, tmp_path / "photos", tmp_path / "store", observer=interrupt)
    assert run.interrupted
    assert 0 < run.images < 300
    assert len(LabelStore.open(tmp_path / "store")) == run.images
    rest = label_folder(bundle, tmp_path / "photos", tmp_path / "store")
    assert run.images + rest.images == 300


def test_a_dry_run_touches_nothing_and_counts_the_whole(bundle: Bundle, tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 200)
    predictor = SemanticPredictor(bundle, OnnxSession(bundle))
    run, total = dry_run(predictor, open_source(tmp_path / "photos"), Taxonomy.of_model(bundle), Selection())
    assert total == 200
    assert run.images == 64
    assert run.label_bytes > 0
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_the_summary_names_stages_and_classes(bundle: Bundle, tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 6)
    run = label_folder(bundle, tmp_path / "photos", tmp_path / "store")
    raw = run.to_json(Taxonomy.of_model(bundle))
    assert list(raw["stages"]) == ["decode", "predict", "select", "write"]
    assert raw["bottleneck"] in raw["stages"]
    assert sum(row["pixels"] for row in raw["classes"].values()) == 6 * 12 * 16
    assert sum(stage["share"] for stage in raw["stages"].values()) == pytest.approx(1.0)


def test_eight_threads_run_under_numbas_workqueue_layer(bundle: Bundle, tmp_path: Path) -> None:
    # The layer aborts the process when two Python threads enter a parallel function.
    write_photos(tmp_path / "photos", 200, size=(120, 160))
    script = (
        "import sys; from pathlib import Path; from maskmill.engine.model.bundle import Bundle\n"
        "from tests.engine.corpus import label_folder\n"
        "run = label_folder(Bundle.load(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), workers=8)\n"
        "assert run.images == 200, run\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, str(bundle.path), str(tmp_path / "photos"), str(tmp_path / "store")],
        cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "NUMBA_THREADING_LAYER": "workqueue", "NUMBA_NUM_THREADS": "2"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr


def test_a_hundred_hostile_files_are_all_accounted_for(bundle: Bundle, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    write_photos(photos, 3)
    files = list(hostile_files())
    assert len(files) >= 100
    for index, (_, data) in enumerate(files):
        (photos / f"hostile-{index:03d}.jpg").write_bytes(data)
    run = label_folder(bundle, photos, tmp_path / "store", workers=4)
    assert run.inputs == 3 + len(files)
    assert sum(run.rejects.values()) > 50
    assert run.images >= 3
    store = LabelStore.open(tmp_path / "store")
    assert len(list(store.inputs())) == 3 + len(files)
    for row in store.rejects():
        assert row.message


def test_batches_give_the_labels_that_single_images_give(bundle: Bundle, tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 30)
    label_folder(bundle, tmp_path / "photos", tmp_path / "single")
    predictor = SemanticPredictor(bundle, OnnxSession(bundle, threads=2), batch=4)
    source, taxonomy = open_source(tmp_path / "photos"), Taxonomy.of_model(bundle)
    run = pipeline.label(predictor, source, tmp_path / "batched", taxonomy, Selection(weight="pcos"), workers=4)
    assert run.images == 30
    single, batched = LabelStore.open(tmp_path / "single"), LabelStore.open(tmp_path / "batched")
    for row in single.inputs():
        for one, other in zip(single.read_id(row.id), batched.read_id(row.id), strict=True):
            np.testing.assert_array_equal(one, other)
