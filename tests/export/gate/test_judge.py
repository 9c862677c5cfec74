"""The gate on colored photos: the class of a pixel is its strongest channel, so every answer is in view."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from PIL import Image

from maskmill.engine.model.bundle import Bundle
from maskmill.engine.model.verdicts import Tolerances, Verdict, add_verdict, require_verdict, shift_between
from maskmill.engine.runtimes.onnx_runtime import OnnxSession
from maskmill.errors import GateError, MissingPackageError, UsageError
from maskmill.export.adopt.semantic import bundle_from_onnx
from maskmill.export.gate.compare import compare
from maskmill.export.gate.judge import GateImages, describe, judge, require_pass
from maskmill.export.gate.proof import prove_artifact, prove_same
from maskmill.export.gate.tasks import Side
from maskmill.export.precision.artifacts import save_graph, with_files
from maskmill.export.precision.bisect import smallest_subset
from maskmill.export.precision.convert import Conversion, convert
from maskmill.export.precision.sixteen_bit import in_16_bit

from ...models import COLORS, color_bundle, color_graph, color_image

SIZE = (16, 24)


def write_colors(folder: Path, strengths: list[int]) -> GateImages:
    """Photos of patches in the three colors, one for each strength."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index, strength in enumerate(strengths):
        label = rng.integers(0, 3, (4, 6)).repeat(4, axis=0).repeat(4, axis=1)
        Image.fromarray(color_image(label, strength=strength)).save(folder / f"{index:03d}.png")
    return GateImages.open(str(folder))


def write_close_colors(folder: Path) -> GateImages:
    """Photos whose strongest channel is one level above the others: fp16 tells the logits apart, bf16 does not."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(50):
        label = rng.integers(0, 3, SIZE)
        Image.fromarray(232 + color_image(label, strength=1)).save(folder / f"{index:03d}.png")
    return GateImages.open(str(folder))


@pytest.fixture
def photos(tmp_path: Path) -> GateImages:
    return write_colors(tmp_path / "photos", [100 + 3 * index for index in range(50)])


def side(bundle: Bundle, graph: onnx.ModelProto | None = None, folder: Path | None = None) -> Side:
    """The bundle's model, or another graph in its backend."""
    if graph is not None and folder is not None:
        folder.mkdir()
        (entry,) = save_graph(graph, folder, bundle.file(), "fp32")
        bundle = dataclasses.replace(bundle, path=folder, files=(entry,))
    return Side(bundle=bundle, sessions={"model": OnnxSession(bundle)})


