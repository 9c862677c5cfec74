"""A model may misbehave on some images: they are rejects, or the run ends with one line that names the image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from maskmill.engine.inputs.sources import open_source
from maskmill.engine.labeling.label_run import label
from maskmill.engine.labeling.progress import Progress
from maskmill.engine.labeling.selection import Selection
from maskmill.engine.model.taxonomy import Taxonomy
from maskmill.engine.predictors.semantic import SemanticPredictor
from maskmill.engine.runtimes.onnx_runtime import OnnxSession
from maskmill.engine.store.label_store import LabelStore
from maskmill.errors import SessionError
from maskmill.export.adopt.semantic import bundle_from_onnx
from tests.models import COLORS, moody_graph


def run(folder: Path, mood: str) -> Progress:
    onnx.save(moody_graph(mood), folder / "model.onnx")
    bundle = bundle_from_onnx(folder / "model.onnx", folder / "bundle", classes=COLORS, background=None)
    for name, value in (("0", 10), ("1", 60), ("white", 255), ("2", 90)):
        (folder / "photos").mkdir(exist_ok=True)
        Image.fromarray(np.full((16, 24, 3), value, np.uint8)).save(folder / "photos" / f"{name}.png")
    predictor = SemanticPredictor(bundle, OnnxSession(bundle))
    taxonomy = Taxonomy.of_model(bundle)
    return label(predictor, open_source(folder / "photos"), folder / "store", taxonomy, Selection.argmax(), workers=1)


def test_scores_that_are_no_numbers_are_one_reject(tmp_path: Path) -> None:
    progress = run(tmp_path, "nan")
    assert (progress.images, progress.rejects) == (3, {"not-finite": 1})


@pytest.mark.parametrize(
    ("mood", "message"),
    [
        ("shape", r"output of shape \(1, 2, 1, 1\)"),
        ("batch", r"output of shape \(2, 3, 16, 24\) for 1 image"),
        ("empty", r"output of shape \(0, 3, 16, 24\) for 1 image"),
        ("memory", "Failed to allocate memory"),
        ("fails", "cannot be reshaped"),
    ],
)
def test_a_model_that_fails_on_an_image_ends_the_run_with_its_name(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], mood: str, message: str
) -> None:
    with pytest.raises(SessionError, match=rf"white\.png: .*{message}"):
        run(tmp_path, mood)
    assert "sequential_executor" not in capfd.readouterr().err
    # the images before it are kept
    assert len(LabelStore.open(tmp_path / "store")) >= 2
