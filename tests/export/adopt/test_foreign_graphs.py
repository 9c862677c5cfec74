"""Graphs as other exporters leave them: adopted with the right meaning, or refused by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from maskmill.engine.labeling.selection import Selection, select
from maskmill.engine.model.bundle import Bundle
from maskmill.engine.model.taxonomy import Taxonomy
from maskmill.engine.predictors.semantic import SemanticPredictor
from maskmill.engine.runtimes.onnx_runtime import OnnxSession
from maskmill.errors import BundleError, UsageError
from maskmill.export.adopt.boxes import detector_from_onnx
from maskmill.export.adopt.promptable import promptable_from_onnx
from maskmill.export.adopt.semantic import bundle_from_onnx
from maskmill.export.gate.compare import compare
from maskmill.export.gate.tasks import Side

from ...models import COLORS, color_bundle, color_graph, color_image

SIZE = (16, 24)


def behind(nodes: Sequence[onnx.NodeProto], output: str, code: int = TensorProto.FLOAT, **constants: Any) -> Any:
    """The color graph with ``nodes`` after its logits, which are called ``inner``."""
    model = color_graph()
    model.graph.node[-1].output[0] = "inner"
    model.graph.node.extend(nodes)
    for name, value in constants.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info(output, code, None))
    return onnx.shape_inference.infer_shapes(model)


def adopt(folder: Path, model: onnx.ModelProto, name: str = "bundle", **options: Any) -> Bundle:
    path = folder / f"{name}.onnx"
    onnx.save(model, path)
    return bundle_from_onnx(path, folder / name, **{"classes": COLORS, **options})


def labels_of(bundle: Bundle, image: np.ndarray) -> np.ndarray:
    score_map = SemanticPredictor(bundle, OnnxSession(bundle)).predict(image)
    return select(score_map, Taxonomy.of_model(bundle), Selection()).label


@pytest.fixture
def label() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 3, (4, 6)).repeat(4, axis=0).repeat(4, axis=1)


def red_logit() -> onnx.ModelProto:
    """One channel: positive where red is above one half."""
    nodes = [
        helper.make_node("Gather", ["inner", "index"], ["red"], axis=1),
        helper.make_node("Sub", ["red", "half"], ["logit"]),
    ]
    return behind(nodes, "logit", index=np.int64([0]), half=np.float32(5))


def red_probability() -> onnx.ModelProto:
    model = red_logit()
    model.graph.node.append(helper.make_node("Sigmoid", ["logit"], ["p"]))
    model.graph.output[0].name = "p"
    return model


@pytest.mark.parametrize(
    ("model", "activation"), [(red_logit(), "sigmoid"), (red_probability(), "none")], ids=["logit", "probability"]
)
@pytest.mark.parametrize(
    ("classes", "background", "expected"),
    [(["red"], None, ("background", "red")), (["red"], "sky", ("sky", "red")), (["red", "sky"], "sky", ("red", "sky"))],
)
def test_one_channel_is_a_class_and_the_background(
    tmp_path: Path, label: np.ndarray, model: Any, activation: Any, classes: Any, background: Any, expected: Any
) -> None:
    bundle = adopt(tmp_path, model, classes=classes, background=background, activation=activation)
    assert bundle.classes == expected
    assert bundle.background == expected.index(background or "background")
    assert "has one channel" in bundle.source.changes[0]
    image = color_image(label)
    assert ((labels_of(bundle, image) == expected.index("red")) == (label == 0)).all()
    metrics = compare(side(bundle), side(bundle), [("photo", image)])
    assert (metrics.class_images, metrics.class_iou["red"]) == (dict.fromkeys(expected, 1), 1.0)


def side(bundle: Bundle) -> Side:
    return Side(bundle=bundle, sessions={"model": OnnxSession(bundle)})


def test_the_two_channels_are_p_and_one_minus_p(tmp_path: Path, label: np.ndarray) -> None:
    image = color_image(label, strength=150)
    logits = adopt(tmp_path, red_logit(), "logit", classes=["red"], activation="sigmoid")
    known = adopt(tmp_path, red_probability(), "probability", classes=["red"], activation="none")
    z = SemanticPredictor(logits, OnnxSession(logits)).predict(image).scores
    p = SemanticPredictor(known, OnnxSession(known)).predict(image).scores
    softmax = np.exp(z) / np.exp(z).sum(axis=0)
    np.testing.assert_allclose(softmax, p, atol=1e-6)
    np.testing.assert_allclose(p.sum(axis=0), 1, atol=1e-6)


@pytest.mark.parametrize(
    ("model", "activation", "message"),
    [
        (red_logit(), "softmax", "one channel, and a softmax .* use --activation sigmoid"),
        (red_probability(), "softmax", "use --activation none"),
        (red_probability(), "sigmoid", "use --activation none, not sigmoid"),
        (red_logit(), "none", "logits, not scores; use --activation sigmoid"),
    ],
)
def test_one_channel_needs_the_right_activation(tmp_path: Path, model: Any, activation: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        adopt(tmp_path, model, classes=["red"], activation=activation)


def softmax_written_out() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Exp", ["inner"], ["e"]),
        helper.make_node("ReduceSum", ["e", "axis"], ["sum"], keepdims=1),
        helper.make_node("Div", ["e", "sum"], ["probabilities"]),
    ]
    return behind(nodes, "probabilities", axis=np.int64([1]))


def sigmoid_end() -> onnx.ModelProto:
    return behind([helper.make_node("Sigmoid", ["inner"], ["probabilities"])], "probabilities")


@pytest.mark.parametrize(("build", "sums"), [(softmax_written_out, " and they sum to 1"), (sigmoid_end, "")])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_probabilities_do_not_get_an_activation(
    tmp_path: Path, build: Callable[[], Any], sums: str, activation: Any
) -> None:
    with pytest.raises(UsageError, match=rf"in \[0, 1\]{sums}.*use --activation none, not {activation}"):
        adopt(tmp_path, build(), activation=activation)
    assert adopt(tmp_path, build(), "right", activation="none").outputs[0].activation == "none"


@pytest.mark.parametrize("tail", [(), ("Cast",), ("Unsqueeze", "Cast")])
def test_a_final_argmax_is_cut_off_and_noted(tmp_path: Path, label: np.ndarray, tail: tuple[str, ...]) -> None:
    nodes, name = (
        [helper.make_node("ArgMax", ["inner"], ["classes"], name="/head/ArgMax", axis=1, keepdims=0)],
        "classes",
    )
    for operator in tail:
        inputs = [name, "axis"] if operator == "Unsqueeze" else [name]
        options = {"to": TensorProto.INT32} if operator == "Cast" else {}
        nodes.append(helper.make_node(operator, inputs, [f"{name}.{operator}"], **options))
        name = f"{name}.{operator}"
    code = TensorProto.INT32 if "Cast" in tail else TensorProto.INT64
    bundle = adopt(tmp_path, behind(nodes, name, code, axis=np.int64([1])))
    assert bundle.source.changes == ("the final ArgMax /head/ArgMax was removed, so the output is inner",)
    assert "ArgMax" not in {node.op_type for node in onnx.load(bundle.model_path()).graph.node}
    assert (labels_of(bundle, color_image(label)) == label).all()


def with_input(code: int, nodes: Sequence[onnx.NodeProto] = (), **constants: Any) -> onnx.ModelProto:
    """The color graph with an input ``raw`` of another type, and ``nodes`` that make ``image`` of it."""
    model = color_graph()
    default = [helper.make_node("Cast", ["raw"], ["image"], to=TensorProto.FLOAT)]
    for position, node in enumerate(nodes or default):
        model.graph.node.insert(position, node)
    for name, value in constants.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    del model.graph.input[:]
    model.graph.input.append(helper.make_tensor_value_info("raw", code, ["N", 3, *SIZE]))
    return model


def test_raw_pixels_are_fed_as_they_are(tmp_path: Path, label: np.ndarray) -> None:
    nodes = [
        helper.make_node("Cast", ["raw"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["f", "scale"], ["image"]),
    ]
    model = with_input(TensorProto.UINT8, nodes, scale=np.float32(1 / 255))
    bundle = adopt(tmp_path, model)
    assert (bundle.input.scale, bundle.input.mean, bundle.input.std) == (1.0, (0.0,) * 3, (1.0,) * 3)
    assert "takes float32 and is cast to uint8" in bundle.source.changes[0]
    scores = SemanticPredictor(bundle, OnnxSession(bundle)).predict(color_image(label, strength=153)).scores
    np.testing.assert_allclose(scores, 6 * np.eye(3)[label].transpose(2, 0, 1), atol=1e-5)
    with pytest.raises(UsageError, match="takes uint8, raw pixels .* give --scale 1"):
        adopt(tmp_path, model, "scaled", scale=1 / 255)


@pytest.mark.parametrize("code", [TensorProto.FLOAT16, TensorProto.DOUBLE])
def test_an_input_of_another_float_type_is_cast_to(tmp_path: Path, label: np.ndarray, code: int) -> None:
    bundle = adopt(tmp_path, with_input(code))
    assert bundle.input.scale == 1 / 255
    assert (labels_of(bundle, color_image(label)) == label).all()


def test_nodes_are_sorted(tmp_path: Path, label: np.ndarray) -> None:
    model = color_graph(through=[("Mul", 2.0), ("Add", 1.0)])
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(reversed(nodes))
    bundle = adopt(tmp_path, model)
    assert bundle.source.changes == ("the nodes were sorted into the order of their inputs",)
    assert [node.op_type for node in onnx.load(bundle.model_path()).graph.node] == ["Conv", "Mul", "Add", "Identity"]
    assert (labels_of(bundle, color_image(label)) == label).all()


def test_a_graph_that_feeds_itself_is_refused(tmp_path: Path) -> None:
    model = color_graph(through=[("Mul", 2.0), ("Add", 1.0)])
    model.graph.node[1].input[0] = "through1"
    with pytest.raises(BundleError, match="the ONNX checker refuses"):
        adopt(tmp_path, model)


def batch_norm(**attributes: Any) -> onnx.ModelProto:
    outputs = ["bn", "mean_out", "var_out"] if attributes else ["bn"]
    node = helper.make_node("BatchNormalization", ["inner", "five", "zero", "zero", "ones"], outputs, **attributes)
    node.name = "/head/BatchNorm"
    parts = {"five": np.full(3, 5, np.float32), "zero": np.zeros(3, np.float32), "ones": np.ones(3, np.float32)}
    return behind([node], "bn", **parts)


def test_batch_normalization_in_training_mode_is_refused_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="the node /head/BatchNorm is a BatchNormalization in training mode"):
        adopt(tmp_path, batch_norm(training_mode=1))
    adopt(tmp_path, batch_norm(), "evaluation")


def test_an_output_that_depends_on_the_other_images_of_the_batch_is_refused(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("ReduceMean", ["inner"], ["mean"], axes=[0], keepdims=1),
        helper.make_node("Sub", ["inner", "mean"], ["centered"]),
        helper.make_node("Add", ["centered", "inner"], ["mixed"]),
    ]
    with pytest.raises(BundleError, match="of an image depends on the other images of its batch"):
        adopt(tmp_path, behind(nodes, "mixed"))


@pytest.mark.parametrize("batch", [1, 4])
def test_a_batch_that_is_frozen_inside_is_recorded(tmp_path: Path, label: np.ndarray, batch: int) -> None:
    nodes = [helper.make_node("Reshape", ["inner", "shape"], ["out"])]
    bundle = adopt(tmp_path, behind(nodes, "out", shape=np.int64([batch, 3, *SIZE])))
    assert bundle.source.changes == (
        f"the batch is fixed to {batch}: the graph leaves it free in its signature and freezes it inside",
    )
    assert OnnxSession(bundle).max_batch == batch
    predictor = SemanticPredictor(bundle, OnnxSession(bundle), batch=4)
    maps = predictor.run([predictor.prepare(color_image(label))] * 3)
    assert all((score_map.scores.argmax(axis=0) == label).all() for score_map in maps)


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([helper.make_node("Log", ["inner"], ["out"])], "not finite"),
        (
            [
                helper.make_node("RandomNormalLike", ["inner"], ["noise"]),
                helper.make_node("Add", ["inner", "noise"], ["out"]),
            ],
            "differs between two runs on the same input",
        ),
    ],
)
def test_outputs_must_be_finite_and_repeat_themselves(tmp_path: Path, nodes: Any, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        adopt(tmp_path, behind(nodes, "out"))
    assert not (tmp_path / "bundle").exists()


def test_one_graph_without_a_class_differs_only_where_images_show_it(tmp_path: Path) -> None:
    bundle = color_bundle(tmp_path)
    bias = np.float32([0, 0, -1e4]).reshape(3, 1, 1)
    destroyed = adopt(
        tmp_path, behind([helper.make_node("Add", ["inner", "bias"], ["out"])], "out", bias=bias), "other"
    )
    without = [(str(index), color_image(np.full(SIZE, index % 2), strength=100 + index)) for index in range(60)]
    metrics = compare(side(bundle), side(destroyed), without)
    assert metrics.mean_iou == 1
    assert metrics.class_images == {"red": 30, "green": 30, "blue": 0}
    assert metrics.unseen_classes == ("blue",)
    metrics = compare(side(bundle), side(destroyed), [*without, ("blue", color_image(np.full(SIZE, 2)))])
    assert metrics.class_iou["blue"] == 0


def graph(inputs: Any, outputs: Any) -> onnx.ModelProto:
    """A graph with these (name, shape) pairs, whose outputs are constants of the first input's sum."""
    nodes, weights = [helper.make_node("ReduceMean", [inputs[0][0]], ["sum"], keepdims=0)], []
    for name, shape in outputs:
        weights.append(numpy_helper.from_array(np.int64(shape), f"{name}_shape"))
        nodes.append(helper.make_node("Expand", ["sum", f"{name}_shape"], [name]))
    values = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in pairs]
        for pairs in (inputs, outputs)
    ]
    made = helper.make_graph(nodes, "foreign", *values, weights)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


