"""The predictor from activation maps over peaks to masks, on models whose answer is in view."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maskmill.engine.inputs.image_labels import ImageLabels
from maskmill.engine.labeling.selection import Selection, select
from maskmill.engine.model.taxonomy import Taxonomy
from maskmill.engine.predictors.prompted.class_masks import MaskSettings
from maskmill.engine.predictors.prompted.embedding_cache import EmbeddingCache
from maskmill.engine.predictors.prompted.predictor import PromptedPredictor
from maskmill.engine.predictors.prompted.prompts import PromptSettings
from maskmill.engine.runtimes.onnx_runtime import OnnxSession
from maskmill.errors import ImageError, UsageError

from ....models import COLORS, cam_bundle, color_image, sam_bundle

SIZE = (32, 48)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("bundles")
    return {
        "cam": cam_bundle(folder),
        "batched": sam_bundle(folder, size=SIZE, name="batched"),
        "official": sam_bundle(folder, size=SIZE, name="official", signature="official"),
    }


def predictor(bundles: dict[str, Any], signature: str = "batched", **options: Any) -> PromptedPredictor:
    cam, sam = bundles["cam"], bundles[signature]
    options.setdefault("prompts", PromptSettings(maximum=True, min_distance=3, mode="peaks"))
    options.setdefault("class_threshold", 0.4)
    sessions = [OnnxSession(cam), *(OnnxSession(sam, role=role) for role in ("encoder", "decoder"))]
    return PromptedPredictor(cam, sam, *sessions, **options)


def picture(*rectangles: tuple[int, slice, slice], size: tuple[int, int] = SIZE) -> np.ndarray:
    """White, with rectangles of a class's color: white is all colors, so that no map is 0 there."""
    image = np.full((*size, 3), 90, np.uint8)
    for color, rows, columns in rectangles:
        image[rows, columns] = color_image(np.full((1, 1), color))
    return image


def label(model: PromptedPredictor, image: np.ndarray, uri: str = "") -> np.ndarray:
    """Class of each pixel, 0 the background, then COLORS."""
    return select(model.predict(image, uri), Taxonomy.of_model(model.bundle), Selection()).label


RED, GREEN, BLUE = (0, slice(4, 20), slice(4, 20)), (1, slice(12, 28), slice(26, 42)), (2, slice(0, 8), slice(30, 48))


@pytest.mark.parametrize("signature", ["batched", "official"])
@pytest.mark.parametrize("mode", ["points", "peaks", "box", "box+points", "best"])
def test_the_colors_that_an_image_shows_are_labeled_as_they_lie(
    bundles: dict[str, Any], signature: str, mode: Any
) -> None:
    labels = ImageLabels({"a": frozenset({"red", "green"})}, "labels")
    model = predictor(
        bundles, signature, labels=labels, prompts=PromptSettings(maximum=True, min_distance=3, mode=mode)
    )
    found = label(model, picture(RED, GREEN), "a.jpg")
    expected = np.zeros(SIZE)
    expected[RED[1:]], expected[GREEN[1:]] = 1, 2
    # a cell of the masks is two pixels wide
    assert (found != expected).mean() < 0.04


def test_a_class_that_is_not_shown_is_never_labeled(bundles: dict[str, Any]) -> None:
    labels = ImageLabels({"a": frozenset({"green"})}, "labels")
    found = label(predictor(bundles, labels=labels), picture(RED, GREEN), "a.jpg")
    assert set(np.unique(found)) == {0, 2}


def test_without_labels_the_classifier_says_what_is_shown(bundles: dict[str, Any]) -> None:
    model = predictor(bundles, class_threshold=0.4)
    big = (2, slice(0, 30), slice(0, 40))
    steps = model.steps([model.prepare(picture(big))])[0]
    assert steps.classes == [2]
    assert set(np.unique(label(model, picture(big)))) == {0, 3}


def test_scores_are_confidences_and_the_background_is_what_no_mask_covers(bundles: dict[str, Any]) -> None:
    labels = ImageLabels({"a": frozenset({"red"})}, "labels")
    score_map = predictor(bundles, labels=labels).predict(picture(RED), "a")
    assert score_map.activation == "none"
    assert score_map.scores.shape == (4, 16, 24)
    assert score_map.scores.min() >= 0
    assert score_map.scores.max() <= 1
    assert (score_map.scores[2:] == 0).all()
    inside, outside = score_map.scores[:2, 4, 4], score_map.scores[:2, 14, 20]
    assert inside[1] > 0.5
    assert inside[0] == 0
    np.testing.assert_allclose(outside, [1, 0], atol=0.02)


