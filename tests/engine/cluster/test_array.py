"""Many processes with one store: each image exactly once, whoever dies, with the labels of an ordinary run."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import lance
import pytest

from maskmill.engine.cluster.leases import Leases
from maskmill.engine.labeling.selection import Selection
from maskmill.engine.model.bundle import Bundle
from maskmill.engine.store.label_store import LabelStore

from ...models import color_bundle
from ..corpus import label_folder, write_photos

TASK = Path(__file__).with_name("array_task.py")


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return color_bundle(tmp_path)


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for process in started:
        process.kill()
        process.wait()


def start(folder: Path, bundle: Bundle, *, pause: float = 0.0, rows: int = 64, **environment: str) -> subprocess.Popen:
    command = [sys.executable, str(TASK), str(folder / "photos"), str(folder / "store"), str(bundle.path)]
    return subprocess.Popen([*command, str(pause), str(rows)], env={**os.environ, **environment})


def assert_exactly_once(folder: Path, bundle: Bundle, paths: list[Path]) -> None:
    """Compare raw rows, as Lance reads them, with the labels of a run in one process."""
    uris = lance.dataset(folder / "store" / "inputs.lance").to_table(columns=["uri"])["uri"].to_pylist()
    assert Counter(uris) == {str(path): 1 for path in paths}
    ids = lance.dataset(folder / "store" / "labels.lance").to_table(columns=["id"])["id"].to_pylist()
    assert set(Counter(ids).values()) == {1}
    label_folder(bundle, folder / "photos", folder / "alone", selection=Selection.argmax(), workers=1)
    labels = {row.id: row for row in LabelStore.open(folder / "store").iter_rows(extras=True)}
    for row in LabelStore.open(folder / "alone").iter_rows(extras=True):
        for name in vars(row):
            assert str(getattr(labels[row.id], name)) == str(getattr(row, name)), name
        del labels[row.id]
    assert not labels


def test_tasks_share_the_work(bundle: Bundle, tmp_path: Path, processes: list[subprocess.Popen[bytes]]) -> None:
    paths = write_photos(tmp_path / "photos", 150)
    (tmp_path / "photos" / "copy.png").write_bytes(paths[0].read_bytes())
    names = ("0", "1", "2")
    (tmp_path / "seen" / "expected").mkdir(parents=True)
    for name in names:  # none of them labels before all have opened the model
        (tmp_path / "seen" / "expected" / name).touch()
    processes += [start(tmp_path, bundle, pause=0.01, CUDA_VISIBLE_DEVICES=name) for name in names]
    assert [process.wait(300) for process in processes] == [0, 0, 0]
    assert_exactly_once(tmp_path, bundle, [*paths, tmp_path / "photos" / "copy.png"])
    left = [path.name for path in (tmp_path / "store" / "leases").rglob("*") if path.is_file()]
    assert left == ["driver.json"]
    logs = [path.read_text().splitlines() for path in tmp_path.glob("store-*.log")]
    ends = [json.loads(line) for lines in logs for line in lines if json.loads(line)["event"] == "end"]
    assert [(end["state"], end["images"]) for end in ends] == [("finished", 150)] * 3


@pytest.mark.parametrize("hold", [pytest.param("", marks=pytest.mark.slow), "0.3"])
def test_tasks_that_are_killed_lose_nothing_and_write_nothing_twice(
    bundle: Bundle, tmp_path: Path, processes: list[subprocess.Popen[bytes]], hold: str
) -> None:
    paths = write_photos(tmp_path / "photos", 300)
    moments = random.Random(1)
    environment = {"HOLD_COMMITS": hold} if hold else {}
    processes += [start(tmp_path, bundle, pause=0.01, **environment) for _ in range(2)]
    for _ in range(3 if not hold else 2):
        if hold:  # while the driver is between the labels of a commit and their inputs
            (tmp_path / "committing").unlink(missing_ok=True)
            deadline = time.monotonic() + 300
            while not (tmp_path / "committing").exists():
                assert time.monotonic() < deadline
                time.sleep(0.01)
        else:
            time.sleep(moments.uniform(0.5, 2.0))
        for process in processes:
            process.send_signal(signal.SIGKILL)
            process.wait()
        processes[:] = [start(tmp_path, bundle, pause=0.002, **environment) for _ in range(2)]
    assert [process.wait(300) for process in processes] == [0, 0]
    assert_exactly_once(tmp_path, bundle, paths)


def test_an_interrupted_task_hands_back_what_it_has_finished(
    bundle: Bundle, tmp_path: Path, processes: list[subprocess.Popen[bytes]]
) -> None:
    paths = write_photos(tmp_path / "photos", 200)
    processes.append(start(tmp_path, bundle, pause=0.05))
    leases = Leases(tmp_path / "store")
    while not any(sum(record["leases"].values()) for record in leases.workers().values()):
        assert processes[0].poll() is None
        time.sleep(0.05)
    processes[0].send_signal(signal.SIGINT)
    assert processes[0].wait(300) == 0
    assert 0 < len(LabelStore.open(tmp_path / "store")) < 200
    assert not list((tmp_path / "store" / "leases" / "done").iterdir())
    label_folder(bundle, tmp_path / "photos", tmp_path / "store", selection=Selection.argmax())
    assert_exactly_once(tmp_path, bundle, paths)
