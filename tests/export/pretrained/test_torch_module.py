from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from maskmill.engine.model.bundle import Bundle, OutputSpec, PromptSpec
from maskmill.engine.model.input_spec import InputSpec
from maskmill.engine.runtimes.onnx_runtime import OnnxSession
from maskmill.errors import ExportError, GateError, SessionError, UsageError
from maskmill.export.pretrained.torch_module import bundle_from_module

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

SPEC = InputSpec(name="image", height=32, width=32, dynamic=True, multiple=4, mean=(0.5,) * 3, std=(0.25,) * 3)


def segmenter(classes: int = 3) -> Any:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, stride=2, padding=1), torch.nn.GELU(), torch.nn.Conv2d(8, classes, 1)
    )


def export(folder: Path, module: Any, **options: Any) -> Bundle:
    defaults: dict[str, Any] = {
        "task": "semantic", "input": SPEC, "outputs": [OutputSpec(name="scores")], "classes": ("sky", "sea", "sand"),
    }  # fmt: skip
    return bundle_from_module(module, folder / "bundle", **{**defaults, **options})


def test_a_module_becomes_a_bundle_that_runs_at_other_batches_and_sizes(tmp_path: Path) -> None:
    module = segmenter()
    bundle = export(tmp_path, module, background="sea")
    bundle.verify()
    assert (bundle.classes, bundle.background) == (("sky", "sea", "sand"), 1)
    assert bundle.source.exporter == f"torch {torch.__version__}, opset 20"
    assert sorted(path.name for path in bundle.path.iterdir()) == ["bundle.json", "model.onnx"]
    model = onnx.load(bundle.model_path())
    (opset,) = model.opset_import
    assert opset.version == 20
    # no source paths of the machine that exported it
    parts = (*model.graph.node, *model.graph.value_info, *model.graph.input)
    assert not [part for part in parts if part.metadata_props]
    for shape in ((1, 3, 32, 32), (4, 3, 32, 32), (3, 3, 20, 48)):
        image = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        expected = module(torch.from_numpy(image)).detach().numpy()
        (got,) = OnnxSession(bundle).run(image)
        np.testing.assert_allclose(got, expected, atol=1e-5)


def test_the_first_verdict_compares_the_file_with_the_module(tmp_path: Path) -> None:
    (verdict,) = export(tmp_path, segmenter()).verdicts
    bundle = Bundle.load(tmp_path / "bundle")
    assert verdict["artifact"] == bundle.files[0].sha256
    assert verdict["reference"] == bundle.source.weights_sha256
    assert verdict["passed"]
    assert not verdict["emulated"]
    assert verdict["metrics"]["agreement"] >= 0.9999
    assert verdict["metrics"]["max_error"] < 1e-5


def test_the_hash_of_the_weights_follows_the_weights(tmp_path: Path) -> None:
    module = segmenter()
    first = export(tmp_path / "a", module).source.weights_sha256
    with torch.no_grad():
        module[0].bias[0] += 1
    assert export(tmp_path / "b", module).source.weights_sha256 != first


def test_weights_too_large_for_one_file_lie_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maskmill.export.pretrained.torch_module.MAX_FILE_BYTES", 0)
    bundle = export(tmp_path, segmenter())
    bundle.verify()
    assert {file.path: file.role for file in bundle.files} == {
        "model.onnx": "model", "model.onnx.data": "external-data"
    }  # fmt: skip
    assert OnnxSession(bundle).run(np.zeros((1, 3, 32, 32), np.float32))[0].shape == (1, 3, 16, 16)


def test_a_promptable_model_is_exported_as_encoder_and_decoder(tmp_path: Path) -> None:
    class Decoder(torch.nn.Module):
        def forward(self, embedding: Any, points: Any, labels: Any) -> Any:
            pull = (points.sum(-1) * labels).sum(1) / 100
            masks = embedding[:, :2] - pull[:, None, None, None]
            return masks, masks.mean((2, 3))

    bundle = export(
        tmp_path,
        segmenter(4),
        task="promptable",
        input=dataclasses.replace(SPEC, dynamic=False),
        outputs=[
            OutputSpec(name="embedding", kind="embedding", activation="none"),
            OutputSpec(name="masks", kind="masks", activation="sigmoid"),
            OutputSpec(name="ious", kind="mask_scores", activation="none"),
        ],
        classes=(),
        decoder=Decoder(),
        prompt=PromptSpec(num_masks=2, mask_height=16, mask_width=16),
    )
    assert [file.role for file in bundle.files] == ["encoder", "decoder"]
    assert [verdict["artifact"] for verdict in bundle.verdicts] == [file.sha256 for file in bundle.files]
    feeds = {
        "embedding": np.zeros((5, 4, 16, 16), np.float32),
        "points": np.ones((5, 7, 2), np.float32),
        "labels": np.ones((5, 7), np.float32),
    }
    masks, ious = OnnxSession(bundle, role="decoder").run(feeds)
    assert (masks.shape, ious.shape) == ((5, 2, 16, 16), (5, 2))
    np.testing.assert_allclose(masks, -0.14, rtol=1e-5)


class Strange(torch.nn.Module):
    """Does what its name says, beside a convolution."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.body = segmenter()

    def forward(self, image: Any) -> Any:
        scores = self.body(image)
        if self.way == "otherwise when exported" and torch.compiler.is_exporting():
            return scores.flip(1)
        if self.way == "not a number":
            return scores / (scores.detach() * 0)
        if self.way == "frozen batch":
            return scores.reshape(2, 3, *scores.shape[2:])
        if self.way == "branches on values" and scores.sum() > 0:
            return scores * 2
        return scores


@pytest.mark.parametrize(
    ("way", "error", "message"),
    [
        ("otherwise when exported", GateError, "differs from the module.s by"),
        ("not a number", GateError, "values that are not finite"),
        ("frozen batch", SessionError, r"the module fails on its input of shape \(1, 3, 32, 32\)"),
        ("branches on values", ExportError, "torch cannot export the model: .*data-dependent"),
    ],
)
def test_what_is_not_the_module_is_not_written(tmp_path: Path, way: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        export(tmp_path, Strange(way))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": ("sky", "sea")}, "3 classes on axis 1; 2 class names are given"),
        (
            {"outputs": [OutputSpec(name="a"), OutputSpec(name="b", kind="features", activation="none")]},
            "gives 1 outputs, 2 are described",
        ),
        ({"outputs": [OutputSpec(name="a"), OutputSpec(name="b")]}, "has the outputs scores, and optionally features"),
        ({"background": "land"}, "background 'land' is not one of the classes"),
        ({"input": InputSpec(name="image", height=8, width=8, layout="NHWC")}, "takes images as NCHW"),
        ({"task": "promptable"}, "exported with a decoder"),
    ],
)
def test_a_description_that_contradicts_the_module_is_refused(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        export(tmp_path, segmenter(), **options)
    assert not list(tmp_path.iterdir())


def test_an_existing_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    with pytest.raises(UsageError, match="exists already"):
        export(tmp_path, segmenter())
