"""Calibrations weighted to resemble a corpus, and merged with images of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import maskmill
from maskmill.engine.calibration.calibrate import calibrate
from maskmill.engine.calibration.calibration import Calibration
from maskmill.engine.inputs.labels import open_labels
from maskmill.engine.inputs.sources import open_source
from maskmill.engine.labeling.certificate import promise
from maskmill.engine.labeling.drift import watch_store, weigh_like
from maskmill.engine.labeling.selection import Selection
from maskmill.engine.model.bundle import Bundle
from maskmill.engine.model.taxonomy import Taxonomy
from maskmill.engine.predictors.semantic import SemanticPredictor
from maskmill.engine.runtimes.onnx_runtime import OnnxSession
from maskmill.engine.store.label_store import LabelStore
from maskmill.errors import CalibrationError, UsageError

from ...models import color_bundle
from ..corpus import label_folder


def write(folder: Path, num: int, *, seed: int, noisy: float, factor: float = 1.0) -> Path:
    """Photos of one color; a share ``noisy`` of them is bright and so noisy that the model errs."""
    rng = np.random.default_rng(seed)
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    for index in range(num):
        hard, target = rng.random() < noisy, int(rng.integers(3))
        color = np.full(3, 120.0 if hard else 70.0)
        color[target] += 60
        pixels = np.clip((color + rng.normal(0, 45 if hard else 10, (16, 24, 3))) * factor, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{index:04d}.png")
        Image.fromarray(np.full((16, 24), target, np.uint8)).save(folder / "labels" / f"{index:04d}.png")
    return folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return color_bundle(tmp_path_factory.mktemp("model"), gain=6.0)


def calibrated(bundle: Bundle, folder: Path, alpha: str = "0.1") -> Calibration:
    predictor, labels = SemanticPredictor(bundle, OnnxSession(bundle)), open_labels(folder / "labels")
    images = open_source(folder / "images")
    return calibrate(predictor, images, labels, Taxonomy.of_model(bundle), alpha=alpha, unit="image")


@pytest.fixture(scope="module")
def calibration_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("calibration"), 120, seed=0, noisy=0.25) / "images"


@pytest.fixture(scope="module")
def calibration(bundle: Bundle, calibration_images: Path) -> Calibration:
    return calibrated(bundle, calibration_images.parent)


def miscoverage(calibration: Calibration, corpus: Calibration) -> float:
    """Mean share of the corpus's pixels whose score exceeds the calibration's threshold."""
    counts = corpus.counts
    from maskmill.engine.calibration.scores.score_counts import UPPER

    above = calibration.pooled < UPPER
    shares = [
        counts.true[counts.image == image][:, above].sum() / counts.true[counts.image == image].sum()
        for image in range(counts.num_images)
    ]
    return float(np.mean(shares))


def test_weights_restore_the_rate_on_a_corpus_with_more_hard_images(
    bundle: Bundle, calibration_images: Path, calibration: Calibration, tmp_path: Path
) -> None:
    folder = write(tmp_path / "corpus", 200, seed=1, noisy=0.6)
    label_folder(bundle, folder / "images", tmp_path / "store", selection=Selection.conformal(calibration))
    weighted = weigh_like(calibration, tmp_path / "store")
    truth = calibrated(bundle, folder)
    assert miscoverage(calibration, truth) > 0.13
    assert miscoverage(weighted, truth) < 0.115
    assert weighted.weighting is not None
    assert 10 < weighted.weighting["effective_images"] < 120
    weighted.save(tmp_path / "weighted.json")
    loaded = Calibration.load(tmp_path / "weighted.json")
    assert loaded.weighting == weighted.weighting
    assert loaded.at("0.1").pooled == weighted.pooled
    predictor = SemanticPredictor(bundle, OnnxSession(bundle))
    sources = (calibration_images, calibration_images.parent / "labels")
    from_python = maskmill.calibrate(predictor, *sources, alpha="0.1", unit="image", like=tmp_path / "store")
    assert from_python.pooled == weighted.pooled
    # labels made with it are compared with that corpus, and say so
    label_folder(bundle, folder / "images", tmp_path / "again", selection=Selection.conformal(loaded))
    report = watch_store(tmp_path / "again")
    assert report is not None
    assert report.alarm is None
    assert "were weighted to resemble the images of" in promise(LabelStore.open(tmp_path / "again").run)


def test_a_corpus_that_looks_different_is_refused(bundle: Bundle, calibration: Calibration, tmp_path: Path) -> None:
    folder = write(tmp_path / "corpus", 60, seed=2, noisy=0.25, factor=0.4)
    label_folder(bundle, folder / "images", tmp_path / "store", selection=Selection.conformal(calibration))
    with pytest.raises(CalibrationError, match="say too little about that corpus; label some of its images"):
        weigh_like(calibration, tmp_path / "store")


def test_labeled_images_of_the_new_kind_are_merged_and_then_weighted(
    bundle: Bundle, calibration: Calibration, tmp_path: Path
) -> None:
    folder = write(tmp_path / "corpus", 80, seed=3, noisy=0.25, factor=0.4)
    label_folder(bundle, folder / "images", tmp_path / "store", selection=Selection.conformal(calibration))
    dark = calibrated(bundle, write(tmp_path / "dark", 40, seed=4, noisy=0.25, factor=0.4))
    merged = Calibration.merge([calibration, dark])
    weighted = weigh_like(merged, tmp_path / "store")
    assert weighted.weighting is not None
    values = np.array(weighted.weighting["values"])
    assert values[:120].sum() < 0.1 * values[120:].sum()
    with pytest.raises(CalibrationError, match="merge first, then weight"):
        Calibration.merge([weighted, dark])


def test_a_store_without_statistics_is_refused(bundle: Bundle, calibration: Calibration, tmp_path: Path) -> None:
    folder = write(tmp_path / "corpus", 3, seed=5, noisy=0.5)
    label_folder(bundle, folder / "images", tmp_path / "store")
    with pytest.raises(UsageError, match="label them with --calibration FILE"):
        weigh_like(calibration, tmp_path / "store")