def test_several_images_give_what_each_gives_alone(bundles: dict[str, Any]) -> None:
    labels = ImageLabels({"a": frozenset({"red"}), "b": frozenset(COLORS), "c": frozenset()}, "labels")
    model = predictor(bundles, labels=labels, batch=4)
    images = {"a": picture(RED), "b": picture(RED, GREEN, BLUE), "c": picture(GREEN)}
    together = model.run([model.prepare(image, name) for name, image in images.items()])
    for found, (name, image) in zip(together, images.items(), strict=True):
        np.testing.assert_allclose(found.scores, model.predict(image, name).scores, atol=1e-5)


def test_prompts_of_all_images_and_classes_share_the_decoders_calls(bundles: dict[str, Any]) -> None:
    labels = ImageLabels({name: frozenset(COLORS) for name in "abcd"}, "labels")
    image = picture(RED, GREEN, BLUE)
    for signature, calls in (("batched", 1), ("official", 12)):
        model = predictor(
            bundles, signature, labels=labels, prompts=PromptSettings(maximum=True, min_distance=40, mode="points")
        )
        model.run([model.prepare(image, name) for name in "abcd"])
        assert model.decoder.calls == calls


def test_an_image_without_classes_is_background_and_costs_no_encoder(bundles: dict[str, Any]) -> None:
    labels = ImageLabels({"a": frozenset()}, "labels")
    model = predictor(bundles, labels=labels)
    score_map = model.predict(picture(RED), "a")
    assert (score_map.scores[0] == 1).all()
    assert (model.encoded, model.decoder.calls) == (0, 0)


def test_a_class_whose_map_is_nowhere_positive_is_not_asked_for(bundles: dict[str, Any]) -> None:
    labels = ImageLabels({"a": frozenset(COLORS)}, "labels")
    model = predictor(bundles, labels=labels)
    assert (model.predict(np.zeros((*SIZE, 3), np.uint8), "a").scores[0] == 1).all()
    assert model.decoder.calls == 0


def test_an_empty_mask_leaves_its_class_out(bundles: dict[str, Any], tmp_path: Path) -> None:
    sam = sam_bundle(tmp_path, size=SIZE, thresholds=(-1.0,), scores=(0.9,))
    labels = ImageLabels({"a": frozenset({"red"})}, "labels")
    assert (label(predictor({**bundles, "batched": sam}, labels=labels), picture(RED), "a") == 0).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (2, 3)])
@pytest.mark.parametrize("mode", ["points", "peaks", "box", "box+points", "best"])
@pytest.mark.parametrize("peaks", ["paper", "official"])
def test_images_of_any_shape(bundles: dict[str, Any], size: tuple[int, int], mode: Any, peaks: Any) -> None:
    labels = ImageLabels({"a": frozenset({"green"})}, "labels")
    model = predictor(bundles, labels=labels, prompts=PromptSettings(mode=mode, peaks=peaks, maximum=True))
    found = label(model, color_image(np.ones(size, np.int64)), "a")
    assert found.shape == size
    assert (found == 2).all()


def test_twenty_classes_in_one_image(tmp_path: Path) -> None:
    names = [f"class {index}" for index in range(20)]
    cam = many_class_bundle(tmp_path, names)
    sam = sam_bundle(tmp_path, size=SIZE)
    sessions = [OnnxSession(cam), *(OnnxSession(sam, role=role) for role in ("encoder", "decoder"))]
    labels = ImageLabels({"a": frozenset(names)}, "labels")
    model = PromptedPredictor(cam, sam, *sessions, labels=labels, prompts=PromptSettings(maximum=True, min_distance=2))
    steps = model.steps([model.prepare(picture(RED, GREEN, BLUE), "a")])[0]
    assert [mask.target for mask in steps.masks] == list(range(1, 21))
    assert steps.score_map.scores.shape[0] == 21


def many_class_bundle(folder: Path, names: list[str]) -> Any:
    """A classifier of which class i looks at channel i % 3."""
    import onnx
    from onnx import numpy_helper

    from maskmill.export.adopt.classifier import cam_from_onnx

    from ....models import color_cam_graph

    graph = color_cam_graph(size=("H", "W"), logits_only=True)
    weight = np.stack([np.eye(3, dtype=np.float32)[index % 3] for index in range(len(names))])
    del graph.graph.initializer[:]
    graph.graph.initializer.extend(
        [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(np.zeros(len(names), np.float32), "bias")]
    )
    graph.graph.output[0].type.tensor_type.shape.dim[1].dim_value = len(names)
    onnx.save(graph, folder / "many.onnx")
    return cam_from_onnx(folder / "many.onnx", folder / "many", classes=names, size=(16, 24), activation="sigmoid")


