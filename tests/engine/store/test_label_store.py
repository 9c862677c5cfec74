from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
import pickle
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskmill.engine.inputs.sources import Item
from maskmill.engine.store import label_store as store_module
from maskmill.engine.store import table as table_module
from maskmill.engine.store.label_store import InputRow, LabelStore, content_id
from maskmill.errors import StoreError, StoreMismatch, UsageError

from ...builders import input_row, label_row, reject_row

RUN = {"bundle": "1234", "select": "conformal", "classes": {"targets": ["cow", "sky"]}}


@pytest.fixture
def store(tmp_path: Path) -> LabelStore:
    return LabelStore.create(tmp_path / "store", RUN)


def item(row: InputRow) -> Item:
    return Item(row.uri, row.size, row.stamp)


def by_uri(store: LabelStore) -> list[InputRow]:
    return sorted(store.inputs(), key=lambda row: row.uri)


def check_whole(path: Path) -> tuple[set[str], set[str]]:
    """Every row is there once and every labeled input has its labels; returns (ids, uris)."""
    store = LabelStore.open(path)
    ids, inputs = store.ids(), list(store.inputs())
    assert len(ids) == len(set(ids)) == len(store)
    assert len(inputs) == len({row.uri for row in inputs})
    assert {row.id for row in inputs if row.id} <= set(ids)
    return set(ids), {row.uri for row in inputs}


def test_what_is_committed_is_read_back(store: LabelStore) -> None:
    labels = np.array([[0, 1, 255], [2, 2, 7]], dtype=np.uint8)
    weights = np.array([[1, 2, 3], [4, 5, 6]], dtype=np.uint8)
    row = label_row("a", labels=labels, weights=weights)
    store.commit([row], [input_row("a", uri="/it's/a.jpg"), reject_row("/b.jpg")])
    for reader in (store, LabelStore.open(store.path)):
        assert len(reader) == 1
        assert reader.ids() == [row.id]
        for read in (reader.read("/it's/a.jpg"), reader.read_id(row.id)):
            np.testing.assert_array_equal(read[0], labels)
            np.testing.assert_array_equal(read[1], weights)
        assert by_uri(reader) == [reject_row("/b.jpg"), input_row("a", uri="/it's/a.jpg")]
        assert list(reader.rejects()) == [reject_row("/b.jpg")]
        (found,) = reader.iter_rows(extras=True)
        assert vars(found) == {**vars(row), "counts": row.counts.tolist()}  # type: ignore[union-attr]


def test_16_bit_labels_survive(store: LabelStore) -> None:
    labels = np.array([[0, 300, 65535]], dtype=np.uint16)
    store.commit([label_row("a", labels=labels, weights=labels.astype(np.uint8))], [input_row("a")])
    read, _ = store.read("a")
    assert read.dtype == np.uint16
    np.testing.assert_array_equal(read, labels)


def test_rows_are_taken_by_id_in_the_order_of_the_ids(store: LabelStore) -> None:
    for name in "abc":
        store.commit([label_row(name)], [input_row(name)])
    ids = [content_id(name) for name in (b"c", b"a", b"c")]
    assert [row.id for row in store.take(ids)] == ids
    with pytest.raises(StoreError, match=f"holds no labels of {content_id(b'unknown')}; label the image again"):
        store.take([ids[0], content_id(b"unknown")])


def test_optional_columns_are_kept(store: LabelStore) -> None:
    row = replace(
        label_row("a"),
        scores=b"\x01scores",
        instances=b"\x01",
        features=np.array([0.1, -2], np.float32),
        drift=0.25,
        statistics='{"set_size": 1.5}',
    )
    store.commit([row, label_row("b")], [])
    read, empty = store.take([row.id, content_id(b"b")], extras=True)
    assert (read.scores, read.instances, read.drift, read.statistics) == (row.scores, b"\x01", 0.25, row.statistics)
    np.testing.assert_array_equal(np.float32(read.features), row.features)
    assert empty.scores is empty.features is empty.drift is None
    assert store.take([row.id])[0].scores is None


