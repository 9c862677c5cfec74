"""Drift as a user meets it: an alarm that stops a run, and a calibration weighted to resemble the corpus."""

from __future__ import annotations

import json
from pathlib import Path

from ...models import color_bundle
from ...test_cli import maskmill, ok
from ..labeling.test_drift import write


def test_an_alarm_stops_the_run_and_labeled_images_of_the_new_kind_help(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    color_bundle(tmp_path / "model", gain=6.0)
    for name, num, factor in (("old", 40, 1.0), ("dark photos", 120, 0.4), ("dark labeled", 40, 0.4)):
        write(tmp_path / name, num, seed=num, factor=factor)
    bundle = "model/bundle"
    for name in ("old", "dark labeled"):
        images, labels = f"{name}/images", f"{name}/labels"
        arguments = ("--images", images, "--labels", labels, "--alpha", "0.1", "--unit", "image", "-o", f"{name}.json")
        ok("calibrate", bundle, *arguments, cwd=tmp_path)
    label = ("label", bundle, "dark photos/images", "-o", "store", "--select", "conformal", "--calibration")

    stopped = maskmill(*label, "old.json", "--on-drift", "stop", cwd=tmp_path)
    assert stopped.returncode == 3
    assert "warning: these images do not look like the calibration images: alarm after" in stopped.stdout
    assert "stopped by --on-drift stop: finished images are stored" in stopped.stdout
    assert "drift: these images do not look like" in ok("show", "store", cwd=tmp_path)

    rest = json.loads(ok(*label, "old.json", "--json", cwd=tmp_path).splitlines()[-1])
    assert 0 < rest["images"] < 120
    assert rest["drift"]["images"] == 120

    like = ("--like", "store", "--alpha", "0.1", "-o", "new.json")
    refused = maskmill("calibrate", "--calibration", "old.json", *like, cwd=tmp_path)
    assert refused.returncode == 1
    assert "label some of its images and calibrate on them" in refused.stderr
    merged = ok("calibrate", "--calibration", "old.json", "--calibration", "dark labeled.json", *like, cwd=tmp_path)
    assert "new.json: alpha 0.1, group pooled, unit image, rule agree, from the scores of 80 images" in merged
    assert "weighted to resemble 120 images of store: effective sample size" in merged
    misused = maskmill("calibrate", bundle, "--calibration", "old.json", *like[:-1], "other.json", cwd=tmp_path)
    assert (misused.returncode, "leave out BUNDLE" in misused.stderr) == (2, True)
