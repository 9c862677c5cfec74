"""Progress of runs, as any process sees it."""

from __future__ import annotations

import subprocess
import threading
import time
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from maskmill.engine.cluster.leases import Leases
from maskmill.engine.cluster.metrics import metrics_server, metrics_text
from maskmill.engine.cluster.status import published, read_status
from maskmill.engine.labeling.history import add_run
from maskmill.engine.labeling.progress import Progress
from maskmill.engine.store.label_store import LabelStore
from maskmill.engine.store.waiting.presence import Watcher, identity, is_gone

from ...models import color_bundle
from ..corpus import label_folder, write_photos
from .test_array import start


def test_a_store_without_runs_counts_its_rows(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 3)
    (tmp_path / "photos" / "empty.png").touch()
    label_folder(color_bundle(tmp_path), tmp_path / "photos", tmp_path / "store")
    status = read_status(tmp_path / "store")
    assert (status.images, status.inputs, status.rejects, status.run, status.workers) == (3, 4, 1, "finished", [])
    assert (status.done, status.planned) == (4, 4)


def test_an_interrupted_run_of_one_process_says_how_many_inputs_are_left(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 8)
    bundle, store = color_bundle(tmp_path), tmp_path / "store"
    label_folder(bundle, tmp_path / "photos", store, limit=3)
    add_run(store, Progress(planned=8, images=3, interrupted=True))
    status = read_status(store)
    assert (status.run, status.planned, status.done, status.images) == ("interrupted", 8, 3, 3)
    assert "5 planned inputs are left; run the same command again to continue" in status.describe()
    label_folder(bundle, tmp_path / "photos", store)
    status = read_status(store)
    assert (status.run, status.images, status.done) == ("finished", 8, 5)
    assert not any("left" in line for line in status.describe())


@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
def test_an_interrupted_run_is_known_if_it_has_no_history(tmp_path: Path, error: type[BaseException] | None) -> None:
    write_photos(tmp_path / "photos", 3)
    bundle, store = color_bundle(tmp_path), tmp_path / "store"
    label_folder(bundle, tmp_path / "photos", store, limit=1)
    with suppress(KeyboardInterrupt), published(store) as publish:
        publish(Progress(planned=2, stored=1, interrupted=error is None))
        if error is not None:
            raise error
    status = read_status(store)
    assert (status.run, status.planned, status.done) == ("interrupted", 2, 0)
    assert "2 planned inputs are left; run the same command again to continue" in status.describe()


def test_a_run_is_followed_from_outside(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 200)
    bundle = color_bundle(tmp_path)
    process = start(tmp_path, bundle, pause=0.04, rows=100_000)
    store = tmp_path / "store"
    try:
        deadline = time.monotonic() + 300
        status = None
        while time.monotonic() < deadline:
            if (store / "run.json").exists():
                status = read_status(store)
                is_complete = status.planned == 200 and status.done and status.workers
                if status.run == "labeling" and is_complete and status.workers[0].inputs:
                    break
            time.sleep(0.05)
        assert status is not None
        assert 0 < status.done <= status.planned == 200
        (worker,) = status.workers
        assert str(process.pid) in worker.name
        assert worker.state == "labeling"
        assert any("images/s" in line for line in status.describe())
        text = metrics_text(status)
        assert "maskmill_run_planned 200\n" in text
        assert 'maskmill_workers{state="labeling"} 1\n' in text
        assert 'maskmill_stage_items_total{stage="predict"} ' in text
    finally:
        process.kill()
        process.wait()
    dead = read_status(store)
    assert (dead.run, dead.workers[0].state) == ("dead", "dead")
    assert any("run the same command again" in line for line in dead.describe())
    again = start(tmp_path, bundle)
    assert again.wait(300) == 0
    done = read_status(store)
    assert (done.run, done.images, done.workers, done.waiting) == ("finished", 200, [], 0)
    assert len(LabelStore.open(store)) == 200


def write_dead(leases: Leases, progress: Progress, *, token: str, age: float = 0.0, **more: Any) -> dict[str, Any]:
    """Write the record of a worker that was killed, and return it."""
    record = {**identity(), "process": 2**22 - 1, "name": "", "beat": 1, "state": "labeling", "leases": {}}
    record |= {"time": time.time() - age, "progress": progress.record(), **more}
    leases.beat(token, record)
    return record