def test_a_duplicated_image_is_labeled_once(store: LabelStore) -> None:
    store.commit([label_row("a"), label_row("a")], [input_row("a", uri="1"), input_row("a", uri="2")])
    store.commit([label_row("a", labels=np.zeros((2, 3), np.uint8))], [input_row("a", uri="3")])
    assert len(store) == 1
    assert [row.uri for row in by_uri(store)] == ["1", "2", "3"]
    np.testing.assert_array_equal(store.read("3")[0], np.full((2, 3), 7))


def test_an_input_named_twice_in_a_commit_is_one_row(store: LabelStore) -> None:
    store.commit([label_row("a")], [reject_row("a"), input_row("a")])
    assert list(store.inputs()) == [input_row("a")]


def test_known_ids_are_those_of_the_store_and_of_own_commits(store: LabelStore) -> None:
    store.commit([label_row("a")], [input_row("a")])
    reopened = LabelStore.open(store.path)
    assert reopened.has_id(content_id(b"a"))
    assert not reopened.has_id(content_id(b"b"))
    reopened.commit([label_row("b")], [input_row("b")])
    assert reopened.has_id(content_id(b"b"))


def test_many_ids_are_known_while_they_are_added(store: LabelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maskmill.engine.store.digests._FRESH_LIMIT", 10)
    missing: list[str] = []
    committed: list[str] = []
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            missing.extend(id for id in committed if not store.has_id(id))

    store.has_id(content_id(b""))
    thread = threading.Thread(target=ask)
    thread.start()
    try:
        for name in range(25):
            store.commit([label_row(str(name))], [])
            committed.append(content_id(str(name).encode()))
    finally:
        done.set()
        thread.join()
    assert not missing
    assert all(store.has_id(id) for id in committed)


def test_finished_inputs_are_not_planned_again(store: LabelStore) -> None:
    rows = [input_row("a"), input_row("b", size=None, stamp=""), reject_row("c")]
    store.commit([label_row("a"), label_row("b")], rows)
    new = Item("d", 3, "1")
    planned = [*map(item, rows), new]
    for reader in (store, LabelStore.open(store.path)):
        assert list(reader.plan(planned)) == [new]
        assert list(reader.plan(planned, retry_rejects=True)) == [item(rows[2]), new]


def test_changed_files_are_planned_again(store: LabelStore) -> None:
    store.commit([label_row("a")], [input_row("a", size=3, stamp="1")])
    changed = [Item("a", 4, "1"), Item("a", 3, "2"), Item("a", None, "1"), Item("b", 3, "1")]
    assert list(store.plan(changed)) == changed


def test_a_plan_keeps_the_order_and_takes_items_lazily(store: LabelStore) -> None:
    store.commit([], [reject_row(str(name)) for name in range(0, 5000, 2)])
    taken = []

    def items() -> Iterator[Item]:
        for name in range(5000):
            taken.append(name)
            yield Item(str(name), 3, "1")

    plan = store.plan(items())
    assert next(plan).uri == "1"
    assert len(taken) < 5000
    assert [int(entry.uri) for entry in plan] == list(range(3, 5000, 2))


def test_a_changed_file_gets_a_new_row(store: LabelStore) -> None:
    store.commit([label_row("a")], [input_row("a", uri="1.jpg")])
    store.commit([label_row("b")], [input_row("b", uri="1.jpg", stamp="2")])
    assert list(store.inputs()) == [input_row("b", uri="1.jpg", stamp="2")]


def test_a_reject_that_is_tried_again_gets_a_new_row(store: LabelStore) -> None:
    store.commit([], [reject_row("1.jpg", error="unreadable")])
    store.commit([], [reject_row("1.jpg", error="truncated")])
    assert [row.error for row in store.rejects()] == ["truncated"]
    store.commit([label_row("a")], [input_row("a", uri="1.jpg")])
    assert list(store.inputs()) == [input_row("a", uri="1.jpg")]


def test_a_labeled_input_does_not_become_a_reject_unless_the_file_changed(store: LabelStore) -> None:
    store.commit([label_row("a")], [input_row("a", uri="1.jpg")])
    store.commit([], [reject_row("1.jpg", error="unreadable")])
    assert list(store.inputs()) == [input_row("a", uri="1.jpg")]
    store.commit([], [reject_row("1.jpg", stamp="2")])
    assert list(store.inputs()) == [reject_row("1.jpg", stamp="2")]


def test_a_crash_between_the_two_commits_costs_one_more_reading(store: LabelStore) -> None:
    store.commit([label_row("a")], [])
    resumed = LabelStore.open_or_create(store.path, RUN)
    assert list(resumed.plan([item(input_row("a"))])) == [item(input_row("a"))]
    assert resumed.has_id(content_id(b"a"))
    resumed.commit([], [input_row("a")])
    assert check_whole(store.path) == ({content_id(b"a")}, {"a"})


def test_a_commit_that_ends_in_the_middle_leaves_no_input_without_its_labels(
    store: LabelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    merge, merged = table_module.Table.merge, []

    def end_after_the_first(self: table_module.Table, rows: Any, **options: Any) -> None:
        if merged:
            raise OSError("the power is off")
        merged.append(merge(self, rows, **options))

    monkeypatch.setattr(table_module.Table, "merge", end_after_the_first)
    with pytest.raises(StoreError, match="the power is off"):
        store.commit([label_row("a")], [input_row("a")])
    assert check_whole(store.path) == ({content_id(b"a")}, set())


def test_the_summary_counts(store: LabelStore) -> None:
    store.commit(
        [label_row("a")], [input_row("a"), input_row("a", uri="2"), reject_row("b"), reject_row("c", error="empty")]
    )
    summary = store.summary()
    assert summary.pop("bytes") > 1000
    assert summary == {"inputs": 4, "images": 1, "rejects": {"empty": 1, "truncated": 1}, "reviewed": 0}


def test_an_empty_store_reads_as_empty(store: LabelStore) -> None:
    assert len(store) == 0
    assert store.ids() == list(store.inputs()) == list(store.iter_rows()) == list(store.reviews()) == []
    assert list(store.plan([Item("a")])) == [Item("a")]
    assert not store.has_id(content_id(b"a"))


def test_reading_what_is_not_there_says_so(store: LabelStore) -> None:
    store.commit([], [reject_row("bad.jpg")])
    with pytest.raises(UsageError, match=r"holds no image x\.jpg"):
        store.read("x.jpg")
    with pytest.raises(UsageError, match=r"bad\.jpg was rejected \(truncated: cut short\)"):
        store.read("bad.jpg")
    with pytest.raises(StoreError, match="holds no labels of"):
        store.read_id(content_id(b"a"))


def test_the_run_is_kept(store: LabelStore) -> None:
    assert LabelStore.open(store.path).run == RUN
    assert LabelStore.open_or_create(store.path, RUN).run == RUN


def test_other_options_are_refused_and_named(store: LabelStore) -> None:
    other = {**RUN, "select": "argmax", "alpha": 0.1}
    with pytest.raises(StoreMismatch) as caught:
        LabelStore.open_or_create(store.path, other)
    text = str(caught.value)
    assert "select: 'conformal' there, 'argmax' now" in text
    assert "alpha: not set there, 0.1 now" in text
    assert "bundle" not in text


def test_another_class_mapping_is_refused_in_words(store: LabelStore) -> None:
    other = {**RUN, "classes": {"targets": ["cow", "sea"]}, "taxonomy": "f" * 64}
    with pytest.raises(StoreMismatch, match="another class mapping") as caught:
        LabelStore.open_or_create(store.path, other)
    text = str(caught.value)
    assert "the target sky is only there; the target sea is only here" in text
    assert "give the same --taxonomy FILE, or another folder" in text
    assert "fff" not in text


def test_tuples_and_lists_are_the_same_option(tmp_path: Path) -> None:
    LabelStore.create(tmp_path / "store", {"size": (1, 2)})
    assert LabelStore.open_or_create(tmp_path / "store", {"size": (1, 2)}).run == {"size": [1, 2]}


def test_folders_that_are_no_store_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="not a label store: it does not exist"):
        LabelStore.open(tmp_path / "missing")
    with pytest.raises(StoreError, match=r"not a label store: it has no run\.json"):
        LabelStore.open(tmp_path)
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(StoreError, match=r"not empty \(it holds holiday\.jpg\)"):
        LabelStore.open_or_create(tmp_path, RUN)
    with pytest.raises(StoreError, match="cannot create a label store"):
        LabelStore.create(tmp_path / "holiday.jpg" / "store", RUN)


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ('{"format_version": 99, "run": {}}', "has format 99, this maskmill reads format 2"),
        ('{"format_version": 1, "run": {}}', "has format 1, .* Label its images again into a new folder"),
        ('{"format_version": 2, "hash": "", "run": {"select": "argmax"}}', "damaged or edited"),
        ('{"format_version": 2}', "has no 'run'"),
        ('{"format_version": 1', r"run\.json cannot be read"),
        ("[]", r"run\.json cannot be read"),
        ("{}", r"run\.json cannot be read"),
    ],
)
def test_manifests_that_cannot_be_read_are_refused(store: LabelStore, manifest: str, message: str) -> None:
    (store.path / "run.json").write_text(manifest)
    with pytest.raises(StoreError, match=message):
        LabelStore.open(store.path)


