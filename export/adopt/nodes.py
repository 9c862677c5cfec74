"""Append nodes to a graph by calling their operators."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx


class Nodes:
    """Appends nodes to a graph; every method returns the name of its result."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._graph = model.graph
        self._number = 0

    def __call__(
        self, operator: str, *inputs: str | np.ndarray, outputs: int = 1, name: str = "", **values: Any
    ) -> Any:
        """Append a node; returns the name of its output, or a list of several."""
        import onnx.helper

        self._number += 1
        names = [name or f"maskmill_{operator}_{self._number}_{index}" for index in range(outputs)]
        fed = [self._constant(value) if isinstance(value, np.ndarray) else value for value in inputs]
        self._graph.node.append(onnx.helper.make_node(operator, fed, names, name=f"maskmill/{names[0]}", **values))
        return names[0] if outputs == 1 else names

    def columns(self, rows: str, start: int, stop: int, name: str = "") -> str:
        """Slice the last axis of (N, A, D)."""
        return self("Slice", rows, np.array([start]), np.array([stop]), np.array([2]), name=name)

    def _constant(self, value: np.ndarray) -> str:
        import onnx.numpy_helper

        self._number += 1
        name = f"maskmill_constant_{self._number}"
        self._graph.initializer.append(onnx.numpy_helper.from_array(value, name))
        return name


def float_output(name: str, shape: list[int | str]) -> onnx.ValueInfoProto:
    """Describe a float32 output of a graph."""
    import onnx.helper

    return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
