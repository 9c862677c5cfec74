"""Students of photos with more than 8 bits, labeled with --bit-depth."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

import maskmill
from maskmill.cli import app
from maskmill.engine.inputs.images import decode_image
from maskmill.engine.model.png import encode_png
from maskmill.engine.store.label_store import LabelStore
from maskmill.errors import UsageError
from maskmill.trainer.data.corpus import open_corpus
from maskmill.trainer.run import Run
from maskmill.trainer.students.models import load_run
from maskmill.trainer.students.prediction import label_image

from ..models import color_bundle, color_image
from .builders import make_store

pytest.importorskip("torch")

SETTINGS = {"model": "tiny", "steps": 30, "batch": 4, "crop": 32, "lr": 0.01, "model.width": 8, "log_every": 30}


def cli(*command: str | Path) -> str:
    result = CliRunner().invoke(app, list(map(str, command)))
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """PNG files of 12 bits in 16, a teacher's labels of them, and a student of these labels."""
    folder = tmp_path_factory.mktemp("home")
    teacher = color_bundle(folder, size=(32, 32))
    for part, seeds in (("photos", range(6)), ("labeled", range(6, 8)), ("new", range(8, 9))):
        for name in ("images", "labels"):
            (folder / part / name).mkdir(parents=True)
        for seed in seeds:
            label = np.random.default_rng(seed).integers(0, 3, (4, 4)).repeat(8, 0).repeat(8, 1).astype(np.uint8)
            samples = color_image(label)[..., ::-1].astype(np.uint16) * 16
            cv2.imwrite(str(folder / part / "images" / f"{seed}.png"), samples)
            (folder / part / "labels" / f"{seed}.png").write_bytes(encode_png(label))
    maskmill.label(teacher, folder / "photos" / "images", folder / "store", bit_depth=12)
    maskmill.train(
        folder / "store", output=folder / "run", labeled=folder / "labeled", validation=folder / "new",
        settings=SETTINGS, workers=0, device="cpu",
    )  # fmt: skip
    return folder


def test_a_student_is_trained_on_the_pixels_that_were_labeled(home: Path) -> None:
    corpus = open_corpus(
        stores=[home / "store"], labeled=home / "labeled", unlabeled=home / "new" / "images", validation=None
    )
    assert corpus.labeled is not None
    assert corpus.plain is not None
    for part in (corpus.stored[0], corpus.labeled, corpus.plain):
        expected = decode_image(Path(part.uris[0]).read_bytes(), bit_depth=12)
        assert np.array_equal(part.read(0).image, expected)
        assert expected.max() > 200, "12 bits fill the range"
    assert Run.load(home / "run").bit_depth == 12


def test_prediction_and_measurement_read_the_same_pixels(home: Path) -> None:
    (new,) = (home / "new" / "images").iterdir()
    student = load_run(home / "run")
    label = label_image(student.module, decode_image(new.read_bytes(), bit_depth=12), student.run)
    truth = cv2.imread(str(home / "new" / "labels" / new.name), cv2.IMREAD_UNCHANGED)
    quality = maskmill.evaluate(home / "run", home / "new" / "labels", images=home / "new" / "images")
    assert quality.accuracy_all == pytest.approx((label == truth).mean())
    assert quality.accuracy_all > 0.8
    with pytest.raises(UsageError, match="bit_depth does not apply to a training run"):
        maskmill.evaluate(home / "run", home / "new" / "labels", images=home / "new" / "images", bit_depth=16)
    assert np.array_equal(maskmill.predict(home / "run", new), label)
    cli("predict", home / "run", new, "-o", home / "picture.png")


@pytest.mark.slow
def test_an_exported_student_gives_the_labels_of_its_run(home: Path) -> None:
    output = cli(
        "export", home / "run", "-o", home / "student", "--size", "32", "--gate-images", home / "photos/images"
    )
    assert "--bit-depth 12" in output
    cli("label", home / "student", home / "new" / "images", "-o", home / "again", "--bit-depth", "12")
    store, student = LabelStore.open(home / "again"), load_run(home / "run")
    (new,) = (home / "new" / "images").iterdir()
    label = label_image(student.module, decode_image(new.read_bytes(), bit_depth=12), student.run)
    assert np.array_equal(store.read(str(new))[0], label)
    measured = cli("evaluate", home / "student", "--labels", home / "new" / "labels", "--images",
                   home / "new" / "images", "--bit-depth", "12")  # fmt: skip
    assert "1 images" in measured


def test_stores_of_other_bit_depths_are_not_mixed(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    cv2.imwrite(str(tmp_path / "images" / "0.png"), np.zeros((32, 48, 3), np.uint8))
    stores = [
        make_store(tmp_path / name, tmp_path, range(1), run=run).path
        for name, run in (("a", None), ("b", {"bit_depth": 12}))
    ]
    with pytest.raises(UsageError, match="other bands, windows or bit depths"):
        open_corpus(stores=stores)
