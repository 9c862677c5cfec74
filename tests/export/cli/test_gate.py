from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from maskmill.cli import app
from maskmill.engine.calibration.calibration import Calibration
from maskmill.engine.model.bundle import Bundle
from maskmill.errors import CalibrationMismatch, GateError, UsageError

from ...models import color_bundle
from ..gate.test_judge import SIZE, write_colors

PHOTOS = 50


@pytest.fixture
def images(tmp_path: Path) -> str:
    write_colors(tmp_path / "photos", [100 + 3 * index for index in range(PHOTOS)])
    return str(tmp_path / "photos")


def run(*arguments: str | Path) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_convert_prints_the_verdict_and_what_it_wrote(tmp_path: Path, images: str) -> None:
    bundle = color_bundle(tmp_path)
    output = run("convert", bundle.path, "--precision", "fp16", "--images", images).output
    assert "fp16 (onnxruntime on cpu, emulated) passes on 50 images: mean IoU 1.0000, worst 1.0000" in output
    assert f"wrote {Bundle.load(bundle.path).model_path(precision='fp16')}" in output
    assert "tolerances changed" not in output


def test_convert_walks_on_and_prints_and_stores_what_was_overridden(tmp_path: Path, images: str) -> None:
    bundle = color_bundle(tmp_path, through=[("Mul", 1e5), ("Mul", 1e-5)])
    output = run(
        "convert", bundle.path, "--precision", "fp16", "--images", images, "--on-fail", "next", "--min-images", "10",
        "--num-images", "10",
    ).output  # fmt: skip
    assert output.startswith("tolerances changed: min_images 10\nfp16 is refused: ")
    assert "the node Mul0 produces values up to" in output
    (verdict,) = Bundle.load(bundle.path).verdicts
    assert (verdict["precision"], verdict["images"], verdict["tolerances"]["min_images"]) == ("bf16", 10, 10)


def test_gate_judges_every_conversion_that_stands_there(tmp_path: Path, images: str) -> None:
    bundle = color_bundle(tmp_path)
    for precision in ("fp16", "int8"):
        run("convert", bundle.path, "--precision", precision, "--images", images)
    output = run("gate", bundle.path, "--images", images).output
    assert [line.split()[0] for line in output.splitlines()] == ["fp16", "int8", "50"]
    with pytest.raises(GateError, match="50 different images were compared, at least 60 are needed"):
        run("gate", bundle.path, "--images", images, "--precision", "fp16", "--min-images", "60")
    passed = {verdict["precision"]: verdict["passed"] for verdict in Bundle.load(bundle.path).verdicts}
    assert passed == {"fp16": False, "int8": True}


def test_gate_compares_two_bundles(tmp_path: Path, images: str) -> None:
    bundle, same = color_bundle(tmp_path), color_bundle(tmp_path, name="same")
    swapped = color_bundle(tmp_path, name="swapped", channels="BGR")
    assert "passes on 50 images" in run("gate", same.path, "--images", images, "--reference", bundle.path).output
    with pytest.raises(UsageError, match="cannot be compared with itself"):
        run("gate", bundle.path, "--images", images, "--reference", bundle.path)
    with pytest.raises(GateError, match="mean mask IoU"):
        run("gate", swapped.path, "--images", images, "--reference", bundle.path)
    assert not Bundle.load(swapped.path).verdicts


def test_a_conversion_labels_only_with_a_verdict(tmp_path: Path, images: str) -> None:
    bundle = color_bundle(tmp_path)
    run("convert", bundle.path, "--precision", "fp16", "--images", images)
    command = ["label", bundle.path, images, "--precision", "fp16", "--limit", "4"]
    assert run(*command, "-o", tmp_path / "passed").exit_code == 0
    with pytest.raises(GateError):
        run("gate", bundle.path, "--images", images, "--min-images", "60")
    with pytest.raises(GateError, match="failed the gate"):
        run(*command, "-o", tmp_path / "failed")
    assert not (tmp_path / "failed").exists()
    assert run(*command, "-o", tmp_path / "failed", "--allow-unverified").exit_code == 0


def test_a_calibration_serves_another_artifact_where_its_scores_were_shown_to_stay(tmp_path: Path, images: str) -> None:
    bundle = color_bundle(tmp_path)
    (tmp_path / "labels").mkdir()
    for path in sorted(Path(images).iterdir()):
        label = np.asarray(Image.open(path)).argmax(axis=2).astype(np.uint8)
        Image.fromarray(label).save(tmp_path / "labels" / path.name)
    calibration = tmp_path / "calibration.json"
    run(
        "calibrate",
        bundle.path,
        "--images",
        images,
        "--labels",
        tmp_path / "labels",
        "--alpha",
        "0.1",
        "-o",
        calibration,
    )
    command = ["label", bundle.path, images, "--precision", "int8", "--limit", "4", "--select", "conformal"]
    command += ["--calibration", calibration]
    convert = ["convert", bundle.path, "--precision", "int8", "--images", images]
    run(*convert)
    assert run(*command, "-o", tmp_path / "proven").exit_code == 0
    run(*convert, "--max-shift", "0")
    with pytest.raises(CalibrationMismatch, match=r"its score quantiles moved by 0\.\d+, 0 is allowed"):
        run(*command, "-o", tmp_path / "moved")
    with pytest.raises(CalibrationMismatch, match="or show on photos with `maskmill gate`"):
        run(*command, "-o", tmp_path / "unproven", "--provider", "openvino", "--allow-unverified")
    assert Calibration.load(calibration).made_with["artifact"] == bundle.file().sha256


def test_bench_lists_what_is_installed_beside_the_gate(tmp_path: Path, images: str) -> None:
    bundle = color_bundle(tmp_path)
    run("convert", bundle.path, "--precision", "int8", "--images", images)
    output = run("bench", bundle.path, "--images", images, "--seconds", "0.1", "--json").output
    rows = {(row["provider"], row["precision"]): row for row in json.loads(output)}
    assert {("cpu", "fp32"), ("cpu", "int8"), ("openvino", "fp32")} <= set(rows)
    assert rows["cpu", "fp32"]["gate"] == "original"
    assert rows["cpu", "fp32"]["ratio"] == 1
    assert rows["cpu", "int8"]["gate"] == "passes"
    assert rows["cpu", "int8"]["verdict"]["metrics"]["mean_iou"] == 1
    assert all(row["images_per_second"] > 0 for row in rows.values())


def test_bench_says_why_a_file_does_not_run(tmp_path: Path, images: str) -> None:
    bundle = color_bundle(tmp_path, size=SIZE)
    run("convert", bundle.path, "--precision", "bf16", "--images", images)
    output = run("bench", bundle.path, "--seconds", "0.1").output
    row = next(line for line in output.splitlines() if "cpu" in line and "bf16" in line)
    assert " - " in row
