"""Rows that wait for a commit: when they are committed, and what a killed process leaves."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import lance
import pytest

from maskmill.engine.cluster.status import read_status
from maskmill.engine.store.label_store import LabelStore
from maskmill.engine.store.several.merge import merge_stores
from maskmill.engine.store.verify import verify
from maskmill.engine.store.waiting import waiting_rows as module
from maskmill.engine.store.waiting.waiting_rows import WaitingRows, commit_waiting
from maskmill.errors import StoreError, WaitingRowsWarning

from ....builders import input_row, label_row


class Clock:
    """Stands for ``time``."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def store(tmp_path: Path) -> LabelStore:
    return LabelStore.create(tmp_path / "store", {"run": 1})


def commit_sizes(
    store: LabelStore, monkeypatch: pytest.MonkeyPatch, *, commit_seconds: float, rows_per_second: float, num: int
) -> list[int]:
    """Rows of each commit of a run that hands a row over at a time; every commit takes ``commit_seconds``."""
    clock, sizes = Clock(), []
    monkeypatch.setattr(module, "time", clock)

    def commit(self: LabelStore, labels: Any, inputs: Any) -> None:
        sizes.append(len(inputs))
        clock.now += commit_seconds

    monkeypatch.setattr(LabelStore, "commit_tables", commit)
    rows = WaitingRows(store)
    for number in range(num):
        clock.now += 1 / rows_per_second
        rows.commit([label_row(str(number))], [input_row(str(number))])
    return sizes


def waiting_files(store: LabelStore) -> list[Path]:
    return sorted((store.path / "leases" / "waiting").glob("*"))


def leave_waiting(store: LabelStore, *parts: str) -> None:
    """Hand over one part after the other and die; a capital letter is another input with the same image."""
    rows = WaitingRows(store)
    rows._seconds = 1e9  # no commit is due
    for part in parts:
        rows.commit([label_row(name) for name in part if name.islower()], [input_row(n.lower(), uri=n) for n in part])


def reopened(store: LabelStore) -> LabelStore:
    """Open a store in which rows wait, as the next run does."""
    with pytest.warns(WaitingRowsWarning):
        return LabelStore.open(store.path)


def test_commits_take_one_percent_of_the_time(store: LabelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_SECONDS", 0.019)
    sizes = commit_sizes(store, monkeypatch, commit_seconds=0.099, rows_per_second=1, num=30)
    assert sizes == [2, 10, 10]


def test_a_long_commit_waits_until_it_costs_40_microseconds_per_row(
    store: LabelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ROW_SECONDS", 0.0401)
    assert commit_sizes(store, monkeypatch, commit_seconds=1.0, rows_per_second=0.2, num=60) == [1, 25, 25]


def test_no_row_waits_longer_than_ten_minutes(store: LabelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    assert commit_sizes(store, monkeypatch, commit_seconds=9.0, rows_per_second=0.051, num=70) == [1, 31, 31]


def test_memory_limits_a_commit(store: LabelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LARGEST_BYTES", 8_000)
    sizes = commit_sizes(store, monkeypatch, commit_seconds=9.0, rows_per_second=1000, num=60)
    assert len(sizes) > 2
    assert len(set(sizes[1:])) == 1


def test_the_last_rows_are_committed_with_those_that_wait(store: LabelStore) -> None:
    sizes = []
    rows = WaitingRows(store, lambda inputs, seconds: sizes.append(inputs))
    rows.commit([label_row("a")], [input_row("a")])
    assert len(waiting_files(store)) == 1
    rows.is_ending = True
    rows.commit([label_row("b")], [input_row("b")])
    rows.flush()
    assert sizes == [2]
    assert not waiting_files(store)
    assert len(LabelStore.open(store.path)) == 2


def test_the_next_run_commits_what_a_killed_one_left(store: LabelStore) -> None:
    leave_waiting(store, "abc", "dA")
    assert [len(store), read_status(store.path).waiting, len(waiting_files(store))] == [0, 5, 2]
    commit_waiting(reopened(store))
    assert not waiting_files(store)
    opened = LabelStore.open(store.path)
    assert (len(opened), sorted(row.uri for row in opened.inputs())) == (4, ["A", "a", "b", "c", "d"])
    assert read_status(store.path).waiting == 0


def test_files_that_two_processes_commit_are_stored_once(store: LabelStore, tmp_path: Path) -> None:
    leave_waiting(store, "abc", "dA")
    copies = {file: file.read_bytes() for file in waiting_files(store)}
    commit_waiting(reopened(store))
    for file, data in copies.items():
        file.write_bytes(data)
    commit_waiting(LabelStore.open(store.path))
    for name, expected in (("labels", 4), ("inputs", 5)):
        assert lance.dataset(store.path / f"{name}.lance").count_rows() == expected


@pytest.mark.parametrize("damage", ["cut short", "flipped"])
def test_a_damaged_file_is_dropped_with_the_inputs_that_need_it(store: LabelStore, damage: str) -> None:
    leave_waiting(store, "abc", "dAe")
    file = waiting_files(store)[0]
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data[:-9] if damage == "cut short" else data)
    commit_waiting(reopened(store))
    opened = LabelStore.open(store.path)
    assert sorted(row.uri for row in opened.inputs()) == ["d", "e"]
    assert verify(store.path).sound
    assert not waiting_files(store)


def test_readers_are_warned_once_of_rows_that_wait(store: LabelStore) -> None:
    leave_waiting(store, "ab", "c")
    with pytest.warns(WaitingRowsWarning, match=f"3 finished inputs of {store.path} wait for a commit"):
        assert len(LabelStore.open(store.path)) == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LabelStore.open(store.path)


def test_verification_warns_of_rows_that_wait(store: LabelStore) -> None:
    leave_waiting(store, "a")
    with pytest.warns(WaitingRowsWarning, match="1 finished input of"):
        verify(store.path)


def test_a_merge_commits_rows_that_wait_in_its_sources(store: LabelStore, tmp_path: Path) -> None:
    leave_waiting(store, "ab", "c")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert merge_stores([store.path], tmp_path / "merged").images == 3
        assert len(LabelStore.open(store.path)) == 3
    assert not waiting_files(store)


def test_a_merge_refuses_rows_that_it_cannot_commit(
    store: LabelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_waiting(store, "a")

    def fail(self: LabelStore, labels: Any, inputs: Any) -> None:
        raise StoreError("read-only")

    monkeypatch.setattr(LabelStore, "commit_tables", fail)
    with pytest.raises(StoreError, match=r"1 finished input of .* waits for a commit .*\(read-only\)"):
        merge_stores([store.path], tmp_path / "merged")
