"""Commits of finished leases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from maskmill.engine.cluster import committer as committer_module
from maskmill.engine.cluster.committer import Committer
from maskmill.engine.cluster.leases import Leases
from maskmill.engine.inputs.sources import Item
from maskmill.engine.labeling.progress import Progress
from maskmill.engine.store.label_store import LabelStore
from maskmill.engine.store.rows import input_table, label_table
from maskmill.engine.store.table import Table
from maskmill.errors import StoreError, WaitingRowsWarning

from ...builders import input_row, label_row, reject_row


@pytest.fixture
def store(tmp_path: Path) -> LabelStore:
    return LabelStore.create(tmp_path / "store", {"run": 1})


def finish(leases: Leases, lease: str, names: str) -> None:
    """Hand back a lease with one input per letter."""
    leases.publish(lease, [Item(name, 3, "1") for name in names])
    leases.claim("worker")
    labels = label_table([label_row(name) for name in names])
    kept = np.array(labels["counts"].to_pylist()).sum(axis=0)
    size = sum(len(label_row(name).label) for name in names)
    progress = Progress(planned=len(names), images=len(names), pixels=6 * len(names), kept=kept, label_bytes=size)
    inputs = input_table([input_row(name) for name in names])
    leases.finish(lease, "worker", labels, inputs, {"progress": progress.record()})


def committer_of(store: LabelStore, leases: Leases) -> Committer:
    def complete(done: Any, inputs: pa.Table) -> bool:
        leases.withdraw(done.lease)
        return True

    return Committer(store, leases, complete)


def test_leases_wait_until_there_are_many_rows(store: LabelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(committer_module, "COMMIT_ROWS", 4)
    leases = Leases(store.path)
    committer = committer_of(store, leases)
    finish(leases, "1", "abc")
    assert not committer.step(leases.finished())
    finish(leases, "2", "de")
    assert committer.step(leases.finished())
    assert len(LabelStore.open(store.path)) == 5
    assert (leases.finished(), leases.open_names(), leases.claims()) == ([], [], {})


def test_images_of_two_leases_are_stored_once_and_counted_as_duplicates(store: LabelStore) -> None:
    leases = Leases(store.path)
    committer = committer_of(store, leases)
    finish(leases, "1", "abc")
    finish(leases, "2", "bcd")
    committer.step(leases.finished(), flush=True)
    finish(leases, "3", "ae")
    committer.step(leases.finished(), flush=True)
    progress = committer.progress
    assert (progress.images, progress.duplicates, progress.pixels) == (5, 3, 30)
    assert int(progress.kept.sum()) == 30
    assert progress.label_bytes == sum(len(label_row(name).label) for name in "abcde")
    assert sorted(LabelStore.open(store.path).ids()) == sorted(label_row(name).id for name in "abcde")


def test_a_commit_that_failed_halfway_counts_its_images_once(
    store: LabelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    leases = Leases(store.path)
    committer = committer_of(store, leases)
    finish(leases, "1", "abc")
    merge = Table.merge

    def fail(table: Table, rows: pa.Table, **options: Any) -> None:
        if table.name == "inputs":
            raise OSError("the bucket is silent")
        merge(table, rows, **options)

    monkeypatch.setattr(Table, "merge", fail)
    with pytest.raises(StoreError, match="the bucket is silent"):
        committer.step(leases.finished(), flush=True)
    with pytest.warns(WaitingRowsWarning):
        assert len(LabelStore.open(store.path)) == 3
    monkeypatch.setattr(Table, "merge", merge)
    committer.step(leases.finished(), flush=True)
    finish(leases, "2", "cd")
    committer.step(leases.finished(), flush=True)
    assert (committer.progress.images, committer.progress.duplicates) == (4, 1)
    assert len(LabelStore.open(store.path)) == 4


def test_leases_of_rejects_alone_are_committed(store: LabelStore) -> None:
    leases = Leases(store.path)
    committer = committer_of(store, leases)
    for lease, names in (("1", "ab"), ("2", "cd")):
        committer.step(leases.finished(), flush=True)
        leases.publish(lease, [Item(name, 3, "1") for name in names])
        leases.claim("worker")
        labels = label_table([label_row(name) for name in names if lease == "1"])
        inputs = input_table([input_row(name) if lease == "1" else reject_row(name) for name in names])
        leases.finish(lease, "worker", labels, inputs, {"progress": Progress().record()})
    assert committer.step(leases.finished(), flush=True)
    assert [row.uri for row in LabelStore.open(store.path).rejects()] == ["c", "d"]


@pytest.mark.parametrize("damage", ["cut short", "flipped"])
def test_a_damaged_file_of_a_lease_is_labeled_again(store: LabelStore, damage: str) -> None:
    leases = Leases(store.path)
    finish(leases, "1", "abc")
    (file,) = (Path(store.path) / "leases" / "done").iterdir()
    data = bytearray(file.read_bytes())
    if damage == "flipped":
        data[len(data) // 2] ^= 1
    file.write_bytes(data[: len(data) // 2] if damage == "cut short" else data)
    committer_of(store, leases).step(leases.finished(), flush=True)
    assert len(LabelStore.open(store.path)) == 0
    assert leases.finished() == []
    claimed = leases.claim("another")
    assert claimed is not None
    assert [item.uri for item in claimed[1]] == ["a", "b", "c"]
