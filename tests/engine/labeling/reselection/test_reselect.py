"""Another selection from a store with kept scores: the labels of a fresh run, exactly once, and refusals by name."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from maskmill.engine.calibration.calibrate import calibrate
from maskmill.engine.calibration.calibration import Calibration
from maskmill.engine.inputs.labels import LabelFolder
from maskmill.engine.inputs.sources import open_source
from maskmill.engine.labeling import writer
from maskmill.engine.labeling.kept.levels import ScoreLevels
from maskmill.engine.labeling.progress import Progress
from maskmill.engine.labeling.reselection.decide import KeptSelection
from maskmill.engine.labeling.reselection.reselect import Reselection, reselect
from maskmill.engine.labeling.selection import Selection
from maskmill.engine.model.bundle import Bundle
from maskmill.engine.model.png import encode_png
from maskmill.engine.model.taxonomy import Taxonomy
from maskmill.engine.predictors.semantic import SemanticPredictor
from maskmill.engine.runtimes.onnx_runtime import OnnxSession
from maskmill.engine.store.label_store import LabelStore
from maskmill.engine.store.rows import ReviewRow
from maskmill.engine.store.verify import verify
from maskmill.engine.store.waiting import waiting_rows
from maskmill.errors import CalibrationMismatch, StoreMismatch, UsageError

from ....models import color_bundle, color_image
from ...corpus import label_folder

SIZE = (16, 24)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return color_bundle(tmp_path_factory.mktemp("model"), size=SIZE, gain=6.0, background="red")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty noisy photos of three colors with their label maps."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "images").mkdir()
    (folder / "labels").mkdir()
    rng = np.random.default_rng(0)
    for index in range(20):
        label = np.broadcast_to((np.arange(SIZE[1]) // 6 + index) % 3, SIZE).copy()
        photo = color_image(label, strength=150) + 50 + rng.normal(0, 90, (*SIZE, 3))
        Image.fromarray(np.clip(photo, 0, 255).astype(np.uint8)).save(folder / "images" / f"{index}.png")
        Image.fromarray(label.astype(np.uint8)).save(folder / "labels" / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def calibration(bundle: Bundle, photos: Path) -> Calibration:
    predictor = SemanticPredictor(bundle, OnnxSession(bundle))
    return calibrate(
        predictor, open_source(photos / "images"), LabelFolder(photos / "labels"), Taxonomy.of_model(bundle),
        alpha="0.1",
    )  # fmt: skip


@pytest.fixture(scope="module")
def kept(
    bundle: Bundle, photos: Path, calibration: Calibration, tmp_path_factory: pytest.TempPathFactory
) -> LabelStore:
    """A store with kept scores, of a corpus with a copy of a photo and a file that is none."""
    folder = tmp_path_factory.mktemp("kept")
    shutil.copytree(photos / "images", folder / "corpus")
    shutil.copy(folder / "corpus" / "3.png", folder / "corpus" / "copy of 3.png")
    (folder / "corpus" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    selection = Selection.conformal(calibration, weight="pcos", keep_scores="0.1")
    label_folder(bundle, folder / "corpus", folder / "store", selection=selection)
    return LabelStore.open(folder / "store")


def maps(store: LabelStore) -> dict[str, tuple[Any, Any]]:
    return {row.id: store.maps(row, reviewed=False) for row in store.iter_rows()}


@pytest.mark.parametrize(
    ("change", "options"),
    [
        ({}, {"weight": "pcos"}),
        ({"rule": "foreground"}, {"rule": "foreground", "weight": "pcos"}),
        ({"rule": "single", "weight": "none"}, {"rule": "single", "weight": "none"}),
        ({"alpha": "0.2", "weight": "none"}, {"alpha": "0.2", "weight": "none"}),
        ({"alpha": 0.3, "rule": "foreground"}, {"alpha": "0.3", "rule": "foreground", "weight": "pcos"}),
    ],
)
def test_labels_are_those_of_a_fresh_run(
    change: dict[str, Any], options: dict[str, Any], kept: LabelStore, bundle: Bundle, calibration: Calibration,
    tmp_path: Path,
) -> None:  # fmt: skip
    progress = reselect(kept, tmp_path / "new", Reselection(**change))
    assert (progress.images, progress.duplicates, sum(progress.rejects.values())) == (20, 1, 1)
    alpha = options.pop("alpha", None)
    thresholds = calibration if alpha is None else calibration.at(alpha)
    fresh = label_folder(
        bundle, kept.path.parent / "corpus", tmp_path / "fresh", selection=Selection.conformal(thresholds, **options)
    )
    new, old = LabelStore.open(tmp_path / "new"), LabelStore.open(tmp_path / "fresh")
    expected = maps(old)
    for id, (label, _) in maps(new).items():
        np.testing.assert_array_equal(label, expected[id][0])
    assert progress.kept.tolist() == fresh.kept.tolist()
    assert {row.uri: row.error for row in new.inputs()} == {row.uri: row.error for row in old.inputs()}
    assert verify(new.path).sound


def test_constant_confidence_and_every_pixel_need_no_calibration(
    kept: LabelStore, bundle: Bundle, tmp_path: Path
) -> None:
    reselect(kept, tmp_path / "all", Reselection(select="argmax", weight="none"))
    label_folder(bundle, kept.path.parent / "corpus", tmp_path / "fresh", selection=Selection.argmax())
    expected = maps(LabelStore.open(tmp_path / "fresh"))
    for id, (label, _) in maps(LabelStore.open(tmp_path / "all")).items():
        np.testing.assert_array_equal(label, expected[id][0])
    progress = reselect(kept, tmp_path / "sure", Reselection(threshold=0.9))
    assert 0 < progress.kept_share < 1


def test_an_interrupted_reselection_continues_and_holds_every_row_once(
    kept: LabelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "COMMIT_ROWS", 1)
    monkeypatch.setattr(waiting_rows, "COMMIT_SHARE", 1e9)
    monkeypatch.setattr(waiting_rows, "CHEAP_SECONDS", 1e9)
    with monkeypatch.context() as failing:
        commit, commits = LabelStore.commit_tables, []

        def fail(self: LabelStore, *rows: Any) -> None:
            commits.append(rows)
            if len(commits) > 1:
                raise KeyError("the machine stops here")
            commit(self, *rows)

        failing.setattr(LabelStore, "commit_tables", fail)
        with pytest.raises(KeyError, match="stops here"):
            reselect(kept, tmp_path / "new", Reselection(alpha="0.2"), workers=2)
    partial = LabelStore.open(tmp_path / "new")
    first = len(partial)  # 0 if the first committed input is the rejected one
    assert 0 < partial.counts()["inputs"] < 22
    second = reselect(kept, tmp_path / "new", Reselection(alpha="0.2"), workers=2)
    store = LabelStore.open(tmp_path / "new")
    assert (len(store), len(list(store.inputs()))) == (20, 22)
    assert second.images <= 20 - first  # rows that waited in a file are committed, not decided again
    third = reselect(kept, tmp_path / "new", Reselection(alpha="0.2"))
    assert third.images == third.duplicates == 0


def test_the_run_record_says_where_the_labels_are_from(kept: LabelStore, tmp_path: Path) -> None:
    reselect(kept, tmp_path / "new", Reselection(alpha="0.2", rule="single"))
    run = LabelStore.open(tmp_path / "new").run
    origin = run["reselected_from"]
    assert origin["store"] == str(kept.path)
    assert origin["selection"]["rule"] == "agree"
    assert origin["selection"]["calibration"]["alpha"] == "0.1"
    assert (run["rule"], run["calibration"]["alpha"], run["bundle"]) == ("single", "0.2", kept.run["bundle"])
    with pytest.raises(UsageError, match="keeps no scores, so its labels cannot be selected again; reselect from"):
        reselect(tmp_path / "new", tmp_path / "newer", Reselection())


def test_corrections_come_along_and_approvals_of_old_labels_do_not(
    kept: LabelStore, bundle: Bundle, tmp_path: Path
) -> None:
    shutil.copytree(kept.path, tmp_path / "reviewed")
    store = LabelStore.open(tmp_path / "reviewed")
    first, second = sorted(store.ids())[:2]
    corrected = encode_png(np.full(SIZE, 2, np.uint8))
    store.commit_reviews(
        [
            ReviewRow(id=first, reviewer="ann", time=1, verdict="corrected", label=corrected),
            ReviewRow(id=second, reviewer="ann", time=1, verdict="accepted"),
        ]
    )
    reselect(store, tmp_path / "new", Reselection(alpha="0.2"))
    new = LabelStore.open(tmp_path / "new")
    assert {review.id: review.verdict for review in new.reviews()} == {first: "corrected"}
    assert (new.read_id(first)[0] == 2).all()
    store.commit_reviews([ReviewRow(id=first, reviewer="ann", time=2, verdict="withdrawn")])
    reselect(store, tmp_path / "new", Reselection(alpha="0.2"))
    assert not LabelStore.open(tmp_path / "new").current_reviews()


def test_a_class_that_the_calibration_of_the_store_never_emits_needs_the_model_again(kept: LabelStore) -> None:
    selection = Reselection().apply(kept)
    names = tuple(kept.classes["targets"])
    nothing = np.full(len(names), -np.inf, np.float32)
    with pytest.raises(UsageError, match="never uses it as a label, and this one does; label again"):
        KeptSelection(selection, ScoreLevels(nothing), nothing, background=None, ignore=255, names=names)


def test_a_smaller_alpha_than_was_kept_is_refused(kept: LabelStore, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"the kept scores are not enough for this selection: .* --keep-scores"):
        reselect(kept, tmp_path / "new", Reselection(alpha="0.06"))
    assert not (tmp_path / "new").exists()


def test_a_calibration_of_another_model_is_refused(
    kept: LabelStore, photos: Path, calibration: Calibration, tmp_path: Path
) -> None:
    other = color_bundle(tmp_path, size=SIZE, gain=3.0, background="red")
    predictor = SemanticPredictor(other, OnnxSession(other))
    foreign = calibrate(
        predictor, open_source(photos / "images"), LabelFolder(photos / "labels"), Taxonomy.of_model(other),
        alpha="0.2",
    )  # fmt: skip
    with pytest.raises(CalibrationMismatch, match=r"under other conditions than the scores of .* \(artifact, bundle\)"):
        reselect(kept, tmp_path / "new", Reselection(calibration=foreign))
    same = reselect(kept, tmp_path / "same", Reselection(calibration=calibration.at("0.2")))
    assert same.images == 20


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"select": "threshold"}, "--threshold SCORE and --select threshold go together"),
        ({"select": "argmax", "alpha": "0.2"}, "belong to --select conformal, not to --select argmax"),
        ({"threshold": 0.9, "rule": "single"}, "belong to --select conformal, not to --select threshold"),
        ({"select": "Conformal"}, "select must be one of argmax, threshold, conformal"),
        ({"weight_levels": 0}, r"levels must be a whole number from 3 to 256, got 0"),
    ],
)
def test_options_that_exclude_each_other_are_refused(
    change: dict[str, Any], message: str, kept: LabelStore, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        reselect(kept, tmp_path / "new", Reselection(**change))


def test_stores_are_not_mixed_up(kept: LabelStore, bundle: Bundle, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is one of the stores to read; choose another folder"):
        reselect(kept, kept.path, Reselection())
    reselect(kept, tmp_path / "new", Reselection(alpha="0.2"))
    assert reselect(kept, tmp_path / "new", Reselection(alpha="0.20")).images == 0  # the same alpha: no label is left
    with pytest.raises(StoreMismatch, match=r"calibration.alpha: '0.2' there, '0.3' now"):
        reselect(kept, tmp_path / "new", Reselection(alpha="0.3"))
    label_folder(bundle, photos / "images", tmp_path / "plain", selection=Selection.argmax())
    with pytest.raises(UsageError, match="label its images with --keep-scores ALPHA into a new folder"):
        reselect(tmp_path / "plain", tmp_path / "newer", Reselection())


def test_a_store_that_lost_its_calibration_needs_one(
    kept: LabelStore, calibration: Calibration, tmp_path: Path
) -> None:
    shutil.copytree(kept.path, tmp_path / "store")
    (tmp_path / "store" / "calibration.json").unlink()
    with pytest.raises(UsageError, match="has lost the calibration .* give --calibration FILE"):
        reselect(tmp_path / "store", tmp_path / "new", Reselection(alpha="0.2"))
    progress: Progress = reselect(
        tmp_path / "store", tmp_path / "new", Reselection(calibration=calibration, alpha="0.2")
    )
    assert progress.images == 20


def test_another_alpha_keeps_the_other_settings_of_the_calibration(bundle: Bundle, photos: Path) -> None:
    def fit(alpha: str, **options: Any) -> Calibration:
        source, labels = open_source(photos / "images"), LabelFolder(photos / "labels")
        predictor = SemanticPredictor(bundle, OnnxSession(bundle))
        return calibrate(predictor, source, labels, Taxonomy.of_model(bundle), alpha=alpha, **options)

    plain, pooled = fit("0.1", min_images=99), fit("0.1", min_images=99, fallback="pooled")
    for calibration, options in ((plain, {}), (pooled, {"fallback": "pooled"})):
        fresh = fit("0.2", min_images=99, **options)
        again = calibration.at("0.2")
        assert again.min_images == 99
        assert np.allclose(again.thresholds, fresh.thresholds, rtol=0.07)
    assert pooled.at("0.2").fallback == "pooled"
    assert not np.allclose(plain.at("0.2").thresholds, fit("0.1").at("0.2").thresholds)
    with pytest.raises(UsageError, match="made with --on-small-n max"):
        fit("0.1", on_small_n="max").at("0.2")
    with pytest.raises(UsageError, match="group must be one of"):
        plain.at("0.2", group="bogus")  # type: ignore[arg-type]


def test_scores_are_kept_for_thresholds_per_class_only(calibration: Calibration) -> None:
    with pytest.raises(UsageError, match="alpha must be above 0"):
        Selection.conformal(calibration, keep_scores="0")
    position = Calibration(**{**vars(calibration), "group": "position"})
    with pytest.raises(UsageError, match="--keep-scores applies to no calibration with --group position"):
        Selection.conformal(position, keep_scores="0.1")
