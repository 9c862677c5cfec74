"""Find the linear layer after the mean over positions in a classifier's graph, and replace it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...errors import BundleError

if TYPE_CHECKING:
    import onnx

_PASSED = ("Identity", "Dropout", "Flatten", "Reshape", "Squeeze", "Softmax", "Sigmoid")
"""Nodes between features and the output that leave a value unchanged, or turn logits into probabilities."""


@dataclass(frozen=True, kw_only=True)
class Head:
    """A linear layer on the mean of a map over all positions."""

    features: str
    """Name of the map (N, D, h, w)."""
    weight: NDArray[np.float32]
    """(C, D)."""
    bias: NDArray[np.float32]
    """(C,)."""


def classifier_head(model: onnx.ModelProto) -> Head:
    """Return the head of a classifier's graph; raises :class:`BundleError` if it has another form."""
    from onnx import numpy_helper

    producers = {name: node for node in model.graph.node for name in node.output}
    initializers = {tensor.name: tensor for tensor in model.graph.initializer}

    def constant(name: str) -> NDArray[Any] | None:
        node = producers.get(name)
        if name in initializers:
            return numpy_helper.to_array(initializers[name])
        if node is not None and node.op_type == "Constant":
            return numpy_helper.to_array(node.attribute[0].t)
        if node is not None and node.op_type in ("Identity", "Transpose"):
            value = constant(node.input[0])
            return value if value is None or node.op_type == "Identity" else value.T
        return None

    def refuse(node: onnx.NodeProto | None) -> BundleError:
        name = "the input" if node is None else f"{node.op_type} {node.name!r}".strip()
        return BundleError(
            f"the classifier's head is not a mean over all positions followed by a linear layer (it has {name}); "
            "export the model so that it gives its class activation maps, too"
        )

    def behind(name: str) -> tuple[onnx.NodeProto | None, str]:
        node = producers.get(name)
        while node is not None and node.op_type in _PASSED:
            name = node.input[0]
            node = producers.get(name)
        return node, name

    logits = next(value.name for value in model.graph.output if len(value.type.tensor_type.shape.dim) == 2)
    node, _ = behind(logits)
    bias: NDArray[Any] | None = None
    if node is not None and node.op_type == "Add":
        for index in (0, 1):
            if (bias := constant(node.input[index])) is not None:
                node, _ = behind(node.input[1 - index])
                break
    if node is None or node.op_type not in ("Gemm", "MatMul", "Conv"):
        raise refuse(node)
    weight = constant(node.input[1])
    if weight is None:
        raise refuse(node)
    attributes = {attribute.name: attribute for attribute in node.attribute}
    if node.op_type == "Gemm":
        transposed = "transB" in attributes and attributes["transB"].i
        weight = weight if transposed else weight.T
        weight = weight * (attributes["alpha"].f if "alpha" in attributes else 1.0)
        if len(node.input) > 2:
            constant_bias = constant(node.input[2])
            bias = (
                None
                if constant_bias is None
                else constant_bias * (attributes["beta"].f if "beta" in attributes else 1.0)
            )
    elif node.op_type == "MatMul":
        weight = weight.T
    else:
        if weight.shape[2:] != (1, 1):
            raise refuse(node)
        weight = weight[:, :, 0, 0]
        bias = constant(node.input[2]) if len(node.input) > 2 else bias
    pool, _ = behind(node.input[0])
    if pool is None or not (pool.op_type == "GlobalAveragePool" or _means_positions(pool, constant)):
        raise refuse(pool)
    bias = np.zeros(len(weight)) if bias is None else np.broadcast_to(np.ravel(bias), len(weight))
    return Head(features=pool.input[0], weight=np.asarray(weight, np.float32), bias=np.asarray(bias, np.float32))


def _means_positions(node: onnx.NodeProto, constant: Callable[[str], NDArray[Any] | None]) -> bool:
    if node.op_type != "ReduceMean":
        return False
    axes = next((list(attribute.ints) for attribute in node.attribute if attribute.name == "axes"), None)
    if axes is None and len(node.input) > 1:
        values = constant(node.input[1])
        axes = None if values is None else values.tolist()
    return axes is not None and {axis % 4 for axis in axes} == {2, 3}


def with_head(model: onnx.ModelProto, image: str, head: Head) -> onnx.ModelProto:
    """Cut a model after the head's features and append this head, applied at each position and to their mean.

    The new model takes ``image`` and gives ``cam`` (N, C, h, w), ``logits`` (N, C) and ``features``. Raises
    :class:`BundleError` if the features do not depend on the image alone.
    """
    import onnx.shape_inference
    import onnx.utils
    from onnx import TensorProto, helper, numpy_helper

    features, weight = head.features, head.weight
    inferred = onnx.shape_inference.infer_shapes(model)
    if features not in {value.name for value in (*inferred.graph.value_info, *inferred.graph.output)}:
        inferred.graph.value_info.append(helper.make_tensor_value_info(features, TensorProto.FLOAT, [None] * 4))
    try:
        trunk = onnx.utils.Extractor(inferred).extract_model([image], [features])
    except Exception as error:
        raise BundleError(f"cannot cut the model behind {features!r}: {error}") from error
    nodes, tensors = list(trunk.graph.node), {name for node in trunk.graph.node for name in node.output}
    new_names = {name: f"trunk_{name}" for name in ("cam", "logits", "features") if name in tensors}
    for node in nodes:
        for names in (node.input, node.output):
            names[:] = [new_names.get(name, name) for name in names]
    feature_name = new_names.get(features, features)
    nodes += [
        helper.make_node("Identity", [feature_name], ["features"]),
        helper.make_node("Conv", ["features", "head_weight"], ["cam"], kernel_shape=[1, 1]),
        helper.make_node("GlobalAveragePool", ["cam"], ["head_mean"]),
        helper.make_node("Flatten", ["head_mean"], ["head_flat"], axis=1),
        helper.make_node("Add", ["head_flat", "head_bias"], ["logits"]),
    ]
    num, depth = weight.shape
    batch = trunk.graph.input[0].type.tensor_type.shape.dim[0].dim_param or None
    outputs = {"cam": [batch, num, None, None], "logits": [batch, num], "features": [batch, depth, None, None]}
    graph = helper.make_graph(
        nodes,
        trunk.graph.name or "classifier",
        trunk.graph.input,
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        [
            *trunk.graph.initializer,
            numpy_helper.from_array(np.ascontiguousarray(weight[:, :, None, None], np.float32), "head_weight"),
            numpy_helper.from_array(np.ascontiguousarray(head.bias, np.float32), "head_bias"),
        ],
    )
    result = helper.make_model(
        graph, opset_imports=trunk.opset_import, ir_version=trunk.ir_version, functions=trunk.functions
    )
    onnx.checker.check_model(result)
    return result
