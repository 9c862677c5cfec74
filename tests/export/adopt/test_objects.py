"""YOLO-seg and RF-DETR-Seg: graphs made here, against their authors' post-processing written out in NumPy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from maskmill.engine.labeling.instances import InstanceSettings, find_instances
from maskmill.engine.model.taxonomy import Taxonomy
from maskmill.engine.predictors.semantic import SemanticPredictor
from maskmill.engine.runtimes.onnx_runtime import OnnxSession
from maskmill.errors import UsageError
from maskmill.export.adopt.semantic import bundle_from_onnx

CLASSES = ("cat", "dog")
SIDE, GRID, PROTOTYPES = 64, 16, 4


def detector(path: Path, batch: int | str = "N", **outputs: NDArray[np.float32]) -> Path:
    """A graph whose outputs are constants, the same for every image of the batch."""
    nodes = [helper.make_node("Shape", ["images"], ["batch"], start=0, end=1)]
    weights = []
    for name, array in outputs.items():
        weights.append(numpy_helper.from_array(array[None], f"{name}_one"))
        weights.append(numpy_helper.from_array(np.array(array.shape, np.int64), f"{name}_rest"))
        nodes.append(helper.make_node("Concat", ["batch", f"{name}_rest"], [f"{name}_shape"], axis=0))
        nodes.append(helper.make_node("Expand", [f"{name}_one", f"{name}_shape"], [name]))
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, *array.shape])
              for name, array in outputs.items()]  # fmt: skip
    image = helper.make_tensor_value_info("images", TensorProto.FLOAT, [batch, 3, SIDE, SIDE])
    graph = helper.make_graph(nodes, "detector", [image], values, weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def boxes() -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """120 random boxes (center, size), class probabilities, coefficients, and prototypes."""
    rng = np.random.default_rng(5)
    centers, sizes = rng.uniform(8, 56, (120, 2)), rng.uniform(6, 30, (120, 2))
    probabilities = rng.uniform(0, 1, (120, 2)) ** 3
    coefficients = rng.normal(0, 2, (120, PROTOTYPES))
    prototypes = rng.normal(0, 1, (PROTOTYPES, GRID, GRID))
    xywh = np.concatenate([centers, sizes], axis=1)
    return tuple(array.astype(np.float32) for array in (xywh, probabilities, coefficients, prototypes))  # type: ignore


def expected_objects(
    xyxy: NDArray[Any],
    scores: NDArray[Any],
    classes: NDArray[Any],
    coefficients: NDArray[Any],
    prototypes: NDArray[Any],
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
    """The 100 best boxes with their masks, as Ultralytics makes them, and the class scores that follow."""
    best = np.argsort(-scores, kind="stable")[:100]
    logits = np.einsum("km,mhw->khw", coefficients[best], prototypes)
    for mask, (left, top, right, bottom) in zip(logits, xyxy[best] * GRID / SIDE, strict=True):
        columns, rows = np.arange(GRID)[None], np.arange(GRID)[:, None]
        outside = ~((columns >= left) & (columns < right) & (rows >= top) & (rows < bottom))
        mask[outside] = -np.maximum(np.abs(mask[outside]), 6)
    probabilities = scores[best][:, None, None] / (1 + np.exp(-logits))
    maps = np.stack([probabilities[classes[best] == index].max(axis=0, initial=0.0) for index in range(2)])
    return scores[best], classes[best], logits, np.concatenate([1 - maps.max(axis=0, keepdims=True), maps])


def assert_folded(path: Path, folder: Path, expected: Any, num: int = 1) -> None:
    bundle = bundle_from_onnx(path, folder, classes=CLASSES)
    assert (bundle.classes, bundle.background) == (("background", *CLASSES), 0)
    assert bundle.has_objects
    images = np.zeros((num, 3, SIDE, SIDE), np.float32)
    scores, values, classes, masks = OnnxSession(bundle).run(images)
    for row in range(num):
        np.testing.assert_allclose(values[row], expected[0], rtol=1e-5)
        np.testing.assert_array_equal(classes[row], expected[1] + 1)
        np.testing.assert_allclose(masks[row], expected[2], atol=1e-4)
        np.testing.assert_allclose(scores[row], expected[3], atol=1e-5)


@pytest.mark.parametrize("form", ["classes", "objectness", "suppression in the graph"])
def test_yolo_seg_gives_the_masks_of_its_own_processing(tmp_path: Path, form: str) -> None:
    xywh, probabilities, coefficients, prototypes = boxes()
    xyxy = np.concatenate([xywh[:, :2] - xywh[:, 2:] / 2, xywh[:, :2] + xywh[:, 2:] / 2], axis=1)
    scores, classes = probabilities.max(axis=1), probabilities.argmax(axis=1)
    rows = np.concatenate([xywh, probabilities, coefficients], axis=1)
    if form == "objectness":
        certainty = np.random.default_rng(6).uniform(size=(120, 1)).astype(np.float32)
        rows, scores = np.concatenate([xywh, certainty, probabilities, coefficients], axis=1), scores * certainty[:, 0]
    elif form == "suppression in the graph":
        rows = np.concatenate([xyxy, scores[:, None], classes[:, None], coefficients], axis=1)
    output = rows.T if form == "classes" else rows
    path = detector(tmp_path / "yolo.onnx", output0=output.astype(np.float32), output1=prototypes)
    assert_folded(path, tmp_path / "b", expected_objects(xyxy, scores, classes, coefficients, prototypes), num=3)


def test_rf_detr_seg_gives_pairs_of_query_and_class(tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    labels, masks = rng.normal(0, 2, (30, 2)), rng.normal(0, 3, (30, GRID, GRID))
    pairs = 1 / (1 + np.exp(-labels.astype(np.float32).reshape(-1)))
    best = np.argsort(-pairs, kind="stable")[:100]
    probabilities = pairs[best][:, None, None] / (1 + np.exp(-masks[best // 2]))
    maps = np.stack([probabilities[best % 2 == index].max(axis=0) for index in range(2)])
    path = detector(
        tmp_path / "detr.onnx", batch=1, dets=np.zeros((30, 4), np.float32), labels=labels.astype(np.float32),
        masks=masks.astype(np.float32),
    )  # fmt: skip
    expected = pairs[best], best % 2, masks[best // 2], np.concatenate([1 - maps.max(axis=0, keepdims=True), maps])
    assert_folded(path, tmp_path / "b", expected)


def test_boxes_without_suppression_become_one_object_each(tmp_path: Path) -> None:
    # two boxes on one object, one on another
    rows = np.array([[16, 16, 16, 16, 0.9, 0, 9], [17, 16, 16, 16, 0.8, 0, 9], [48, 48, 16, 16, 0, 0.7, 9]], np.float32)
    filler = np.tile(np.array([[16, 16, 16, 16, 0.01, 0, 9]], np.float32), (60, 1))
    path = detector(
        tmp_path / "yolo.onnx", output0=np.concatenate([rows, filler]).T, output1=np.ones((1, GRID, GRID), np.float32)
    )
    bundle = bundle_from_onnx(path, tmp_path / "b", classes=CLASSES, background="none")
    predictor = SemanticPredictor(bundle, OnnxSession(bundle))
    taxonomy = Taxonomy.of_model(bundle)
    score_map = predictor.predict(np.zeros((128, 128, 3), np.uint8))
    found = find_instances(score_map, taxonomy, InstanceSettings(min_score=0.3))
    assert [(taxonomy.targets[instance.target], round(instance.score, 2)) for instance in found] == [
        ("cat", 0.9), ("dog", 0.7)
    ]  # fmt: skip
    assert found[1].box == (80, 80, 32, 32)


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ({"output0": (116, 840), "output1": (32, 16, 16)}, "80 classes; 2 names are given"),
        (
            {"dets": (30, 4), "labels": (30, 91), "masks": (30, 16, 16)},
            "has 91 classes, 2 names are given",
        ),
    ],
)
def test_another_number_of_classes_is_named(tmp_path: Path, outputs: dict[str, Any], message: str) -> None:
    arrays = {name: np.zeros(shape, np.float32) for name, shape in outputs.items()}
    with pytest.raises(UsageError, match=message):
        bundle_from_onnx(detector(tmp_path / "x.onnx", **arrays), tmp_path / "b", classes=CLASSES)
