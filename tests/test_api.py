"""The public Python functions: the whole job with ``import maskmill`` alone, typed, from any folder."""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import re
import subprocess
import sys
import typing
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

import maskmill

from .conftest import ROOT
from .models import color_graph, color_image

SCRIPT = """# pyright: strict
import maskmill

model = maskmill.adopt("model.onnx", "bundle", classes="classes.txt", layout="NCHW", scale=1 / 255)
calibration = maskmill.calibrate(model, images="data/images", labels="data/labels", alpha=0.1)
calibration.save("calibration.json")
run = maskmill.label(model, "photos", "store", calibration="calibration.json", weight="pcos", progress=True)
assert run.images == 6 and not run.interrupted
quality = maskmill.evaluate("store", labels="truth")
assert quality.miou_kept > 0.9, quality.miou_kept
assert maskmill.evaluate(model, labels="truth", images="photos").num_images == 6
store = maskmill.LabelStore.open("store")
label, weight = store.read("0.png")
maskmill.overlay("photos/0.png", label, model.classes).save("overlay.png")
assert maskmill.export_labels(store, "coco", "coco").num_images == 6
assert maskmill.import_labels(store, "coco", reviewer="me").corrected == 0
assert maskmill.report(store, "report.html", calibration="calibration.json", labels="truth", model="bundle").is_file()
queue: maskmill.Queue = maskmill.rank(store, 3, model="bundle", calibration=calibration, output="queue.json")
assert len(queue.images) == maskmill.export_labels(store, "queued", "coco", ids="queue.json").num_images == 3
settings = {"model": "tiny", "steps": 2, "crop": 16, "batch": 2, "warmup": 0}
maskmill.train(
    "store", output="run", labeled="data", labeled_share="1/2", split_seed=1, settings=settings, device="cpu", workers=0
)
assert maskmill.predict("run", "photos/0.png", device="cpu").shape == label.shape == weight.shape
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, labeled images, photos and their truth."""
    folder = tmp_path_factory.mktemp("home")
    onnx.save(color_graph(size=(16, 24), gain=6.0), folder / "model.onnx")
    (folder / "classes.txt").write_text("red\ngreen\nblue\n")
    rng = np.random.default_rng(0)
    for images, labels, indices in (("data/images", "data/labels", range(6, 30)), ("photos", "truth", range(6))):
        for name in (images, labels):
            (folder / name).mkdir(parents=True)
        for index in indices:
            label = np.broadcast_to((np.arange(24) // 8 + index) % 3, (16, 24))
            noisy = color_image(label, strength=140) + rng.integers(0, 100, (16, 24, 3))
            Image.fromarray(noisy.astype(np.uint8)).save(folder / images / f"{index}.png")
            Image.fromarray(label.astype(np.uint8)).save(folder / labels / f"{index}.png")
    return folder


def test_a_short_typed_script_does_the_whole_job(home: Path) -> None:
    pytest.importorskip("torch")
    (home / "job.py").write_text(SCRIPT)
    ran = subprocess.run([sys.executable, "job.py"], cwd=home, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    with Image.open(home / "overlay.png") as picture:
        assert picture.width == 24


def test_that_script_passes_a_strict_type_check(tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(SCRIPT)
    (tmp_path / "site").mkdir()
    # type checkers do not follow the import hook of an editable installation; an ordinary one they find by its folder
    (tmp_path / "site" / "maskmill").symlink_to(ROOT)
    checker = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "job.py"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    checked = subprocess.run(checker, cwd=tmp_path, capture_output=True, text=True, check=False, env=environment)
    assert checked.returncode == 0, checked.stdout


def test_every_public_function_is_typed_by_public_names() -> None:
    namespace = {name: getattr(maskmill, name) for name in maskmill.__all__}
    for name, value in namespace.items():
        if not inspect.isfunction(value):
            continue
        signature = inspect.signature(value)
        for parameter in signature.parameters.values():
            assert parameter.annotation is not inspect.Parameter.empty, f"{name}({parameter.name})"
            assert "Any" not in str(parameter.annotation).split("["), f"{name}({parameter.name})"
        assert signature.return_annotation not in (inspect.Signature.empty, "Any"), name


def test_public_functions_describe_every_parameter() -> None:
    undescribed = []
    for name in maskmill.__all__:
        function = getattr(maskmill, name)
        if not inspect.isfunction(function):
            continue
        doc = inspect.getdoc(function) or ""
        headings = {
            word for line in doc.splitlines() if re.fullmatch(r"\w+(, \w+)*", line) for word in line.split(", ")
        }
        described = headings | set(re.findall(r"``(\w+)``", doc))
        undescribed += [
            f"{name}({parameter})" for parameter in inspect.signature(function).parameters if parameter not in described
        ]
    assert undescribed == []


def test_every_class_that_an_argument_takes_is_public() -> None:
    public = {name: getattr(maskmill, name) for name in maskmill.__all__}
    for name, function in public.items():
        if not inspect.isfunction(function):
            continue
        imported = imports_of(sys.modules[function.__module__])
        for parameter in inspect.signature(function).parameters.values():
            for word in re.findall(r"(?<![\w.\"'])[A-Z]\w+", str(parameter.annotation)):
                value = getattr(imported[word], word) if word in imported else None
                if inspect.isclass(value):
                    assert value is public.get(word), f"{name}({parameter.name}) takes {word}, which is not public"


def imports_of(module: ModuleType) -> dict[str, ModuleType]:
    """Modules of this package by the names that a module imports from them, also for type checkers only."""
    nodes = [node for node in ast.walk(ast.parse(inspect.getsource(module))) if isinstance(node, ast.ImportFrom)]
    sources = {alias.name: node for node in nodes if node.level for alias in node.names}
    return {
        name: importlib.import_module("." * node.level + (node.module or ""), module.__package__)
        for name, node in sources.items()
    }


@pytest.mark.parametrize("how", ["-c", "script"])
def test_it_works_from_a_python_started_in_the_checkout(how: str, tmp_path: Path) -> None:
    code = "import maskmill; maskmill.LabelStore; from transformers import SegformerConfig; print(SegformerConfig)"
    script = tmp_path / "script.py"
    script.write_text(f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}")
    command = [sys.executable, "-c", code] if how == "-c" else [sys.executable, str(script)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 0, result.stderr
    assert "SegformerConfig" in result.stdout


def test_the_example_in_the_help_names_public_functions() -> None:
    example = typing.cast(str, maskmill.__doc__)
    names = set(re.findall(r"maskmill\.(\w+)", example))
    assert {"adopt", "calibrate", "label", "LabelStore"} <= names <= set(maskmill.__all__)


def test_options_that_do_not_apply_are_refused(home: Path) -> None:
    with pytest.raises(maskmill.MaskmillError, match="calibration or threshold, not both"):
        maskmill.label("bundle", home / "photos", home / "no", calibration="c.json", threshold=0.5)
    with pytest.raises(maskmill.MaskmillError, match="not a model bundle"):
        maskmill.calibrate(home / "nowhere", images=home / "photos", labels=home / "truth", alpha=0.1)


@pytest.mark.parametrize(
    ("options", "need"),
    [
        ({"split_seed": 1}, "labeled_share"),
        ({"labeled_share": "1/2"}, "labeled"),
        ({"ids": ["0.png"]}, "labeled"),
        ({"validation_ids": ["0.png"]}, "validation"),
        ({"taxonomy": "map.toml"}, "labeled or validation"),
        ({"background": "sky"}, "classes"),
    ],
)
def test_training_refuses_options_without_the_one_they_belong_to(options: dict[str, Any], need: str) -> None:
    (name,) = options
    with pytest.raises(maskmill.MaskmillError, match=f"^{name} applies to {need} only; add it, or leave {name} out$"):
        maskmill.train("store", output="run", **options)


def test_a_notebook_shows_an_overlay(home: Path) -> None:
    label = np.zeros((16, 24), np.uint8)
    picture = maskmill.overlay(home / "photos" / "0.png", label, ["red", "green", "blue"])
    assert picture._repr_png_().startswith(b"\x89PNG")


def test_no_public_name_is_hidden_by_a_module() -> None:
    modules = {path.stem for path in ROOT.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert not modules & set(maskmill.__all__)
