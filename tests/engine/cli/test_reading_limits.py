"""``--timeout``, ``--retries`` and ``--schemes`` of the commands that read sources."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from maskmill.cli import app
from maskmill.engine.cli.options import urls
from maskmill.engine.reading.access import current_access, limit_reads
from maskmill.errors import MaskmillError, UsageError
from tests.hostile_server import hostile_server
from tests.models import color_bundle

COMMANDS = {
    "label": ["photos", "-o", "store"],
    "segment": ["-o", "store", "--sam", "sam"],
    "calibrate": ["--images", "photos", "--labels", "maps", "-o", "calibration.json", "--alpha", "0.1"],
    "choose": ["--images", "photos", "--labels", "maps", "--goal", "accuracy 0.9"],
    "taxonomy": ["--labels", "maps", "-o", "classes.toml"],
    "gate": ["--images", "photos"],
    "convert": ["--precision", "fp16", "--images", "photos"],
    "tune": ["--images", "photos"],
    "evaluate": ["--images", "photos", "--labels", "maps"],
    "report": ["-o", "report.html"],
    "rank": ["-o", "queue.txt"],
    "show": [],
}


def run(*arguments: str) -> BaseException | None:
    return CliRunner().invoke(app, arguments).exception


@pytest.mark.parametrize(
    ("command", "option", "message"),
    [
        *((command, ["--timeout", "0"], "--timeout must be more than 0") for command in COMMANDS),
        ("label", ["--retries", "11"], "--retries must be from 0 to 10"),
        ("gate", ["--schemes", "h t"], "--schemes lists URL schemes"),
        ("gate", ["--schemes", ""], "--schemes lists URL schemes"),
    ],
)
def test_limits_out_of_range_are_refused(
    command: str, option: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    error = run(command, "nothing", *COMMANDS[command], *option)
    assert isinstance(error, UsageError), error
    assert message in str(error)


def test_calibration_gives_up_a_server_without_an_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[float] = []

    def noted(*, timeout: float, **others: Any) -> AbstractContextManager[None]:
        limits.append(timeout)
        return limit_reads(timeout=timeout, **others)

    monkeypatch.setattr(urls, "limit_reads", noted)
    bundle = color_bundle(tmp_path)
    (tmp_path / "maps").mkdir()
    with hostile_server() as server:
        arguments = ["--images", f"{server.url}/silent/photos", "--labels", f"{server.url}/silent/labels.json"]
        error = run(
            "calibrate", str(bundle.path), *arguments, "-o", str(tmp_path / "c.json"), "--timeout", "0.5",
            "--retries", "0", "--alpha", "0.1", "--labels-format", "coco",
        )  # fmt: skip
        assert isinstance(error, MaskmillError), error
        assert "no answer in time (--timeout)" in str(error)
    assert limits == [0.5]
    assert current_access().timeout == 30
