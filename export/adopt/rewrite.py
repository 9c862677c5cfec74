"""Edit a graph on import, so that it matches a bundle's definition: float32 images in, class scores out.

Each function returns a sentence for the manifest, empty if the graph needed no edit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...engine.model.bundle import Activation
from ...errors import BundleError
from ..graph import FLOAT, inputs_of, node_name, tensor_types

if TYPE_CHECKING:
    import onnx

INTEGERS = {2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64"}
"""Integer element types (TensorProto.DataType) of an input that takes raw pixels."""
_FLOATS = {10: "float16", 11: "float64", 16: "bfloat16"}

_FROZEN = "the graph leaves it free in its signature and freezes it inside"
_BEHIND_ARGMAX = ("Cast", "Identity", "Squeeze", "Unsqueeze", "Reshape", "Resize", "Transpose")


def cast_input(model: onnx.ModelProto) -> tuple[str, str]:
    """Give a graph whose only input has another number type a float32 input, followed by a Cast.

    Returns the type that the graph had (empty for float32) and the sentence for the manifest.
    """
    inputs = inputs_of(model)
    return cast_to_input(model, inputs[0]) if len(inputs) == 1 else ("", "")


def cast_to_input(model: onnx.ModelProto, value: onnx.ValueInfoProto) -> tuple[str, str]:
    """Give one input of another number type the type float32; returns as :func:`cast_input` does."""
    from onnx import helper

    code = value.type.tensor_type.elem_type
    kind = {**INTEGERS, **_FLOATS}.get(code, "")
    if not kind:
        return "", ""
    name = value.name
    inner = _unused_name(model, f"{name}_{kind}")
    _rename_readers(model, name, inner)
    value.type.tensor_type.elem_type = FLOAT
    model.graph.node.insert(0, helper.make_node("Cast", [name], [inner], name=f"/{inner}", to=code))
    return kind, f"the input {name} takes float32 and is cast to {kind}, which the graph expects"


def batch_image(model: onnx.ModelProto, height: int, width: int) -> str:
    """Replace an image (H, W, 3), the only input of a graph, by a batch of one image of this size.

    Returns the sentence for the manifest, empty if the input has another shape.
    """
    from onnx import helper, numpy_helper

    inputs = inputs_of(model)
    if len(inputs) != 1:
        return ""
    dims = inputs[0].type.tensor_type.shape.dim
    if len(dims) != 3 or dims[2].dim_value != 3:
        return ""
    name = inputs[0].name
    inner, shape = _unused_name(model, f"{name}_image"), _unused_name(model, f"{name}_shape")
    _rename_readers(model, name, inner)
    model.graph.initializer.append(numpy_helper.from_array(np.array([height, width, 3], np.int64), shape))
    model.graph.node.insert(0, helper.make_node("Reshape", [name, shape], [inner], name=f"/{inner}"))
    del dims[:]
    for size in (1, height, width, 3):
        dims.add().dim_value = size
    return f"the input {name} is a batch of one image; the graph takes the image alone"


def bake_inputs(model: onnx.ModelProto, values: Mapping[str, Sequence[int] | NDArray[np.float32]]) -> list[str]:
    """Replace inputs by constants; returns the sentences for the manifest."""
    from onnx import helper, numpy_helper

    sentences = []
    for value in list(model.graph.input):
        if value.name in values:
            dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
            array = np.asarray(values[value.name]).astype(dtype)
            model.graph.input.remove(value)
            model.graph.initializer.append(numpy_helper.from_array(array, value.name))
            sentences.append(f"the input {value.name} is a constant: there is never an earlier mask")
    return sentences


def rename_input(model: onnx.ModelProto, name: str, new_name: str) -> None:
    """Give an input another name."""
    for value in model.graph.input:
        if value.name == name:
            value.name = new_name
            _rename_readers(model, name, new_name)


def cut_argmax(model: onnx.ModelProto, output: str) -> tuple[str, str]:
    """Remove a final ArgMax, with the casts and resizes of labels after it, so that ``output`` becomes its scores.

    Returns the name of the score tensor (``output`` if the graph does not end in an ArgMax) and the sentence for the
    manifest.
    """
    from onnx import helper

    producers = {name: node for node in model.graph.node for name in node.output}
    node, chain = producers.get(output), []
    while node is not None and node.op_type in _BEHIND_ARGMAX:
        chain.append(node)
        node = producers.get(node.input[0])
    if node is None or node.op_type != "ArgMax":
        return output, ""
    scores = node.input[0]
    types = tensor_types(model)
    position = next(index for index, value in enumerate(model.graph.output) if value.name == output)
    del model.graph.output[position]
    shape = _inferred_shape(model, scores)
    model.graph.output.insert(position, helper.make_tensor_value_info(scores, types.get(scores, FLOAT), shape))
    _remove_unused(model, [*chain, node])
    return scores, f"the final ArgMax {node_name(node)} was removed, so the output is {scores}"


def add_complement(
    model: onnx.ModelProto, output: str, class_axis: int, activation: Activation, background_first: bool
) -> tuple[str, Activation, str]:
    """Give a graph with one channel a second one for the background, at one minus the class's probability.

    Logits z become the pair (0, z) with a softmax, whose second score is the sigmoid of z; probabilities p become the
    pair (1 - p, p). Returns the new output's name, its activation and the sentence for the manifest.
    """
    from onnx import helper, numpy_helper

    value = next(value for value in model.graph.output if value.name == output)
    code = value.type.tensor_type.elem_type
    dtype = helper.tensor_dtype_to_np_dtype(code)
    scores, constant, complement = (
        _unused_name(model, name) for name in ("scores", "complement_constant", "complement")
    )
    if activation == "sigmoid":
        number, operator, operands = 0, "Mul", [output, constant]
    else:
        number, operator, operands = 1, "Sub", [constant, output]
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(number).astype(dtype), constant))
    channels = [complement, output] if background_first else [output, complement]
    model.graph.node.extend(
        [
            helper.make_node(operator, operands, [complement], name=f"/{complement}"),
            helper.make_node("Concat", channels, [scores], name=f"/{scores}", axis=class_axis),
        ]
    )
    shape: list[Any] = [dim.dim_param or dim.dim_value or None for dim in value.type.tensor_type.shape.dim]
    if len(shape) == 4:
        shape[class_axis] = 2
    position = list(model.graph.output).index(value)
    del model.graph.output[position]
    model.graph.output.insert(position, helper.make_tensor_value_info(scores, code, shape or None))
    formula = "logits 0 and z" if activation == "sigmoid" else "1 - p and p"
    sentence = f"the output {output} has one channel; {scores} has two, background and class, with {formula}"
    return scores, "softmax" if activation == "sigmoid" else "none", sentence


def add_rescaling(
    model: onnx.ModelProto,
    output: str,
    class_axis: int,
    scale: float,
    offsets: Sequence[float],
    *,
    smallest: float | None,
) -> tuple[str, str]:
    """Multiply the values z of an output by ``scale``, and add an offset per class.

    With ``smallest`` the values are probabilities: z is the logarithm of their maximum with it. Returns the new
    output's name and the sentence for the manifest.
    """
    from onnx import helper, numpy_helper

    value = next(value for value in model.graph.output if value.name == output)
    code = value.type.tensor_type.elem_type
    dtype = helper.tensor_dtype_to_np_dtype(code)
    scores = _unused_name(model, "rescaled")
    current = output

    def append(operator: str, constant: Any, target: str) -> None:
        nonlocal current
        operands = [current]
        if constant is not None:
            operands.append(f"{target}_constant")
            model.graph.initializer.append(numpy_helper.from_array(np.asarray(constant).astype(dtype), operands[1]))
        model.graph.node.append(helper.make_node(operator, operands, [target], name=f"/{target}"))
        current = target

    if smallest is not None:
        append("Max", smallest, _unused_name(model, "rescaled_positive"))
        append("Log", None, _unused_name(model, "rescaled_logarithm"))
    append("Mul", scale, _unused_name(model, "rescaled_product"))
    shape = [1, 1, 1, 1]
    shape[class_axis] = len(offsets)
    append("Add", np.reshape(offsets, shape), scores)
    dims: list[Any] = [dim.dim_param or dim.dim_value or None for dim in value.type.tensor_type.shape.dim]
    position = list(model.graph.output).index(value)
    del model.graph.output[position]
    model.graph.output.insert(position, helper.make_tensor_value_info(scores, code, dims or None))
    kind = "logarithms" if smallest is not None else "values"
    return scores, f"the {kind} of the output {output} are multiplied by {scale:.4g}, with an offset per class"


def freeze_batch(model: onnx.ModelProto, batch: int, reason: str = _FROZEN) -> str:
    """Declare the batch that the graph takes in its signature; returns the sentence for the manifest."""
    names = set()
    for value in (*inputs_of(model), *model.graph.output):
        dims = value.type.tensor_type.shape.dim
        if dims and not dims[0].dim_value:
            names.add(dims[0].dim_param)
            dims[0].dim_value = batch
    for value in model.graph.value_info:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param and dim.dim_param in names:
                dim.dim_value = batch
    return f"the batch is fixed to {batch}: {reason}"


def expose_features(model: onnx.ModelProto, tensor: str) -> tuple[str, str]:
    """Make a tensor of the main graph an output; returns its name and the sentence for the manifest.

    Raises :class:`BundleError` if there is no such tensor.
    """
    from onnx import helper

    if any(value.name == tensor for value in model.graph.output):
        return tensor, ""
    if not any(tensor in node.output for node in model.graph.node):
        raise BundleError(f"the graph has no tensor {tensor!r} to take features from; see its nodes' outputs")
    code = tensor_types(model).get(tensor, FLOAT)
    model.graph.output.append(helper.make_tensor_value_info(tensor, code, _inferred_shape(model, tensor)))
    return tensor, f"the tensor {tensor} became an output"


def refuse_training_nodes(model: onnx.ModelProto) -> None:
    """Raise :class:`BundleError`, naming the node, for a batch normalization or a dropout in training mode.

    Such a node makes an image's labels random, or dependent on the other images of its batch.
    """
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for graph in _graphs(model.graph):
        for node in graph.node:
            if node.domain not in ("", "ai.onnx"):
                continue
            attributes = {attribute.name: attribute for attribute in node.attribute}
            if node.op_type == "BatchNormalization":
                flag = "training_mode" in attributes and attributes["training_mode"].i
                training = bool(flag) if opset >= 14 else sum(map(bool, node.output)) > 1
                effect = "an image's labels would depend on the images beside it"
            elif node.op_type == "Dropout" and len(node.input) > 2 and node.input[2] in constants:
                training = _is_true(constants[node.input[2]])
                effect = "labels would depend on chance"
            else:
                continue
            if training:
                raise BundleError(
                    f"the node {node_name(node)} is a {node.op_type} in training mode, so {effect}; "
                    "export the model in evaluation mode (model.eval())"
                )


def _is_true(tensor: onnx.TensorProto) -> bool:
    from onnx import numpy_helper

    return bool(np.any(numpy_helper.to_array(tensor)))


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield a graph and its subgraphs."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                yield from _graphs(inner)


def _rename_readers(model: onnx.ModelProto, name: str, new_name: str) -> None:
    for graph in _graphs(model.graph):
        for node in graph.node:
            node.input[:] = [new_name if tensor == name else tensor for tensor in node.input]


def _unused_name(model: onnx.ModelProto, name: str) -> str:
    used = {tensor for graph in _graphs(model.graph) for node in graph.node for tensor in (*node.input, *node.output)}
    used |= {value.name for value in (*model.graph.input, *model.graph.output)}
    return next(text for text in (name, *(f"{name}_{number}" for number in range(1, 1000))) if text not in used)


def _inferred_shape(model: onnx.ModelProto, tensor: str) -> list[Any] | None:
    """Return the shape of a tensor, from the graph or from inference; None if it is unknown."""
    import onnx.shape_inference

    values = [value for value in model.graph.value_info if value.name == tensor]
    if not values:
        try:
            inferred = onnx.shape_inference.infer_shapes(model)
        except Exception:
            return None  # shapes are optional here; the trial run checks the real ones
        values = [value for value in inferred.graph.value_info if value.name == tensor]
    if not values or not values[0].type.tensor_type.HasField("shape"):
        return None
    return [dim.dim_param or dim.dim_value or None for dim in values[0].type.tensor_type.shape.dim]


def _remove_unused(model: onnx.ModelProto, nodes: list[onnx.NodeProto]) -> None:
    """Remove those of ``nodes``, last first, whose outputs nothing reads any more."""
    for node in nodes:
        inputs = {tensor for graph in _graphs(model.graph) for other in graph.node for tensor in other.input}
        inputs |= {value.name for value in model.graph.output}
        if inputs.isdisjoint(node.output):
            model.graph.node.remove(node)
