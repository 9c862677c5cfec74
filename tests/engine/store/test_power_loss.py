"""Power loss: committed rows survive, and a commit that was cut short is dropped by the next run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from maskmill.engine.cluster.leases import Leases
from maskmill.engine.store.label_store import LabelStore
from maskmill.engine.store.waiting.waiting_rows import WaitingRows
from maskmill.errors import StoreError
from tests.builders import input_row, label_row


def unsynced(store: Path, synced: list[str]) -> list[Path]:
    """Return the files that rows are read from, and the folders that name them, that were not brought to the disk."""
    kinds = (".lance", ".manifest", ".arrow", ".bin")
    files = [path for path in store.rglob("*") if path.is_file() and path.suffix in kinds]
    folders = {folder for path in files for folder in path.relative_to(store).parents}
    return [path for path in [*files, *(store / folder for folder in folders)] if str(path) not in synced]


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Files and folders in the order in which they are brought to the disk, under their final names."""
    synced: list[str] = []
    fsync = os.fsync

    def recorded(descriptor: int) -> None:
        # files of a new dataset are synced under its temporary name
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        synced.append(
            "/".join(
                part[1:].split(".lance.")[0] + ".lance" if part.endswith(".tmp") else part for part in path.split("/")
            )
        )
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", recorded)
    return synced


def test_a_commit_returns_when_its_files_are_on_the_disk(tmp_path: Path, synced: list[str]) -> None:
    folder = tmp_path / "store"
    store = LabelStore.create(folder, {})
    assert unsynced(folder, synced) == []
    store.commit([label_row("a"), label_row("b")], [input_row("a"), input_row("b")])
    assert unsynced(folder, synced) == []
    store.commit([], [input_row("a", stamp="later")])
    assert unsynced(folder, synced) == []


def test_a_commit_syncs_two_files_and_their_folders_per_dataset(tmp_path: Path, synced: list[str]) -> None:
    store = LabelStore.create(tmp_path / "store", {})
    assert len(synced) == 11  # three datasets, the record of the run
    for name, expected in (("a", 10), ("b", 8), ("c", 8)):
        synced.clear()
        store.commit([label_row(name)], [input_row(name)])
        assert len(synced) == expected


def test_a_store_needs_no_other_files_of_its_creation(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    LabelStore.create(folder, {})
    for path in folder.glob("*.lance/**/*"):
        if path.is_file() and path.suffix != ".manifest":
            path.write_bytes(b"")
    store = LabelStore.open_or_create(folder, {})
    store.commit([label_row("a")], [input_row("a")])
    assert [row.uri for row in LabelStore.open(folder).inputs()] == ["a"]


@pytest.mark.parametrize("kind", ["waiting", "done"])
def test_rows_that_wait_for_a_commit_are_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    synced: set[int] = set()
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.add(os.fstat(descriptor).st_ino))
    if kind == "done":
        Leases(tmp_path).hand_back("1", "worker", 1, b"rows")
    else:
        monkeypatch.setattr(WaitingRows, "_is_due", lambda self: False)
        WaitingRows(LabelStore.create(tmp_path, {})).commit([label_row("a")], [input_row("a")])
    (file,) = (tmp_path / "leases" / kind).iterdir()
    assert {path.stat().st_ino for path in (file, file.parent, tmp_path / "leases", tmp_path)} <= synced


@pytest.mark.parametrize("emptied", ["manifest", "data", "both"])
def test_a_version_that_a_power_loss_cut_short_is_dropped(tmp_path: Path, emptied: str) -> None:
    folder = tmp_path / "store"
    store = LabelStore.create(folder, {})
    store.commit([label_row("a")], [input_row("a")])
    before = {path for path in folder.rglob("*") if path.is_file()}
    store.commit([label_row("b")], [input_row("b")])
    for path in {path for path in folder.rglob("*") if path.is_file()} - before:
        if path.parent.name == "_checks":
            path.unlink()  # written after everything else is on the disk
        elif emptied in (path.parent.name, "both") or (emptied == "manifest" and path.suffix == ".manifest"):
            path.write_bytes(b"")
    with pytest.raises(StoreError):
        LabelStore.open(folder).read("b")
    store = LabelStore.open_or_create(folder, {})
    assert [row.uri for row in store.inputs()] == ["a"]
    store.commit([label_row("b")], [input_row("b")])
    assert sorted(row.uri for row in LabelStore.open(folder).inputs()) == ["a", "b"]


def test_a_version_whose_files_are_whole_stays(tmp_path: Path) -> None:
    store = LabelStore.create(tmp_path / "store", {})
    store.commit([label_row("a")], [input_row("a")])
    for check in (tmp_path / "store").glob("*.lance/_checks/*"):
        check.unlink()
    store = LabelStore.open_or_create(tmp_path / "store", {})
    assert [row.uri for row in store.inputs()] == ["a"]
