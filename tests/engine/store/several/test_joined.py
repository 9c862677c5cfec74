"""Several stores, read as one: the rows that a merged store would hold."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from maskmill.engine.store.label_store import LabelStore, ReviewRow, content_id
from maskmill.engine.store.several.joined import open_stores
from maskmill.engine.store.several.merge import merge_stores
from maskmill.errors import StoreError, StoreMismatch, UsageError

from ....builders import input_row, label_row, reject_row


def make_store(path: Path, names: str, *, rejects: str = "", time: int = 1, run: str = "a") -> LabelStore:
    store = LabelStore.create(path, {"model": run})
    inputs = [replace(input_row(name), time=time) for name in names]
    inputs += [replace(reject_row(name), time=time) for name in rejects]
    store.commit([label_row(name) for name in names], inputs)
    return store


def review(name: str, reviewer: str, time: int = 5) -> ReviewRow:
    return ReviewRow(id=content_id(name.encode()), reviewer=reviewer, time=time, verdict="accepted")


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    """Three stores: images in several of them, an input rejected in one and labeled later in another, reviews."""
    first = make_store(tmp_path / "1", "abc", rejects="xy", time=2)
    second = make_store(tmp_path / "2", "bcdx", rejects="z", time=3)
    make_store(tmp_path / "3", "e", rejects="a", time=1)
    first.commit_reviews([review("a", "Ada"), review("b", "Ada")])
    second.commit_reviews([review("b", "Ada"), review("b", "Bob", 6)])
    return [tmp_path / name for name in "123"]


def contents(store: LabelStore) -> dict[str, Any]:
    rows = list(store.iter_rows())
    return {
        "labels": sorted((row.id, row.label) for row in rows),
        "inputs": sorted((row.uri, row.id or "", row.error or "", row.time) for row in store.inputs()),
        "rejects": sorted(row.uri for row in store.rejects()),
        "reviews": sorted((row.id, row.reviewer, row.time) for row in store.reviews()),
        "counts": store.counts(),
        "taken": [row.label for row in store.take(sorted(row.id for row in rows))],
        "kinds": {name: value for name, value in store.summary().items() if name != "bytes"},
    }


def test_they_hold_what_a_merged_store_holds(paths: list[Path], tmp_path: Path) -> None:
    merge_stores(paths, tmp_path / "merged")
    joined = open_stores(paths)
    assert contents(joined) == contents(LabelStore.open(tmp_path / "merged"))
    assert joined.counts() == {"images": 6, "inputs": 8, "rejects": 2}
    assert contents(pickle.loads(pickle.dumps(joined))) == contents(joined)


def test_stores_without_common_rows_are_read_as_they_are(tmp_path: Path) -> None:
    make_store(tmp_path / "1", "ab", rejects="x")
    make_store(tmp_path / "2", "cd", rejects="y")
    joined = open_stores([tmp_path / "1", tmp_path / "2"])
    assert joined.counts() == {"images": 4, "inputs": 6, "rejects": 2}
    assert joined.find("d").id == content_id(b"d")
    assert [row.id for row in joined.take([content_id(b"d"), content_id(b"a")])] == [content_id(b"d"), content_id(b"a")]


def test_one_store_is_opened_as_it_is(tmp_path: Path) -> None:
    make_store(tmp_path / "1", "ab").commit_reviews([])
    assert repr(open_stores([tmp_path / "1"])) == repr(LabelStore.open(tmp_path / "1"))


def test_a_review_goes_to_every_store_that_holds_the_image(paths: list[Path], tmp_path: Path) -> None:
    joined = open_stores(paths)
    before = joined.moment
    joined.commit_reviews([review("c", "Cid"), review("e", "Cid")])
    names = [{row.id for row in LabelStore.open(path).reviews() if row.reviewer == "Cid"} for path in paths]
    c, e = content_id(b"c"), content_id(b"e")
    assert names == [{c}, {c}, {e}]
    assert {c, e} <= set(joined.current_reviews())
    assert joined.moment != before
    assert [str(store.path) for store in joined.stores_with(c)] == [str(path) for path in paths[:2]]
    merge_stores(paths, tmp_path / "merged")
    assert contents(joined) == contents(LabelStore.open(tmp_path / "merged"))


def test_nothing_else_is_written_to_them(paths: list[Path]) -> None:
    joined = open_stores(paths)
    with pytest.raises(StoreError, match="to write"):
        joined.commit([label_row("q")], [input_row("q")])
    with pytest.raises(StoreError, match="pin each of them"):
        joined.pin("tag")


def test_stores_made_with_different_options_are_refused(tmp_path: Path) -> None:
    make_store(tmp_path / "1", "a")
    make_store(tmp_path / "2", "b", run="b")
    with pytest.raises(StoreMismatch, match="made with different options"):
        open_stores([tmp_path / "1", tmp_path / "2"])


@pytest.mark.parametrize("names", [[], ["1", "1"]])
def test_no_store_and_a_store_twice_are_refused(tmp_path: Path, names: list[str]) -> None:
    make_store(tmp_path / "1", "a")
    with pytest.raises(UsageError, match="expected"):
        open_stores([tmp_path / name for name in names])
