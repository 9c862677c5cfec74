"""ONNX files that somebody else exported: loaded, checked, and asked for their image input.

One clear error for each fault, before anything is run or written.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..engine.runtimes.base import first_line
from ..errors import BundleError, ExportError, UsageError


def load_checked(path: Path) -> Any:
    """The model without its external data, after the ONNX checker; raises :class:`BundleError`."""
    import onnx.checker

    if not path.is_file():
        raise UsageError(f"the model {path} does not exist")
    try:
        graph = onnx.load_model(path, load_external_data=False)
    except Exception as error:
        raise BundleError(f"{path} is not an ONNX file: {first_line(error)}") from error
    if not graph.graph.node:
        raise BundleError(f"{path} is not an ONNX file with a graph (it holds no node)")
    external_files(graph, path)
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:
        raise BundleError(f"the ONNX checker refuses {path}: {first_line(error)}") from error
    return graph


def external_files(graph: Any, path: Path) -> list[Path]:
    """Files with the graph's external data; raises where one would lie outside the model's folder."""
    folder = path.parent.resolve()
    found: list[Path] = []
    for tensor in _tensors(graph):
        if tensor.data_location != 1:  # TensorProto.EXTERNAL
            continue
        location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
        file = path.parent / location
        inside = location and not Path(location).is_absolute() and file.resolve().is_relative_to(folder)
        if not inside:
            raise BundleError(
                f"{path} keeps the weights {tensor.name!r} at {location!r}, outside its own folder; refused. "
                "Save the model with external data beside it"
            )
        if not file.is_file():
            raise BundleError(f"{path} needs its external data {file}, which does not exist")
        if file not in found:
            found.append(file)
    return found


def shape_of(value: Any) -> list[int | None]:
    """Sizes of a graph's input or output, None where they are free; empty where the graph does not say."""
    return [dim.dim_value or None for dim in value.type.tensor_type.shape.dim]


def image_input(graph: Any, layout: str, size: tuple[int, int] | None) -> tuple[str, tuple[int, int]]:
    """Name and (height, width) of the one input, a float32 batch of images; ``size`` where the graph leaves it free."""
    inputs = inputs_of(graph)
    if len(inputs) != 1:
        names = ", ".join(value.name for value in inputs) or "none"
        raise BundleError(f"expected a graph with one input, an image; this graph takes {len(inputs)} ({names})")
    value, shape = inputs[0], shape_of(inputs[0])
    if value.type.tensor_type.elem_type != 1:  # TensorProto.FLOAT
        raise BundleError(f"the input {value.name!r} must be float32; export the model with a float32 input")
    if len(shape) != 4:
        raise BundleError(f"the input {value.name!r} has {len(shape)} axes; an image batch has four ({layout})")
    channels, height, width = (shape[1], shape[2], shape[3]) if layout == "NCHW" else (shape[3], shape[1], shape[2])
    if channels not in (None, 3):
        other = "NHWC" if layout == "NCHW" else "NCHW"
        raise UsageError(
            f"the input {value.name!r} has shape {shape}, so in {layout} it takes {channels} channels instead of 3; "
            f"is its layout {other}?"
        )
    if size is None:
        if height is None or width is None:
            raise UsageError(f"the input {value.name!r} has no fixed size {shape}; give --size HEIGHTxWIDTH")
        return value.name, (height, width)
    if (height or size[0], width or size[1]) != tuple(size):
        raise UsageError(f"the graph takes {height}x{width} images (height x width), not {size[0]}x{size[1]}")
    return value.name, size


def inputs_of(graph: Any) -> list[Any]:
    """The values a graph must be fed with: old exporters list stored weights among the inputs, too."""
    stored = {tensor.name for tensor in graph.graph.initializer}
    return [value for value in graph.graph.input if value.name not in stored]


def _tensors(graph: Any) -> list[Any]:
    """Every tensor a model stores, in initializers and attributes, subgraphs included."""
    tensors, pending = [], [graph.graph]
    while pending:
        part = pending.pop()
        tensors.extend(part.initializer)
        for node in part.node:
            for attribute in node.attribute:
                tensors.extend([attribute.t] if attribute.HasField("t") else [])
                tensors.extend(attribute.tensors)
                pending.extend([attribute.g] if attribute.HasField("g") else [])
                pending.extend(attribute.graphs)
    return tensors


_FLOAT = 1  # TensorProto.DataType

LARGEST = {"fp16": 65504.0, "bf16": 3.3895313892515355e38}
"""Largest finite value of each 16-bit precision."""


_SMALL_WEIGHT = 1024  # elements: shapes and axes are read by type inference


def node_name(node: Any) -> str:
    """A node's name, or that of its first output where it has none."""
    return node.name or node.output[0]


def float_tensors(model: Any) -> frozenset[str]:
    """Names of the main graph's float32 tensors, initializers included; :class:`ExportError` where inference fails."""
    return frozenset(name for name, code in tensor_types(model).items() if code == _FLOAT)


def tensor_types(model: Any) -> dict[str, int]:
    """Name → element type (TensorProto.DataType) of the main graph's tensors; :class:`ExportError` where unknown."""
    import onnx.shape_inference

    try:
        graph = onnx.shape_inference.infer_shapes(_without_weights(model)).graph
    except Exception as error:
        raise ExportError(f"the types of the graph's tensors cannot be inferred: {error}") from error
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for value in (*graph.input, *graph.output, *graph.value_info):
        types[value.name] = value.type.tensor_type.elem_type
    return types


def _without_weights(model: Any) -> Any:
    """The graph with its large weights as inputs: protobuf cannot pass more than 2 GB on."""
    import onnx
    from onnx import helper

    graph = model.graph
    small = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    small.graph.name = graph.name
    small.graph.node.extend(graph.node)
    small.graph.input.extend(graph.input)
    small.graph.output.extend(graph.output)
    declared = {value.name for value in graph.input}
    for tensor in graph.initializer:
        if math.prod(tensor.dims) <= _SMALL_WEIGHT:
            small.graph.initializer.append(tensor)
        elif tensor.name not in declared:
            small.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return small


def captured_names(node: Any) -> Iterator[str]:
    """Names that the subgraphs of a node use, their own included."""
    for attribute in node.attribute:
        for graph in [attribute.g] if attribute.HasField("g") else attribute.graphs:
            yield from (value.name for value in graph.output)
            for inner in graph.node:
                yield from inner.input
                yield from captured_names(inner)


def at_least_opset(model: Any, version: int, why: str) -> Any:
    """The graph in opset ``version`` or the later one that it has; :class:`ExportError` with ``why`` if it cannot."""
    import onnx.version_converter

    current = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), version)
    if current >= version:
        return model
    try:
        return onnx.version_converter.convert_version(model, version)
    except Exception as error:
        raise ExportError(
            f"the graph (opset {current}) cannot be brought to opset {version}, the first with {why}: {error}; "
            "export the model with that opset"
        ) from error
