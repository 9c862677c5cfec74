"""Emulate a 16-bit graph on a processor, and measure the largest magnitude of every tensor.

ONNX Runtime's CPU provider computes fp16 graphs in fp32 and has no bf16 convolution, so running an artifact there does
not test its range. An emulation does: the same graph in fp32, in which every 16-bit tensor of the artifact is cast to
16 bits and back after the node that makes it, so that values that overflow become infinite::

    session = GraphSession(emulation(converted), bundle, role="model", kind="onnxruntime/cpu/fp16", artifact=digest)

Arithmetic inside a node (whether sums are in fp32) is not emulated; the gate's run on the device covers it.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...engine.model.bundle import Bundle
from ...engine.runtimes.base import Session, first_line
from ...engine.runtimes.onnx_runtime import run_graph, session_settings
from ...errors import ExportError, MissingPackageError, SessionError
from ..graph import LARGEST, float_tensors, node_name, tensor_types

if TYPE_CHECKING:
    import onnx
    from onnxruntime import InferenceSession

_FLOAT, _FLOAT16, _BFLOAT16 = 1, 10, 16  # TensorProto.DataType
_LOWEST = 3.4028234663852886e38  # magnitude of the lowest float32 number
_LARGEST_MESSAGE = 2**31 - 1
_PROBE = "largest magnitude of "

# these operators pass on values that were already rounded
_MOVES = frozenset(
    ("Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "Identity", "MaxPool", "Relu", "Reshape", "Slice")
    + ("SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze", "Where")
)


def emulation(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return an fp32 graph with the outputs that the 16-bit graph ``model`` has in 16-bit arithmetic.

    Raises :class:`ExportError` for 16-bit tensors within subgraphs.
    """
    import onnx
    from onnx import helper

    types = {name: code for name, code in tensor_types(model).items() if code in (_FLOAT16, _BFLOAT16)}
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    for index, tensor in enumerate(graph.initializer):
        if tensor.data_type in (_FLOAT16, _BFLOAT16):
            graph.initializer[index].CopyFrom(_widened(tensor))
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type in (_FLOAT16, _BFLOAT16):
            value.type.tensor_type.elem_type = _FLOAT
    nodes = []
    for node in graph.node:
        _widen_attributes(node)
        nodes.append(node)
        if node.op_type in _MOVES:
            continue
        for index, name in enumerate(node.output):
            if name in types:
                node.output[index] = f"{name}.unrounded"
                nodes.append(helper.make_node("Cast", [f"{name}.unrounded"], [f"{name}.rounded"], to=types[name]))
                nodes.append(helper.make_node("Cast", [f"{name}.rounded"], [name], to=_FLOAT))
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.value_info[:]
    return result


def with_probes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return an fp32 graph that also outputs the largest magnitude of every float tensor that its nodes make.

    Infinity, as in attention masks, does not count: every precision has one.
    """
    import onnx
    from onnx import helper, numpy_helper

    floats = float_tensors(model)
    result = onnx.ModelProto()
    result.CopyFrom(model)
    zero, infinity = f"{_PROBE}zero", f"{_PROBE}infinity"
    for name, value in ((zero, 0), (infinity, np.inf)):
        result.graph.initializer.append(numpy_helper.from_array(np.float32(value), name))
    for node in model.graph.node:
        for name in node.output:
            if name in floats and node.op_type != "Constant":
                target = _PROBE + name
                size, is_finite, finite = (f"{target}, {part}" for part in ("abs", "is finite", "finite"))
                result.graph.node.append(helper.make_node("Abs", [name], [size]))
                result.graph.node.append(helper.make_node("Less", [size, infinity], [is_finite]))
                result.graph.node.append(helper.make_node("Where", [is_finite, size, zero], [finite]))
                result.graph.node.append(helper.make_node("ReduceMax", [finite], [target], keepdims=0))
                result.graph.output.append(helper.make_tensor_value_info(target, _FLOAT, []))
    return result


class GraphSession:
    """Run a graph that is not a bundle's file on ONNX Runtime's CPU provider: an emulation, or an original with probes.

    ``kind`` and ``artifact`` are those of the artifact that it represents. ``magnitudes`` holds the largest magnitude
    of each probed tensor so far.
    """

    def __init__(
        self, model: onnx.ModelProto, bundle: Bundle, *, role: str = "model", kind: str, artifact: str, threads: int = 1
    ) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise MissingPackageError("onnxruntime", "cpu", "the gate") from error
        # errors are raised, not logged
        settings = session_settings(kind.rpartition("/")[2], threads, log_severity=4)
        try:
            self._session = _load(onnxruntime, model, settings)
        except Exception as error:
            raise SessionError(f"ONNX Runtime cannot load the {kind} graph: {first_line(error)}") from error
        self.kind: str = kind
        self.artifact: str = artifact
        self.threads: int = threads
        self.magnitudes: dict[str, float] = {}
        batch = self._session.get_inputs()[0].shape[0]
        self.max_batch: int | None = batch if isinstance(batch, int) else None
        self._input = bundle.input.name
        self._outputs = [output.name for output in bundle.outputs_of(role)]
        names = [output.name for output in self._session.get_outputs()]
        self._probes = [name for name in names if name.startswith(_PROBE)]

    def run(self, inputs: NDArray[np.float32] | Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Run the graph as :meth:`maskmill.engine.runtimes.base.Session.run` does, and read the probes."""
        feeds = inputs if isinstance(inputs, Mapping) else {self._input: inputs}
        try:
            values = run_graph(self._session, [*self._outputs, *self._probes], dict(feeds))
        except Exception as error:
            raise SessionError(f"the {self.kind} graph failed: {first_line(error)}") from error
        for name, value in zip(self._probes, values[len(self._outputs) :], strict=True):
            tensor = name.removeprefix(_PROBE)
            self.magnitudes[tensor] = max(self.magnitudes.get(tensor, 0.0), float(value))
        return values[: len(self._outputs)]


