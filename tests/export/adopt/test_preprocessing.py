from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from maskmill.errors import UsageError
from maskmill.export.adopt.preprocessing import read_preprocessor


def config(folder: Path, **fields: Any) -> Path:
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(fields))
    return path


def test_a_segformer_preprocessor_is_understood(tmp_path: Path) -> None:
    path = config(
        tmp_path,
        do_resize=True, size={"height": 512, "width": 640}, resample=2, do_rescale=True, rescale_factor=1 / 255,
        do_normalize=True, image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225], do_reduce_labels=True,
    )  # fmt: skip
    steps = read_preprocessor(path)
    assert (steps.size, steps.reduced_labels) == ((512, 640), True)
    assert steps.fields == {
        "resize": "stretch",
        "resize_filter": "bilinear",
        "scale": 1 / 255,
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
    }


def test_a_sam_preprocessor_is_understood(tmp_path: Path) -> None:
    path = config(
        tmp_path,
        size={"longest_edge": 1024}, pad_size={"height": 1024, "width": 1024}, resample=3,
        image_mean=[0.5, 0.5, 0.5], image_std=[0.5, 0.5, 0.5], do_flip_channel_order=True,
    )  # fmt: skip
    steps = read_preprocessor(path)
    assert steps.size == (1024, 1024)
    assert [steps.fields[name] for name in ("resize", "resize_filter", "channels")] == [
        "longest-side",
        "bicubic",
        "BGR",
    ]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size": {"shortest_edge": 512}, "do_normalize": False}, "give --size and --resize instead"),
        ({"size": 224, "do_center_crop": True}, "crops the center"),
        ({"size": 224, "resample": 5}, "resamples with filter 5; known are 0 nearest, 1 lanczos"),
        ({"size": 224, "resample": None}, "resamples with filter None"),
        ({"size": 224}, "normalizes, but its image_mean is missing; give --mean"),
        ({"size": 224, "image_mean": None, "image_std": [1, 1, 1]}, "its image_mean is null; give --mean"),
        ({"size": 224, "image_mean": [0.5], "image_std": [1, 1, 1]}, "image_mean must have three values"),
        ({"size": 224, "image_mean": ["a", 0, 0], "image_std": 1}, "image_mean must be a number, got 'a'"),
        ({"size": {"height": 2.5, "width": 4}}, "whole numbers of pixels"),
        (
            {"size": 224, "do_normalize": False, "do_histogram_match": True},
            "the key 'do_histogram_match', whose effect",
        ),
        ({"size": 224, "do_normalize": False, "gamma": 2.2}, "the key 'gamma', whose effect"),
    ],
)
def test_a_preprocessor_that_a_bundle_cannot_express_is_refused(tmp_path: Path, fields, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_preprocessor(config(tmp_path, **fields))


@pytest.mark.parametrize(("number", "name"), [(0, "nearest"), (1, "lanczos"), (2, "bilinear"), (4, "area")])
def test_filters_are_pillows(tmp_path: Path, number: int, name: str) -> None:
    steps = read_preprocessor(config(tmp_path, size=224, resample=number, do_normalize=False))
    assert steps.fields["resize_filter"] == name


def test_an_efficientnet_classifier_divides_by_std_twice(tmp_path: Path) -> None:
    known = {"size": 224, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.25, 0.1]}
    steps = read_preprocessor(config(tmp_path, image_processor_type="EfficientNetImageProcessor", **known))
    assert steps.fields["std"] == pytest.approx((0.25, 0.0625, 0.01))
    assert steps.fields["mean"] == (0.5, 0.4, 0.3)
    kinds = {"image_processor_type": "EfficientNetImageProcessorFast", "include_top": False, "rescale_offset": True}
    steps = read_preprocessor(config(tmp_path, **kinds, **known))
    assert steps.fields["std"] == (0.5, 0.25, 0.1)
    assert steps.fields["mean"] == (1.5, 1.4, 1.3)


@pytest.mark.parametrize("text", ["[]", "{", "\udcff"])
def test_a_file_that_is_no_configuration_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "preprocessor_config.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UsageError, match="preprocessor_config.json"):
        read_preprocessor(path)
    with pytest.raises(UsageError, match="does not exist"):
        read_preprocessor(tmp_path / "none.json")