IMAGE = [("images", [1, 3, 64, 64])]


@pytest.mark.parametrize(
    ("outputs", "options", "message"),
    [
        ([("output0", [1, 32, 2100]), ("output1", [1, 32, 16, 16])], {"output_name": "output1"}, "YOLO-seg"),
        ([("output0", [1, 84, 8400])], {}, "YOLO detection"),
        ([("logits", [1, 100, 134]), ("masks", [1, 100, 16, 16])], {}, "mask queries"),
        ([("dets", [1, 300, 4]), ("labels", [1, 300, 91])], {}, "DETR family"),
        ([("backbone_fpn_0", [1, 8, 64, 64]), ("backbone_fpn_1", [1, 8, 32, 32])], {}, "the image encoder of SAM 3 as"),
        ([("image_embeddings", [1, 256, 16, 16])], {}, "a Segment Anything encoder; import it with its decoder"),
        (
            [
                ("high_res_feats_0", [1, 32, 64, 64]),
                ("high_res_feats_1", [1, 64, 32, 32]),
                ("image_embed", [1, 8, 4, 4]),
            ],
            {},
            "a SAM 2 encoder",
        ),
    ],
)
def test_models_that_are_no_semantic_segmentation_are_refused_by_name(
    tmp_path: Path, outputs: Any, options: dict[str, Any], message: str
) -> None:
    classes = [f"class {index}" for index in range(32)]
    with pytest.raises(BundleError, match=message):
        adopt(tmp_path, graph(IMAGE, outputs), classes=classes, **options)


