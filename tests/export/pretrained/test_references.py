"""Families against what transformers' own processors and models gave (``make family-references``), photo to output."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from maskmill.engine.inputs.images import preprocess
from maskmill.engine.model.bundle import Bundle
from maskmill.engine.predictors.prompted.mask_decoder import PromptDecoder
from maskmill.engine.predictors.prompted.prompts import point_prompts
from maskmill.engine.predictors.semantic import SemanticPredictor
from maskmill.engine.runtimes.base import Session
from maskmill.engine.runtimes.onnx_runtime import OnnxSession
from maskmill.export.pretrained.checkpoint import fetch
from maskmill.export.pretrained.families import Choices, Folded, fold
from maskmill.export.pretrained.torch_module import TorchSession

pytest.importorskip("torch")
pytest.importorskip("transformers")

from ..checkpoints import CHECKPOINTS  # noqa: E402

FOLDER = Path(__file__).parents[1] / "references"
CLASSES = ("cat", "sofa", "mat")
PROMPTABLE = ("sam", "sam_hq", "sam2", "sam3_tracker")


def reference(family: str) -> tuple[list[NDArray[np.uint8]], dict[str, NDArray[Any]]]:
    with np.load(FOLDER / "photos.npz") as photos, np.load(FOLDER / f"{family}.npz") as arrays:
        return [photos[name] for name in photos.files], dict(arrays)


def folded(folder: Path, family: str, choices: Choices | None = None) -> tuple[Bundle, dict[str, Session]]:
    """The family's small checkpoint with its post-processing, as a bundle without files, and what runs it."""
    result: Folded = fold(fetch(str(CHECKPOINTS[family](folder))), choices or Choices())
    sessions: dict[str, Session] = {"model": TorchSession(result.module)}
    if result.decoder is not None:
        sessions = {"encoder": TorchSession(result.module), "decoder": TorchSession(result.decoder)}
    bundle = Bundle(
        path=folder,
        task=result.task,
        files=(),
        input=result.input,
        outputs=result.outputs,
        classes=result.classes,
        background=None if result.background is None else result.classes.index(result.background),
        prompt=result.prompt,
    )
    return bundle, sessions


def close(actual: NDArray[Any], expected: NDArray[Any]) -> None:
    assert actual.shape == expected.shape
    error = np.abs(actual - expected).max() / max(1.0, float(np.abs(expected).max()))
    assert error <= 1e-4, f"off by {error:.2g}"


def assert_resized(bundle: Bundle, photos: list[NDArray[np.uint8]], expected: dict[str, NDArray[Any]]) -> None:
    """Photos are resized as by the model's own processor, but for its rounding: torchvision's is not Pillow's."""
    spec = dataclasses.replace(bundle.input, scale=1.0, mean=(0.0,) * 3, std=(1.0,) * 3, layout="NHWC")
    for number, photo in enumerate(photos):
        levels = expected[f"levels_{number}"]
        resized = preprocess(photo, spec)[0][: levels.shape[0], : levels.shape[1]]
        assert resized.shape == levels.shape
        assert np.abs(resized - levels).max() <= 1
        assert (resized == levels).mean() >= 0.95


@pytest.mark.parametrize("family", ["segformer", "eomt_dinov3", "sam3", "sam3_lite_text"])
def test_scores_are_those_of_the_models_own_processing(family: str, tmp_path: Path) -> None:
    photos, expected = reference(family)
    texts = family.startswith("sam3")
    bundle, sessions = folded(tmp_path, family, Choices(classes=CLASSES) if texts else None)
    predictor = SemanticPredictor(bundle, sessions["model"], batch=2)
    assert_resized(bundle, photos, expected)
    maps = predictor.run([predictor.prepare(expected[f"levels_{number}"]) for number in range(len(photos))])
    for view, scores in zip(maps, expected["scores"], strict=True):
        close(np.asarray(view.scores)[1 if texts else 0 :], scores)
        if texts:  # neither all background nor none
            assert 0.01 < (np.asarray(view.scores).argmax(axis=0) == 0).mean() < 0.99


def test_objects_are_those_of_sam3s_own_instance_segmentation(tmp_path: Path) -> None:
    photos, expected = reference("sam3")
    bundle, sessions = folded(tmp_path, "sam3", Choices(classes=CLASSES[:1], instances=20))
    assert bundle.has_objects
    predictor = SemanticPredictor(bundle, sessions["model"])
    for number, photo in enumerate(photos):
        objects = predictor.predict(expected[f"levels_{number}"]).objects
        assert objects is not None
        scores = expected[f"instance_scores_{number}"]
        order = np.argsort(-scores)
        close(np.asarray(objects.scores), scores[order])
        assert set(objects.classes) == {1}
        height, width = photo.shape[:2]
        packed = expected[f"instance_masks_{number}"]
        own = np.unpackbits(packed, count=len(scores) * height * width).reshape(-1, height, width)[order]
        # it interpolates probabilities, where labeling interpolates logits
        probabilities = 1 / (1 + np.exp(-np.asarray(objects.masks)))
        masks = np.stack([cv2.resize(mask, (width, height)) > 0.5 for mask in probabilities])
        assert (masks == own).mean() > 0.999


@pytest.mark.parametrize("family", [*PROMPTABLE, "edgetam"])
def test_masks_are_those_of_the_models_own_processing(family: str, tmp_path: Path) -> None:
    if family == "edgetam":  # its checkpoint cannot be loaded without timm, its graphs can
        bundle = Bundle.load(FOLDER / "edgetam")
        sessions: dict[str, Session] = {role: OnnxSession(bundle, role=role) for role in ("encoder", "decoder")}
    else:
        bundle, sessions = folded(tmp_path, family)
    photos, expected = reference(family)
    assert_masks(bundle, sessions, photos, expected)


def assert_masks(
    bundle: Bundle, sessions: dict[str, Session], photos: list[NDArray[np.uint8]], expected: dict[str, NDArray[Any]]
) -> None:
    spec, decoder = bundle.input, PromptDecoder(bundle, sessions["decoder"])
    assert_resized(bundle, photos, expected)
    for number, photo in enumerate(photos):
        height, width = photo.shape[:2]
        tensor, covers = preprocess(expected[f"levels_{number}"], spec)
        embeddings = sessions["encoder"].run(tensor[None])
        scale = np.array([spec.width * covers[1] / width, spec.height * covers[0] / height])
        places = {
            "points": (np.array([[0.3, 0.4], [0.7, 0.6]]), [1, 0]),
            "box": (np.array([[0.2, 0.1], [0.8, 0.7]]), [2, 3]),
        }
        for kind, (shares, labels) in places.items():
            points = shares * [width, height] * scale
            masks, ious = decoder.run(embeddings, point_prompts(points[None], labels=np.array([labels])))
            close(masks[0], expected[f"{kind}_masks_{number}"])
            close(ious[0], expected[f"{kind}_ious_{number}"])
            assert 0.01 < (masks > 0).mean() < 0.99
            # masks of the photo's size, which SAM reaches by way of its input, padding included, and SAM 2 directly
            full = masks[0]
            if spec.resize == "longest-side":
                extent = round(spec.height * covers[0]), round(spec.width * covers[1])
                full = [cv2.resize(mask, (spec.width, spec.height))[: extent[0], : extent[1]] for mask in full]
            binary = np.stack([cv2.resize(mask, (width, height)) > 0 for mask in full])
            own = np.unpackbits(expected[f"{kind}_binary_{number}"], count=binary.size).reshape(binary.shape)
            assert (binary == own).mean() >= 0.999