def test_rows_that_wait_for_a_commit_are_not_left(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 3)
    label_folder(color_bundle(tmp_path), tmp_path / "photos", tmp_path / "store")
    later = Progress(planned=24, images=5, stored=1)  # 2 of its inputs are stored, and its last record is old
    leases = Leases(tmp_path / "store")
    write_dead(leases, later, token="a", age=-60.0, alone=True)
    folder = tmp_path / "store" / "leases" / "waiting"
    folder.mkdir(parents=True)
    (folder / "a-00000000~20").touch()
    status = read_status(tmp_path / "store")
    assert (status.run, status.planned, status.done, status.waiting) == ("dead", 24, 22, 20)
    assert "2 planned inputs are left; run the same command again to continue" in status.describe()


def test_a_killed_run_whose_inputs_are_all_stored_is_finished(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 3)
    label_folder(color_bundle(tmp_path), tmp_path / "photos", tmp_path / "store")
    leases = Leases(tmp_path / "store")
    write_dead(leases, Progress(planned=3, images=1), token="a", age=-60.0, alone=True)
    status = read_status(tmp_path / "store")
    assert (status.run, status.done, status.planned) == ("finished", 3, 3)
    assert not any("run the same command again" in line for line in status.describe())


def test_the_counts_of_a_run_at_work_fit_each_other(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 3)
    label_folder(color_bundle(tmp_path), tmp_path / "photos", tmp_path / "store")
    leases = Leases(tmp_path / "store")
    record = {**identity(), "beat": 1, "token": "b", "state": "labeling", "planned_all": True, "time": time.time() + 60}
    record |= {"commits": 0, "commit_seconds": 0.0}
    # the record of the driver is older than 9 results, and one of the stored inputs is of an earlier run
    leases.report({**record, "progress": Progress(planned=24, images=4, stored=1).record()})
    leases.hand_back("00000001", "a", 9, b"")
    status = read_status(tmp_path / "store")
    assert (status.run, status.planned, status.done, status.waiting) == ("labeling", 24, 11, 9)
    assert any("11 of 24 inputs done in 0 s, 2 of them committed" in line for line in status.describe())


@pytest.mark.parametrize("state", ["labeling", "finished"])
def test_the_end_of_a_run_in_one_process_is_newer_than_an_array_before_it(tmp_path: Path, state: str) -> None:
    write_photos(tmp_path / "photos", 3)
    bundle, store = color_bundle(tmp_path), tmp_path / "store"
    label_folder(bundle, tmp_path / "photos", store, limit=1)
    leases = Leases(store)
    record = write_dead(leases, Progress(planned=3, images=1), token="a", age=60.0)
    driver = {**record, "token": "b", "state": state, "planned_all": True, "commits": 1, "commit_seconds": 0.1}
    leases.report(driver)
    leases.hand_back("00000001", "a", 2, b"")
    label_folder(bundle, tmp_path / "photos", store)
    status = read_status(store)
    assert (status.run, status.images, status.done, status.planned, status.workers) == ("finished", 3, 2, 2, [])
    assert status.waiting == 0
    assert len(status.describe()) == 2


def test_a_process_that_ended_is_gone_at_once() -> None:
    child = subprocess.Popen(["sleep", "60"])
    record = {**identity(), "process": child.pid, "beat": 1}
    from maskmill.engine.store.waiting import presence

    record["started"] = presence._started(child.pid)
    assert not is_gone(record)
    child.kill()
    child.wait()
    assert is_gone(record)


def test_a_process_of_another_machine_is_dead_when_its_records_stop() -> None:
    watcher, record = Watcher(expiry=0.05), {"host": "other", "boot": "1", "pids": "2", "process": 3, "started": "4"}
    for beat in range(3):
        assert not watcher.is_dead("a", {**record, "beat": beat})
        time.sleep(0.03)
    time.sleep(0.05)
    assert watcher.is_dead("a", {**record, "beat": 2})


def test_one_of_many_claims_each_lease(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    from maskmill.engine.inputs.sources import Item

    leases = Leases(tmp_path)
    for number in range(40):
        leases.publish(f"{number:03d}", [Item(f"/photos/{number}.jpg", number)])

    def claim_all(worker: str) -> list[str]:
        claimed = []
        while (lease := leases.claim(worker)) is not None:
            claimed.append(lease[0])
        return claimed

    with ThreadPoolExecutor(8) as pool:
        claimed = [lease for part in pool.map(claim_all, "abcdefgh") for lease in part]
    assert sorted(claimed) == [f"{number:03d}" for number in range(40)]


def test_metrics_are_served_on_this_machine_alone(tmp_path: Path) -> None:
    LabelStore.create(tmp_path / "store", {"run": 1})
    with metrics_server(tmp_path / "store", 0) as server:
        assert server.server_address[0] == "127.0.0.1"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/metrics") as answer:
            lines = answer.read().decode().splitlines()
        assert "maskmill_images 0" in lines
        assert all(line.startswith(("#", "maskmill_")) for line in lines)
        server.shutdown()
