"""``maskmill export`` as a user meets it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

from maskmill.cli import app  # noqa: E402
from maskmill.engine.model.bundle import Bundle  # noqa: E402
from maskmill.engine.runtimes.onnx_runtime import OnnxSession  # noqa: E402
from maskmill.errors import ExportError, GateError, UsageError  # noqa: E402
from maskmill.trainer.recipes import supervised  # noqa: E402
from maskmill.trainer.run import LAST, Run, write_checkpoint  # noqa: E402
from maskmill.trainer.students.models import build_model  # noqa: E402

from ...builders import photo  # noqa: E402


def call(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["export", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def write_run(folder: Path, model: str, **options: Any) -> Any:
    """Write the folder of a student that has seen no image yet; returns its network."""
    torch.manual_seed(0)
    module = build_model(model, 3, pretrained=False, **options)
    record = Run(
        recipe=supervised(model=model, model_options=options, crop=32), model_options=module.options,
        classes=("land", "sea", "sky"), background=1, labels={0: 0, 1: 1, 2: 2},
        input=module.input_spec(32, 32), data={}, versions={},
    )  # fmt: skip
    record.save(folder)
    write_checkpoint(folder / LAST, {"model": module.state_dict(), "ema": None, "step": 0})
    return module


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write_run(tmp_path / "run", "tiny", width=4)
    return tmp_path / "run"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed in range(50):
        Image.fromarray(photo(40, 48, seed)).save(folder / f"{seed:02d}.png")
    return folder


def test_a_run_is_exported_and_converted(tmp_path: Path, run: Path, photos: Path) -> None:
    said = call(run, "-o", tmp_path / "bundle", "--size", "64x96", "--precision", "bf16", "--gate-images", photos)
    assert "input 64x96, any multiple of 4" in said
    assert "fp32 (onnxruntime on cpu) passes on 50 images" in said
    assert "bf16 (onnxruntime on cpu, emulated) passes on 50 images" in said
    bundle = Bundle.load(tmp_path / "bundle")
    bundle.verify()
    assert (bundle.classes, bundle.background) == (("land", "sea", "sky"), 1)
    assert [file.precision for file in bundle.files] == ["fp32", "bf16"]
    assert bundle.files[1].derived_from == bundle.files[0].sha256
    assert bundle.source.id == "run"


@pytest.mark.slow
def test_a_run_on_dinov3_is_exported(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    config = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    student = write_run(tmp_path / "run", "linear-dinov3", config=config)
    assert "input 32x48" in call(tmp_path / "run", "-o", tmp_path / "bundle", "--size", "32x48")
    session = OnnxSession(Bundle.load(tmp_path / "bundle"))
    for size in ((1, 3, 32, 48), (3, 3, 32, 48)):
        images = torch.randn(size)
        with torch.no_grad():
            expected = student.eval()(images).numpy()
        np.testing.assert_allclose(session.run(images.numpy())[0], expected, atol=1e-4)


def test_a_precision_that_does_not_pass_leaves_the_fp32_bundle(tmp_path: Path, run: Path, photos: Path) -> None:
    for path in list(photos.iterdir())[20:]:
        path.unlink()
    with pytest.raises(GateError, match="20 different images were compared, at least 50 are needed"):
        call(run, "-o", tmp_path / "bundle", "--precision", "fp16", "--gate-images", photos)
    assert [file.precision for file in Bundle.load(tmp_path / "bundle").files] == ["fp32"]


def test_a_lower_precision_needs_real_images(tmp_path: Path, run: Path) -> None:
    with pytest.raises(UsageError, match="checked on real images; give them with --gate-images"):
        call(run, "-o", tmp_path / "bundle", "--precision", "fp16")
    assert not (tmp_path / "bundle").exists()


def test_a_hub_id_without_a_network_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ExportError, match="give a local folder") as caught:
        call("someone/segformer", "-o", tmp_path / "bundle")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "bundle").exists()


def test_a_template_without_a_place_for_the_class_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="must hold {} where the class name goes"):
        call("someone/clipseg", "-o", tmp_path / "bundle", "--template", "a photo")
