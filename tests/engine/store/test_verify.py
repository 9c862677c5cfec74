"""Damage to a store's files is found, named, removed and made good by the next run."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from maskmill.engine.store import table as table_module
from maskmill.engine.store.label_store import LabelRow, LabelStore, ReviewRow, content_id
from maskmill.engine.store.table import Table
from maskmill.engine.store.verify import Verification, verify
from maskmill.errors import StoreError

from ...builders import input_row, label_row, reject_row

RUN = {"select": "argmax"}
NAMES = [str(number) for number in range(40)]


def labels_of(name: str) -> LabelRow:
    """Labels that differ from image to image: equal ones are stored once."""
    return label_row(name, labels=np.random.default_rng(int(name)).integers(0, 8, (20, 30), np.uint8))


def fill(store: LabelStore) -> None:
    """Commit whatever is missing of forty labels, forty inputs and two rejects, as a run does."""
    done = {row.uri for row in store.inputs()}
    for start in range(0, len(NAMES), 10):
        names = [name for name in NAMES[start : start + 10] if name not in done]
        if names:
            store.commit([labels_of(name) for name in names], [input_row(name) for name in names])
    store.commit([], [reject_row(name, error="empty") for name in ("bad.jpg", "worse.jpg") if name not in done])


def review(name: str, time: int, **options: object) -> ReviewRow:
    row = labels_of(name)
    return replace(ReviewRow(id=row.id, reviewer="Ada", time=time, verdict="corrected", label=row.label), **options)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = LabelStore.create(tmp_path_factory.mktemp("original") / "store", RUN)
    store.commit([], [reject_row("bad.jpg"), reject_row("worse.jpg", error="empty")])
    store.commit([], [reject_row("bad.jpg", error="empty")])  # leaves a deletion file
    fill(store)
    store.commit_reviews([review(name, 1) for name in NAMES[:9]])
    return store.path


@pytest.fixture
def path(original: Path, tmp_path: Path) -> Path:
    shutil.copytree(original, tmp_path / "store")
    return tmp_path / "store"


def content(path: Path) -> tuple[object, ...]:
    """All rows of a store, without the times of inputs."""
    store = LabelStore.open(path)
    labels = {row.id: tuple(map(str, vars(row).values())) for row in store.iter_rows(extras=True)}
    return labels, {row.uri: row for row in store.inputs()}, {(row.id, row.time): row for row in store.reviews()}


def newest(path: Path, name: str) -> Path:
    table = Table(path, name, None)
    return table.manifest(table.open().version)


def flip(file: Path, bit: int) -> None:
    data = bytearray(file.read_bytes())
    data[bit // 8] ^= 1 << (bit % 8)
    file.write_bytes(data)


def damaged(result: Verification) -> set[str]:
    return {damage.dataset for damage in result.damages}


def test_a_sound_store_is_sound(path: Path) -> None:
    seen: list[tuple[int, int]] = []
    result = verify(path, progress=lambda *counts: seen.append(counts))
    assert (result.damages, result.sound, result.pins) == ([], True, {})
    assert result.rows == {"labels": 40, "inputs": 42, "reviews": 9}
    assert seen[-1] == (91, 91)


def label_bits(path: Path) -> Iterator[tuple[Path, int]]:
    """Bits inside a stored label map, one per data file."""
    for name in NAMES[::10]:
        for file in (path / "labels.lance" / "data").iterdir():
            if (start := file.read_bytes().find(labels_of(name).label)) >= 0:
                yield file, 8 * (start + 60)


def test_a_flipped_bit_of_a_map_is_refused_by_readers_and_found(path: Path) -> None:
    file, bit = next(label_bits(path))
    flip(file, bit)
    with pytest.raises(StoreError, match=r"does not match its hash; run `maskmill verify STORE --repair`"):
        list(LabelStore.open(path).iter_rows())
    result = verify(path)
    (label, entry) = result.damages
    assert (label.dataset, label.reason) == ("labels", "its content does not match its hash")
    assert (entry.dataset, entry.reason) == ("inputs", "its labels are damaged or missing")
    assert content_id(entry.name.encode()) == label.name
    assert not result.sound


def test_a_repair_removes_the_row_and_its_input_so_that_the_next_run_labels_it_again(path: Path) -> None:
    before = content(path)
    for file, bit in label_bits(path):
        flip(file, bit)
    result = verify(path, repair=True)
    assert result.sound
    assert len(result.damages) == 8
    assert verify(path).damages == []
    store = LabelStore.open(path)
    assert (len(store), len(list(store.inputs()))) == (36, 38)
    fill(store)
    assert content(path) == before


@pytest.mark.parametrize("name", ["labels", "inputs", "reviews"])
@pytest.mark.parametrize("kind", ["manifest", "data", "lost"])
def test_a_damaged_file_is_found_and_repaired(path: Path, name: str, kind: str) -> None:
    before = content(path)
    if kind == "lost":
        shutil.rmtree(path / f"{name}.lance")
    else:
        data = path / f"{name}.lance" / "data"
        file = newest(path, name) if kind == "manifest" else max(data.iterdir(), key=lambda file: file.stat().st_size)
        size = file.stat().st_size
        file.write_bytes(file.read_bytes()[: size // 2] + bytes(size - size // 2))
    assert name in damaged(verify(path))
    assert verify(path, repair=True).sound
    assert verify(path).damages == []
    fill(LabelStore.open(path))
    labels, inputs, reviews = content(path)
    assert (labels, inputs.keys()) == (before[0], before[1].keys())  # type: ignore[attr-defined]
    assert reviews.items() <= before[2].items()  # type: ignore[attr-defined]
    if kind == "manifest":
        assert content(path) == before  # nothing is lost with a manifest


def test_a_damaged_deletion_file_brings_no_old_row_back(path: Path) -> None:
    before = content(path)
    (file,) = (path / "inputs.lance" / "_deletions").iterdir()
    flip(file, 8 * (file.stat().st_size // 2))
    with pytest.raises(StoreError, match="does not match its recorded hash"):
        list(LabelStore.open(path).inputs())
    verify(path, repair=True)
    assert content(path) == before


def test_flips_of_single_bits_are_found_if_they_change_what_is_read(original: Path, tmp_path: Path) -> None:
    draw, before, changed = random.Random(0), content(original), 0
    inside = [file for file in original.rglob("*") if file.parent.parent.suffix == ".lance"]
    files = [file for file in inside if file.is_file() and file.stat().st_size]
    for number in range(25):
        path = tmp_path / str(number)
        shutil.copytree(original, path)
        file = draw.choice(files)
        flip(path / file.relative_to(original), draw.randrange(8 * file.stat().st_size))
        try:
            differs = content(path) != before
        except StoreError:
            differs = True
        changed += differs
        assert verify(path).damages or not differs, file
        if differs:
            verify(path, repair=True)
            fill(LabelStore.open(path))
            assert content(path)[:2] == before[:2], file
    assert changed > 5


def test_a_panic_of_lance_is_a_store_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class PanicException(BaseException):
        pass

    def panic(*_: object, **__: object) -> None:
        raise PanicException("range end index 605160464 out of range")

    monkeypatch.setattr(table_module.lance, "dataset", panic)
    with pytest.raises(StoreError, match="its files are damaged"):
        len(LabelStore.open(path))


def test_the_latest_review_wins_and_a_withdrawal_restores(path: Path) -> None:
    store = LabelStore.open(path)
    id = content_id(b"0")
    labels = store.take([id])
    store.commit_reviews([review("0", 3, reviewer="Bob", verdict="accepted", label=None), review("0", 2)])
    assert store.current_reviews()[id].verdict == "accepted"
    store.commit_reviews([review("0", 4, verdict="withdrawn", label=None)])
    assert id not in store.current_reviews()
    assert len(store.current_reviews()) == 8
    assert len(list(store.reviews())) == 12
    assert store.take([id]) == labels
    assert verify(path).sound


def test_a_pinned_moment_is_named(path: Path) -> None:
    store = LabelStore.open(path)
    store.pin("train-1")
    assert verify(path).pins == {"train-1": store.moment.labels}
