from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maskmill.engine.model.bundle import Bundle, OutputSpec, PromptSpec
from maskmill.engine.model.engine_records import Engine, Gpu, choose_engine, read_engine, with_engine
from maskmill.engine.model.files import read_class_names
from maskmill.engine.model.input_spec import InputSpec
from maskmill.engine.model.verdicts import Metrics, Verdict, add_verdict, require_verdict, shift_between
from maskmill.engine.predictors.semantic import SemanticPredictor
from maskmill.engine.runtimes.onnx_runtime import OnnxSession
from maskmill.errors import BundleError, MaskmillError, SessionError, UsageError

from ...models import color_bundle, color_image


def test_a_saved_bundle_loads_equal(tmp_path: Path) -> None:
    bundle = color_bundle(tmp_path, background="green", mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 3.0))
    again = Bundle.load(bundle.path)
    assert again == bundle
    assert again.fingerprint == bundle.fingerprint
    assert again.input.mean == (0.1, 0.2, 0.3)
    again.verify()


def test_the_fingerprint_follows_what_decides_scores(tmp_path: Path) -> None:
    bundle = color_bundle(tmp_path)
    brighter = dataclasses.replace(bundle, input=dataclasses.replace(bundle.input, scale=1.0))
    renamed = dataclasses.replace(bundle, source=dataclasses.replace(bundle.source, id="other"))
    assert brighter.fingerprint != bundle.fingerprint
    assert renamed.fingerprint == bundle.fingerprint


def test_a_changed_file_is_found_by_its_hash(tmp_path: Path) -> None:
    bundle = color_bundle(tmp_path)
    data = bytearray(bundle.model_path().read_bytes())
    data[-1] ^= 1
    bundle.model_path().write_bytes(data)
    with pytest.raises(BundleError, match="is not the file the bundle was made with"):
        bundle.verify()
    bundle.model_path().unlink()
    with pytest.raises(BundleError, match="lacks its file"):
        bundle.verify()


def test_what_is_not_a_bundle_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is not a model bundle.*maskmill import"):
        Bundle.load(tmp_path)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda raw: raw.update(format_version=99), "format version 99, this maskmill reads 2"),
        (lambda raw: raw.update(format_version=1), "format version 1, .* reads 2; import or export the model again"),
        (lambda raw: raw.update(colour="red"), "is damaged: colour is not a known field; make the bundle again"),
        (lambda raw: raw["input"].update(height="16"), "input.height must be a valid integer, got '16'"),
        (lambda raw: raw["input"].update(height=10**9), "at most 32768x32768, got 1000000000x24"),
        (lambda raw: raw["outputs"].append(raw["outputs"][0]), "a semantic bundle has the outputs scores"),
        (lambda raw: raw["classes"].__setitem__(1, "two\nlines"), "class 1 has the name 'two\\\\nlines'"),
        (lambda raw: raw.update(classes=["only"]), "needs at least two classes"),
        (lambda raw: raw.pop("input"), "is damaged: input is missing"),
        (lambda raw: raw["input"].update(std=[0, 1, 1]), "std must be positive"),
        (lambda raw: raw["files"][0].update(path="../model.onnx"), "outside its own folder"),
        (lambda raw: raw.update(task="dance"), "task must be 'semantic', 'cam', .* or 'text', got 'dance'"),
    ],
)
def test_a_damaged_manifest_is_refused(tmp_path: Path, edit, message: str) -> None:
    bundle = color_bundle(tmp_path)
    manifest = bundle.path / "bundle.json"
    raw = json.loads(manifest.read_text())
    edit(raw)
    manifest.write_text(json.dumps(raw))
    with pytest.raises(BundleError, match=message):
        Bundle.load(bundle.path)


def test_a_truncated_manifest_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bundle.json").write_text('{"format_version": 1,')
    with pytest.raises(BundleError, match="cannot read"):
        Bundle.load(tmp_path)


def test_a_missing_file_in_another_precision_is_named(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"has no model in fp16 \(it has model in fp32\)"):
        color_bundle(tmp_path).model_path(precision="fp16")


NEW_VALUES: list[Any] = [
    None, True, -1, 0, 2**70, 1e308, float("nan"), "", "x", "../x", "a\0b", "\ud800", [], ["x"], [[]], {}, {"x": 1},
]  # fmt: skip


