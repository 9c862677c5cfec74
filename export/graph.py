"""ONNX graphs: load and check a file, find its image input, and infer the types of its tensors.

Every fault raises an error before anything is run or written.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ..engine.model.input_spec import Layout
from ..engine.runtimes.base import first_line
from ..errors import BundleError, ExportError, UsageError

if TYPE_CHECKING:
    import onnx

FLOAT = 1  # TensorProto.DataType.FLOAT
_EXTERNAL = 1  # TensorProto.DataLocation.EXTERNAL
_SMALL_WEIGHT = 1024  # in elements: type inference reads the values of small tensors, such as shapes and axes

LARGEST = {"fp16": 65504.0, "bf16": 3.3895313892515355e38}
"""Largest finite value of each 16-bit precision."""


def load_checked(path: Path, changes: list[str] | None = None) -> onnx.ModelProto:
    """Load a model without its external data and run the ONNX checker on it.

    Nodes that are not in the order of their inputs are sorted, which adds a sentence to ``changes``. Raises
    :class:`UsageError` for a file that does not exist, :class:`BundleError` for one that is no valid model.
    """
    import onnx.checker

    if not path.is_file():
        raise UsageError(f"the model {path} does not exist")
    try:
        model = onnx.load_model(path, load_external_data=False)
    except Exception as error:
        raise BundleError(f"{path} is not an ONNX file: {first_line(error)}") from error
    if not model.graph.node:
        raise BundleError(f"{path} is not an ONNX file with a graph (it holds no node)")
    external_files(model, path)
    is_sorted = not sort_nodes(model)
    if not is_sorted and changes is not None:
        changes.append("the nodes were sorted into the order of their inputs")
    try:
        onnx.checker.check_model(str(path) if is_sorted else _without_weights(model), full_check=True)
    except Exception as error:
        raise BundleError(f"the ONNX checker refuses {path}: {first_line(error)}") from error
    return model


def sort_nodes(model: onnx.ModelProto) -> bool:
    """Put the main graph's nodes after the nodes that make their inputs; return True if that moved any.

    The order is otherwise kept. A graph with a cycle stays as it is, and the checker refuses it.
    """
    nodes = list(model.graph.node)
    makers = {name: index for index, node in enumerate(nodes) for name in node.output if name}
    needs = [
        {makers[name] for name in (*node.input, *captured_names(node)) if name in makers and makers[name] != index}
        for index, node in enumerate(nodes)
    ]
    if all(max(indices, default=-1) < index for index, indices in enumerate(needs)):
        return False
    readers: dict[int, list[int]] = {}
    for index, indices in enumerate(needs):
        for maker in indices:
            readers.setdefault(maker, []).append(index)
    pending = [len(indices) for indices in needs]
    queue = [index for index, count in enumerate(pending) if not count]
    order: list[int] = []
    while queue:
        index = heapq.heappop(queue)
        order.append(index)
        for reader in readers.get(index, ()):
            pending[reader] -= 1
            if not pending[reader]:
                heapq.heappush(queue, reader)
    if len(order) < len(nodes):
        return False
    del model.graph.node[:]
    model.graph.node.extend([nodes[index] for index in order])
    return True


def external_files(model: onnx.ModelProto, path: Path) -> list[Path]:
    """Return the files with the model's external data; raises :class:`BundleError` for one outside its folder."""
    folder = path.parent.resolve()
    files: list[Path] = []
    for tensor in _tensors(model):
        if tensor.data_location != _EXTERNAL:
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
        if file not in files:
            files.append(file)
    return files


def shape_of(value: onnx.ValueInfoProto) -> list[int | None]:
    """Return the sizes of a graph's input or output, None for a free one; empty if the graph does not state them."""
    return [dim.dim_value or None for dim in value.type.tensor_type.shape.dim]


