"""Every image exactly once, however the process ends."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from maskmill.engine.model.bundle import Bundle
from maskmill.engine.store.label_store import LabelStore
from maskmill.engine.store.verify import verify

from ...conftest import ROOT
from ...models import color_bundle
from ..corpus import write_photos


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory, if there is one: the system writes what a killed process wrote, so a disk proves no more."""
    memory = Path("/dev/shm")
    parent = memory if memory.is_dir() and os.access(memory, os.W_OK) else tmp_path
    with tempfile.TemporaryDirectory(prefix="maskmill-test-", dir=parent) as name:
        yield Path(name)


def start(bundle: Bundle, photos: Path, store: Path, rows: int = 20) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.engine.corpus", str(bundle.path), str(photos), str(store), str(rows)]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE)


def finish(process: subprocess.Popen[bytes]) -> None:
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors.decode()


def assert_exactly_once(store: LabelStore, paths: list[Path]) -> None:
    uris = Counter(row.uri for row in store.inputs())
    assert uris == {str(path): 1 for path in paths}
    ids = Counter(store.ids())
    assert set(ids.values()) == {1}
    assert {row.id for row in store.inputs()} == set(ids)
    assert len(ids) == len(paths)


def commits(store: Path) -> int:
    """Commits that began so far."""
    return sum(len(list((store / name / "_versions").glob("*"))) for name in ("labels.lance", "inputs.lance"))


@pytest.mark.parametrize("kills", [4, pytest.param(12, marks=pytest.mark.slow)])
def test_a_run_killed_at_random_moments_labels_every_image_once(tmp_path: Path, folder: Path, kills: int) -> None:
    bundle = color_bundle(tmp_path)
    paths = write_photos(tmp_path / "photos", 400 if kills == 4 else 1000)
    store = folder / "store"
    moments = random.Random(0)
    progress = []
    for _ in range(kills):
        process = start(bundle, tmp_path / "photos", store)
        # from before the store is opened, over between a commit of labels and one of inputs, to well into the run
        further = commits(store) + moments.randrange(6)
        deadline = time.monotonic() + 300
        while commits(store) < further and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(moments.random() * 0.05)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if (store / "run.json").exists():
            progress.append(len(LabelStore.open(store)))
    assert progress == sorted(progress)  # nothing that was committed is lost
    assert len(set(progress)) > kills // 4  # the kills fell into the labeling
    finish(start(bundle, tmp_path / "photos", store))
    assert_exactly_once(LabelStore.open(store), paths)
    assert verify(store).damages == []


@pytest.mark.parametrize("repeats", [2, pytest.param(50, marks=pytest.mark.slow)])
def test_two_processes_on_the_same_images_label_every_image_once(tmp_path: Path, folder: Path, repeats: int) -> None:
    bundle = color_bundle(tmp_path)
    paths = write_photos(tmp_path / "photos", 300)
    for repeat in range(repeats):
        store = folder / f"store{repeat}"
        processes = [start(bundle, tmp_path / "photos", store) for _ in range(2)]
        for process in processes:
            finish(process)
        assert_exactly_once(LabelStore.open(store), paths)