def test_photos_of_fewer_bits_than_their_type_are_named(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    cv2.imwrite(str(tmp_path / "photos" / "dim.png"), np.full(SIZE, 4095 // 2, np.uint16))
    images = GateImages.open(str(tmp_path / "photos"))
    assert len(list(images)) == len(list(images.first(1))) == 1
    assert [Path(uri).name for uri in images.summary.low_range] == ["dim.png"]
    filled = GateImages.open(str(tmp_path / "photos"), bit_depth=12)
    assert len(list(filled)) == 1
    assert filled.summary.low_range == []


def verdict_on(bundle: Bundle, candidate: Side, photos: GateImages, **options: Any) -> Verdict:
    (verdict,) = judge(side(bundle), candidate, photos, **options)
    return verdict


def test_the_same_model_passes_with_nothing_between(tmp_path: Path, photos: GateImages) -> None:
    bundle = color_bundle(tmp_path)
    verdict = verdict_on(bundle, side(bundle, color_graph(), tmp_path / "other"), photos)
    metrics = verdict.metrics
    assert verdict.passed
    assert (metrics.images, metrics.agreement, metrics.mean_iou, metrics.worst_iou) == (50, 1.0, 1.0, 1.0)
    assert (metrics.mean_error, metrics.max_error, metrics.nonfinite, metrics.score_quantile_shift) == (0, 0, 0, 0)
    assert (verdict.runtime, verdict.device, verdict.precision) == ("onnxruntime", "cpu", "fp32")
    require_pass(verdict)


def test_mask_iou_is_the_mean_over_the_classes_present_in_either(tmp_path: Path) -> None:
    bundle = color_bundle(tmp_path)
    label = np.zeros(SIZE, np.int64)
    label[:, 12:] = 1
    label[0, 0] = 2
    # in the other model the scores of the third class are lowered below the others
    other = color_graph()
    bias = helper.make_node("Add", ["logits", "bias"], ["lowered"])
    other.graph.node[1].input[0] = "lowered"
    other.graph.node.insert(1, bias)
    other.graph.initializer.append(numpy_helper.from_array(np.float32([0, 0, -99]).reshape(3, 1, 1), "bias"))
    lowered = side(bundle, other, tmp_path / "other")
    images = [("one", color_image(label))]
    found = compare(side(bundle), lowered, images)
    # the one pixel becomes the first class: 191 of 192 pixels of class 0, all of 1, none of 2
    assert found.mean_iou == pytest.approx((191 / 192 + 1 + 0) / 3)
    assert found.agreement == pytest.approx(383 / 384)
    without_specks = compare(side(bundle), lowered, images, min_share=0.01)
    assert without_specks.mean_iou == pytest.approx((191 / 192 + 1) / 2)


def test_a_swapped_channel_order_is_caught(tmp_path: Path, photos: GateImages) -> None:
    bundle = color_bundle(tmp_path)
    swapped = color_bundle(tmp_path, name="swapped", channels="BGR")
    (verdict,) = prove_same(bundle, swapped, photos)
    assert not verdict.passed
    # green alone is where it was
    assert verdict.metrics.mean_iou < 0.4
    with pytest.raises(GateError, match=r"mean mask IoU 0\.\d+ is below 0.99"):
        require_pass(verdict)


def test_a_wrong_mean_is_caught(tmp_path: Path, photos: GateImages) -> None:
    bundle = color_bundle(tmp_path, mean=(0.4, 0.4, 0.4), std=(0.2, 0.2, 0.2))
    (verdict,) = prove_same(bundle, color_bundle(tmp_path, name="wrong", mean=(0.9, 0.4, 0.4)), photos)
    assert not verdict.passed
    assert verdict.metrics.worst_iou < 0.95


def test_a_wrong_std_is_caught_where_it_tips_a_class(tmp_path: Path, photos: GateImages) -> None:
    # values are negative, so that a divisor of 20 makes red the largest
    bundle = color_bundle(tmp_path, mean=(1.0, 1.0, 1.0))
    (verdict,) = prove_same(bundle, color_bundle(tmp_path, name="wrong", mean=(1.0,) * 3, std=(20, 1, 1)), photos)
    assert not verdict.passed
    assert verdict.metrics.mean_iou < 0.2


def test_a_wrong_scale_that_keeps_every_class_moves_the_score_quantiles(tmp_path: Path, photos: GateImages) -> None:
    bundle = color_bundle(tmp_path)
    (verdict,) = prove_same(bundle, color_bundle(tmp_path, name="softer", std=(4, 4, 4)), photos)
    assert verdict.metrics.mean_iou == 1
    assert verdict.metrics.score_quantile_shift > 0.1


def test_a_batch_axis_frozen_in_the_signature_is_caught(tmp_path: Path, photos: GateImages) -> None:
    bundle = color_bundle(tmp_path)
    with pytest.raises(GateError, match="takes a batch of 1 only, its reference any; its batch axis was frozen"):
        judge(side(bundle), side(bundle, color_graph(batch=1), tmp_path / "frozen"), photos)


def test_a_batch_axis_frozen_inside_is_caught(tmp_path: Path, photos: GateImages) -> None:
    bundle = color_bundle(tmp_path)
    frozen = color_graph()
    frozen.graph.initializer.append(numpy_helper.from_array(np.int64([1, 3, *SIZE]), "shape"))
    frozen.graph.node[-1].CopyFrom(helper.make_node("Reshape", ["logits", "shape"], ["scores"]))
    with pytest.raises(GateError, match="does not run on an input of its reference"):
        judge(side(bundle), side(bundle, frozen, tmp_path / "frozen"), photos)


def test_an_original_that_is_itself_frozen_inside_is_compared_one_by_one(tmp_path: Path, photos: GateImages) -> None:
    bundle = color_bundle(tmp_path)
    frozen = color_graph()
    frozen.graph.initializer.append(numpy_helper.from_array(np.int64([1, 3, *SIZE]), "shape"))
    frozen.graph.node[-1].CopyFrom(helper.make_node("Reshape", ["logits", "shape"], ["scores"]))
    reference = side(bundle, frozen, tmp_path / "frozen")
    assert judge(reference, side(bundle), photos)[0].passed


def test_an_original_with_a_fixed_batch_is_compared_one_by_one(tmp_path: Path, photos: GateImages) -> None:
    bundle = color_bundle(tmp_path, batch=1)
    assert verdict_on(bundle, side(bundle, color_graph(batch=1), tmp_path / "other"), photos).passed


def test_a_map_of_another_shape_is_caught(tmp_path: Path, photos: GateImages) -> None:
    bundle = color_bundle(tmp_path)
    with pytest.raises(GateError, match=r"score maps of shape \(3, 8, 12\), its reference \(3, 16, 24\)"):
        judge(side(bundle), side(bundle, color_graph(stride=2), tmp_path / "small"), photos)


def test_one_bad_image_of_fifty_is_caught_and_named(tmp_path: Path) -> None:
    # brighter than 0.9, the strongest channel is made the weakest
    photos = write_colors(tmp_path / "photos", [200] * 31 + [255] + [200] * 18)
    bundle = color_bundle(tmp_path)
    clipped = side(bundle, color_graph(through=[("Min", 9.0)]), tmp_path / "clip")
    assert verdict_on(bundle, clipped, photos).passed  # the order of classes is kept
    spoiled = color_graph(through=[("Sub", 9.0), ("Max", 0.0), ("Mul", -99.0)])
    spoiled.graph.node.insert(len(spoiled.graph.node) - 1, helper.make_node("Add", ["through2", "logits"], ["sum"]))
    spoiled.graph.node[-1].input[0] = "sum"
    verdict = verdict_on(bundle, side(bundle, spoiled, tmp_path / "spoiled"), photos)
    assert verdict.metrics.worst_image.endswith("031.png")
    assert verdict.metrics.worst_iou == 0
    assert verdict.metrics.mean_iou == pytest.approx(49 / 50)
    assert any("031.png" in failure for failure in verdict.failures)


def test_one_image_with_nan_is_caught_even_where_the_means_allow_it(tmp_path: Path) -> None:
    photos = write_colors(tmp_path / "photos", [240] * 49 + [255])
    bundle = color_bundle(tmp_path, through=[("Mul", 6600.0), ("Mul", 1 / 6600)])  # 255 gives 66,000
    tolerances = Tolerances(mean_iou=0.9, worst_iou=0, agreement=0.9)
    with pytest.raises(GateError, match="NaN or infinity on 1 of 50 images.*the node Mul0 produces values up to 6.6e"):
        convert(bundle, "fp16", photos, how=Conversion(tolerances=tolerances))


def test_fewer_images_than_asked_for_do_not_pass(tmp_path: Path) -> None:
    photos = write_colors(tmp_path / "photos", [200] * 49)
    bundle = color_bundle(tmp_path)
    other = side(bundle, color_graph(), tmp_path / "other")
    verdict = verdict_on(bundle, other, photos)
    assert verdict.failures == ("49 different images were compared, at least 50 are needed",)
    assert verdict_on(bundle, other, photos, tolerances=Tolerances(min_images=49)).passed


def test_images_are_spaced_evenly_and_broken_ones_do_not_count(tmp_path: Path) -> None:
    write_colors(tmp_path / "photos", [200] * 9)
    (tmp_path / "photos" / "004.png").write_bytes(b"not an image")
    chosen = GateImages.open(str(tmp_path / "photos"), limit=5)
    assert [Path(name).name for name, _ in chosen] == ["000.png", "002.png", "006.png", "008.png"]


# conversions


def test_fp16_is_written_with_its_verdict(tmp_path: Path, photos: GateImages) -> None:
    bundle = color_bundle(tmp_path)
    original, fingerprint = bundle.file(), bundle.fingerprint
    lines: list[str] = []
    converted = convert(bundle, "fp16", photos, say=lines.append)
    entry = converted.file(precision="fp16")
    assert (entry.derived_from, converted.fingerprint) == (original.sha256, fingerprint)
    assert Bundle.load(bundle.path) == converted
    converted.verify()
    (verdict,) = (Verdict.from_dict(raw) for raw in converted.verdicts)
    assert (verdict.artifact, verdict.reference) == (entry.sha256, original.sha256)
    assert verdict.passed
    assert verdict.emulated
    assert lines == [describe(verdict)]
    require_verdict(converted, entry.sha256, "onnxruntime", "cpu")


def test_converting_again_replaces_the_earlier_file_and_its_verdict(tmp_path: Path, photos: GateImages) -> None:
    bundle = convert(color_bundle(tmp_path, through=[("Mul", 2.0)]), "fp16", photos)
    again = convert(bundle, "fp16", photos, how=Conversion(keep_fp32=("Mul0",)))
    assert [file.precision for file in again.files] == ["fp32", "fp16"]
    assert [verdict["kept_fp32"] for verdict in again.verdicts] == [["Mul0"]]
    assert {path.suffix for path in again.path.iterdir()} == {".json", ".onnx"}
    assert len(list(again.path.glob("*.onnx"))) == 2


def test_a_range_beyond_fp16_names_the_node_and_walks_to_bf16(tmp_path: Path, photos: GateImages) -> None:
    bundle = color_bundle(tmp_path, through=[("Mul", 1e5), ("Mul", 1e-5)])
    lines: list[str] = []
    converted = convert(bundle, "fp16", photos, on_fail="next", say=lines.append)
    assert converted.file(precision="bf16").derived_from
    assert "the node Mul0 produces values up to 9.69e+05, beyond 65504 of fp16" in lines[0]
    assert lines[1].startswith("bf16 (onnxruntime on cpu, emulated) passes on 50 images")


def test_where_bf16_is_too_coarse_fp16_keeps_the_nodes_at_fault_in_fp32(tmp_path: Path) -> None:
    photos = write_close_colors(tmp_path / "photos")
    bundle = color_bundle(tmp_path, through=[("Mul", 1e5), ("Mul", 1e-5), ("Mul", 1.0)])
    lines: list[str] = []
    converted = convert(bundle, "fp16", photos, on_fail="next", say=lines.append)
    assert [line.split()[0] for line in lines] == ["fp16", "bf16", "mixed"]
    (verdict,) = (Verdict.from_dict(raw) for raw in converted.verdicts)
    assert (verdict.precision, set(verdict.kept_fp32)) == ("mixed", {"Mul0", "Mul1"})
    assert converted.file(precision="mixed").derived_from


def test_nodes_that_lose_digits_are_found_by_bisection(tmp_path: Path) -> None:
    # 1000 + 2320/255 and 1000 + 2330/255 are the same number in fp16, whose spacing there is 0.5
    photos = write_close_colors(tmp_path / "photos")
    through = [("Mul", 1.0), ("Add", 1000.0), ("Sub", 1000.0), ("Mul", 1.0)]
    bundle = color_bundle(tmp_path, through=through)
    converted = convert(bundle, "bf16", photos, on_fail="next")
    (verdict,) = (Verdict.from_dict(raw) for raw in converted.verdicts)
    assert verdict.precision == "mixed"
    assert set(verdict.kept_fp32) == {"Add1", "Sub2"}


def test_a_conversion_that_fails_leaves_nothing(tmp_path: Path, photos: GateImages) -> None:
    bundle = color_bundle(tmp_path, through=[("Mul", 1e5), ("Mul", 1e-5)])
    before = {path: path.read_bytes() for path in bundle.path.iterdir()}
    with pytest.raises(GateError, match="stays in fp32; fp16 is refused: .* the node Mul0 produces values"):
        convert(bundle, "fp16", photos)
    assert {path: path.read_bytes() for path in bundle.path.iterdir()} == before


def test_int8_is_executed_and_not_emulated(tmp_path: Path, photos: GateImages) -> None:
    bundle = convert(color_bundle(tmp_path), "int8", photos)
    (verdict,) = (Verdict.from_dict(raw) for raw in bundle.verdicts)
    assert (verdict.precision, verdict.emulated, verdict.passed) == ("int8", False, True)
    operators = {node.op_type for node in onnx.load(bundle.model_path(precision="int8")).graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= operators
    OnnxSession(bundle, precision="int8")


def test_a_graph_too_old_for_scales_by_channel_is_brought_forward(tmp_path: Path, photos: GateImages) -> None:
    old = color_graph()
    old.opset_import[0].version = 12
    onnx.save(old, tmp_path / "old.onnx")
    bundle = bundle_from_onnx(tmp_path / "old.onnx", tmp_path / "old", classes=COLORS)
    assert convert(bundle, "int8", photos).verdicts[-1]["passed"]


def test_int8_ranges_are_those_of_the_calibration_images(tmp_path: Path, photos: GateImages) -> None:
    dark = write_colors(tmp_path / "dark", [10] * 8)
    bundle = color_bundle(tmp_path, gain=1.0, activation="none")
    loose = Tolerances(mean_iou=0, worst_iou=0, agreement=0)
    wide = convert(bundle, "int8", photos, how=Conversion(tolerances=loose))
    narrow = convert(bundle, "int8", photos, how=Conversion(tolerances=loose, calibration=dark))
    errors = [bundle.verdicts[-1]["metrics"]["max_error"] for bundle in (wide, narrow)]
    # what is brighter than any calibration image is cut off
    assert errors[0] < 0.01 < errors[1]


def quantize_as_modelopt(*, onnx_path: str, output_path: str, **_: Any) -> None:
    """Every tensor around the Conv through fp8, a Clip before the first; what it reads is overwritten on the way."""
    model = onnx.load(onnx_path)
    Path(onnx_path).write_bytes(b"gone")
    model.opset_import[0].version = 19
    (conv,) = (node for node in model.graph.node if node.op_type == "Conv")
    others = [node for node in model.graph.node if node is not conv]
    scale = numpy_helper.from_array(np.float32(1 / 448), "scale")
    zero = helper.make_tensor("zero", onnx.TensorProto.FLOAT8E4M3FN, [], b"\0", raw=True)
    limits = [numpy_helper.from_array(np.float32(value), name) for name, value in (("low", 0), ("high", 1))]
    model.graph.initializer.extend([scale, zero, *limits])

    def through_fp8(name: str) -> list[onnx.NodeProto]:
        return [
            helper.make_node("QuantizeLinear", [name, "scale", "zero"], [f"{name}_8"]),
            helper.make_node("DequantizeLinear", [f"{name}_8", "scale", "zero"], [f"{name}_back"]),
        ]

    nodes = [helper.make_node("Clip", ["image", "low", "high"], ["clipped"]), *through_fp8("clipped")]
    nodes += [*through_fp8("weight"), helper.make_node("Conv", ["clipped_back", "weight_back"], ["sums"], name="Conv")]
    nodes += [*through_fp8("sums"), helper.make_node("Identity", ["sums_back"], [conv.output[0]])]
    del model.graph.node[:]
    model.graph.node.extend([*nodes, *others])
    onnx.save(model, output_path)


def test_an_fp8_graph_runs_as_it_is_written_and_the_original_stays(
    tmp_path: Path, photos: GateImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("modelopt", "modelopt.onnx", "modelopt.onnx.quantization"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setattr(sys.modules["modelopt.onnx.quantization"], "quantize", quantize_as_modelopt, raising=False)
    bundle = color_bundle(tmp_path, gain=0.5, activation="none")
    converted = convert(bundle, "fp8", photos)
    converted.verify()
    verdict = converted.verdicts[-1]
    assert (verdict["precision"], verdict["passed"], verdict["emulated"]) == ("fp8", True, False)
    assert 0 < verdict["metrics"]["max_error"] < 0.02, "rounded, and no more than that"
    assert OnnxSession(converted, precision="fp8").kind == "onnxruntime/cpu/fp8"


def test_fp8_says_what_to_install(tmp_path: Path, photos: GateImages) -> None:
    with pytest.raises(MissingPackageError, match="nvidia-modelopt"):
        convert(color_bundle(tmp_path), "fp8", photos)


def test_unknown_nodes_roles_and_precisions_are_refused(tmp_path: Path, photos: GateImages) -> None:
    bundle = color_bundle(tmp_path)
    with pytest.raises(UsageError, match="no graph that is converted has a node named nothing"):
        convert(bundle, "fp16", photos, how=Conversion(keep_fp32=("nothing",)))
    with pytest.raises(UsageError, match="has no role encoder; its roles are model"):
        convert(bundle, "fp16", photos, how=Conversion(roles=("encoder",)))
    with pytest.raises(UsageError, match="one of fp8, int8, fp16, bf16, got 'fp4'"):
        convert(bundle, "fp4", photos)


def test_weights_too_large_for_one_file_lie_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = color_bundle(tmp_path)
    graph = in_16_bit(onnx.load(bundle.model_path()), "fp16").model
    graph.graph.initializer.append(numpy_helper.from_array(np.zeros(4096, np.float32), "unused"))
    monkeypatch.setattr("maskmill.export.precision.artifacts._LARGEST_FILE", 1000)
    entries = save_graph(graph, bundle.path, bundle.file(), "fp16")
    assert [entry.role for entry in entries] == ["model", "external-data"]
    changed = with_files(bundle, entries)
    changed.verify()
    OnnxSession(changed, precision="fp16").run(np.zeros((1, 3, *SIZE), np.float32))


# verdicts


def test_a_verdict_survives_the_manifest(tmp_path: Path, photos: GateImages) -> None:
    bundle = color_bundle(tmp_path)
    tolerances = Tolerances(mean_iou=0.9, min_images=3)
    verdict = verdict_on(bundle, side(bundle, color_graph(), tmp_path / "other"), photos, tolerances=tolerances)
    verdict = dataclasses.replace(verdict, faults=("one",), kept_fp32=("a", "b"))
    add_verdict(bundle, verdict).save()
    (raw,) = Bundle.load(bundle.path).verdicts
    assert Verdict.from_dict(raw) == verdict
    assert {"artifact", "reference", "precision", "runtime", "device", "emulated", "passed", "images"} <= set(raw)
    assert "tolerances changed: mean_iou 0.9, min_images 3" in describe(verdict)


def test_only_what_passed_on_this_runtime_and_device_may_label(tmp_path: Path, photos: GateImages) -> None:
    bundle = convert(color_bundle(tmp_path), "fp16", photos)
    original, artifact = bundle.file().sha256, bundle.file(precision="fp16").sha256
    require_verdict(bundle, original, "onnxruntime", "cpu")
    require_verdict(bundle, artifact, "onnxruntime", "cpu")
    for runtime_device in (("onnxruntime", "cuda"), ("tensorrt", "NVIDIA H100 sm_90")):
        with pytest.raises(GateError, match="was not shown to equal its original in .*--allow-unverified"):
            require_verdict(bundle, artifact, *runtime_device)
    (verdict,) = (Verdict.from_dict(raw) for raw in bundle.verdicts)
    failed = add_verdict(bundle, dataclasses.replace(verdict, failures=("mean mask IoU 0.5 is below 0.99",)))
    with pytest.raises(GateError, match=r"failed the gate in onnxruntime on cpu \(mean mask IoU 0.5 is below"):
        require_verdict(failed, artifact, "onnxruntime", "cpu")


def test_a_verdict_against_another_original_is_stale(tmp_path: Path, photos: GateImages) -> None:
    bundle = convert(color_bundle(tmp_path), "fp16", photos)
    artifact = bundle.file(precision="fp16").sha256
    files = tuple(file if file.derived_from else dataclasses.replace(file, sha256="f" * 64) for file in bundle.files)
    with pytest.raises(GateError, match="was not shown to equal its original"):
        require_verdict(dataclasses.replace(bundle, files=files), artifact, "onnxruntime", "cpu")


def test_an_artifact_that_stands_there_is_judged_anew(tmp_path: Path, photos: GateImages) -> None:
    bundle = convert(color_bundle(tmp_path), "fp16", photos)
    strict = Tolerances(min_images=51)
    (verdict,) = prove_artifact(bundle, "cpu", "fp16", photos, strict)
    assert verdict.emulated
    assert not verdict.passed
    assert [raw["passed"] for raw in Bundle.load(bundle.path).verdicts] == [False]
    with pytest.raises(UsageError, match="is the original itself"):
        prove_artifact(bundle, "cpu", "fp32", photos)


def test_shifts_add_up_through_the_original(tmp_path: Path, photos: GateImages) -> None:
    bundle = convert(convert(color_bundle(tmp_path), "fp16", photos), "int8", photos)
    kinds = {name: (bundle.file(precision=name).sha256, f"onnxruntime/cpu/{name}") for name in ("fp32", "fp16", "int8")}
    moved = {raw["precision"]: raw["metrics"]["score_quantile_shift"] for raw in bundle.verdicts}
    assert moved["int8"] > 0
    assert shift_between(bundle, kinds["fp32"], kinds["int8"]) == (moved["int8"], 0.01)
    assert shift_between(bundle, kinds["int8"], kinds["fp16"]) == (pytest.approx(sum(moved.values())), 0.01)
    assert shift_between(bundle, kinds["fp32"], ("unknown", "onnxruntime/cpu/fp16")) is None
    assert shift_between(bundle, kinds["fp32"], (kinds["fp16"][0], "tensorrt/gpu/fp16")) is None


@pytest.mark.parametrize("needed", [(), (0,), (3, 4), (0, 50, 99)])
def test_the_smallest_subset_is_found_in_few_questions(needed: tuple[int, ...]) -> None:
    asked: list[frozenset[int]] = []

    def enough(chosen: frozenset[int]) -> bool:
        asked.append(chosen)
        return chosen.issuperset(needed)

    assert smallest_subset(range(100), enough, budget=1000) == frozenset(needed)
    assert len(asked) <= 1 + 15 * len(needed)
    assert frozenset(needed) <= smallest_subset(range(100), enough, budget=5)


# classes, copies and warnings


def test_copies_of_an_image_count_once(tmp_path: Path) -> None:
    photos = write_colors(tmp_path / "photos", [200])
    (first,) = (tmp_path / "photos").iterdir()
    for index in range(60):
        (tmp_path / "photos" / f"link{index}.png").symlink_to(first)
        (tmp_path / "photos" / f"copy{index}.png").write_bytes(first.read_bytes())
    photos = GateImages.open(str(tmp_path / "photos"))
    assert len(photos) == 100
    bundle = color_bundle(tmp_path)
    verdict = verdict_on(bundle, side(bundle, color_graph(), tmp_path / "other"), photos)
    assert verdict.metrics.images == 1
    assert verdict.failures == ("1 different images were compared, at least 50 are needed",)


def without_blue() -> onnx.ModelProto:
    """The color graph, whose third class never wins."""
    graph = color_graph()
    graph.graph.initializer.append(numpy_helper.from_array(np.float32([0, 0, -99]).reshape(3, 1, 1), "bias"))
    graph.graph.node[1].CopyFrom(helper.make_node("Add", ["logits", "bias"], ["scores"]))
    return graph


def write_stripes(folder: Path, blue: int) -> GateImages:
    """50 photos, half red and half green, with ``blue`` pixels of blue on each."""
    folder.mkdir()
    for index in range(50):
        label = np.zeros(SIZE, np.int64)
        label[:, 12:] = 1
        label.reshape(-1)[:blue] = 2
        Image.fromarray(color_image(label, strength=150 + index)).save(folder / f"{index:03d}.png")
    return GateImages.open(str(folder))


def test_a_verdict_states_which_classes_it_has_seen(tmp_path: Path) -> None:
    bundle = color_bundle(tmp_path)
    images = write_stripes(tmp_path / "photos", blue=0)
    verdict = verdict_on(bundle, side(bundle, without_blue(), tmp_path / "other"), images)
    assert verdict.passed
    assert verdict.metrics.class_images == {"red": 50, "green": 50, "blue": 0}
    assert describe(verdict).endswith("; 2 of 3 classes are in the images, not blue")
    required = Tolerances(required_classes=("red", "blue"))
    verdict = verdict_on(bundle, side(bundle, without_blue(), tmp_path / "again"), images, tolerances=required)
    assert verdict.failures == ("no image shows the required class blue; add images that do",)
    with pytest.raises(UsageError, match="required class 'sky' is not one of the model's: red, green, blue"):
        verdict_on(bundle, side(bundle), images, tolerances=Tolerances(required_classes=("sky",)))


def test_a_class_that_is_small_on_every_image_cannot_vanish_unnoticed(tmp_path: Path) -> None:
    bundle = color_bundle(tmp_path)
    images = write_stripes(tmp_path / "photos", blue=3)
    lenient = Tolerances(min_share=0.01, agreement=0.99)
    verdict = verdict_on(bundle, side(bundle, without_blue(), tmp_path / "other"), images, tolerances=lenient)
    assert verdict.metrics.worst_iou > 0.98
    assert verdict.metrics.class_iou["blue"] == 0
    assert verdict.failures == ("mask IoU of the class blue over all images 0.0000 is below 0.9",)


def test_a_tensor_close_to_the_limit_of_fp16_is_a_warning(tmp_path: Path) -> None:
    images = write_colors(tmp_path / "photos", [100 + index for index in range(50)])
    bundle = color_bundle(tmp_path, through=[("Mul", 8e3), ("Mul", 1 / 8e3)])
    lines: list[str] = []
    converted = convert(bundle, "fp16", images, say=lines.append)
    (verdict,) = (Verdict.from_dict(raw) for raw in converted.verdicts)
    assert verdict.passed
    (warning,) = verdict.warnings
    assert warning.startswith(
        "the node Mul0 produces values up to 4.67e+04, within a factor of 2 of fp16's limit of 65504"
    )
    assert warning in lines[0]
    far = convert(color_bundle(tmp_path, name="far"), "fp16", images)
    assert far.verdicts[0]["warnings"] == []


def test_a_verdict_records_the_batch_that_it_ran_with(tmp_path: Path, photos: GateImages) -> None:
    bundle = color_bundle(tmp_path)
    other = side(bundle, color_graph(), tmp_path / "other")
    assert verdict_on(bundle, other, photos).batch == 2
    assert verdict_on(bundle, other, photos, batch=5).batch == 5


def test_photos_of_twelve_bits_are_compared_at_their_brightness(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    bright = np.full((8, 8), 4095, np.uint16)
    assert cv2.imwrite(str(tmp_path / "photos" / "a.png"), bright)
    assert cv2.imwrite(str(tmp_path / "photos" / "a.tif"), bright)
    (photo,) = GateImages.open(str(tmp_path / "photos"), bit_depth=12, image_ending="png")
    assert Path(photo[0]).name == "a.png"
    assert (photo[1] == 255).all()
