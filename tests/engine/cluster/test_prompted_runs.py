"""Promptable models with several processes: the labels of an ordinary run, byte for byte."""

from __future__ import annotations

from pathlib import Path

import pytest

from maskmill.engine.cluster.runner import run_array

from .prompted_jobs import KINDS, assert_as_local, prompted_job, write_scenes

pytestmark = pytest.mark.usefixtures("short_pauses")


@pytest.mark.parametrize("kind", KINDS)
def test_an_array_labels_as_one_process(tmp_path: Path, kind: str) -> None:
    job = prompted_job(kind, tmp_path, write_scenes(tmp_path / "photos", 6), tmp_path / "store")
    assert run_array(job, threads=1).images == 6
    assert_as_local(job, tmp_path)