def test_an_image_that_the_labels_do_not_list_is_a_reject(bundles: dict[str, Any]) -> None:
    model = predictor(bundles, labels=ImageLabels({"a": frozenset()}, "labels.csv"))
    with pytest.raises(ImageError, match=r"labels\.csv does not list b\.jpg; add it") as caught:
        model.prepare(picture(), "b.jpg")
    assert caught.value.kind == "no-labels"


def test_labels_with_classes_that_the_classifier_lacks_are_refused(bundles: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="classes that the model does not have: violet; it has red, green, blue"):
        predictor(bundles, labels=ImageLabels({"a": frozenset({"violet"})}, "labels.csv"))


def test_other_scales_and_the_mirror_image_are_looked_at(bundles: dict[str, Any]) -> None:
    labels = ImageLabels({"a": frozenset({"red", "green"})}, "labels")
    model = predictor(bundles, labels=labels, scales=(0.5, 1.0, 2.0), flip=True)
    prepared = model.prepare(picture(RED, GREEN), "a")
    assert [tensor.shape for tensor in prepared.cam.tensors[::2]] == [(3, 8, 12), (3, 16, 24), (3, 32, 48)]
    found = label(model, picture(RED, GREEN), "a")
    assert set(np.unique(found)) == {0, 1, 2}
    assert found[10, 10] == 1
    assert found[20, 34] == 2


def test_kept_embeddings_give_the_same_labels_without_the_encoder(bundles: dict[str, Any], tmp_path: Path) -> None:
    labels = ImageLabels({"a": frozenset({"red"})}, "labels")
    image = picture(RED, GREEN)
    plain = predictor(bundles, labels=labels).predict(image, "a")
    for encoded in (1, 0):
        cache = EmbeddingCache(tmp_path / "kept", encoder="e" * 64, max_bytes=1 << 20)
        model = predictor(bundles, labels=labels, cache=cache)
        np.testing.assert_array_equal(model.predict(image, "a").scores, plain.scores)
        assert model.encoded == encoded


def test_everything_that_decides_the_scores_is_in_the_settings(bundles: dict[str, Any]) -> None:
    settings = [
        predictor(bundles).settings,
        predictor(bundles, "official").settings,
        predictor(bundles, flip=False).settings,
        predictor(bundles, scales=(1.0, 2.0)).settings,
        predictor(bundles, class_threshold=0.7).settings,
        predictor(bundles, prompts=PromptSettings(tau=0.6)).settings,
        predictor(bundles, masks=MaskSettings(pick=1)).settings,
        predictor(bundles, labels=ImageLabels({"a": frozenset()}, "labels")).settings,
    ]
    assert len({str(one) for one in settings}) == len(settings)


def test_bundles_of_the_wrong_task_are_refused(bundles: dict[str, Any]) -> None:
    cam, sam = bundles["cam"], bundles["batched"]
    session = OnnxSession(cam)
    with pytest.raises(UsageError, match="is a promptable bundle; activation maps need a cam one"):
        PromptedPredictor(sam, sam, session, session, session)
    with pytest.raises(UsageError, match="is a cam bundle; prompts need a promptable one"):
        PromptedPredictor(cam, cam, session, session, session)


class _NotFinite:
    """A classifier's session that returns NaN."""

    def __init__(self, session: OnnxSession, output: int) -> None:
        self._session, self._output = session, output
        self.kind, self.artifact, self.max_batch, self.threads = session.kind, session.artifact, session.max_batch, 1

    def run(self, batch: np.ndarray) -> list[np.ndarray]:
        outputs = [output.copy() for output in self._session.run(batch)]
        outputs[self._output].reshape(-1)[0] = np.nan
        return outputs


@pytest.mark.parametrize("output", [0, 1])
def test_an_image_that_the_classifier_fails_on_is_not_background(bundles: dict[str, Any], output: int) -> None:
    model = predictor(bundles)
    model.cam.session = _NotFinite(model.cam.session, output)  # type: ignore[assignment]
    with pytest.raises(ImageError, match="NaN or infinite") as caught:
        label(model, picture(RED))
    assert caught.value.kind == "not-finite"
