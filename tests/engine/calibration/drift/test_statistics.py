from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from maskmill.engine.backends.host import HOST
from maskmill.engine.calibration.drift.statistics import STATISTICS, describe_images, sample_picture
from maskmill.engine.model.taxonomy import Taxonomy
from maskmill.engine.predictors.semantic import SemanticPredictor
from maskmill.engine.runtimes.onnx_runtime import OnnxSession

from ....builders import photo
from ....models import color_bundle


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> SemanticPredictor:
    bundle = color_bundle(tmp_path_factory.mktemp("model"), size=(32, 32))
    return SemanticPredictor(bundle, OnnxSession(bundle))


def described(predictor: SemanticPredictor, *images: NDArray[np.uint8]) -> list[dict[str, float]]:
    maps = [predictor.predict(image) for image in images]
    pictures = [sample_picture(image, HOST) for image in images]
    rows = describe_images(maps, pictures, Taxonomy.of_model(predictor.bundle))
    assert rows.shape == (len(images), len(STATISTICS))
    return [dict(zip(STATISTICS, row.tolist(), strict=True)) for row in rows]


def test_a_plain_image_has_the_statistics_in_view(predictor: SemanticPredictor) -> None:
    image = np.zeros((40, 60, 3), np.uint8)
    image[:] = (255, 0, 51)
    (numbers,) = described(predictor, image)
    luma = 0.299 + 0.114 * 0.2
    assert numbers["brightness"] == pytest.approx(luma, abs=1e-5)
    assert numbers["highlights"] == pytest.approx(luma, abs=1e-5)
    assert numbers["contrast"] == pytest.approx(0, abs=1e-5)
    assert (numbers["detail"], numbers["sharpness"]) == (0, 0)
    assert (numbers["color"], numbers["warmth"]) == (pytest.approx(1.0), pytest.approx(0.8, abs=1e-5))
    assert numbers["main class"] == 1.0


def test_darkening_blurring_and_graying_move_their_statistics(predictor: SemanticPredictor) -> None:
    image = cv2.resize(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8), (320, 240))
    gray = np.repeat(image.mean(axis=2, keepdims=True), 3, axis=2).astype(np.uint8)
    plain, dark, blurred, colorless = described(
        predictor, image, (image * 0.6).astype(np.uint8), cv2.GaussianBlur(image, (0, 0), 4.0), gray
    )
    for name in ("brightness", "highlights", "contrast"):
        assert dark[name] == pytest.approx(0.6 * plain[name], rel=0.02)
    assert blurred["sharpness"] < 0.6 * plain["sharpness"]
    assert blurred["detail"] < 0.5 * plain["detail"]
    assert colorless["color"] < 0.01 < plain["color"]


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (3, 2), (65, 64)])
def test_any_size_has_statistics(predictor: SemanticPredictor, size: tuple[int, int]) -> None:
    (numbers,) = described(predictor, photo(*size))
    assert all(np.isfinite(value) for value in numbers.values())


def test_statistics_do_not_depend_on_the_batch(predictor: SemanticPredictor, tmp_path: Path) -> None:
    images = [photo(30, 40, seed) for seed in range(3)]
    assert described(predictor, *images) == [described(predictor, image)[0] for image in images]
    assert describe_images([], [], Taxonomy.of_model(predictor.bundle)).shape == (0, len(STATISTICS))