class Memory:
    """Wrap a session and remember its outputs, for searches over the same images."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.kind: str = session.kind
        self.artifact: str = session.artifact
        self.max_batch: int | None = session.max_batch
        self.threads: int = session.threads
        self._known: dict[bytes, list[NDArray[Any]]] = {}

    def run(self, inputs: Any) -> list[NDArray[Any]]:
        """Return the remembered outputs for these inputs, or run the session."""
        digest = hashlib.sha256()
        for array in inputs.values() if isinstance(inputs, Mapping) else (inputs,):
            digest.update(np.ascontiguousarray(array).data)
        key = digest.digest()
        if key not in self._known:
            self._known[key] = self._session.run(inputs)
        return self._known[key]


def magnitudes_beyond(model: onnx.ModelProto, magnitudes: Mapping[str, float], limit: float) -> dict[str, float]:
    """Map nodes of an original that make a tensor beyond ``limit``, in the graph's order, to its magnitude.

    Attention masks that hold the lowest float32 number do not count, since a conversion maps them into range.
    """
    nodes: dict[str, float] = {}
    for node in model.graph.node:
        largest = max((magnitudes.get(name, 0.0) for name in node.output), default=0.0)
        if largest > limit and not _is_mask(largest):
            nodes[node_name(node)] = largest
    return nodes


def nodes_touching(model: onnx.ModelProto, magnitudes: Mapping[str, float], precision: str) -> frozenset[str]:
    """Return the nodes that make or read a tensor too large for ``precision``; none of them can run in it."""
    beyond = {name for name, largest in magnitudes.items() if largest > LARGEST[precision] and not _is_mask(largest)}
    return frozenset(node_name(node) for node in model.graph.node if not beyond.isdisjoint((*node.input, *node.output)))


def _is_mask(magnitude: float) -> bool:
    """Recognize the lowest float32 number, with or without a logit added."""
    return abs(magnitude / _LOWEST - 1) < 1e-6


def _load(onnxruntime: Any, model: onnx.ModelProto, settings: dict[str, Any]) -> InferenceSession:
    import onnx

    settings = {**settings, "providers": ["CPUExecutionProvider"]}
    if model.ByteSize() <= _LARGEST_MESSAGE:
        return onnxruntime.InferenceSession(model.SerializeToString(), **settings)
    with tempfile.TemporaryDirectory(prefix="maskmill-emulation-") as folder:
        path = Path(folder) / "model.onnx"
        onnx.save_model(model, path, save_as_external_data=True, location="model.data")
        return onnxruntime.InferenceSession(str(path), **settings)


def _widened(tensor: onnx.TensorProto) -> onnx.TensorProto:
    from onnx import numpy_helper

    return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name)


def _widen_attributes(node: onnx.NodeProto) -> None:
    """Set types and tensors in a node's attributes to fp32."""
    narrow_types: Sequence[int] = (_FLOAT16, _BFLOAT16)
    for attribute in node.attribute:
        if attribute.HasField("g") or attribute.graphs:
            if any(code in narrow_types for graph in (attribute.g, *attribute.graphs) for code in _types_within(graph)):
                raise ExportError(
                    f"the node {node_name(node)} has 16-bit tensors in its subgraph, which is not emulated"
                )
        elif attribute.name in ("to", "dtype", "output_dtype") and attribute.i in narrow_types:
            attribute.i = _FLOAT
        elif attribute.HasField("t") and attribute.t.data_type in narrow_types:
            attribute.t.CopyFrom(_widened(attribute.t))


def _types_within(graph: onnx.GraphProto) -> set[int]:
    codes = {tensor.data_type for tensor in graph.initializer}
    for node in graph.node:
        for attribute in node.attribute:
            codes.update([attribute.i] if attribute.name in ("to", "dtype") else [])
            codes.update([attribute.t.data_type] if attribute.HasField("t") else [])
            for inner in (attribute.g, *attribute.graphs):
                codes |= _types_within(inner)
    return codes
