"""Small ONNX models whose answer is in view: class = the strongest color channel."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from maskmill.export.bundle import Bundle
from maskmill.export.onnx import bundle_from_onnx

COLORS = ("red", "green", "blue")


def color_graph(
    *,
    size: tuple[int | str, int | str] = (16, 24),
    layout: str = "NCHW",
    batch: int | str = "N",
    gain: float = 10.0,
    stride: int = 1,
    final: str | None = None,
) -> onnx.ModelProto:
    """Image in [0, 1] → logits ``gain * (r, g, b)``, optionally average-pooled by ``stride``."""
    nodes, height, width = [], *size
    shape = [batch, 3, height, width] if layout == "NCHW" else [batch, height, width, 3]
    name = "image"
    if layout == "NHWC":
        nodes.append(helper.make_node("Transpose", [name], ["planes"], perm=[0, 3, 1, 2]))
        name = "planes"
    if stride > 1:
        nodes.append(
            helper.make_node("AveragePool", [name], ["small"], kernel_shape=[stride] * 2, strides=[stride] * 2)
        )
        name = "small"
    nodes.append(helper.make_node("Conv", [name, "weight"], ["logits"]))
    name = "logits"
    if final is not None:
        nodes.append(helper.make_node(final, [name], ["activated"], **({"axis": 1} if final == "Softmax" else {})))
        name = "activated"
    if layout == "NHWC":
        nodes.append(helper.make_node("Transpose", [name], ["scores"], perm=[0, 2, 3, 1]))
    else:
        nodes.append(helper.make_node("Identity", [name], ["scores"]))
    weight = numpy_helper.from_array((np.eye(3) * gain).astype(np.float32).reshape(3, 3, 1, 1), "weight")
    graph = helper.make_graph(
        nodes,
        "colors",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, None)],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return onnx.shape_inference.infer_shapes(model)


def color_bundle(
    folder: Path, *, classes: Sequence[str] = COLORS, background: str | None = None, **options: Any
) -> Bundle:
    """A bundle of :func:`color_graph` in ``folder / "bundle"``."""
    graph = {key: options.pop(key) for key in ("size", "layout", "batch", "gain", "stride", "final") if key in options}
    path = folder / "colors.onnx"
    onnx.save(color_graph(**graph), path)
    return bundle_from_onnx(
        path,
        folder / options.pop("name", "bundle"),
        classes=classes,
        background=background,
        layout=graph.get("layout", "NCHW"),
        **options,
    )


def color_image(label: np.ndarray, *, strength: int = 255) -> np.ndarray:
    """The photo (H, W, 3) uint8 that :func:`color_graph` labels as ``label`` (H, W), values 0 to 2."""
    return (np.eye(3)[label] * strength).astype(np.uint8)
