"""Detectors of every layout of boxes, from graphs made here, become one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from maskmill.engine.runtimes.onnx_runtime import OnnxSession
from maskmill.errors import BundleError, UsageError
from maskmill.export.adopt.boxes import detector_from_onnx

from ...models import detector_bundle, detector_graph

BOXES = [(4.0, 4.0, 20.0, 20.0), (26.0, 12.0, 42.0, 28.0), (0.0, 0.0, 6.0, 6.0)] + [(1.0, 1.0, 4.0, 4.0)] * 40


@pytest.mark.parametrize(
    ("outputs", "coefficients"),
    [("detr", 0), ("yolo", 0), ("yolo", 3), ("yolo-rows", 0), ("yolov5", 0), ("yolo-nms", 0)],
)
def test_boxes_become_corners_with_class_scores(tmp_path: Path, outputs: str, coefficients: int) -> None:
    bundle = detector_bundle(tmp_path, BOXES, outputs=outputs, coefficients=coefficients)
    assert (bundle.task, bundle.classes) == ("detector", ("red", "green"))
    image = np.full((2, 3, 32, 48), 0.4, np.float32)
    image[1, :, 4:20, 4:20] = np.float32([1, 0, 0])[:, None, None]
    boxes, scores = OnnxSession(bundle).run(image)
    expected = np.tile(np.float32(BOXES) / np.float32([48, 32, 48, 32]), (2, 1, 1))
    np.testing.assert_allclose(boxes, expected, atol=1e-5)
    low = 0 if outputs == "yolo-nms" else 0.01  # the graph knows the best class only
    np.testing.assert_allclose(scores[1, :2], [[0.99, low], [0.01, low]], atol=1e-5)


def test_a_softmax_over_one_class_more_drops_the_last(tmp_path: Path) -> None:
    onnx.save(detector_graph(BOXES), tmp_path / "detr.onnx")
    bundle = detector_from_onnx(tmp_path / "detr.onnx", tmp_path / "detr", classes=("red",))
    _, scores = OnnxSession(bundle).run(np.full((1, 3, 32, 48), 0.4, np.float32))
    np.testing.assert_allclose(scores, 0.5, atol=1e-5)  # red and no object are equal here


def test_an_unknown_layout_is_named_with_what_to_do(tmp_path: Path) -> None:
    onnx.save(detector_graph(BOXES, outputs="yolo"), tmp_path / "yolo.onnx")
    with pytest.raises(
        UsageError, match=r"output0 \[None, 6, 43\], which is not a known layout of boxes for 7 classes"
    ):
        detector_from_onnx(tmp_path / "yolo.onnx", tmp_path / "out", classes=list("abcdefg"))
    onnx.save(detector_graph(BOXES), tmp_path / "detr.onnx")
    with pytest.raises(BundleError, match=r"must lie in \[0, 1\]; state the layout"):
        detector_from_onnx(tmp_path / "detr.onnx", tmp_path / "out", classes=("a", "b"), activation="none")
    assert not (tmp_path / "out").exists()