def places(raw: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON value, the inner ones first."""
    for key in raw if isinstance(raw, dict) else range(len(raw)) if isinstance(raw, list) else ():
        yield from places(raw[key], (*path, key))
        yield (*path, key)


def test_no_edit_of_a_manifest_ends_in_a_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = color_bundle(tmp_path)
    metrics = Metrics(
        images=50, agreement=1.0, mean_iou=1.0, worst_iou=1.0, worst_image="a", mean_error=0.0, max_error=0.0,
        nonfinite=0, score_quantile_shift=0.0, class_images={"red": 50}, class_iou={"red": 1.0},
    )  # fmt: skip
    verdict = Verdict(
        artifact="0" * 64, reference=bundle.file().sha256, precision="fp16", runtime="onnxruntime", device="cpu",
        metrics=metrics, warnings=("close",),
    )  # fmt: skip
    engine = Engine(
        path="engines/a.engine", sha256="0" * 64, bytes=10, key="k", role="model", precision="fp32",
        onnx=bundle.file().sha256, capability=90, gpu="H100", tensorrt="11.1.0", profile={"image": [[1], [1], [1]]},
    )  # fmt: skip
    with_engine(add_verdict(bundle, verdict), engine).save()
    manifest = bundle.path / "bundle.json"
    original = json.loads(manifest.read_text())
    monkeypatch.chdir(tmp_path)
    tried = refused = 0
    lines: set[int] = set()
    for path in places(original):
        for value in NEW_VALUES:
            raw = json.loads(json.dumps(original))
            parent = raw
            for key in path[:-1]:
                parent = parent[key]
            parent[path[-1]] = value
            manifest.write_text(json.dumps(raw))
            tried += 1
            try:
                use(bundle.path, run=path[0] in ("task", "files", "input", "outputs"))
            except MaskmillError as error:
                refused += 1
                lines |= {str(error).count("\n")}
    assert tried > 1000
    assert lines == {0}, "every message is one line"
    assert refused > tried / 2


def use(folder: Path, *, run: bool) -> None:
    """Everything that labeling asks of a bundle."""
    bundle = Bundle.load(folder)
    bundle.verify()
    shift_between(bundle, (bundle.file().sha256, "onnxruntime/cpu/fp32"), ("0" * 64, "onnxruntime/cpu/fp16"))
    require_verdict(bundle, "0" * 64, "onnxruntime", "cpu")
    gpu = Gpu(name="H100", capability=90, memory=1)
    with pytest.raises(SessionError):
        read_engine(bundle, choose_engine(bundle, role="model", precision=None, gpu=gpu, tensorrt="11.1.0"))
    assert bundle.fingerprint
    if run and max(bundle.input.height, bundle.input.width) < 1000:
        SemanticPredictor(bundle, OnnxSession(bundle)).predict(color_image(np.zeros((8, 8), np.int64)))


@pytest.mark.parametrize("text", ["[" * 100_000, '{"format_version": ' + "9" * 5000 + "}", "[]", "null", "", '"a"'])
def test_what_is_no_manifest_at_all_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "bundle.json").write_text(text)
    with pytest.raises(BundleError):
        Bundle.load(tmp_path)


def test_a_semantic_bundle_may_give_features_beside_its_scores(tmp_path: Path) -> None:
    bundle = color_bundle(tmp_path)
    features = OutputSpec(name="logits", kind="features", activation="none")
    dataclasses.replace(bundle, outputs=(*bundle.outputs, features)).save()
    assert Bundle.load(bundle.path).outputs[1] == features
    with pytest.raises(UsageError, match="the scores must be the first output"):
        dataclasses.replace(bundle, outputs=(features, *bundle.outputs))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"height": 0, "width": 4}, "at least 1x1"),
        ({"height": 4, "width": 4, "scale": 0.0}, "scale must be"),
        ({"height": 4, "width": 4, "mean": (0.0, float("nan"), 0.0)}, "mean must be 3 finite numbers"),
        ({"height": 4, "width": 4, "resize": "crop"}, "resize must be one of stretch, longest-side"),
        ({"height": 4, "width": 4, "resize_filter": "area", "antialias": False}, "the area filter always averages"),
    ],
)
def test_an_impossible_input_is_refused(fields, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        InputSpec(name="image", **fields)


def test_class_lists_come_plain_or_with_indices(tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    path.write_text("sky\ntraffic light\n\n")
    assert read_class_names(path) == {0: "sky", 1: "traffic light"}
    path.write_text("0 void\n7 traffic light\n")
    assert read_class_names(path) == {0: "void", 7: "traffic light"}
    path.write_text("0 void\n0 sky\n")
    with pytest.raises(UsageError, match="names an index twice"):
        read_class_names(path)
    path.write_text("\n")
    with pytest.raises(UsageError, match="is empty"):
        read_class_names(path)
    with pytest.raises(UsageError, match="cannot read the class list"):
        read_class_names(tmp_path / "none.txt")


def test_a_conversion_does_not_change_what_a_calibration_rests_on(tmp_path: Path) -> None:
    bundle = color_bundle(tmp_path)
    original = bundle.file()
    converted = dataclasses.replace(original, path="model.fp16.onnx", precision="fp16", derived_from=original.sha256)
    both = dataclasses.replace(bundle, files=(original, converted))
    assert both.fingerprint == bundle.fingerprint
    assert both.file() == original
    assert both.file(precision="fp16") == converted


def test_only_a_dynamic_input_takes_another_size(tmp_path: Path) -> None:
    bundle = color_bundle(tmp_path)
    with pytest.raises(UsageError, match="takes 16x24 images only, not 32x48"):
        bundle.at_size(32, 48)
    dynamic = dataclasses.replace(bundle, input=dataclasses.replace(bundle.input, dynamic=True, multiple=8))
    assert (dynamic.at_size(32, 48).input.height, dynamic.at_size(32, 48).input.width) == (32, 48)
    assert dynamic.at_size(32, 48).fingerprint != dynamic.fingerprint
    with pytest.raises(UsageError, match="a multiple of 8 pixels, got 33x48"):
        dynamic.at_size(33, 48)


def test_a_promptable_bundle_says_how_it_is_prompted(tmp_path: Path) -> None:
    bundle = color_bundle(tmp_path)
    outputs = (
        OutputSpec(name="embedding", kind="embedding", activation="none"),
        OutputSpec(name="masks", kind="masks", activation="sigmoid"),
        OutputSpec(name="quality", kind="mask_scores", activation="none"),
    )
    with pytest.raises(UsageError, match="says how its decoder is prompted"):
        dataclasses.replace(bundle, task="promptable", outputs=outputs, classes=())
    prompt = PromptSpec(num_masks=3, mask_height=4, mask_width=6)
    sam = dataclasses.replace(bundle, task="promptable", outputs=outputs, classes=(), prompt=prompt)
    sam.save()
    again = Bundle.load(bundle.path)
    assert again == sam
    assert [output.name for output in again.outputs_of("encoder")] == ["embedding"]
    assert [output.name for output in again.outputs_of("decoder")] == ["masks", "quality"]
