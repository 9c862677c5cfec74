from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from maskmill.engine.model.bundle import Bundle, InputSpec, OutputSpec, PromptSpec
from maskmill.engine.model.files import read_class_names
from maskmill.errors import BundleError, UsageError

from ...models import color_bundle


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
        (lambda raw: raw.update(format_version=99), "format version 99, this maskmill reads 1"),
        (lambda raw: raw.pop("input"), "is damaged"),
        (lambda raw: raw["input"].update(std=[0, 1, 1]), "std must be positive"),
        (lambda raw: raw["files"][0].update(path="../model.onnx"), "outside its own folder"),
        (lambda raw: raw.update(task="dance"), "task must be one of"),
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


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"height": 0, "width": 4}, "at least 1x1"),
        ({"height": 4, "width": 4, "scale": 0.0}, "scale must be"),
        ({"height": 4, "width": 4, "mean": (0.0, float("nan"), 0.0)}, "mean must be three finite numbers"),
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
