"""Options that apply only beside others are refused alone: none is dropped in silence."""

from __future__ import annotations

from pathlib import Path

import pytest

from maskmill.engine.labeling.selection import Selection
from maskmill.errors import UsageError

from .test_storage_options import fault

REVIEWED = ("calibrate", "bundle", "--alpha", "0.1", "--reviewed", "store", "-o", "new.json")
FIT = ("calibrate", "bundle", "--alpha", "0.1", "--images", "photos", "--labels", "labels", "-o", "new.json")
EXPORT = ("export", "model", "-o", "new")
CONVERT = ("convert", "bundle", "--images", "photos")


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (("label", "bundle", "photos", "-o", "new", "--weight-levels", "16"), "--weight-levels"),
        (("label-prompted", "photos", "--sam", "sam", "-o", "new", "--weight-levels", "16"), "--weight-levels"),
        (("report", "store", "--provider", "cuda"), "--provider"),
        (("report", "store", "--pairing", "*=*_gt"), "--pairing"),
        (("report", "store", "--labels-as-stored"), "--labels-as-stored"),
        (("report", "store", "--taxonomy", "map.toml"), "--taxonomy"),
        (("rank", "store", "--provider", "cuda"), "--provider"),
        (("rank", "store", "--ids", "names.txt"), "--ids"),
        (("taxonomy", "bundle", "-o", "new.toml", "--labels-format", "coco"), "--labels-format"),
        (("evaluate", "store", "--reviewed", "--labels-format", "coco"), "--labels-format"),
        ((*REVIEWED, "--pairing", "*=*_gt"), "--pairing"),
        ((*REVIEWED, "--image-ending", "jpg"), "--image-ending"),
        ((*REVIEWED, "--windows", "512"), "--windows"),
        ((*FIT, "--group", "pooled", "--min-images", "3"), "--min-images"),
        ((*FIT, "--unit", "image", "--fallback", "pooled"), "--fallback"),
        ((*FIT, "--control", "miss-rate", "--on-small-n", "max"), "--on-small-n"),
        (("import-labels", "store", "reviewed", "--ids", "names.txt"), "--ids"),
        (("import-labels", "store", "--withdraw", "--note", "wrong"), "--note"),
        (("import-labels", "store", "--withdraw", "--format", "coco"), "--format"),
        (("train", "store", "-o", "new", "--labeled-share", "1/2"), "--labeled-share"),
        (("train", "store", "-o", "new", "--split-seed", "3"), "--split-seed"),
        (("train", "store", "-o", "new", "--ids", "names.txt"), "--ids"),
        (("train", "store", "-o", "new", "--validation-ids", "names.txt"), "--validation-ids"),
        (("train", "store", "-o", "new", "--labels-format", "coco"), "--labels-format"),
        (("train", "store", "-o", "new", "--taxonomy", "map.toml"), "--taxonomy"),
        (("train", "store", "-o", "new", "--background", "sky"), "--background"),
        (("train", "store", "-o", "new", "--unlabeled", "photos"), "--unlabeled"),
        (("train", "store", "-o", "new", "--segments", "segments"), "--segments"),
        (("train", "store", "-o", "new", "--image-labels", "classes.csv"), "--image-labels"),
        (("bench", "bundle", "--num-images", "3"), "--num-images"),
        (("build", "bundle", "--bit-depth", "12"), "--bit-depth"),
        ((*EXPORT, "--image-ending", "jpg"), "--image-ending"),
        ((*EXPORT, "--on-fail", "next"), "--on-fail"),
        ((*EXPORT, "--precision", "fp16", "--gate-images", "a", "--calibration-images", "b"), "--calibration-images"),
        ((*CONVERT, "--precision", "fp16", "--symmetric"), "--symmetric"),
        ((*CONVERT, "--precision", "fp8", "--method", "percentile"), "--method"),
        ((*CONVERT, "--precision", "bf16", "--calibration-images", "photos"), "--calibration-images"),
        (("gate", "bundle", "--images", "photos", "--reference", "other", "--provider", "cuda"), "--provider"),
        (("status", "store", "--metrics", "0", "--json"), "--json"),
        (("import", ".", "--classes", "classes.txt", "-o", "new", "--mean", "0.5"), "--mean"),
        (("import", ".", "--classes", "classes.txt", "-o", "new", "--task", "cam"), "--task"),
        (("import", "e", "--decoder", "d", "--task", "promptable", "-o", "new", "--background", "sky"), "--background"),
        (("evaluate", "store", "--reviewed", "--provider", "cuda"), "provider"),
    ],
)
def test_an_option_without_the_one_it_belongs_to_is_refused(
    words: tuple[str, ...], option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "store").mkdir()
    assert f"{option} " in fault(*words).replace(",", " ")
    assert not (tmp_path / "new").exists()


def test_weight_levels_without_a_weight_are_refused() -> None:
    assert Selection.argmax(weight="pcos", weight_levels=16).weight_levels == 16
    with pytest.raises(UsageError, match="--weight-levels applies to --weight"):
        Selection.argmax(weight_levels=16)
