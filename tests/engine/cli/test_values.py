"""Values that an option cannot take: one line that names the option, what it takes and what it got."""

from __future__ import annotations

import pytest

from ...test_cli import maskmill


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("label", "b", "p", "--tile", "3.5"), "--tile must be a whole number, got 3.5"),
        (("label", "b", "p", "--tile", "3"), "--tile must be at least 16, got 3"),
        (("label", "b", "p", "--threshold", "high"), "--threshold must be a number, got high"),
        (("label", "b", "p", "--select", "best"), "--select must be one of argmax, threshold, conformal, got best"),
        (("export-labels", "s", "-o", "x", "--format", "gif"), "--format must be one of png, coco,"),
        (("export-labels", "s", "-o", "x", "--format", "png", "--min-kept", "2"), "--min-kept must be at most 1, got"),
        (("choose", "b", "--images", "p", "--labels", "l", "--goal", "accuracy 1.2"), "the accuracy of a goal must be"),
        (
            (
                "calibrate",
                "--sam",
                "s",
                "--boxes",
                "b.csv",
                "--text",
                "cat",
                "--images",
                "p",
                "--labels",
                "l",
                "--alpha",
                "0.1",
                "-o",
                "c.json",
            ),
            "--text, --tile and --overlap apply to BUNDLE, not to --sam; leave them out",
        ),
        (
            ("calibrate", "b", "--calibration", "c.json", "--alpha", "0.1", "--set", "a=b", "-o", "d.json"),
            (
                "--calibration FILE takes the images, the model and all settings but --alpha, --group and --unit from "
                "that calibration; leave out --set, BUNDLE\n"
            ),
        ),
        (("label-prompted", "p", "--sam", "s", "-o", "l", "--min-score", "0.9"), "--min-score applies to objects"),
        (("label", "b", "p", "--dry-run", "--retry-rejects"), "--dry-run labels a sample without a store; leave"),
        (("label", "b", "p", "--dry-run", "--log", "run.log"), "--dry-run labels a sample without a store; leave"),
    ],
)
def test_a_value_that_an_option_cannot_take_is_one_line(
    arguments: tuple[str, ...], message: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    result = maskmill(*arguments, cwd=tmp_path_factory.getbasetemp())
    assert result.returncode == 2
    assert result.stderr.startswith(f"maskmill: {message}")
    assert result.stderr.count("\n") == 1