def test_a_store_is_created_once(store: LabelStore) -> None:
    with pytest.raises(StoreError, match="already holds a label store"):
        LabelStore.create(store.path, RUN)


def test_labels_without_a_manifest_are_never_adopted(store: LabelStore) -> None:
    store.commit([label_row("a")], [input_row("a")])
    (store.path / "run.json").unlink()
    with pytest.raises(StoreError, match=r"no run\.json"):
        LabelStore.open_or_create(store.path, RUN)


def test_an_interrupted_creation_is_finished(store: LabelStore) -> None:
    (store.path / "run.json").unlink()
    (store.path / ".run.json.elsewhere.1.0123abcd.tmp").write_text("half")
    store = LabelStore.open_or_create(store.path, RUN)
    store.commit([label_row("a")], [input_row("a")])
    assert len(store) == 1


KILLED = """
import os, signal, sys
from maskmill.engine.store.label_store import LabelStore

os.rename = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
LabelStore.create(sys.argv[1], {})
"""


def test_what_a_killed_creation_left_is_removed_by_the_next_run(tmp_path: Path) -> None:
    path = tmp_path / "store"
    for _ in range(2):
        assert subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False).returncode == -9
    assert len(os.listdir(path)) == 1
    LabelStore.open_or_create(path, RUN)
    assert sorted(os.listdir(path)) == ["inputs.lance", "labels.lance", "reviews.lance", "run.json"]


