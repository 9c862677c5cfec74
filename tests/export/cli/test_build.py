"""``maskmill build``: engines from the command line, proved on real images and refused otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from maskmill.cli import app
from maskmill.engine.model.bundle import Bundle
from maskmill.errors import GateError, UsageError

from ...engine.corpus import write_photos
from ...models import color_bundle
from .. import trt_fake


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_an_engine_is_built_proved_and_labels(cupy: Any, tmp_path: Path) -> None:
    bundle = color_bundle(tmp_path).path
    photos = write_photos(tmp_path / "photos", 52)[0].parent
    result = run("build", bundle, "--batches", "1,2,4", "--workspace", "2G", "--gate-images", photos)
    assert result.exit_code == 0, result.output
    assert "built: " in result.output
    assert "fp32 (tensorrt on NVIDIA H100 80GB HBM3 sm_90) passes on 52 images" in result.output
    (verdict,) = Bundle.load(bundle).verdicts
    assert (verdict["artifact"], verdict["passed"]) == (Bundle.load(bundle).engines[0]["sha256"], True)
    labeled = run("label", bundle, photos, "-o", tmp_path / "store", "--provider", "engine", "--limit", 3)
    assert labeled.exit_code == 0, labeled.output
    assert "TensorRT 11.4.0 on NVIDIA H100 80GB HBM3 sm_90, fp32" in labeled.output
    assert "images and kernels on NVIDIA H100 80GB HBM3 sm_90 (CUDA)" in labeled.output
    assert "there already: " in run("build", bundle, "--batches", "1,2,4", "--workspace", "2G").output


def test_an_engine_that_was_not_proved_is_refused(cupy: Any, tmp_path: Path) -> None:
    bundle = color_bundle(tmp_path).path
    photos = write_photos(tmp_path / "photos", 2)[0].parent
    result = run("build", bundle)
    assert "has not passed the gate yet, and `maskmill label` refuses it" in result.output
    refused = run("label", bundle, photos, "-o", tmp_path / "store", "--provider", "engine")
    assert isinstance(refused.exception, GateError)
    allowed = run("label", bundle, photos, "-o", tmp_path / "store", "--provider", "engine", "--allow-unverified")
    assert allowed.exit_code == 0, allowed.output


def test_an_engine_that_differs_fails_and_the_verdict_stays(
    cupy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = color_bundle(tmp_path).path
    photos = write_photos(tmp_path / "photos", 52)[0].parent
    run_engine = trt_fake.ICudaEngine._run
    monkeypatch.setattr(
        trt_fake.ICudaEngine,
        "_run",
        lambda self, feeds: {name: np.roll(value, 1, axis=1) for name, value in run_engine(self, feeds).items()},
    )
    result = run("build", bundle, "--gate-images", photos)
    assert isinstance(result.exception, GateError)
    assert "FAILS on 52 images" in result.output
    assert [verdict["passed"] for verdict in Bundle.load(bundle).verdicts] == [False]


def test_a_smaller_batch_is_said_aloud(cupy: Any, tmp_path: Path) -> None:
    trt_fake.world.memory_for = 9
    result = run("build", color_bundle(tmp_path).path, "--batches", "1,4,16")
    assert "out of memory with batches of up to 16" in result.output
    assert "trying 8" in result.output


@pytest.mark.parametrize(
    ("option", "value"), [("--batches", "1,8"), ("--batches", "many"), ("--workspace", "4X"), ("--height", "8,4,2")]
)
def test_options_that_make_no_sense_are_refused(cupy: Any, tmp_path: Path, option: str, value: str) -> None:
    assert isinstance(run("build", color_bundle(tmp_path).path, option, value).exception, UsageError)


def test_devices_go_with_a_gpu(tmp_path: Path) -> None:
    bundle = color_bundle(tmp_path).path
    for options in (("--device", "0,1"), ("--provider", "engine", "--device", "first")):
        assert isinstance(run("label", bundle, tmp_path, "-o", tmp_path / "store", *options).exception, UsageError)
