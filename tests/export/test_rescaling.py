from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import maskmill
from maskmill.cli import app
from maskmill.engine.model.bundle import Bundle
from maskmill.engine.predictors.open import open_predictor
from maskmill.engine.predictors.score_files import ScoreFiles, write_score_bundle
from maskmill.errors import UsageError
from maskmill.export.rescaling import fit_rescaling

from ..models import color_bundle, color_image

EAGER = 8.0
"""How much too low the logit of the first class is."""


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def drawn(logits: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw a class of each row by the softmax of its logits."""
    return (softmax(logits).cumsum(axis=1) > rng.random((len(logits), 1))).argmax(axis=1)


def photos(folder: Path, number: int = 10) -> tuple[Path, Path]:
    """Write photos whose pixels show three classes, some of them mixed with another, and their label maps."""
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    for index in range(number):
        rng = np.random.default_rng(index)
        label = np.broadcast_to((np.arange(24) // 8 + index) % 3, (16, 24))
        pixels = color_image(label, strength=150) + rng.integers(0, 160, (16, 24, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / "images" / f"{index}.png")
        Image.fromarray(label.astype(np.uint8)).save(folder / "labels" / f"{index}.png")
    return folder / "images", folder / "labels"


def scores_of(bundle: Bundle, image: np.ndarray) -> np.ndarray:
    predictor, _ = open_predictor(bundle.path)
    score_map = predictor.run([predictor.prepare(image, "0.png")])[0]
    assert score_map.activation == "softmax"
    return score_map.scores if score_map.layout == "CHW" else np.moveaxis(score_map.scores, -1, 0)


@pytest.mark.parametrize("weighted", [False, True])
def test_the_fit_finds_scale_and_offsets_of_calibrated_logits(weighted: bool) -> None:
    rng = np.random.default_rng(0)
    calibrated = rng.normal(0, 2, (30_000, 4))
    truth = drawn(calibrated, rng)
    offsets = np.array([3.0, -1.0, 0.5, -2.5])
    weights = np.where(truth == 1, 1.0, 2.0) if weighted else None
    kept = rng.random(len(truth)) < (0.5 if weighted else 1) * np.where(truth == 1, 2, 1)
    scale, found = fit_rescaling(
        ((calibrated - offsets) / 0.7)[kept], truth[kept], None if weights is None else weights[kept]
    )
    assert scale == pytest.approx(0.7, abs=0.02)
    np.testing.assert_allclose(found, offsets - offsets.mean(), atol=0.1)


def test_a_class_without_pixels_is_lowered_to_a_finite_offset() -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 2, (5000, 5))
    truth = drawn(logits[:, :4] + [4.0, 0.0, 1.0, -1.0], rng)
    _, offsets = fit_rescaling(logits, truth)
    assert -10 < offsets[4] < offsets[1:4].min()


def test_the_scale_can_be_left_alone() -> None:
    rng = np.random.default_rng(2)
    logits = rng.normal(0, 2, (5000, 3))
    scale, _ = fit_rescaling(3 * logits, drawn(logits, rng), scaled=False)
    assert scale == 1.0


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_the_new_graph_gives_rescaled_logits(tmp_path: Path, layout: str) -> None:
    images, labels = photos(tmp_path / "labeled")
    old = color_bundle(tmp_path, layout=layout, background="red", gain=12.0, scale=1 / 255)
    new, rescaling = maskmill.rescale(old, images, labels, tmp_path / "new")
    image = np.asarray(Image.open(images / "0.png"))
    expected = rescaling.scale * scores_of(old, image) + np.reshape(rescaling.offsets, (3, 1, 1))
    np.testing.assert_allclose(scores_of(new, image), expected, rtol=1e-5, atol=1e-5)
    assert new.classes == old.classes
    assert new.background == old.background
    assert new.fingerprint != old.fingerprint
    new.verify()


def test_probabilities_become_logits_by_their_logarithm(tmp_path: Path) -> None:
    images, labels = photos(tmp_path / "labeled")
    old = color_bundle(tmp_path, final="Softmax", activation="none", background="red", gain=12.0, scale=1 / 255)
    new, rescaling = maskmill.rescale(old, images, labels, tmp_path / "new")
    image = np.asarray(Image.open(images / "0.png"))
    predictor, _ = open_predictor(old.path)
    logits = np.log(np.maximum(predictor.run([predictor.prepare(image)])[0].scores, 1e-6))
    expected = rescaling.scale * logits + np.reshape(rescaling.offsets, (3, 1, 1))
    np.testing.assert_allclose(scores_of(new, image), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("stored", ["logits", "probabilities"])
def test_scores_from_files_that_see_objects_everywhere_are_repaired(tmp_path: Path, stored: str) -> None:
    images, labels = photos(tmp_path / "labeled", 12)
    (tmp_path / "scores").mkdir()
    for path in images.iterdir():
        logits = np.asarray(Image.open(path), np.float32) / 16 - [EAGER, 0, 0]
        values = logits if stored == "logits" else softmax(logits)
        np.save(tmp_path / "scores" / f"{path.stem}.npy", np.moveaxis(values, -1, 0).astype(np.float32))
    write_score_bundle(
        tmp_path / "eager", scores=tmp_path / "scores", classes=["background", "a", "b"], background="background",
        activation="softmax" if stored == "logits" else "none",
    )  # fmt: skip
    new, rescaling = maskmill.rescale(tmp_path / "eager", images, labels, tmp_path / "new")
    background, *others = rescaling.offsets
    assert background - np.mean(others) > EAGER / 2
    assert rescaling.num_images == 12
    assert rescaling.miou > rescaling.miou_before + 0.2
    truth = np.asarray(Image.open(labels / "0.png"))
    right = [
        (scores_of(bundle, np.zeros((16, 24, 3), np.uint8)).argmax(axis=0) == truth).mean()
        for bundle in (new, Bundle.load(tmp_path / "eager"))
        if bundle.outputs[0].activation == "softmax"
    ]
    assert right[0] > 0.9
    assert ScoreFiles.open(new.path).settings != ScoreFiles.open(tmp_path / "eager").settings
    with pytest.raises(UsageError, match="rescaled already"):
        maskmill.rescale(new, images, labels, tmp_path / "again")


def test_the_command_prints_what_it_changed(tmp_path: Path) -> None:
    images, labels = photos(tmp_path / "labeled")
    color_bundle(tmp_path, background="red", gain=12.0, scale=1 / 255)
    arguments = ["rescale", str(tmp_path / "bundle"), "--images", str(images), "--labels", str(labels)]
    result = CliRunner().invoke(app, [*arguments, "-o", str(tmp_path / "new")])
    assert result.exit_code == 0, result.output
    assert "from 10 images" in result.output
    assert Bundle.load(tmp_path / "new").source.changes
    again = CliRunner().invoke(app, [*arguments, "-o", str(tmp_path / "new")])
    assert isinstance(again.exception, UsageError)
    assert "exists already" in str(again.exception)


def test_scores_without_a_softmax_are_refused(tmp_path: Path) -> None:
    images, labels = photos(tmp_path / "labeled")
    bundle = color_bundle(tmp_path, activation="sigmoid", scale=1 / 255)
    with pytest.raises(UsageError, match="softmax of logits, or probabilities"):
        maskmill.rescale(bundle, images, labels, tmp_path / "new")
    assert not (tmp_path / "new").exists()
