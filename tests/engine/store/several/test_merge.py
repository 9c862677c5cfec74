"""Merging stores of parts of a corpus."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from maskmill.engine.store.label_store import LabelStore, ReviewRow, content_id
from maskmill.engine.store.several.merge import merge_stores
from maskmill.errors import StoreMismatch, UsageError

from ....builders import input_row, label_row, reject_row

RUN = {"model": "a"}


def make_store(path: Path, names: str, *, rejects: str = "", run: dict[str, Any] = RUN, time: int = 1) -> LabelStore:
    store = LabelStore.create(path, run)
    inputs = [replace(input_row(name), time=time) for name in names]
    inputs += [replace(reject_row(name), time=time) for name in rejects]
    store.commit([label_row(name) for name in names], inputs)
    return store


def test_the_merged_store_holds_every_row_once(tmp_path: Path) -> None:
    first = make_store(tmp_path / "1", "abc", rejects="x")
    make_store(tmp_path / "2", "bcd", rejects="y")
    review = ReviewRow(id=content_id(b"a"), reviewer="Ada", time=5, verdict="accepted")
    first.commit_reviews([review])
    counts = merge_stores([tmp_path / "1", tmp_path / "2"], tmp_path / "both")
    assert counts.to_json() == {"images": 4, "inputs": 6, "reviews": 1, "duplicates": 2, "added": 11}
    merged = LabelStore.open(tmp_path / "both")
    assert {row.uri: row.error for row in merged.inputs()} == {
        "a": None, "b": None, "c": None, "d": None, "x": "truncated", "y": "truncated",
    }  # fmt: skip
    assert merged.run == RUN
    expected, (row,) = label_row("a"), merged.take([content_id(b"a")])
    assert (row.id, row.label, row.weight, list(row.counts)) == (
        expected.id, expected.label, expected.weight, list(expected.counts),
    )  # fmt: skip
    assert list(merged.reviews()) == [review]


def test_the_later_of_two_results_of_an_input_wins(tmp_path: Path) -> None:
    make_store(tmp_path / "old", "", rejects="ab", time=1)
    make_store(tmp_path / "new", "a", time=2)
    for order in (("old", "new"), ("new", "old")):
        target = tmp_path / "-".join(order)
        merge_stores([tmp_path / name for name in order], target)
        assert {row.uri: row.error for row in LabelStore.open(target).inputs()} == {"a": None, "b": "truncated"}


def test_a_merge_may_be_repeated_and_extended(tmp_path: Path) -> None:
    make_store(tmp_path / "1", "ab")
    make_store(tmp_path / "2", "bc")
    merge_stores([tmp_path / "1"], tmp_path / "all")
    counts = merge_stores([tmp_path / "1", tmp_path / "2"], tmp_path / "all")
    assert (counts.images, counts.inputs) == (3, 3)
    assert (counts.duplicates, counts.added) == (3, 2)
    again = merge_stores([tmp_path / "1", tmp_path / "2"], tmp_path / "all")
    assert (again.images, again.duplicates, again.added) == (3, 4, 0)


def test_stores_of_different_runs_are_refused(tmp_path: Path) -> None:
    make_store(tmp_path / "1", "a")
    make_store(tmp_path / "2", "b", run={"model": "b"})
    with pytest.raises(StoreMismatch, match="model"):
        merge_stores([tmp_path / "1", tmp_path / "2"], tmp_path / "all")
    assert not (tmp_path / "all").exists()


def test_settings_that_differ_are_named_with_their_stores_and_derived_ones_counted(tmp_path: Path) -> None:
    derived = {"reselected_from": {"store": "a", "kept_scores": "1", "selection": {"rule": "x"}}}
    make_store(tmp_path / "one", "a", run={**derived, "select": "argmax"})
    make_store(tmp_path / "two", "b", run={"select": "conformal"})
    make_store(tmp_path / "three", "b", run={"artifact": "y", "select": "conformal"})
    with pytest.raises(StoreMismatch, match=r"\(select: 'argmax' in one, 'conformal' in two; and 3 more\)"):
        merge_stores([tmp_path / "one", tmp_path / "two"], tmp_path / "all")
    with pytest.raises(StoreMismatch, match=r"\(artifact: not set in two, 'y' in three\)"):
        merge_stores([tmp_path / "two", tmp_path / "three"], tmp_path / "all")


def test_stores_of_another_kind_or_class_mapping_are_named(tmp_path: Path) -> None:
    classes = {"targets": ["sky", "sea"], "background": None}
    make_store(tmp_path / "labels", "a", run={"classes": classes})
    make_store(tmp_path / "segments", "b", run={"maps": "segments"})
    make_store(tmp_path / "others", "c", run={"classes": {**classes, "targets": ["sky", "cow"]}})
    with pytest.raises(StoreMismatch, match=r"labels holds labels and .*segments holds segments without classes"):
        merge_stores([tmp_path / "labels", tmp_path / "segments"], tmp_path / "all")
    with pytest.raises(StoreMismatch, match="the target sea is only in labels; the target cow is only in others"):
        merge_stores([tmp_path / "labels", tmp_path / "others"], tmp_path / "all")
    assert not (tmp_path / "all").exists()


def test_a_store_is_not_merged_into_itself(tmp_path: Path) -> None:
    make_store(tmp_path / "1", "a")
    with pytest.raises(UsageError, match="one of the stores to merge"):
        merge_stores([tmp_path / "1"], tmp_path / "1")