def test_a_pinned_moment_outlives_every_cleanup(store: LabelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.commit([label_row("a")], [input_row("a")])
    pinned = store.pin("train-1")
    with pytest.raises(StoreError, match="reads .* at one moment; open the store again to write"):
        pinned.commit([label_row("b")], [])
    monkeypatch.setattr(store_module, "COMPACT_EVERY", 3)
    monkeypatch.setattr(table_module, "KEEP_VERSIONS", timedelta(0))
    store.commit([label_row("b")], [input_row("b")])
    fixed = LabelStore.open(store.path, moment=store.moment)
    for name in "cdefg":
        store.commit([label_row(name)], [input_row(name)])
    for reader in (pickle.loads(pickle.dumps(pinned)), LabelStore.open(store.path).pin("train-1")):
        assert reader.ids() == [content_id(b"a")]
        assert [row.uri for row in reader.inputs()] == ["a"]
        assert reader.moment == pinned.moment
    with pytest.raises(StoreError, match=r"version \d+ of .* no longer exists, .* open the store again"):
        len(pickle.loads(pickle.dumps(fixed)))  # not pinned
    store.unpin("train-1")
    store.unpin("train-1")
    for name in "hij":
        store.commit([label_row(name)], [input_row(name)])
    with pytest.raises(StoreError, match="no longer exists"):
        len(pickle.loads(pickle.dumps(pinned)))
    assert len(LabelStore.open(store.path)) == 10


def test_processes_that_pin_at_once_agree_on_one_moment(store: LabelStore) -> None:
    for number in range(5):
        store.commit([label_row(str(number))], [input_row(str(number))])
        readers = [LabelStore.open(store.path) for _ in range(4)]
        with ThreadPoolExecutor(5) as pool:
            writing = pool.submit(store.commit, [label_row(f"{number}x")], [input_row(f"{number}x")])
            moments = set(pool.map(lambda reader, tag=f"run{number}": reader.pin(tag).moment, readers))
            writing.result()
        assert len(moments) == 1
        pinned = LabelStore.open(store.path, moment=moments.pop())
        assert {row.id for row in pinned.inputs()} <= set(pinned.ids())


def test_lost_datasets_are_noticed(store: LabelStore) -> None:
    (store.path / "inputs.lance").rename(store.path / "elsewhere.lance")
    with pytest.raises(StoreError, match=r"damaged: inputs\.lance is missing"):
        LabelStore.open(store.path)


def test_damaged_maps_are_noticed(store: LabelStore) -> None:
    store.commit([replace(label_row("a"), label=b"\x89PNG")], [input_row("a")])
    with pytest.raises(StoreError, match="maps of .* cannot be read"):
        store.read("a")


def test_compaction_changes_nothing_that_can_be_read(store: LabelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "COMPACT_EVERY", 5)
    reader = LabelStore.open(store.path)
    for name in range(13):
        labels = np.full((2, 2), name, dtype=np.uint8)
        store.commit([label_row(str(name), labels=labels)], [input_row(str(name)), reject_row(f"bad {name}")])
        store.commit([], [reject_row(f"bad {name}", error="empty")])
        if name == 7:
            reader = LabelStore.open(store.path)
            assert len(reader) == 8
    assert len(list((store.path / "labels.lance" / "data").iterdir())) > 5
    assert [store.read(str(name))[0][0, 0] for name in range(13)] == list(range(13))
    assert store.summary()["rejects"] == {"empty": 13}
    assert reader.read("3")[0][0, 0] == 3
    assert reader.ids() == store.ids()[:8]
    check_whole(store.path)


@pytest.mark.parametrize("days", [40, -40])
def test_nothing_is_dropped_by_a_clock_that_is_wrong(
    store: LabelStore, monkeypatch: pytest.MonkeyPatch, days: int
) -> None:
    monkeypatch.setattr(table_module, "KEEP_VERSIONS", timedelta(0))
    for name in "abc":
        store.commit([label_row(name)], [input_row(name)])
    table = store._tables["labels"]
    versions = set((table.path / "_versions").iterdir())
    now = time.time()
    with monkeypatch.context() as patch:
        patch.setattr(table_module.time, "time", lambda: now + days * 86_400)
        table.compact()
    assert versions <= set((table.path / "_versions").iterdir())
    table.compact()
    assert not versions & set((table.path / "_versions").glob("*.manifest"))


def test_one_process_compacts_at_a_time(store: LabelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "COMPACT_EVERY", 3)

    def num_fragments() -> int:
        return len(LabelStore.open(store.path)._dataset("labels").get_fragments())

    store.commit([label_row("0")], [input_row("0")])
    with open(store.path / "labels.lance" / "_checks" / "compacting", "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        for name in "1234567":
            store.commit([label_row(name)], [input_row(name)])
        assert num_fragments() == 8
    for name in "89a":
        store.commit([label_row(name)], [input_row(name)])
    assert num_fragments() < 4


def test_short_runs_are_compacted_too(store: LabelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "COMPACT_EVERY", 8)
    for name in range(20):
        LabelStore.open(store.path).commit([label_row(str(name))], [input_row(str(name))])
    fragments = LabelStore.open(store.path)._dataset("inputs").get_fragments()
    assert len(fragments) < 9


rows = st.tuples(st.integers(0, 4), st.integers(0, 2), st.sampled_from(["labeled", "empty", "truncated"]))


@settings(max_examples=15)
@given(commits=st.lists(st.lists(rows, max_size=6), max_size=5))
def test_any_series_of_commits_leaves_the_last_word(tmp_path_factory: pytest.TempPathFactory, commits: Any) -> None:
    path = tmp_path_factory.mktemp("any") / "store"
    store = LabelStore.create(path, RUN)
    expected: dict[str, InputRow] = {}
    for commit in commits:
        inputs = []
        for uri, stamp, outcome in commit:
            name = f"{uri} {stamp}"
            row = input_row(name, uri=str(uri), stamp=str(stamp))
            if outcome != "labeled":
                row = reject_row(str(uri), error=outcome, stamp=str(stamp))
            inputs.append(row)
        store.commit([label_row(f"{row.uri} {row.stamp}") for row in inputs if row.id], inputs)
        for row in {row.uri: row for row in inputs}.values():
            before = expected.get(row.uri)
            if before is None or before.error or before.stamp != row.stamp:
                expected[row.uri] = row
    check_whole(path)
    reopened = LabelStore.open(path)
    assert {row.uri: row for row in reopened.inputs()} == expected
    assert not list(reopened.plan(map(item, expected.values())))


def test_a_pickled_store_opens_anew(store: LabelStore) -> None:
    store.commit([label_row("a")], [input_row("a")])
    data = pickle.dumps(store)
    assert len(data) < 1000
    np.testing.assert_array_equal(pickle.loads(data).read("a")[0], store.read("a")[0])


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_workers_read_a_pickled_store(store: LabelStore, method: str) -> None:
    store.commit([label_row("a")], [input_row("a")])
    with multiprocessing.get_context(method).Pool(1) as pool:
        assert pool.apply(store.ids) == [content_id(b"a")]


def test_a_forked_worker_is_told_to_spawn(store: LabelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getpid", lambda: -1)
    with pytest.raises(StoreError, match="does not survive fork: start workers with spawn or forkserver"):
        len(store)


def test_threads_may_read_while_one_writes(store: LabelStore) -> None:
    store.commit([label_row("0")], [input_row("0")])
    failures: list[BaseException] = []
    done = threading.Event()

    def read() -> None:
        try:
            while not done.is_set():
                assert store.read("0")[0].shape == (2, 3)
                assert store.take([content_id(b"0")])[0].width == 3
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for name in range(1, 15):
            store.commit([label_row(str(name))], [input_row(str(name))])
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert not failures
    assert len(store) == 15


WRITER = """
import sys
from dataclasses import replace
from tests.builders import input_row, label_row
from maskmill.engine.store import label_store as store_module
from maskmill.engine.store.label_store import LabelStore

store_module.COMPACT_EVERY = 4
print("ready", flush=True)
for line in sys.stdin:
    path, start, stop, step = line.rstrip().split("|")
    store = LabelStore.open_or_create(path, {"a": 1})
    for first in range(int(start), int(stop), int(step)):
        names = [str(name) for name in range(first, first + int(step))]
        store.commit([label_row(name) for name in names], [input_row(name) for name in names])
        print("committed", names[-1], flush=True)
    print("done", flush=True)
"""


def start_writer() -> subprocess.Popen[str]:
    root = Path(__file__).resolve().parents[3]
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER],
        cwd=root,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def command(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()


def wait_for(process: subprocess.Popen[str], wanted: str) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(wanted):
            return
    raise AssertionError(f"the writer ended with code {process.wait()}")


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        assert stream is not None
        stream.close()


@pytest.mark.parametrize("rounds", [2, pytest.param(50, marks=pytest.mark.slow)])
def test_two_writers_of_the_same_images_leave_each_once(tmp_path: Path, rounds: int) -> None:
    writers = [start_writer() for _ in range(2)]
    try:
        for number in range(rounds):
            for writer in writers:
                command(writer, f"{tmp_path / str(number)}|0|48|4")
            for writer in writers:
                wait_for(writer, "done")
            ids, uris = check_whole(tmp_path / str(number))
            assert uris == {str(name) for name in range(48)}
            assert ids == {content_id(name.encode()) for name in uris}
    finally:
        for writer in writers:
            end(writer)


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_a_killed_writer_loses_no_committed_row(tmp_path: Path, kills: int) -> None:
    path, moments, start = tmp_path / "store", random.Random(kills), 0
    LabelStore.create(path, {"a": 1})
    for _ in range(kills):
        writer = start_writer()
        command(writer, f"{path}|{start}|{start + 100_000}|4")
        wait_for(writer, "committed")
        time.sleep(moments.uniform(0.0, 0.4))
        writer.kill()
        assert writer.stdout is not None
        committed = [int(line.split()[1]) for line in writer.stdout if line.startswith("committed")]
        end(writer)
        ids, uris = check_whole(path)
        last = max(committed, default=start + 3)
        assert {str(name) for name in range(last + 1)} <= uris
        # the writer may have been between the two commits, and no further
        assert uris <= {str(name) for name in range(last + 5)}
        start = last + 1
    store = LabelStore.open(path)
    planned = [item(input_row(str(name))) for name in range(start + 8)]
    todo = [int(entry.uri) for entry in store.plan(planned)]
    assert todo in ([*range(start, start + 8)], [*range(start + 4, start + 8)])


def test_processes_that_create_a_store_at_once_agree(tmp_path: Path) -> None:
    writers = [start_writer() for _ in range(2)]
    try:
        for number in range(6):
            for index, writer in enumerate(writers):
                command(writer, f"{tmp_path / str(number)}|{index * 2}|{index * 2 + 2}|2")
            for writer in writers:
                wait_for(writer, "done")
            assert check_whole(tmp_path / str(number))[1] == {"0", "1", "2", "3"}
            assert sorted(os.listdir(tmp_path / str(number))) == [
                "inputs.lance",
                "labels.lance",
                "reviews.lance",
                "run.json",
            ]
    finally:
        for writer in writers:
            end(writer)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a small tmpfs cannot be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_loses_no_committed_row_and_the_store_goes_on(small_disk: Path) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(3 << 20))
    store = LabelStore.create(small_disk / "store", RUN)
    noise = np.random.default_rng(0).integers(0, 255, (100, 100), dtype=np.uint8)
    committed: set[str] = set()

    def commit(number: int) -> None:
        names = [f"{number} {index}" for index in range(8)]
        store.commit([label_row(name, labels=noise) for name in names], [input_row(name) for name in names])
        committed.update(names)

    number, failures = 0, 0
    while failures < 3:
        try:
            commit(number)
            number += 1
        except StoreError as error:
            failures += 1
            message = str(error)
    assert "the disk is full. What was committed is safe: free some space" in message
    ids, uris = check_whole(store.path)
    assert committed
    assert {content_id(name.encode()) for name in committed} <= ids
    assert committed <= uris
    ballast.unlink()
    for later in range(number, number + 4):
        commit(later)
    ids, uris = check_whole(store.path)
    assert uris == committed
    assert ids == {content_id(name.encode()) for name in committed}


def test_a_read_only_folder_is_an_error_not_a_loss(store: LabelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.commit([label_row("a")], [input_row("a")])
    broken = store.path / "labels.lance" / "_versions"
    moved = broken.rename(store.path / "labels.lance" / "_elsewhere")
    with pytest.raises(StoreError, match="cannot write to the label store"):
        store.commit([label_row("b")], [input_row("b")])
    moved.rename(broken)
    store.commit([label_row("b")], [input_row("b")])
    assert check_whole(store.path)[1] == {"a", "b"}


def test_the_manifest_is_readable_json(store: LabelStore) -> None:
    manifest = json.loads((store.path / "run.json").read_text())
    assert (manifest["format_version"], manifest["run"]) == (2, RUN)
