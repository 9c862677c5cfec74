"""Put a 16-bit precision into a graph: most nodes in fp16 or bf16, some kept in fp32, inputs and outputs in fp32.

TensorRT 11 takes precisions from the graph, so they are written into it as Cast nodes::

    converted = in_16_bit(model, "fp16", keep_fp32={"/head/Exp"})
    converted.fp32_nodes                       # node → why it stays in fp32

A tensor's name always refers to its float32 form; its 16-bit form has the precision appended. Node names are kept, so
that a failing node can be named in the original.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from ...checks import name_list
from ...errors import UsageError
from ..graph import LARGEST, at_least_opset, captured_names, float_tensors, node_name

if TYPE_CHECKING:
    import onnx

Precision16 = Literal["fp16", "bf16"]


_FLOAT, _FLOAT16, _BFLOAT16 = 1, 10, 16  # TensorProto.DataType
_TYPES = {"fp16": (_FLOAT16, "tensor(float16)"), "bf16": (_BFLOAT16, "tensor(bfloat16)")}
_BF16_OPSET = 22  # the first in which Conv and the poolings take bfloat16
# an attribute holds their output type, or they change it
_TYPED = frozenset(
    ("Cast", "CastLike", "Constant", "ConstantOfShape", "EyeLike", "RandomNormal", "RandomNormalLike", "RandomUniform")
    + ("RandomUniformLike", "Bernoulli", "Multinomial", "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")
)


@dataclass(frozen=True)
class Converted:
    """A graph in 16 bits."""

    model: onnx.ModelProto
    """The converted graph."""
    converted: tuple[str, ...]
    """Names of the nodes that run in 16 bits, in the graph's order."""
    fp32_nodes: Mapping[str, str]
    """Nodes with float32 outputs that stay in fp32, each with its reason."""


def in_16_bit(model: onnx.ModelProto, precision: Precision16, *, keep_fp32: Collection[str] = ()) -> Converted:
    """Convert an fp32 graph to 16 bits; the original is not changed.

    ``keep_fp32`` are names of nodes, as :func:`node_name` returns them. A node also stays in fp32 if its operator does
    not support the type, if it holds a subgraph, and if one of its weights is beyond the precision's range. In
    attention masks, the lowest float32 number is replaced by minus an eighth of the precision's range, which has the
    same effect. For bf16 the graph is converted to opset 22, the first whose convolutions support it. Raises
    :class:`UsageError` for a name that no node has, :class:`ExportError` if the graph's types cannot be inferred.
    """
    import onnx

    if precision not in _TYPES:
        raise UsageError(f"a 16-bit precision is one of {', '.join(_TYPES)}, got {precision!r}")
    if precision == "bf16":
        model = at_least_opset(model, _BF16_OPSET, "bf16 convolutions")
    floats = float_tensors(model)
    result = onnx.ModelProto()
    result.CopyFrom(model)
    _lift_constants(result.graph)
    floats |= _bound_masks(result.graph, LARGEST[precision] / 8)
    names = {node_name(node) for node in result.graph.node}
    if unknown := sorted(set(keep_fp32) - names):
        raise UsageError(
            f"the graph has no node named {name_list(unknown, most=5)}; names are those in the original's graph"
        )
    conversion = _Conversion(result, precision, floats)
    fp32_nodes: dict[str, str] = {}
    for node in result.graph.node:
        if not any(name in floats for name in node.output):
            continue
        reason = "kept by the caller" if node_name(node) in keep_fp32 else conversion.obstacle(node)
        if reason:
            fp32_nodes[node_name(node)] = reason
    node_names = conversion.rewrite(fp32_nodes)
    return Converted(model=result, converted=node_names, fp32_nodes=fp32_nodes)


