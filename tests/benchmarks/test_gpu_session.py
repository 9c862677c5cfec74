"""The script for a machine with a GPU runs from beginning to end over the stand-ins."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from ..conftest import ROOT
from ..export import trt_fake

STEPS = ["compile", "tests", "compare", "sanitize", "kernels", "libraries", "path", "label", "train"]


@pytest.fixture
def script(cupy: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.setattr(shutil, "which", lambda name: None if name in ("ncu", "compute-sanitizer") else name)
    for name in ("tensorrt", "cupy"):
        sys.modules[name].__spec__ = sys.__spec__  # importlib's look for a package reads it
    import gpu_session

    return gpu_session


def test_every_step_runs_and_is_written_at_once(script: Any, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert script.main(["--minutes", "0.1", "--out", str(tmp_path / "out"), "--small"]) == 0, capsys.readouterr().out
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    steps = summary["steps"]
    assert list(steps) == STEPS
    assert summary["machine"]["gpu"] == "NVIDIA H100 80GB HBM3"
    for number, name in enumerate(STEPS, 1):
        assert json.loads((tmp_path / "out" / f"{number}-{name}.json").read_text()) == steps[name]
    assert steps["compile"]["compiled"] == steps["compile"]["of"] > 100
    assert steps["sanitize"]["skipped"] == "compute-sanitizer is not on PATH"
    assert min(steps["compare"]["shapes"].values()) >= 1
    assert {row["kernel"] for row in steps["kernels"]["kernels"]} == set(steps["compare"]["shapes"])
    assert steps["path"]["runtime"].startswith("TensorRT")
    assert 0 <= steps["path"]["idle_share"] <= 1
    assert steps["label"]["images"] == 6
    text = (tmp_path / "out" / "summary.md").read_text()
    assert "its times mean nothing" in text
    assert "| `class_stats` | 150 classes, 128² to 512² |" in text
    assert "sanitize: skipped: compute-sanitizer" in capsys.readouterr().out


def test_the_page_shows_the_latest_session_or_says_that_there_is_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import gpu_report

    shown = gpu_report.MARK.search(gpu_report.PAGE.read_text(encoding="utf-8"))
    assert shown is not None
    assert shown[0] == shown[1] + gpu_report.section(gpu_report.latest_session()) + shown[2]
    page = tmp_path / "page.md"
    page.write_text(shown[0])
    monkeypatch.setattr(gpu_report, "PAGE", page)
    monkeypatch.setattr(gpu_report, "RESULTS", tmp_path)
    row = {"kernel": "pcos", "case": "512²", "us": 9.5, "bytes": 100, "share_of_copy": 0.81}
    summary: dict[str, Any] = {
        "machine": {"gpu": "NVIDIA L4", "capability": "89", "python": "3.12"},
        "small": False,
        "steps": {
            "compare": {"shapes": {"pcos": 200, "peaks": 180}},
            "sanitize": {"skipped": "compute-sanitizer is not on PATH"},
            "kernels": {"copy_gb_per_s": 280.0, "kernels": [row]},
            "libraries": {"pcos in torch": {"ours_us": 9.5, "theirs_us": 95.0, "ratio": 10.0}},
            "label": {"images_per_s": 512.0, "ratio": 0.97},
        },
    }
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    gpu_report.main([str(tmp_path / "summary.json")])
    gpu_report.main([])
    text = page.read_text()
    for part in (
        "NVIDIA L4", "| `pcos` | 512² | 9.5 | 0.81 |", "0.97 of the model alone", "at least 180 random shapes",
        "`sanitize` skipped", "| pcos in torch | 9.5 | 95.0 | 10.0 |",
    ):  # fmt: skip
        assert part in text
    (tmp_path / "small.json").write_text(json.dumps({**summary, "small": True}))
    with pytest.raises(SystemExit, match="trial run"):
        gpu_report.main([str(tmp_path / "small.json")])


def test_a_failed_step_is_written_and_the_others_go_on(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(session: Any, seconds: float) -> dict[str, Any]:
        raise RuntimeError("pcos, seed 3: weight: 4 of 9 values differ")

    monkeypatch.setattr(script, "STEPS", {"compare": (0.5, fail), "sanitize": (0.5, script.sanitize)})
    assert script.main(["--out", str(tmp_path / "out"), "--small"]) == 1
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["steps"]["compare"]["failed"].endswith("4 of 9 values differ")
    assert "skipped" in summary["steps"]["sanitize"]


def test_a_wrong_kernel_is_found(script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gpu_kernels

    right = gpu_kernels.quantize_weights

    def wrong(rng: Any, large: bool) -> Any:
        case = right(rng, large)
        levels = case.options["levels"]
        monkeypatch.setattr(type(case), "expected", lambda self: right(rng, large).arguments[0].astype("uint8"))
        assert levels
        return case

    monkeypatch.setattr(gpu_kernels, "CASES", {"quantize_weights": wrong})
    monkeypatch.setattr(script, "STEPS", {"compare": (1.0, script.compare)})
    assert script.main(["--out", str(tmp_path / "out"), "--small"]) == 1


def test_without_tensorrt_and_onnx_runtimes_cuda_torch_runs_the_model(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trt_fake.world.build_error = "Error Code 4"
    monkeypatch.setattr(script, "STEPS", {"path": (1.0, script.measure_path)})
    assert script.main(["--minutes", "0.01", "--out", str(tmp_path / "out"), "--small"]) == 0
    path = json.loads((tmp_path / "out" / "1-path.json").read_text())
    assert path["runtime"].startswith("torch")
    assert [reason.partition(":")[0] for reason in path["not_used"]] == ["TensorRT", "ONNX Runtime"]


def test_one_case_is_launched_for_the_tools(script: Any) -> None:
    assert script.main(["--one", "all", "--small"]) == 0
