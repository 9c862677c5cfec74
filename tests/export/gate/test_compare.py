"""What is compared of classifiers and promptable models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from maskmill.engine.model.bundle import Bundle
from maskmill.engine.model.verdicts import Tolerances
from maskmill.engine.runtimes.onnx_runtime import OnnxSession
from maskmill.errors import GateError
from maskmill.export.gate.compare import compare
from maskmill.export.gate.proof import prove_artifact, prove_same, roles_of
from maskmill.export.gate.tasks import Side
from maskmill.export.pictures import GateImage
from maskmill.export.precision.convert import Conversion, convert

from ...models import cam_bundle, color_image, sam_bundle
from .test_judge import write_colors

FEW = Tolerances(min_images=4)


def side(bundle: Bundle) -> Side:
    sessions = {role: OnnxSession(bundle, role=role) for role in roles_of(bundle)}
    return Side(bundle=bundle, sessions=sessions)


def halves(first: int, second: int, *, size: tuple[int, int] = (32, 48), strength: int = 255) -> GateImage:
    """A photo whose left third has one color, the rest another."""
    label = np.full(size, second)
    label[:, : size[1] // 3] = first
    return "photo", color_image(label, strength=strength)


def test_a_classifier_agrees_where_its_top_class_is_the_same(tmp_path: Path) -> None:
    bundle, swapped = cam_bundle(tmp_path), cam_bundle(tmp_path, name="swapped")
    found = compare(side(bundle), side(swapped), [halves(0, 2), halves(1, 0)])
    assert (found.agreement, found.mean_iou, found.max_error) == (1.0, 1.0, 0.0)


def test_activation_maps_are_compared_by_their_overlap(tmp_path: Path) -> None:
    bundle = cam_bundle(tmp_path)
    reference = side(bundle)
    candidate = side(bundle)

    class Dimmed:
        """The same classifier, whose maps lack their first third."""

        kind, artifact, max_batch, threads = "test/cpu/fp32", "dimmed", None, 1

        def run(self, inputs: np.ndarray) -> list[np.ndarray]:
            outputs = candidate.sessions["model"].run(inputs)
            cam = next(index for index, output in enumerate(bundle.outputs) if output.kind == "cam")
            outputs[cam] = outputs[cam].copy()
            outputs[cam][..., : outputs[cam].shape[-1] // 3] = 0
            return outputs

    dimmed = Side(bundle=bundle, sessions={"model": Dimmed()})
    found = compare(reference, dimmed, [("photo", color_image(np.zeros((16, 24), np.int64)))])
    assert found.agreement == 1
    assert found.mean_iou == pytest.approx(2 / 3, abs=1e-6)


def test_a_classifier_converts_to_fp16(tmp_path: Path) -> None:
    photos = write_colors(tmp_path / "photos", [200, 220, 240, 250])
    bundle = convert(cam_bundle(tmp_path), "fp16", photos, how=Conversion(tolerances=FEW))
    assert bundle.verdicts[-1]["passed"]


def test_masks_of_a_grid_of_points_are_compared(tmp_path: Path) -> None:
    bundle = sam_bundle(tmp_path)
    other = sam_bundle(tmp_path, name="other", thresholds=(0.1, 2.5, 4.0))
    assert compare(side(bundle), side(bundle), [halves(0, 2)]).mean_iou == 1
    found = compare(side(bundle), side(other), [halves(0, 2)])
    # 3 of 9 points lie on the left third; with 2.5 the second mask is everything instead of the point's color
    expected = (3 * (1 + 1 / 3 + 1) + 6 * (1 + 2 / 3 + 1)) / 27
    assert found.mean_iou == pytest.approx(expected)
    assert found.agreement == pytest.approx(1 - (3 * 2 / 3 + 6 * 1 / 3) / 27)


def test_padding_is_not_compared(tmp_path: Path) -> None:
    bundle = sam_bundle(tmp_path)
    other = sam_bundle(tmp_path, name="other", thresholds=(0.1, 2.5, 4.0))
    # a square image covers two thirds of the input's width
    found = compare(side(bundle), side(other), [halves(0, 0, size=(32, 32))])
    assert (found.agreement, found.mean_iou) == (1.0, 1.0)


def test_encoder_and_decoder_are_converted_together_and_judged_end_to_end(tmp_path: Path) -> None:
    photos = write_colors(tmp_path / "photos", [200, 220, 240, 250])
    lines: list[str] = []
    # the decoder marks missing box corners with a million, which is beyond fp16
    bundle = convert(
        sam_bundle(tmp_path), "fp16", photos, how=Conversion(tolerances=FEW), on_fail="next", say=lines.append
    )
    assert "the node xs produces values up to 1e+06, beyond 65504 of fp16" in lines[0]
    artifacts = {bundle.file(role, "mixed").sha256 for role in ("encoder", "decoder")}
    assert {verdict["artifact"] for verdict in bundle.verdicts} == artifacts
    assert {"xs", "ys", "xe", "ye"} <= set(bundle.verdicts[0]["kept_fp32"])
    assert len(prove_artifact(bundle, "cpu", "mixed", photos, FEW)) == 2


def test_one_role_can_be_converted_alone(tmp_path: Path) -> None:
    photos = write_colors(tmp_path / "photos", [200, 220, 240, 250])
    bundle = convert(sam_bundle(tmp_path), "fp16", photos, how=Conversion(tolerances=FEW, roles=("encoder",)))
    assert [file.role for file in bundle.files if file.derived_from] == ["encoder"]
    (verdict,) = prove_artifact(bundle, "cpu", "fp16", photos, FEW)
    assert verdict.artifact == bundle.file("encoder", "fp16").sha256


def test_a_decoder_is_quantized_on_the_prompts_of_the_gate(tmp_path: Path) -> None:
    photos = write_colors(tmp_path / "photos", [200, 220, 240, 250])
    anything = Tolerances(mean_iou=0, worst_iou=0, agreement=0, min_images=1)
    how = Conversion(tolerances=anything, roles=("decoder",))
    bundle = convert(sam_bundle(tmp_path), "int8", photos, how=how)
    assert bundle.file("decoder", "int8").derived_from == bundle.file("decoder").sha256


def test_models_of_other_tasks_or_classes_are_not_compared(tmp_path: Path) -> None:
    photos = write_colors(tmp_path / "photos", [200])
    with pytest.raises(ValueError, match="must have the same task and classes"):
        prove_same(cam_bundle(tmp_path), sam_bundle(tmp_path), photos)


def test_no_image_is_an_error(tmp_path: Path) -> None:
    bundle = cam_bundle(tmp_path)
    with pytest.raises(GateError, match="no image to compare on"):
        compare(side(bundle), side(bundle), [])
