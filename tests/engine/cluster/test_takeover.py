"""Runs of one process and of several continue each other's work, and ignore what is none."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from maskmill.engine.cluster import driver as driver_module
from maskmill.engine.cluster import worker as worker_module
from maskmill.engine.cluster.device_pool import DevicePool
from maskmill.engine.cluster.driver import Driver
from maskmill.engine.cluster.leases import Leases
from maskmill.engine.cluster.runner import run_array, run_on
from maskmill.engine.cluster.status import read_status
from maskmill.engine.cluster.worker import Worker
from maskmill.engine.labeling.progress import Progress
from maskmill.engine.labeling.selection import Selection
from maskmill.engine.model.bundle import Bundle
from maskmill.engine.reading.access import limit_reads
from maskmill.engine.store.label_store import LabelStore
from maskmill.engine.store.rows import input_table, label_table
from maskmill.engine.store.several.merge import merge_stores
from maskmill.engine.store.waiting.presence import identity
from maskmill.engine.store.waiting.row_files import decode_rows, last_of_each_uri
from maskmill.engine.store.waiting.waiting_rows import WaitingRows

from ...builders import reject_row
from ...hostile_server import hostile_server
from ...models import color_bundle
from ..corpus import label_folder, write_photos
from .test_array import assert_exactly_once

pytestmark = pytest.mark.usefixtures("short_pauses")

DEAD = 2**22 - 1
"""Number of a process that does not run."""


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return color_bundle(tmp_path)


def finish_a_lease(job: Any, num: int, **driver: Any) -> Leases:
    """Label the first inputs as a worker whose driver is killed before the commit."""
    leases = Leases(job.store)
    leases.publish("1", list(job.source)[:num])
    Worker(job, leases, token="a", threads=1).run(is_over=lambda: bool(leases.finished()))
    record = {**identity(), "token": "b", "state": "labeling", "time": time.time(), **driver}
    assert leases.lead(record)
    return leases


@pytest.mark.parametrize("driver", [{"process": DEAD}, {"state": "failed"}, {"time": 0.0}])
def test_a_run_in_one_process_commits_the_finished_leases_of_a_killed_one(
    jobs: Any, bundle: Bundle, tmp_path: Path, driver: dict[str, Any]
) -> None:
    paths = write_photos(tmp_path / "photos", 12)
    leases = finish_a_lease(jobs.color_job(bundle, tmp_path / "photos", tmp_path / "store"), 8, **driver)
    run = label_folder(bundle, tmp_path / "photos", tmp_path / "store", selection=Selection.argmax())
    assert (run.planned, run.images, leases.finished()) == (4, 4, [])
    assert (leases.open_names(), leases.claims()) == ([], {}), "the run is over, and nothing of its plan is left"
    assert_exactly_once(tmp_path, bundle, paths)


def test_merge_commits_the_finished_leases_of_a_killed_run(jobs: Any, bundle: Bundle, tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 3)
    finish_a_lease(jobs.color_job(bundle, tmp_path / "photos", tmp_path / "store"), 3, process=DEAD)
    assert merge_stores([tmp_path / "store"], tmp_path / "merged").images == 3


def test_finished_leases_of_a_run_at_work_are_left_to_it(jobs: Any, bundle: Bundle, tmp_path: Path) -> None:
    paths = write_photos(tmp_path / "photos", 12)
    job = jobs.color_job(bundle, tmp_path / "photos", tmp_path / "store")
    leases = finish_a_lease(job, 8)
    run = label_folder(bundle, tmp_path / "photos", tmp_path / "store", selection=Selection.argmax())
    assert (run.planned, [done.num_rows for done in leases.finished()]) == (12, [8])
    assert leases.open_names() == ["1"], "the plan of a run at work stays"
    leases.resign()
    assert run_array(job, threads=1).planned == 0
    assert leases.finished() == []
    assert_exactly_once(tmp_path, bundle, paths)


def test_several_processes_commit_the_rows_that_one_left(
    jobs: Any, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = write_photos(tmp_path / "photos", 12)
    with monkeypatch.context() as patch:
        patch.setattr(WaitingRows, "_is_due", lambda self: False)
        patch.setattr(WaitingRows, "flush", lambda self: None)
        label_folder(bundle, tmp_path / "photos", tmp_path / "store", selection=Selection.argmax(), limit=8)
    assert len(LabelStore.open(tmp_path / "store", warn=False)) == 0
    assert run_array(jobs.color_job(bundle, tmp_path / "photos", tmp_path / "store"), threads=1).planned == 4
    assert_exactly_once(tmp_path, bundle, paths)


@pytest.mark.parametrize("committed", [True, False])
def test_a_lease_whose_rows_another_process_took_is_not_waited_for(
    jobs: Any, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, committed: bool
) -> None:
    monkeypatch.setattr(driver_module, "FIRST_LEASE", 16)
    monkeypatch.setattr(worker_module, "BEAT_SECONDS", 0.05)
    paths, taken, hand_back = write_photos(tmp_path / "photos", 40), [], Leases.hand_back

    def take(self: Leases, lease: str, worker: str, num_rows: int, data: bytes) -> None:
        if taken:
            hand_back(self, lease, worker, num_rows, data)
            return
        taken.append(num_rows)  # how many it is depends on how fast the machine is
        if committed:
            labels, inputs, _ = decode_rows(data)
            LabelStore.open(tmp_path / "store").commit_tables(labels, last_of_each_uri(inputs))

    monkeypatch.setattr(Leases, "hand_back", take)
    progress = run_array(jobs.color_job(bundle, tmp_path / "photos", tmp_path / "store"), threads=1)
    assert progress.images == (40 - taken[0] if committed else 40)
    assert_exactly_once(tmp_path, bundle, paths)


GARBAGE = {
    "empty": b"",
    "object": b"{}",
    "list": b"[1]",
    "null": b"null",
    "types": b'{"token": 3, "state": 1, "beat": "x", "leases": [], "time": "now", "stages": {}, "progress": 1}',
    "counts": b'{"token": "x", "state": "labeling", "beat": 1, "leases": {}, "time": 1, "stages": [1], "progress": {}}',
    "infinite": b'{"token": "x", "state": "labeling", "beat": 1, "leases": {}, "time": 1e999, "stages": []}',
    "deep": b"[" * 100_000,
    "binary": bytes(range(256)),
}


def write_garbage(store: Path, kind: str) -> None:
    """Leave files that no process of a run has written."""
    names = ["driver.json", "workers/x.json", "workers/y", "claims/x", "open/x", "open/z", "done/x~y~3", "done/x"]
    for name in [*(f"leases/{name}" for name in [*names, "waiting/x~3", "waiting/x"]), "history/x.json"]:
        (store / name).parent.mkdir(parents=True, exist_ok=True)
        (store / name).write_bytes(GARBAGE[kind])


@pytest.mark.parametrize("kind", GARBAGE)
def test_files_of_others_are_ignored(jobs: Any, bundle: Bundle, tmp_path: Path, kind: str) -> None:
    paths, store = write_photos(tmp_path / "photos", 6), tmp_path / "store"
    label_folder(bundle, tmp_path / "photos", store, selection=Selection.argmax(), limit=2)
    write_garbage(store, kind)
    status = read_status(store)
    assert (status.images, status.workers, status.describe() != []) == (2, [], True)
    label_folder(bundle, tmp_path / "photos", store, selection=Selection.argmax(), limit=2)
    write_garbage(store, kind)
    assert run_array(jobs.color_job(bundle, tmp_path / "photos", store), threads=1).images == 2
    assert_exactly_once(tmp_path, bundle, paths)
    assert not list((store / "leases" / "open").iterdir())


@pytest.mark.parametrize("kind", ["object", "binary"])
def test_a_driver_ignores_files_of_others_that_appear(
    jobs: Any, bundle: Bundle, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_photos(tmp_path / "photos", 6)
    begin, written = Driver._begin, []

    def begin_badly(self: Driver) -> None:
        begin(self)
        if self._committer is not None and not written:
            written.append(write_garbage(tmp_path / "store", kind))
            (tmp_path / "store" / "leases" / "driver.json").unlink()
            self._leases.report(self._record())

    monkeypatch.setattr(Driver, "_begin", begin_badly)
    progress = run_array(jobs.color_job(bundle, tmp_path / "photos", tmp_path / "store"), threads=1)
    assert (progress.images, written != []) == (6, True)


@pytest.mark.parametrize("runner", ["array", "devices"])
def test_workers_keep_the_limits_of_reads(jobs: Any, bundle: Bundle, tmp_path: Path, runner: str) -> None:
    write_photos(tmp_path / "photos", 1)
    with hostile_server() as server:
        names = ["photos/00000.png", f"{server.url}/silent/a.png"]
        (tmp_path / "list.txt").write_text("\n".join(names))
        with limit_reads(timeout=0.5, retries=0):
            job = jobs.color_job(bundle, tmp_path / "list.txt", tmp_path / "store")
        progress = run_array(job, threads=1) if runner == "array" else run_on(DevicePool(job, (1,), threads=1), job)
        assert (progress.images, progress.rejects) == (1, {"timeout": 1})
        assert server.requests["silent"] == 1
    (reject,) = LabelStore.open(tmp_path / "store").rejects()
    assert "no answer within 0.5 s" in (reject.message or "")


def test_workers_keep_the_schemes_that_a_list_may_name(jobs: Any, bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("http://127.0.0.1:9/a.png")
    with limit_reads(schemes=["https"]):
        job = jobs.color_job(bundle, tmp_path / "list.txt", tmp_path / "store")
    run_array(job, threads=1)
    (reject,) = LabelStore.open(tmp_path / "store").rejects()
    assert "a list may not name http:// URLs here; allow it with --schemes" in (reject.message or "")


def test_a_new_driver_plans_nothing_that_a_worker_of_the_last_one_labels(
    jobs: Any, bundle: Bundle, tmp_path: Path
) -> None:
    write_photos(tmp_path / "photos", 12)
    label_folder(bundle, tmp_path / "photos", tmp_path / "store", selection=Selection.argmax(), limit=1)
    job = jobs.color_job(bundle, tmp_path / "photos", tmp_path / "store")
    leases = Leases(job.store)
    leases.publish("1", list(job.source)[1:6])
    leases.beat("a", {**identity(), "beat": 1, "state": "labeling", "leases": {"1": 0}, "time": time.time()})
    assert leases.take("1", "a")
    driver = Driver(job, leases)
    assert driver.lead()
    try:
        deadline = time.monotonic() + 300
        while len(leases.open_names()) < 2:
            assert not driver.step()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert sorted(len(leases.items(name) or ()) for name in leases.open_names()) == [5, 6]
    finally:
        driver.close("interrupted")


def test_inputs_that_a_worker_did_not_finish_are_offered_again(jobs: Any, bundle: Bundle, tmp_path: Path) -> None:
    paths = write_photos(tmp_path / "photos", 6)
    job = jobs.color_job(bundle, tmp_path / "photos", tmp_path / "store")
    label_folder(bundle, tmp_path / "photos", tmp_path / "store", selection=Selection.argmax(), limit=1)
    leases = Leases(job.store)
    driver = Driver(job, leases)
    assert driver.lead()
    try:
        deadline = time.monotonic() + 300
        leases.beat("a", {**identity(), "beat": 1, "state": "labeling", "leases": {}, "time": time.time()})
        while (claimed := leases.claim("a")) is None:
            assert not driver.step()
            assert time.monotonic() < deadline
        rejects = input_table([reject_row(item.uri) for item in claimed[1][:2]])
        leases.finish(claimed[0], "a", label_table([]), rejects, {"progress": Progress().record()})
        assert not driver.step(flush=True)
        rest = [item.uri for name in leases.open_names() for item in leases.items(name) or ()]
        assert rest == [str(path) for path in paths[3:]]
    finally:
        driver.close("interrupted")