LEVELS = [("fpn_feat_0", [1, 8, 32, 32]), ("fpn_feat_1", [1, 8, 16, 16]), ("fpn_feat_2", [1, 8, 8, 8])]
SAM3_FILES: dict[str, tuple[Any, Any]] = {
    # samexporter's export_sam3.py, which X-AnyLabeling uses
    "the image encoder of SAM 3 as samexporter and X-AnyLabeling": (
        [("image", [3, 64, 64])],
        [(f"{kind}_{index}", [1, 8, 32, 32]) for kind in ("vision_pos_enc", "backbone_fpn") for index in range(3)],
    ),
    "the language encoder of SAM 3 as samexporter and X-AnyLabeling": (
        [("tokens", [1, 32])],
        [("text_attention_mask", [1, 32]), ("text_memory", [32, 1, 8]), ("text_embeds", [32, 1, 16])],
    ),
    "the decoder of SAM 3 as samexporter and X-AnyLabeling": (
        [
            ("original_height", [1]), ("original_width", [1]), ("backbone_fpn_0", [1, 8, 32, 32]),
            ("language_mask", [1, 32]), ("language_features", [32, 1, 8]), ("box_coords", [1, 1, 4]),
        ],
        [("boxes", [7, 4]), ("scores", [7]), ("masks", [7, 1, 64, 64])],
    ),
    "the image encoder of SAM 3 as usls": ([("images", [1, 3, 64, 64])], [*LEVELS, ("fpn_pos_2", [1, 8, 8, 8])]),
    "the text encoder of SAM 3 as usls": (
        [("input_ids", [1, 32]), ("attention_mask", [1, 32])], [("text_features", [1, 32, 8]), ("text_mask", [1, 32])]
    ),
    "the geometry encoder of SAM 3 as usls": (
        [("input_boxes", [1, 2, 4]), *LEVELS[2:]], [("geometry_features", [1, 3, 8]), ("geometry_mask", [1, 3])]
    ),
    "the decoder of SAM 3 as usls": (
        [*LEVELS, ("prompt_features", [1, 32, 8]), ("prompt_mask", [1, 32])],
        [("pred_masks", [1, 9, 32, 32]), ("pred_logits", [1, 9]), ("presence_logits", [1, 1])],
    ),
    "SAM 3 with one text inside": (
        [("images", [1, 3, 64, 64])],
        [("pred_masks", [1, 9, 32, 32]), ("pred_logits", [1, 9]), ("presence_logits", [1, 1])],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SAM3_FILES)
def test_files_of_sam3_by_other_exporters_are_named_whatever_they_are_imported_as(tmp_path: Path, name: str) -> None:
    path = tmp_path / "part.onnx"
    onnx.save(graph(*SAM3_FILES[name]), path)
    message = f"{name}.*maskmill export facebook/sam3"
    with pytest.raises(BundleError, match=message):
        bundle_from_onnx(path, tmp_path / "out", classes=COLORS)
    with pytest.raises(BundleError, match=message):
        promptable_from_onnx(path, path, tmp_path / "out")
    with pytest.raises(BundleError, match=message):
        detector_from_onnx(path, tmp_path / "out", classes=COLORS)
    assert not (tmp_path / "out").exists()


def test_a_tensor_of_the_graph_becomes_the_features(tmp_path: Path) -> None:
    bundle = adopt(tmp_path, color_graph(through=[("Mul", 2.0)]), features_name="logits")
    assert [(output.name, output.kind) for output in bundle.outputs] == [("scores", "scores"), ("logits", "features")]
    scores, features = OnnxSession(bundle).run(np.full((1, 3, *SIZE), 0.5, np.float32))
    np.testing.assert_allclose(scores, 2 * features)
    with pytest.raises(BundleError, match="no tensor 'nowhere' to take features from"):
        adopt(tmp_path, color_graph(), "other", features_name="nowhere")


def test_edits_keep_external_data(tmp_path: Path, label: np.ndarray) -> None:
    path = tmp_path / "model.onnx"
    nodes = [helper.make_node("ArgMax", ["inner"], ["classes"], axis=1)]
    model = behind(nodes, "classes", TensorProto.INT64)
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    bundle = bundle_from_onnx(path, tmp_path / "bundle", classes=COLORS)
    assert {file.role for file in bundle.files} == {"model", "external-data"}
    bundle.verify()
    assert (labels_of(bundle, color_image(label)) == label).all()
