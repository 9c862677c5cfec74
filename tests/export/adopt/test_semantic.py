from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from maskmill.errors import BundleError, UsageError
from maskmill.export.adopt.semantic import bundle_from_onnx

from ...models import COLORS, color_bundle, color_graph


def adopt(folder: Path, model: onnx.ModelProto, **options: Any) -> Any:
    path = folder / "model.onnx"
    onnx.save(model, path)
    return bundle_from_onnx(path, folder / "bundle", **{"classes": COLORS, **options})


def test_adopting_records_input_output_classes_and_hashes(tmp_path: Path) -> None:
    bundle = color_bundle(tmp_path, layout="NHWC", size=(16, 24), background="red", scale=1 / 127.5, mean=(1.0,) * 3)
    assert (bundle.input.name, bundle.input.height, bundle.input.width) == ("image", 16, 24)
    assert bundle.outputs[0].layout == "HWC"
    assert bundle.background == 0
    assert len(bundle.files[0].sha256) == 64
    assert sorted(path.name for path in bundle.path.iterdir()) == ["bundle.json", "model.onnx"]


def test_a_dynamic_size_takes_the_one_given(tmp_path: Path) -> None:
    model = color_graph(size=("height", "width"))
    with pytest.raises(UsageError, match="has no fixed size .*; give --size"):
        adopt(tmp_path, model)
    bundle = adopt(tmp_path, model, size=(20, 30))
    assert (bundle.input.height, bundle.input.width) == (20, 30)


def test_external_data_comes_along(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(color_graph(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    bundle = bundle_from_onnx(path, tmp_path / "bundle", classes=COLORS)
    assert {file.path: file.role for file in bundle.files} == {"model.onnx": "model", "weights.bin": "external-data"}


@pytest.mark.parametrize("location", ["../weights.bin", "/etc/hostname"])
def test_external_data_outside_the_models_folder_is_refused(tmp_path: Path, location: str) -> None:
    model = color_graph()
    (weight,) = model.graph.initializer
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    entry = weight.external_data.add()
    entry.key, entry.value = "location", location
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(BundleError, match="outside its own folder; refused"):
        bundle_from_onnx(path, tmp_path / "bundle", classes=COLORS)


def broken_graph() -> onnx.ModelProto:
    model = color_graph()
    model.graph.node[0].input[0] = "nowhere"
    return model


def bit_input() -> onnx.ModelProto:
    model = color_graph()
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.BOOL
    model.graph.node[0].input[0] = "numbers"
    model.graph.node.insert(0, helper.make_node("Cast", ["image"], ["numbers"], to=TensorProto.FLOAT))
    return model


def two_inputs() -> onnx.ModelProto:
    model = color_graph()
    model.graph.input.append(helper.make_tensor_value_info("text", TensorProto.FLOAT, [1, 3, 16, 24]))
    model.graph.node[-1].CopyFrom(helper.make_node("Add", ["logits", "text"], ["scores"]))
    return model


def two_outputs() -> onnx.ModelProto:
    model = color_graph()
    model.graph.output.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, None))
    return onnx.shape_inference.infer_shapes(model)


def exploding() -> onnx.ModelProto:
    model = color_graph()
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.full((3, 3, 1, 1), np.inf, np.float32), "weight"))
    return model


@pytest.mark.parametrize(
    ("model", "options", "error", "message"),
    [
        (broken_graph(), {}, BundleError, "the ONNX checker refuses"),
        (bit_input(), {}, BundleError, "must hold numbers"),
        (two_inputs(), {}, BundleError, r"this graph takes 2 \(image, text\)"),
        (two_outputs(), {}, UsageError, r"has 2 outputs \(scores, logits\); choose"),
        (two_outputs(), {"output_name": "masks"}, UsageError, "has no output 'masks'"),
        (exploding(), {}, BundleError, "gives a scores that is not finite"),
        (color_graph(), {"classes": ["a", "b"]}, UsageError, "no axis of 2 classes"),
        (color_graph(), {"classes": ["a", "a", "b"]}, UsageError, "listed more than once: a"),
        (color_graph(), {"background": "sky"}, UsageError, "the background 'sky' is not one of the classes"),
        (color_graph(), {"layout": "NHWC"}, UsageError, "is its layout NCHW"),
        (color_graph(), {"size": (8, 8)}, UsageError, "takes 16x24 images"),
        (color_graph(final="Softmax"), {}, UsageError, r"in \[0, 1\] and they sum to 1 .* use --activation none"),
        (color_graph(final="Sigmoid"), {"activation": "sigmoid"}, UsageError, "use --activation none, not sigmoid"),
        (
            color_graph(through=[("Sub", 5.0)]),
            {"activation": "none"},
            UsageError,
            "logits, not scores; use .*softmax",
        ),
    ],
)
def test_one_clear_error_for_each_fault(
    tmp_path: Path, model: onnx.ModelProto, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        adopt(tmp_path, model, **options)
    assert not (tmp_path / "bundle").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_what_is_not_onnx_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    with pytest.raises(UsageError, match="does not exist"):
        bundle_from_onnx(path, tmp_path / "bundle", classes=COLORS)
    for data in (b"", b"not a model at all", b"\x08\x07"):
        path.write_bytes(data)
        with pytest.raises(BundleError, match="is not an ONNX file"):
            bundle_from_onnx(path, tmp_path / "bundle", classes=COLORS)


def test_an_existing_folder_is_never_replaced(tmp_path: Path) -> None:
    color_bundle(tmp_path)
    with pytest.raises(UsageError, match="exists already"):
        color_bundle(tmp_path)
