"""Faults of the files of leases, of the disk, and of processes that are taken for dead."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from maskmill.engine.cluster import driver as driver_module
from maskmill.engine.cluster.driver import Driver
from maskmill.engine.cluster.leases import ALONE, Leases
from maskmill.engine.cluster.runner import run_array, run_on
from maskmill.engine.cluster.worker import Worker
from maskmill.engine.inputs.sources import Item
from maskmill.engine.model import storage
from maskmill.engine.model.bundle import Bundle
from maskmill.engine.store.label_store import LabelStore
from maskmill.errors import SessionError, StoreError

from ...models import color_bundle
from ..corpus import write_photos

pytestmark = pytest.mark.usefixtures("short_pauses")


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return color_bundle(tmp_path)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(28, "No space left on device"), "the disk is full. What was committed is safe"),
        (OSError(30, "Read-only file system", "/store/leases/.open.tmp"), "store: Read-only file system$"),
    ],
)
def test_an_error_of_the_disk_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError, message: str
) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr(storage, "write_atomically", fail)
    with pytest.raises(StoreError, match=message):
        Leases(tmp_path / "store").publish("1", [Item("a")])


@pytest.mark.parametrize("fault", ["cut short", "deleted"])
def test_inputs_of_a_damaged_lease_are_planned_again(
    jobs: Any, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setattr(driver_module, "FIRST_LEASE", 16)
    write_photos(tmp_path / "photos", 40)
    publish, damaged = Leases.publish, []

    def damage(self: Leases, lease: str, items: Any) -> None:
        publish(self, lease, items)
        if not damaged:
            damaged.append(lease)
            path = tmp_path / "store" / "leases" / "open" / lease
            path.unlink() if fault == "deleted" else path.write_bytes(path.read_bytes()[:100])

    monkeypatch.setattr(Leases, "publish", damage)
    progress = run_array(jobs.color_job(bundle, tmp_path / "photos", tmp_path / "store"), threads=1)
    assert (progress.planned, progress.images, damaged != []) == (40, 40, True)
    assert any("damaged or deleted" in warning for warning in progress.warnings)
    assert len(LabelStore.open(tmp_path / "store")) == 40


def test_a_process_leads_if_the_record_of_the_driver_is_cut_short(tmp_path: Path) -> None:
    leases = Leases(tmp_path / "store")
    assert leases.lead({"token": "a", "state": "labeling"})
    assert not leases.lead({"token": "b", "state": "labeling"})
    (tmp_path / "store" / "leases" / "driver.json").write_bytes(b"")
    assert leases.lead({"token": "b", "state": "labeling"})


def test_a_driver_that_was_taken_for_dead_leaves_the_run_to_its_successor(
    jobs: Any, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver_module, "BEAT_SECONDS", 0.01)
    write_photos(tmp_path / "photos", 1)
    job = jobs.color_job(bundle, tmp_path / "photos", tmp_path / "store")
    leases = Leases(job.store)
    driver = Driver(job, leases)
    assert driver.lead()
    leases.publish("1", [Item("a")])
    deadline = time.monotonic() + 300
    while not driver.is_deposed and time.monotonic() < deadline:
        leases.report({"token": "successor", "state": "labeling"})
        time.sleep(0.05)
    with pytest.raises(StoreError, match="another process now drives the run"):
        driver.step()
    driver.close("failed")
    assert (leases.driver() or {})["token"] == "successor"
    assert leases.open_names() == ["1"]


def test_a_driver_whose_first_look_at_the_leases_fails_begins_again(
    jobs: Any, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_photos(tmp_path / "photos", 3)
    job = jobs.color_job(bundle, tmp_path / "photos", tmp_path / "store")
    assert run_array(job, threads=1, limit=1).images == 1
    driver = Driver(job, Leases(job.store))
    assert driver.lead()
    with monkeypatch.context() as patch:

        def fail(*arguments: Any) -> None:
            raise StoreError("the storage does not answer")

        for name in ("claims", "finished"):
            patch.setattr(Leases, name, fail)
            for _ in range(2):
                with pytest.raises(StoreError, match="the storage does not answer"):
                    driver.step()
            patch.undo()
    assert not driver.step()
    driver.close("interrupted")
    assert run_array(job, threads=1).images == 2


def test_a_task_with_another_version_is_refused(jobs: Any, bundle: Bundle, tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 3)
    job = jobs.color_job(bundle, tmp_path / "photos", tmp_path / "store")
    other = jobs.color_job(bundle, tmp_path / "photos", tmp_path / "store", version="0.0.1")
    driver = Driver(other, Leases(job.store))
    assert driver.lead()
    with pytest.raises(SessionError, match=r"the run into .* was started with 0\.0\.1 .*; install the same version"):
        run_array(job, threads=1)
    driver.close("failed")
    assert run_array(job, threads=1).images == 3


class SilentPool:
    """Pool whose workers have all ended without a record of why, as on a full disk."""

    def tend(self, driver: Driver) -> int:
        return 0

    def stop(self) -> None: ...

    def close(self) -> None: ...


def test_a_run_whose_workers_ended_without_a_word_ends(jobs: Any, bundle: Bundle, tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 3)
    job = jobs.color_job(bundle, tmp_path / "photos", tmp_path / "store")
    with pytest.raises(SessionError, match="no worker is left; none could write its error to .*store; check"):
        run_on(SilentPool(), job)
    assert run_array(job, threads=1).images == 3


@pytest.mark.parametrize("end", ["", ALONE])
def test_a_lease_that_cannot_be_handed_back_ends_the_run(
    jobs: Any, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    def fail(*arguments: Any) -> None:
        raise StoreError("cannot write to the label store: the disk is full")

    monkeypatch.setattr(Leases, "hand_back", fail)
    write_photos(tmp_path / "photos", 3)
    job = jobs.color_job(bundle, tmp_path / "photos", tmp_path / "store")
    leases = Leases(job.store)
    leases.publish(f"1{end}", list(job.source))
    worker = Worker(job, leases, token="a", threads=1)
    deadline = time.monotonic() + 300
    with pytest.raises(StoreError, match="the disk is full"):
        worker.run(is_over=lambda: time.monotonic() > deadline)
    assert time.monotonic() < deadline
