"""Runs on Ray: each image exactly once with the labels of an ordinary run, whichever worker dies."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from maskmill.engine.cluster.leases import Leases
from maskmill.engine.cluster.ray_pool import RayPool, RaySettings, parse_workers
from maskmill.engine.cluster.runner import run_on
from maskmill.engine.model.bundle import Bundle
from maskmill.errors import SessionError, StoreError, UsageError

from ...models import color_bundle
from ..corpus import write_photos
from .prompted_jobs import KINDS, assert_as_local, prompted_job, write_scenes
from .test_array import assert_exactly_once

ray = pytest.importorskip("ray")


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return color_bundle(tmp_path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("cluster")
class TestRay:
    """Tests that share one cluster."""

    def test_workers_that_die_are_replaced(self, jobs: Any, bundle: Bundle, tmp_path: Path) -> None:
        paths = write_photos(tmp_path / "photos", 300)
        job = jobs.color_job(bundle, tmp_path / "photos", tmp_path / "store", pause=0.05)
        pool = RayPool(job, RaySettings(min_workers=2, max_workers=2, cpus_per_worker=1))
        killed: list[int] = []
        niceness: list[int] = []

        def kill() -> None:
            leases = Leases(tmp_path / "store")
            while not killed:
                records = leases.workers()
                busy = [records[worker]["process"] for worker in leases.claims().values() if worker in records]
                if busy:
                    niceness.append(os.getpriority(os.PRIO_PROCESS, busy[0]))
                    os.kill(busy[0], signal.SIGKILL)
                    killed.append(busy[0])
                time.sleep(0.05)

        thread = threading.Thread(target=kill, daemon=True)
        thread.start()
        progress = run_on(pool, job)
        assert killed
        assert niceness == [os.getpriority(os.PRIO_PROCESS, 0)], "as an ordinary run, not behind other programs"
        assert progress.images == 300
        assert any("died" in warning for warning in progress.warnings)
        assert_exactly_once(tmp_path, bundle, paths)

    @pytest.mark.parametrize("kind", KINDS)
    def test_promptable_models_label_as_in_one_process(self, tmp_path: Path, kind: str) -> None:
        job = prompted_job(kind, tmp_path, write_scenes(tmp_path / "photos", 6), tmp_path / "store")
        pool = RayPool(job, RaySettings(min_workers=1, max_workers=1, cpus_per_worker=1))
        assert run_on(pool, job).images == 6
        assert_as_local(job, tmp_path)

    def test_an_error_of_every_worker_is_raised(self, jobs: Any, bundle: Bundle, tmp_path: Path) -> None:
        write_photos(tmp_path / "photos", 3)
        job = jobs.color_job(bundle, tmp_path / "photos", tmp_path / "store")
        other = jobs.color_job(bundle, tmp_path / "photos", tmp_path / "store", version="0.0.1")
        settings = RaySettings(min_workers=1, max_workers=1, cpus_per_worker=1)
        with pytest.raises(SessionError, match=r"was started with 0\.0\.1; install the same version"):
            run_on(RayPool(other, settings), other)
        assert run_on(RayPool(job, settings), job).images == 3

    def test_a_second_run_into_a_store_is_refused(self, jobs: Any, bundle: Bundle, tmp_path: Path) -> None:
        write_photos(tmp_path / "photos", 100)
        job = jobs.color_job(bundle, tmp_path / "photos", tmp_path / "store", pause=0.05)
        settings = RaySettings(min_workers=1, max_workers=1, cpus_per_worker=1)
        run = threading.Thread(target=run_on, args=(RayPool(job, settings), job), daemon=True)
        run.start()
        while not (tmp_path / "store" / "leases" / "driver.json").exists():
            assert run.is_alive()
            time.sleep(0.05)
        with pytest.raises(StoreError, match="another run already labels into"):
            run_on(RayPool(job, settings), job)
        run.join()


@pytest.mark.parametrize(("text", "sizes"), [(None, (1, None)), ("4", (4, 4)), ("2:8", (2, 8))])
def test_sizes_of_a_pool(text: str | None, sizes: tuple[int, int | None]) -> None:
    assert parse_workers(text) == sizes


@pytest.mark.parametrize("text", ["0", "8:2", "a", "2:", "-1", ":"])
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="N or MIN:MAX"):
        parse_workers(text)
