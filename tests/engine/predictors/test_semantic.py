from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from maskmill.engine.labeling.selection import Selection, select
from maskmill.engine.model.bundle import Bundle
from maskmill.engine.model.taxonomy import Taxonomy
from maskmill.engine.predictors.semantic import SemanticPredictor
from maskmill.engine.runtimes.onnx_runtime import OnnxSession
from maskmill.errors import SessionError, UsageError

from ...models import color_bundle, color_image


def predictor(
    folder: Path, *, tile: int | None = None, overlap: int = 0, batch: int = 1, **options
) -> SemanticPredictor:
    bundle = color_bundle(folder, **options)
    return SemanticPredictor(bundle, OnnxSession(bundle), tile=tile, overlap=overlap, batch=batch)


def stripes(height: int, width: int, period: int) -> np.ndarray:
    return np.broadcast_to(np.arange(width) // period % 3, (height, width)).copy()


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_a_score_map_stays_at_the_models_resolution(tmp_path: Path, layout: str) -> None:
    model = predictor(tmp_path, size=(16, 24), stride=4, layout=layout)
    score_map = model.predict(np.zeros((160, 90, 3), np.uint8))
    assert score_map.scores.shape == ((3, 4, 6) if layout == "NCHW" else (4, 6, 3))
    assert score_map.size == (160, 90)
    assert score_map.region == (0.0, 0.0, 4.0, 6.0)
    assert "float32(" in repr(score_map)


def test_padding_is_left_out_of_the_region(tmp_path: Path) -> None:
    model = predictor(tmp_path, size=(32, 32), stride=4, resize="longest-side")
    score_map = model.predict(np.zeros((20, 40, 3), np.uint8))
    assert score_map.region == (0.0, 0.0, 4.0, 8.0)


def test_a_batch_gives_what_single_images_give(tmp_path: Path) -> None:
    model = predictor(tmp_path, batch=4)
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (10 + i, 20, 3), dtype=np.uint8) for i in range(6)]
    together = model.run([model.prepare(image) for image in images])
    for image, score_map in zip(images, together, strict=True):
        np.testing.assert_array_equal(score_map.scores, model.predict(image).scores)


def test_a_fixed_batch_is_filled_up(tmp_path: Path) -> None:
    model = predictor(tmp_path, batch=1)
    (tmp_path / "fixed").mkdir()
    fixed = color_bundle(tmp_path / "fixed", batch=4)
    four = SemanticPredictor(fixed, OnnxSession(fixed))
    image = np.full((16, 24, 3), 77, np.uint8)
    np.testing.assert_array_equal(four.predict(image).scores, model.predict(image).scores)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (100, 75), (40, 200), (33, 32)])
def test_tiles_blend_to_the_labels_of_the_whole(tmp_path: Path, height: int, width: int) -> None:
    model = predictor(tmp_path, size=(32, 32), tile=32, overlap=8)
    label = stripes(height, width, 16)
    score_map = model.predict(color_image(label))
    assert score_map.scores.shape == (height, width, 3)  # the tile is as large as the input: one score a pixel
    selected = select(score_map, Taxonomy.of_model(model.bundle), Selection())
    np.testing.assert_array_equal(selected.label, label)


def test_tiles_of_another_size_than_the_input_are_resampled(tmp_path: Path) -> None:
    model = predictor(tmp_path, size=(32, 32), stride=2, tile=64, overlap=16)
    label = stripes(150, 130, 40)
    score_map = model.predict(color_image(label))
    selected = select(score_map, Taxonomy.of_model(model.bundle), Selection())
    wrong = selected.label != label
    near_edges = np.minimum(np.arange(130) % 40, 40 - np.arange(130) % 40) <= 4
    assert not wrong[:, ~near_edges].any()


def test_an_image_no_larger_than_a_tile_is_not_cut(tmp_path: Path) -> None:
    model = predictor(tmp_path, size=(16, 24), tile=64, overlap=8)
    assert len(model.prepare(np.zeros((64, 50, 3), np.uint8)).tensors) == 1


@pytest.mark.parametrize(("tile", "overlap", "message"), [(32, 32, "less than the tile"), (32, -1, "at least 0")])
def test_an_impossible_tiling_is_refused(tmp_path: Path, tile: int, overlap: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        predictor(tmp_path, tile=tile, overlap=overlap)


def test_a_model_that_does_not_keep_its_word_is_an_error(tmp_path: Path) -> None:
    bundle = color_bundle(tmp_path)

    class Liar:
        kind, max_batch, threads = "liar", None, 1

        def run(self, batch: np.ndarray) -> list[np.ndarray]:
            return [np.zeros((len(batch), 2, 4, 4), np.float32)]

    with pytest.raises(
        SessionError, match=r"output of shape \(1, 2, 4, 4\) for 1 image\(s\); expected four axes with 3 classes"
    ):
        SemanticPredictor(bundle, Liar()).predict(np.zeros((4, 4, 3), np.uint8))


def test_a_provider_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    bundle = color_bundle(tmp_path)
    with pytest.raises(UsageError, match="provider must be one of cpu, cuda, tensorrt"):
        OnnxSession(bundle, provider="quantum")
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        with pytest.raises(SessionError, match="has no cuda provider, only cpu; .*pip install .*\\[gpu\\]"):
            OnnxSession(bundle, provider="cuda")


def test_an_input_of_the_wrong_shape_names_it(tmp_path: Path) -> None:
    session = OnnxSession(color_bundle(tmp_path))
    with pytest.raises(SessionError, match=r"failed on its input 'image' of shape \(1, 3, 5, 5\)"):
        session.run(np.zeros((1, 3, 5, 5), np.float32))


def test_a_damaged_model_file_is_an_error(tmp_path: Path) -> None:
    bundle = color_bundle(tmp_path)
    bundle.model_path().write_bytes(b"nonsense")
    with pytest.raises(SessionError, match="cannot load"):
        OnnxSession(Bundle.load(bundle.path))