class _Conversion:
    """Conversion of one graph to 16 bits."""

    def __init__(self, model: onnx.ModelProto, precision: Precision16, floats: frozenset[str]) -> None:
        self._graph, self._precision, self._floats = model.graph, precision, floats
        self._code, self._type = _TYPES[precision]
        self._opsets = {entry.domain: entry.version for entry in model.opset_import}
        self._weights = {tensor.name: tensor for tensor in self._graph.initializer}
        self._beyond: dict[str, bool] = {}

    def obstacle(self, node: onnx.NodeProto) -> str:
        """Return the reason why a node must stay in fp32; empty if there is none."""
        if node.op_type in _TYPED:
            return "its type is given by an attribute"
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            return "it holds a subgraph"
        inputs, outputs = self._formal(node)
        if not any(name in self._floats and is_allowed for name, is_allowed in zip(node.input, inputs, strict=True)):
            return f"{node.op_type} takes no {self._precision}"
        if not all(is_allowed for name, is_allowed in zip(node.output, outputs, strict=True) if name in self._floats):
            return f"{node.op_type} gives no {self._precision}"
        for name, is_allowed in zip(node.input, inputs, strict=True):
            if is_allowed and name in self._weights and name in self._floats and self._is_beyond(name):
                return f"its weight {name} is beyond the range of {self._precision}"
        return ""

    def rewrite(self, fp32_nodes: Mapping[str, str]) -> tuple[str, ...]:
        """Rename tensors that become 16-bit, and insert casts between the two precisions."""
        graph = self._graph
        low: set[str] = set()
        for node in graph.node:
            if node_name(node) not in fp32_nodes and any(name in self._floats for name in node.output):
                low.update(name for name in node.output if name in self._floats)
        wants_low, wants_full = self._readers(fp32_nodes)
        wants_full |= {value.name for value in graph.output}
        nodes, names = [], []
        for name in [value.name for value in graph.input]:
            if name in wants_low and name not in self._weights:
                nodes.append(self._cast(name, self._low(name), self._code))
        for name in [name for name in self._weights if name in wants_low]:
            if name not in wants_full:
                graph.initializer.remove(self._weights[name])
            graph.initializer.append(_rounded(self._weights[name], self._low(name), self._code))
        for node in graph.node:
            name = node_name(node)
            outputs = [output for output in node.output if output in self._floats]
            if outputs and name not in fp32_nodes:
                names.append(name)
                formal_types, _ = self._formal(node)
                for index, value in enumerate(node.input):
                    if value in self._floats and formal_types[index]:
                        node.input[index] = self._low(value)
                for index, value in enumerate(node.output):
                    if value in self._floats:
                        node.output[index] = self._low(value)
            node.name = name
            nodes.append(node)
            for value in outputs:
                if value in low and value in wants_full:
                    nodes.append(self._cast(self._low(value), value, _FLOAT))
                elif value not in low and value in wants_low:
                    nodes.append(self._cast(value, self._low(value), self._code))
        del graph.node[:]
        graph.node.extend(nodes)
        del graph.value_info[:]
        return tuple(names)

    def _readers(self, fp32_nodes: Mapping[str, str]) -> tuple[set[str], set[str]]:
        """Return the tensors that some node reads in 16 bits, and those that some node reads in float32."""
        low_values: set[str] = set()
        fp32_values: set[str] = set()
        for node in self._graph.node:
            converts = node_name(node) not in fp32_nodes and any(name in self._floats for name in node.output)
            formal_types = self._formal(node)[0] if converts else [False] * len(node.input)
            for name, is_low in zip(node.input, formal_types, strict=True):
                (low_values if is_low and name in self._floats else fp32_values).add(name)
            fp32_values.update(captured_names(node))
        return low_values, fp32_values

    def _formal(self, node: onnx.NodeProto) -> tuple[list[bool], list[bool]]:
        """Return for each input and output of a node whether its operator supports this precision there."""
        import onnx.defs

        try:
            schema = onnx.defs.get_schema(node.op_type, self._opsets.get(node.domain, 1), node.domain)
        except onnx.defs.SchemaError:
            return [False] * len(node.input), [False] * len(node.output)
        types_of = {constraint.type_param_str: constraint.allowed_type_strs for constraint in schema.type_constraints}

        def takes(formal: Any, num: int) -> list[bool]:
            # the last formal parameter may stand for any number
            types = [formal[min(index, len(formal) - 1)].type_str for index in range(num)]
            return [self._type in types_of.get(name, (name,)) for name in types]

        return takes(schema.inputs, len(node.input)), takes(schema.outputs, len(node.output))

    def _is_beyond(self, name: str) -> bool:
        if name not in self._beyond:
            values = _array(self._weights[name])
            finite = np.abs(values[np.isfinite(values)])
            self._beyond[name] = bool(finite.size) and float(finite.max()) > LARGEST[self._precision]
        return self._beyond[name]

    def _low(self, name: str) -> str:
        return f"{name}.{self._precision}"

    def _cast(self, source: str, target: str, code: int) -> onnx.NodeProto:
        from onnx import helper

        return helper.make_node("Cast", [source], [target], name=f"{target}.cast", to=code)


def _array(tensor: onnx.TensorProto) -> NDArray[Any]:
    from onnx import numpy_helper

    return numpy_helper.to_array(tensor)


def _rounded(tensor: onnx.TensorProto, name: str, code: int) -> onnx.TensorProto:
    """Round a weight to the nearest 16-bit values."""
    from onnx import helper, numpy_helper

    with np.errstate(over="ignore"):
        small = _array(tensor).astype(helper.tensor_dtype_to_np_dtype(code))
    return numpy_helper.from_array(small, name)


def _bound_masks(graph: onnx.GraphProto, limit: float) -> set[str]:
    """Bring the constants of attention masks into range: 0 for tokens that count, the lowest float32 number for others.

    A softmax follows, which is 0 for ``-limit`` as well. ``limit`` is an eighth of the precision's range, so that the
    sum with a logit, or of two masks, stays well within. Returns the names of the new constants.
    """
    from onnx import numpy_helper

    scalars = {
        tensor.name: float(_array(tensor).reshape(-1)[0])
        for tensor in graph.initializer
        if tensor.data_type == _FLOAT and int(np.prod(tensor.dims)) == 1
    }
    bound_names: set[str] = set()
    for node in graph.node:
        if node.op_type != "Where":
            continue
        branches = [scalars.get(name, float("nan")) for name in node.input[1:]]
        for index, value in enumerate(branches):
            if branches[1 - index] == 0 and value < -limit:
                name = f"{node.input[1 + index]}.bounded"
                if name not in bound_names:
                    graph.initializer.append(numpy_helper.from_array(np.float32(-limit), name))
                    bound_names.add(name)
                node.input[1 + index] = name
    return bound_names


def _lift_constants(graph: onnx.GraphProto) -> None:
    """Turn Constant nodes with tensors into weights, which are converted like all others."""
    from onnx import numpy_helper

    nodes = []
    for node in graph.node:
        value = {attribute.name: attribute for attribute in node.attribute} if node.op_type == "Constant" else {}
        if "value" in value:
            tensor = value["value"].t
            tensor.name = node.output[0]
            graph.initializer.append(tensor)
        elif "value_float" in value or "value_floats" in value:
            attribute = next(iter(value.values()))
            numbers = attribute.f if "value_float" in value else list(attribute.floats)
            graph.initializer.append(numpy_helper.from_array(np.array(numbers, np.float32), node.output[0]))
        else:
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
