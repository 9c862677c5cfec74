"""Log of a run: what happened, one JSON object per line."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from maskmill.engine.cluster.runner import run_array
from maskmill.engine.labeling.progress import Progress
from maskmill.engine.labeling.run_log import RunLog
from maskmill.engine.labeling.selection import Selection
from maskmill.errors import UsageError

from ...models import color_bundle
from ..cluster.conftest import jobs  # noqa: F401
from ..corpus import label_folder, write_photos


def events(path: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert all(datetime.fromisoformat(line["time"]).tzinfo for line in lines)
    return lines


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Five photos and a file that is none."""
    write_photos(tmp_path / "photos", 5)
    (tmp_path / "photos" / "broken.png").write_bytes(b"no image")
    return tmp_path / "photos"


def test_a_run_in_one_process(tmp_path: Path, photos: Path) -> None:
    log = tmp_path / "run.jsonl"
    label_folder(color_bundle(tmp_path), photos, tmp_path / "store", selection=Selection.argmax(), log=RunLog(log))
    lines = events(log)
    assert [lines[0]["event"], lines[-1]["event"]] == ["start", "end"]
    assert lines[0]["store"] == str(tmp_path / "store")
    (reject,) = (line for line in lines if line["event"] == "reject")
    assert (reject["uri"], reject["kind"]) == (str(photos / "broken.png"), "not-an-image")
    assert sum(line["inputs"] for line in lines if line["event"] == "commit") == 6
    end = {name: lines[-1][name] for name in ("state", "images", "duplicates", "rejects")}
    assert end == {"state": "finished", "images": 5, "duplicates": 0, "rejects": {"not-an-image": 1}}


def test_a_run_with_leases(tmp_path: Path, photos: Path, jobs: Any) -> None:  # noqa: F811
    log = tmp_path / "run.jsonl"
    run_array(jobs.color_job(color_bundle(tmp_path), photos, tmp_path / "store"), threads=1, log=RunLog(log))
    kinds = [line["event"] for line in events(log)]
    assert kinds[-1] == "end"
    assert set(kinds) == {"lease finished", "commit", "reject", "end"} | (set(kinds) & {"lease claimed"})
    assert sum(line["inputs"] for line in events(log) if line["event"] == "commit") == 6


def test_a_stall_is_noted_once(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "run.jsonl")
    for stage in ("", "predict", "predict", "", "predict"):
        log.stall(stage)
    log.end("failed", Progress())
    assert [line["event"] for line in events(tmp_path / "run.jsonl")] == ["stall", "stall", "end"]


def test_a_file_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot write the log"):
        RunLog(tmp_path / "missing" / "run.jsonl")
