"""Measuring a student: the figures, whole images and tiles, and the closed loop through a bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

torch = pytest.importorskip("torch")
torchmetrics = pytest.importorskip("torchmetrics")

from maskmill.cli import app  # noqa: E402
from maskmill.errors import TrainingError, UsageError  # noqa: E402
from maskmill.trainer.data.corpus import classes_taxonomy, open_corpus  # noqa: E402
from maskmill.trainer.data.parts import LabeledImages  # noqa: E402
from maskmill.trainer.evaluate import Scores, score_images  # noqa: E402
from maskmill.trainer.recipes import supervised  # noqa: E402
from maskmill.trainer.run import Run  # noqa: E402
from maskmill.trainer.students.models import build_model, load_run  # noqa: E402
from maskmill.trainer.students.prediction import label_image, run_taxonomy  # noqa: E402
from maskmill.trainer.students.reliability import Reliability  # noqa: E402
from maskmill.trainer.train import train  # noqa: E402

from ..models import COLORS, color_image  # noqa: E402
from .builders import TAXONOMY, write_labeled  # noqa: E402


def strongest_color(num_classes: int, *, pretrained: bool) -> Any:
    """The network whose class is the strongest color channel."""
    del pretrained
    network = torch.nn.Conv2d(3, num_classes, 1, bias=False)
    network.weight.data = 10 * torch.eye(3).view(3, 3, 1, 1)
    return network


def color_student(crop: int = 8) -> tuple[Any, Run]:
    module = build_model(f"{__name__}:strongest_color", 3).eval()
    taxonomy = classes_taxonomy(COLORS)
    run = Run(
        recipe=supervised(crop=crop), model_options={}, classes=COLORS, background=None, labels=taxonomy.labels,
        input=module.input_spec(crop, crop), data={}, versions={},
    )  # fmt: skip
    return module, run


def labeled_folder(folder: Path, pairs: list[tuple[np.ndarray, np.ndarray]]) -> Path:
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    for number, (shown, truth) in enumerate(pairs):
        Image.fromarray(color_image(shown)).save(folder / "images" / f"{number}.png")
        Image.fromarray(truth.astype(np.uint8)).save(folder / "labels" / f"{number}.png")
    return folder


def test_scores_are_those_of_the_definition(tmp_path: Path) -> None:
    shown = np.array([[0, 0, 1, 1], [0, 0, 1, 2]])
    truth = np.array([[0, 0, 0, 1], [255, 0, 1, 1]])
    folder = labeled_folder(tmp_path / "data", [(shown, truth)])
    module, run = color_student()
    scores = score_images(module, LabeledImages.open(folder, run_taxonomy(run)), run)
    assert scores.confusion.tolist() == [[3, 1, 0], [0, 2, 1], [0, 0, 0]]
    assert scores.iou[:2].tolist() == [3 / 4, 2 / 4]
    assert np.isnan(scores.iou[2])
    assert (scores.miou, scores.accuracy, scores.num_images) == (5 / 8, 5 / 7, 1)
    assert scores.to_json()["iou"] == {"red": 0.75, "green": 0.5, "blue": None}


def test_ious_are_those_of_torchmetrics(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pairs = [(rng.integers(0, 3, (16, 24)), rng.choice([0, 1, 2, 255], (16, 24))) for _ in range(3)]
    module, run = color_student()
    images = LabeledImages.open(labeled_folder(tmp_path / "data", pairs), run_taxonomy(run))
    metric = torchmetrics.classification.MulticlassJaccardIndex(3, average="none", ignore_index=255)
    for shown, truth in pairs:
        metric.update(torch.from_numpy(shown), torch.from_numpy(truth))
    assert score_images(module, images, run).iou == pytest.approx(metric.compute().numpy())


def test_the_parts_of_two_processes_make_the_whole(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    pairs = [(rng.integers(0, 3, (8, 8)), rng.integers(0, 3, (8, 8))) for _ in range(5)]
    module, run = color_student()
    images = LabeledImages.open(labeled_folder(tmp_path / "data", pairs), run_taxonomy(run))
    whole = score_images(module, images, run)
    # without a process group nothing is added up
    parts = [score_images(module, images, run, share=(rank, 2)).confusion for rank in (0, 1)]
    assert (parts[0] + parts[1] == whole.confusion).all()
    assert all(part.any() for part in parts)


@pytest.mark.parametrize("size", [(40, 60), (10, 60), (14, 12)])
@pytest.mark.parametrize(("tile", "overlap"), [(None, 0), (16, 0), (16, 6)])
def test_an_image_of_any_size_is_labeled_whole_and_in_tiles(
    size: tuple[int, int], tile: int | None, overlap: int
) -> None:
    shown = np.random.default_rng(2).integers(0, 3, size)
    module, run = color_student()
    label = label_image(module, color_image(shown), run, tile=tile, overlap=overlap)
    assert label.dtype == np.uint8
    assert (label == shown).all()


def test_the_size_is_the_nearest_that_the_network_takes() -> None:
    module = build_model("lite0", 3, pretrained=False).eval()
    taken: list[tuple[int, ...]] = []
    module.register_forward_pre_hook(lambda _, args: taken.append(tuple(args[0].shape)))
    _, run = color_student()
    run = type(run)(**{**vars(run), "input": module.input_spec(64, 64)})
    label = label_image(module, np.zeros((213, 320, 3), np.uint8), run)
    assert label.shape == (213, 320)
    assert taken == [(1, 3, 224, 320)]


def test_a_student_whose_numbers_are_not_finite_is_not_scored(tmp_path: Path) -> None:
    module, run = color_student()
    module.encoder.parts[0].weight.data.fill_(float("nan"))
    folder = labeled_folder(tmp_path / "data", [(np.zeros((8, 8)).astype(int), np.zeros((8, 8)))])
    with pytest.raises(TrainingError, match=r"0\.png are not finite"):
        score_images(module, LabeledImages.open(folder, run_taxonomy(run)), run)


def test_an_exported_student_labels_as_the_run_does(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    from maskmill.engine.labeling.selection import Selection, select
    from maskmill.engine.predictors.semantic import SemanticPredictor
    from maskmill.engine.runtimes.onnx_runtime import OnnxSession
    from maskmill.trainer.bundle import bundle_from_run

    photos = write_labeled(tmp_path / "photos", range(4))
    options = {"model": "tiny", "batch": 4, "crop": 32, "scale": (1.0, 1.0), "lr": 0.02}
    corpus = open_corpus(labeled=photos, taxonomy=TAXONOMY)
    train(tmp_path / "run", supervised(**options, steps=30), corpus, device="cpu", workers=0)
    student = load_run(tmp_path / "run")
    bundle = bundle_from_run(tmp_path / "run", tmp_path / "bundle")
    image = np.asarray(Image.open(photos / "images" / "3.png"))
    sized = bundle.at_size(*image.shape[:2])
    score_map = SemanticPredictor(sized, OnnxSession(sized)).predict(image)
    label = label_image(student.module, image, student.run)
    assert len(np.unique(label)) == 3
    assert (select(score_map, TAXONOMY, Selection()).label == label).mean() > 0.999


def test_commands_measure_a_run_and_show_what_it_sees(tmp_path: Path) -> None:
    photos = write_labeled(tmp_path / "photos", range(3))
    recipe = supervised(model="tiny", steps=1, batch=2, crop=32)
    train(tmp_path / "run", recipe, open_corpus(labeled=photos, taxonomy=TAXONOMY), device="cpu", workers=0)
    run, images, labels = (str(tmp_path / "run"), str(photos / "images"), str(photos / "labels"))
    options = ["--images", images, "--labels", labels]
    shown = CliRunner().invoke(app, ["evaluate", run, *options])
    assert shown.exit_code == 0, shown.output
    assert "3 images: mIoU" in shown.output
    assert "best temperature" in shown.output
    measured = json.loads(CliRunner().invoke(app, ["evaluate", run, *options, "--tile", "32", "--json"]).output)
    assert {row["class"] for row in measured["classes"]} == set(COLORS)
    assert 0 <= measured["ece"] <= 1
    made = CliRunner().invoke(app, ["predict", run, f"{images}/1.png", "-o", str(tmp_path / "seen.png")])
    assert made.exit_code == 0, made.output
    with Image.open(tmp_path / "seen.png") as picture, Image.open(photos / "images" / "1.png") as photo:
        assert picture.width == photo.width
        assert picture.height > photo.height
    missing = CliRunner().invoke(app, ["predict", run, "nowhere.png", "-o", str(tmp_path / "seen.png")])
    assert isinstance(missing.exception, UsageError)
    assert isinstance(CliRunner().invoke(app, ["evaluate", images, *options]).exception, UsageError)


def test_nothing_to_score_is_undefined_not_zero() -> None:
    empty = Reliability(
        counts=np.zeros(15, int), confidence_sums=np.zeros(15), right=np.zeros(15, int), temperature=np.nan
    )
    scores = Scores(confusion=np.zeros((2, 2), np.int64), classes=("a", "b"), num_images=1, reliability=empty)
    assert np.isnan(scores.miou)
    assert scores.to_json() == {
        "num_images": 1, "miou": None, "accuracy": None, "confidence": None, "ece": None, "temperature": None,
        "iou": {"a": None, "b": None},
    }  # fmt: skip
