from __future__ import annotations

from typing import Literal

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from maskmill.errors import UsageError
from maskmill.export.graph import LARGEST, node_name
from maskmill.export.precision.sixteen_bit import in_16_bit

from ...models import color_graph

FLOAT, FLOAT16, BFLOAT16 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16


def graph_of(nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray], *, opset: int = 17) -> onnx.ModelProto:
    """A graph from ``x`` to ``y``, float32 vectors of any length."""
    graph = helper.make_graph(
        nodes,
        "vectors",
        [helper.make_tensor_value_info("x", FLOAT, ["N"])],
        [helper.make_tensor_value_info("y", FLOAT, ["N"])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def types(model: onnx.ModelProto) -> dict[str, int]:
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    values = (*graph.value_info, *graph.input, *graph.output)
    return {value.name: value.type.tensor_type.elem_type for value in values}


@pytest.mark.parametrize(("precision", "code"), [("fp16", FLOAT16), ("bf16", BFLOAT16)])
def test_nodes_work_in_16_bits_between_float32_inputs_and_outputs(precision: str, code: int) -> None:
    original = color_graph(stride=2, final="Softmax")
    converted = in_16_bit(original, precision)
    onnx.checker.check_model(converted.model, full_check=True)
    found = types(converted.model)
    assert found["image"] == found["scores"] == FLOAT
    assert [found[f"{name}.{precision}"] for name in ("small", "logits", "activated")] == [code] * 3
    assert converted.converted == tuple(node_name(node) for node in original.graph.node)
    assert not converted.fp32_nodes


def test_an_fp16_graph_gives_nearly_the_same_and_is_half_as_large() -> None:
    weight = np.random.default_rng(0).standard_normal(4096).astype(np.float32)
    original = graph_of([helper.make_node("Mul", ["x", "w"], ["y"])], {"w": weight})
    converted = in_16_bit(original, "fp16").model
    x = np.linspace(-1, 1, 4096, dtype=np.float32)
    np.testing.assert_allclose(run(converted, x), run(original, x), rtol=2e-3, atol=1e-6)
    assert converted.ByteSize() < 0.55 * original.ByteSize()


def test_the_original_is_not_changed() -> None:
    original = color_graph()
    before = original.SerializeToString()
    in_16_bit(original, "fp16")
    assert original.SerializeToString() == before


def test_a_node_that_is_kept_takes_and_gives_float32() -> None:
    original = color_graph(through=[("Mul", 2.0), ("Add", 1.0), ("Mul", 0.5)])
    converted = in_16_bit(original, "fp16", keep_fp32=["Add1"])
    onnx.checker.check_model(converted.model, full_check=True)
    assert converted.fp32_nodes == {"Add1": "kept by the caller"}
    assert "Add1" not in converted.converted
    node = next(node for node in converted.model.graph.node if node.name == "Add1")
    assert list(node.input) == ["through0", "number1"]
    assert list(node.output) == ["through1"]
    assert types(converted.model)["through1"] == FLOAT
    image = np.random.default_rng(0).random((2, 3, 16, 24), dtype=np.float32)
    np.testing.assert_allclose(run(converted.model, image), run(original, image), rtol=2e-3)


def test_a_weight_used_by_both_kinds_of_nodes_is_there_in_both_types() -> None:
    nodes = [
        helper.make_node("Mul", ["x", "w"], ["a"], name="first"),
        helper.make_node("Mul", ["a", "w"], ["y"], name="second"),
    ]
    model = in_16_bit(graph_of(nodes, {"w": np.float32([3.0])}), "fp16", keep_fp32=["second"]).model
    assert {tensor.name: tensor.data_type for tensor in model.graph.initializer} == {"w": FLOAT, "w.fp16": FLOAT16}
    np.testing.assert_array_equal(run(model, np.float32([2.0])), [18.0])


def test_a_name_that_no_node_has_is_refused() -> None:
    with pytest.raises(UsageError, match="no node named nothing"):
        in_16_bit(color_graph(), "fp16", keep_fp32=["nothing"])


def test_another_precision_is_refused() -> None:
    with pytest.raises(UsageError, match="one of fp16, bf16, got 'int8'"):
        in_16_bit(color_graph(), "int8")  # type: ignore[arg-type]


def test_a_node_with_a_weight_beyond_the_range_stays_in_fp32() -> None:
    original = graph_of([helper.make_node("Add", ["x", "w"], ["y"], name="mask")], {"w": np.float32([-1e9])})
    converted = in_16_bit(original, "fp16")
    assert converted.fp32_nodes == {"mask": "its weight w is beyond the range of fp16"}
    np.testing.assert_array_equal(run(converted.model, np.float32([0.0])), np.float32([-1e9]))
    assert not in_16_bit(original, "bf16").fp32_nodes


def test_a_subgraph_sees_the_float32_form_of_what_it_captures() -> None:
    def branch(name: str, operator: str) -> onnx.GraphProto:
        output = helper.make_tensor_value_info(name, FLOAT, None)
        return helper.make_graph([helper.make_node(operator, ["doubled", "x"], [name])], name, [], [output])

    nodes = [
        helper.make_node("Mul", ["x", "two"], ["doubled"], name="double"),
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0, name="sum"),
        helper.make_node("Greater", ["sum", "zero"], ["positive"], name="compare"),
        helper.make_node(
            "If", ["positive"], ["y"], name="choose",
            then_branch=branch("added", "Add"), else_branch=branch("subtracted", "Sub"),
        ),
    ]  # fmt: skip
    original = graph_of(nodes, {"two": np.float32(2.0), "zero": np.float32(0.0)})
    converted = in_16_bit(original, "fp16")
    onnx.checker.check_model(converted.model, full_check=True)
    assert converted.fp32_nodes == {"choose": "it holds a subgraph"}
    np.testing.assert_array_equal(run(converted.model, np.float32([1.0, 2.0])), [3.0, 6.0])
    np.testing.assert_array_equal(run(converted.model, np.float32([-1.0, -2.0])), [-1.0, -2.0])


def test_constants_of_the_graph_are_converted_like_weights() -> None:
    nodes = [
        helper.make_node("Constant", [], ["three"], value=numpy_helper.from_array(np.float32([3.0]), "three")),
        helper.make_node("Constant", [], ["half"], value_float=0.5),
        helper.make_node("Mul", ["x", "three"], ["a"], name="triple"),
        helper.make_node("Mul", ["a", "half"], ["y"], name="halve"),
    ]
    converted = in_16_bit(graph_of(nodes, {}), "fp16")
    assert converted.converted == ("triple", "halve")
    assert {tensor.data_type for tensor in converted.model.graph.initializer} == {FLOAT16}
    np.testing.assert_array_equal(run(converted.model, np.float32([2.0])), [3.0])


def test_inputs_that_an_operator_takes_in_float32_only_stay_so() -> None:
    nodes = [
        helper.make_node("Reshape", ["x", "image"], ["square"], name="reshape"),
        helper.make_node("Resize", ["square", "", "scales"], ["large"], mode="linear", name="resize"),
        helper.make_node("Reshape", ["large", "flat"], ["y"], name="flatten"),
    ]
    weights = {"image": np.int64([1, 1, 1, -1]), "scales": np.float32([1, 1, 1, 2]), "flat": np.int64([-1])}
    converted = in_16_bit(graph_of(nodes, weights), "fp16")
    onnx.checker.check_model(converted.model, full_check=True)
    assert "scales.fp16" not in {name for node in converted.model.graph.node for name in node.input}
    assert "resize" in converted.converted
    assert len(run(converted.model, np.float32([1.0, 2.0]))) == 4


def test_bf16_brings_the_graph_to_an_opset_with_bf16_convolutions() -> None:
    assert in_16_bit(color_graph(), "bf16").model.opset_import[0].version == 22
    assert in_16_bit(color_graph(), "fp16").model.opset_import[0].version == 17


@pytest.mark.parametrize(("precision", "code"), [("fp16", FLOAT16), ("bf16", BFLOAT16)])
def test_the_largest_values_are_those_of_the_types(precision: str, code: int) -> None:
    largest = LARGEST[precision]
    dtype = helper.tensor_dtype_to_np_dtype(code)
    assert float(np.float32(largest).astype(dtype)) == largest
    with np.errstate(over="ignore"):
        assert np.isinf(np.float32(largest * 1.003).astype(dtype).astype(np.float32))


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_an_attention_mask_of_the_lowest_number_stays_in_range(precision: Literal["fp16", "bf16"]) -> None:
    graph = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        attention (float[N, 4] logits, bool[N, 4] counts) => (float[N, 4] shares)
        <float[1] zeros = {0.0}, float low = {-3.4028235e38}>
        { mask = Where (counts, zeros, low)
          sums = Add (logits, mask)
          shares = Softmax <axis = 1> (sums) }
    """)
    converted = in_16_bit(graph, precision).model
    values = [numpy_helper.to_array(tensor).astype(np.float64) for tensor in converted.graph.initializer]
    assert all(np.isfinite(value).all() for value in values)
    if precision == "fp16":
        session = onnxruntime.InferenceSession(converted.SerializeToString(), providers=["CPUExecutionProvider"])
        counts = np.array([[True, True, False, False], [False] * 4])
        (shares,) = session.run(None, {"logits": np.float32([[1, 2, 3, 4], [0, 0, 0, 0]]), "counts": counts})
        np.testing.assert_allclose(shares, [[0.2689, 0.7311, 0, 0], [0.25] * 4], atol=1e-3)
