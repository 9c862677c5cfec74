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


def is_synced(store: Path, synced: set[str]) -> bool:
    """Every file that rows are read from was brought to the disk."""
    kinds = (".lance", ".manifest", ".arrow", ".bin")
    return all(str(path) in synced for path in store.rglob("*") if path.is_file() and path.suffix in kinds)


def test_a_commit_returns_when_its_files_are_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: set[str] = set()
    fsync = os.fsync

    def recorded(descriptor: int) -> None:
        # files of a new dataset are synced under its temporary name
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        synced.add(
            "/".join(
                part[1:].split(".lance.")[0] + ".lance" if part.endswith(".tmp") else part for part in path.split("/")
            )
        )
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", recorded)
    store = LabelStore.create(tmp_path / "store", {})
    store.commit([label_row("a"), label_row("b")], [input_row("a"), input_row("b")])
    store.commit([], [input_row("a", stamp="later")])
    assert is_synced(tmp_path / "store", synced)


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
    assert {path.stat().st_ino for path in (file, file.parent)} <= synced


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
