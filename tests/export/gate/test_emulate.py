from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from maskmill.errors import ExportError, SessionError
from maskmill.export.gate.emulate import GraphSession, Memory, emulation, magnitudes_beyond, nodes_touching, with_probes
from maskmill.export.graph import LARGEST
from maskmill.export.precision.sixteen_bit import in_16_bit

from ...models import color_bundle, color_graph
from ..precision.test_sixteen_bit import graph_of, run

DTYPES = {"fp16": np.float16, "bf16": ml_dtypes.bfloat16}


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_every_node_is_rounded_to_the_precision(precision: str) -> None:
    nodes = [
        helper.make_node("Mul", ["x", "third"], ["a"]),
        helper.make_node("Add", ["a", "tenth"], ["b"]),
        helper.make_node("Mul", ["b", "b"], ["y"]),
    ]
    third, tenth = np.float32([1 / 3]), np.float32([0.1])
    model = emulation(in_16_bit(graph_of(nodes, {"third": third, "tenth": tenth}), precision).model)
    x = np.random.default_rng(0).uniform(-100, 100, 500).astype(np.float32)

    def rounded(values: np.ndarray) -> np.ndarray:
        return values.astype(DTYPES[precision]).astype(np.float32)

    b = rounded(rounded(rounded(x) * rounded(third)) + rounded(tenth))
    np.testing.assert_array_equal(run(model, x), rounded(b * b))


def test_what_overflows_fp16_becomes_infinite_and_stays_finite_in_bf16() -> None:
    original = color_graph(through=[("Mul", 1e4), ("Mul", 1e-4)])
    image = np.full((1, 3, 16, 24), 0.9, np.float32)  # logits 9, then 9e4
    np.testing.assert_allclose(run(original, image), 9.0, rtol=1e-6)
    assert np.isinf(run(emulation(in_16_bit(original, "fp16").model), image)).all()
    np.testing.assert_allclose(run(emulation(in_16_bit(original, "bf16").model), image), 9.0, rtol=0.02)


def test_the_processor_alone_would_not_have_noticed() -> None:
    # why there is an emulation: ONNX Runtime computes nodes that follow each other in fp32
    nodes = [helper.make_node("Mul", ["x", "large"], ["a"]), helper.make_node("Mul", ["a", "small"], ["y"])]
    original = graph_of(nodes, {"large": np.float32([1e4]), "small": np.float32([1e-4])})
    converted = in_16_bit(original, "fp16").model
    assert np.isfinite(run(converted, np.float32([9.0]))).all()
    assert np.isinf(run(emulation(converted), np.float32([9.0]))).all()


def test_nodes_that_are_kept_in_fp32_are_not_rounded() -> None:
    original = color_graph(through=[("Mul", 1e4), ("Mul", 1e-4)])
    image = np.full((1, 3, 16, 24), 0.9, np.float32)
    model = emulation(in_16_bit(original, "fp16", keep_fp32=["Mul0", "Mul1"]).model)
    np.testing.assert_allclose(run(model, image), 9.0, rtol=1e-3)
    one_is_not_enough = emulation(in_16_bit(original, "fp16", keep_fp32=["Mul0"]).model)
    assert np.isinf(run(one_is_not_enough, image)).all()


def test_an_emulation_has_no_16_bit_tensor_but_what_is_cast_back() -> None:
    model = emulation(in_16_bit(color_graph(final="Softmax"), "fp16").model)
    onnx.checker.check_model(model, full_check=True)
    assert {tensor.data_type for tensor in model.graph.initializer} == {TensorProto.FLOAT}
    assert len(model.graph.value_info) == 0


def test_16_bit_tensors_within_a_subgraph_are_refused() -> None:
    output = helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)
    small = helper.make_node("Cast", ["x"], ["small"], to=TensorProto.FLOAT16)
    back = helper.make_node("Cast", ["small"], ["inner"], to=TensorProto.FLOAT)
    branch = helper.make_graph([small, back], "branch", [], [output])
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
        helper.make_node("Cast", ["sum"], ["positive"], to=TensorProto.BOOL),
        helper.make_node("If", ["positive"], ["y"], name="choose", then_branch=branch, else_branch=branch),
    ]
    with pytest.raises(ExportError, match="the node choose has 16-bit tensors in its subgraph"):
        emulation(graph_of(nodes, {}))


def test_probes_give_the_largest_magnitude_of_every_tensor_over_all_calls(tmp_path: Path) -> None:
    bundle = color_bundle(tmp_path, through=[("Mul", -1e4), ("Mul", 1e-4)])
    original = onnx.load(bundle.model_path())
    session = GraphSession(with_probes(original), bundle, kind="onnxruntime/cpu/fp32", artifact="a")
    for strength in (0.5, 0.9, 0.2):
        (scores,) = session.run(np.full((1, 3, 16, 24), strength, np.float32))
        assert scores.shape == (1, 3, 16, 24)
    largest = {name: session.magnitudes[name] for name in ("logits", "through0", "through1")}
    assert largest == pytest.approx({"logits": 9.0, "through0": 9e4, "through1": 9.0})
    assert magnitudes_beyond(original, session.magnitudes, LARGEST["fp16"]) == pytest.approx({"Mul0": 9e4})
    assert nodes_touching(original, session.magnitudes, "fp16") == {"Mul0", "Mul1"}
    assert not magnitudes_beyond(original, session.magnitudes, LARGEST["bf16"])


def test_infinity_is_in_no_precisions_way(tmp_path: Path) -> None:
    bundle = color_bundle(tmp_path, through=[("Add", 1.0), ("Div", 0.0), ("Min", 7.0)])
    original = onnx.load(bundle.model_path())
    session = GraphSession(with_probes(original), bundle, kind="onnxruntime/cpu/fp32", artifact="a")
    session.run(np.full((1, 3, 16, 24), 0.5, np.float32))
    assert {name: session.magnitudes[name] for name in ("logits", "through0", "through1", "through2")} == {
        "logits": 5.0, "through0": 6.0, "through1": 0.0, "through2": 7.0,
    }  # fmt: skip
    assert not magnitudes_beyond(original, session.magnitudes, LARGEST["fp16"])


def test_a_graph_session_says_what_it_stands_for_and_names_what_failed(tmp_path: Path) -> None:
    bundle = color_bundle(tmp_path)
    model = emulation(in_16_bit(onnx.load(bundle.model_path()), "fp16").model)
    session = GraphSession(model, bundle, kind="onnxruntime/cpu/fp16", artifact="abc")
    assert (session.kind, session.artifact, session.max_batch, session.threads) == (
        "onnxruntime/cpu/fp16", "abc", None, 1,
    )  # fmt: skip
    with pytest.raises(SessionError, match="the onnxruntime/cpu/fp16 graph failed"):
        session.run(np.zeros((1, 4, 16, 24), np.float32))
    with pytest.raises(SessionError, match="cannot load the onnxruntime/cpu/fp16 graph"):
        GraphSession(onnx.ModelProto(), bundle, kind="onnxruntime/cpu/fp16", artifact="")


def test_a_memory_runs_a_session_once_for_equal_inputs(tmp_path: Path) -> None:
    bundle = color_bundle(tmp_path)
    session = GraphSession(with_probes(color_graph()), bundle, kind="onnxruntime/cpu/fp32", artifact="")
    memory = Memory(session)
    one, other = (np.full((1, 3, 16, 24), value, np.float32) for value in (0.25, 0.75))
    first = memory.run(one)
    session.magnitudes.clear()
    assert memory.run(one.copy()) is first
    assert not session.magnitudes
    memory.run(other)
    assert session.magnitudes