def image_input(
    model: onnx.ModelProto, layout: Layout, size: tuple[int, int] | None, num_bands: int | None = None
) -> tuple[str, tuple[int, int]]:
    """Return the name and the (height, width) of the one input, a float32 batch of images.

    ``size`` is used if the graph leaves it free; ``num_bands`` is None for photos. Raises :class:`BundleError` for
    another input, :class:`UsageError` for options that contradict it.
    """
    inputs = inputs_of(model)
    if len(inputs) != 1:
        names = ", ".join(value.name for value in inputs) or "none"
        raise BundleError(f"expected a graph with one input, an image; this graph takes {len(inputs)} ({names})")
    value, shape = inputs[0], shape_of(inputs[0])
    if value.type.tensor_type.elem_type != FLOAT:
        raise BundleError(f"the input {value.name!r} must hold numbers; export the model with a float32 input")
    if len(shape) != 4:
        raise BundleError(f"the input {value.name!r} has {len(shape)} axes; an image batch has four ({layout})")
    channels, height, width = (shape[1], shape[2], shape[3]) if layout == "NCHW" else (shape[3], shape[1], shape[2])
    num_channels = 3 if num_bands is None else num_bands
    if channels not in (None, num_channels):
        other_layout = "NHWC" if layout == "NCHW" else "NCHW"
        fed = "a photo has 3" if num_bands is None else f"you named {num_bands} bands"
        hint = f"is its layout {other_layout}?" if num_channels in shape else f"name its {channels} bands with --bands"
        raise UsageError(
            f"the input {value.name!r} has shape {shape}, so in {layout} it takes {channels} channels, and "
            f"{fed}; {hint}"
        )
    if size is None:
        if height is None or width is None:
            raise UsageError(f"the input {value.name!r} has no fixed size {shape}; give --size HEIGHTxWIDTH")
        return value.name, (height, width)
    if (height or size[0], width or size[1]) != tuple(size):
        raise UsageError(f"the graph takes {height}x{width} images (height x width), not {size[0]}x{size[1]}")
    return value.name, size


def inputs_of(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Return the inputs that a caller must feed; old exporters also list stored weights as inputs."""
    stored = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in stored]


def _tensors(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    """Return every tensor that a model stores, in initializers and attributes, subgraphs included."""
    tensors: list[onnx.TensorProto] = []
    pending = [model.graph]
    while pending:
        graph = pending.pop()
        tensors.extend(graph.initializer)
        for node in graph.node:
            for attribute in node.attribute:
                tensors.extend([attribute.t] if attribute.HasField("t") else [])
                tensors.extend(attribute.tensors)
                pending.extend([attribute.g] if attribute.HasField("g") else [])
                pending.extend(attribute.graphs)
    return tensors


def node_name(node: onnx.NodeProto) -> str:
    """Return a node's name, or that of its first output if it has none."""
    return node.name or node.output[0]


def float_tensors(model: onnx.ModelProto) -> frozenset[str]:
    """Return the names of the main graph's float32 tensors, initializers included.

    Raises :class:`ExportError` if type inference fails.
    """
    return frozenset(name for name, code in tensor_types(model).items() if code == FLOAT)


def tensor_types(model: onnx.ModelProto) -> dict[str, int]:
    """Map the names of the main graph's tensors to their element types (TensorProto.DataType).

    Raises :class:`ExportError` if type inference fails.
    """
    import onnx.shape_inference

    try:
        graph = onnx.shape_inference.infer_shapes(_without_weights(model)).graph
    except Exception as error:
        raise ExportError(f"the types of the graph's tensors cannot be inferred: {error}") from error
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for value in (*graph.input, *graph.output, *graph.value_info):
        types[value.name] = value.type.tensor_type.elem_type
    return types


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Copy the graph with its large weights as inputs, since a protobuf message is limited to 2 GB."""
    import onnx
    from onnx import helper

    graph = model.graph
    copy = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    copy.graph.name = graph.name
    copy.graph.node.extend(graph.node)
    copy.graph.input.extend(graph.input)
    copy.graph.output.extend(graph.output)
    declared = {value.name for value in graph.input}
    for tensor in graph.initializer:
        if math.prod(tensor.dims) <= _SMALL_WEIGHT and tensor.data_location != _EXTERNAL:
            copy.graph.initializer.append(tensor)
        elif tensor.name not in declared:
            copy.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return copy


def captured_names(node: onnx.NodeProto) -> Iterator[str]:
    """Yield the names that the subgraphs of a node use, their own included."""
    for attribute in node.attribute:
        for graph in [attribute.g] if attribute.HasField("g") else attribute.graphs:
            yield from (value.name for value in graph.output)
            for inner in graph.node:
                yield from inner.input
                yield from captured_names(inner)


def at_least_opset(model: onnx.ModelProto, version: int, feature: str) -> onnx.ModelProto:
    """Convert the graph to opset ``version``, the first with ``feature``, unless it has that or a later one.

    Raises :class:`ExportError` if it cannot be converted.
    """
    import onnx.version_converter

    current = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), version)
    if current >= version:
        return model
    try:
        return onnx.version_converter.convert_version(model, version)
    except Exception as error:
        raise ExportError(
            f"the graph (opset {current}) cannot be brought to opset {version}, the first with {feature}: {error}; "
            "export the model with that opset"
        ) from error
