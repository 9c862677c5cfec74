"""The demonstration's student, on a small corpus in the demonstration's folders."""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

torch = pytest.importorskip("torch")

from maskmill.cli import app  # noqa: E402
from maskmill.trainer.demo import student as demo  # noqa: E402

from ..builders import make_store, write_labeled  # noqa: E402

FIGURES = {
    "argmax": {"accuracy_kept": 0.8, "miou_kept": 0.5, "kept": 1.0},
    "conformal": {"accuracy_kept": 0.97, "miou_kept": 0.7, "kept": 0.75},
}


def test_the_student_is_measured_on_the_scored_tiles_and_shown_beside_its_teacher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_labeled(tmp_path / "calibration", range(2))
    scored = write_labeled(tmp_path / "scored", range(2, 6))
    make_store(tmp_path / "labels" / "conformal", scored, range(2, 6))
    small = {"model": "tiny", "steps": 40, "batch": 4, "crop": 32, "lr": 0.03, "optimizer": "sgd"}
    monkeypatch.setattr(demo, "_SETTINGS", small)
    printed = io.StringIO()
    for _ in range(2):
        figures = demo.run_student(tmp_path, FIGURES, console=Console(file=printed, width=120))
    assert figures["accuracy"] > 0.7
    rows = [line for line in printed.getvalue().splitlines() if "teacher" in line or "student trained on" in line]
    assert "0.800" in next(line for line in rows if "the teacher" in line and "0.5" in line)
    assert f"{figures['miou']:.3f}" in rows[-1]


def test_without_torch_the_demonstration_says_how_to_get_a_student(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found(name: str, *arguments: Any) -> Any:
        return None if name == "torch" else find(name, *arguments)

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", found)
    monkeypatch.setattr("maskmill.trainer.demo.run.run_demo", lambda *arguments, **options: FIGURES)
    said = CliRunner().invoke(app, ["demo", "-o", str(tmp_path)], catch_exceptions=False).output
    assert "[demo,train]" in said.replace("\n", " ")
    quiet = CliRunner().invoke(app, ["demo", "--no-student", "-o", str(tmp_path)], catch_exceptions=False).output
    assert "PyTorch" not in quiet
