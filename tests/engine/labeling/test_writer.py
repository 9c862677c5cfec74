"""When a labeling run commits."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from maskmill.engine.labeling import writer as writer_module
from maskmill.engine.labeling.progress import Progress
from maskmill.engine.labeling.writer import COMMIT_ROWS, Done, Writer

from ...builders import input_row, label_row


class Clock:
    """Stands for ``time``; a commit takes ``commit_seconds``."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


class Store:
    """Counts the rows of each commit."""

    def __init__(self, clock: Clock, commit_seconds: float) -> None:
        self.sizes: list[int] = []
        self._clock, self._seconds = clock, commit_seconds

    def has_id(self, id: str) -> bool:
        return False

    def commit(self, labels: Sequence[Any], inputs: Sequence[Any]) -> None:
        self.sizes.append(len(inputs))
        self._clock.now += self._seconds


def run(monkeypatch: pytest.MonkeyPatch, *, commit_seconds: float, images_per_second: float, num: int) -> list[int]:
    clock = Clock()
    monkeypatch.setattr(writer_module, "time", clock)
    store = Store(clock, commit_seconds)
    writer = Writer(Progress(kept=np.zeros(8, np.int64)), store)
    for number in range(num):
        clock.now += 1 / images_per_second
        row = label_row(str(number))
        writer.write(Done(input=input_row(str(number)), num_bytes=1, id=row.id, label=row))
    return store.sizes


def test_a_commit_holds_512_rows_or_10_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, commit_seconds=0.001, images_per_second=1000, num=1600) == [512, 512, 512]
    assert run(monkeypatch, commit_seconds=0.001, images_per_second=8, num=170) == [81, 81]


def test_memory_limits_a_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "LARGEST_BYTES", 100 * len(label_row("0").label))
    assert run(monkeypatch, commit_seconds=0.001, images_per_second=1000, num=120)[0] in range(45, 55)


class Numbered(Store):
    """Holds the images 0 to n - 1 after n rows."""

    def has_id(self, id: str) -> bool:
        return int(id, 16) < sum(self.sizes)


def test_a_long_run_remembers_no_image_that_its_sink_holds() -> None:
    writer = Writer(Progress(kept=np.zeros(8, np.int64)), Numbered(Clock(), 0.0))
    label, row = label_row("0"), input_row("0")
    sizes = []
    tracemalloc.start()
    for number in range(6 * COMMIT_ROWS):
        id = f"{number:032x}"
        assert writer.claim(id)
        assert not writer.claim(id)
        writer.write(Done(input=row, num_bytes=1, id=id, label=replace(label, id=id)))
        assert not writer.claim(id)
        if (number + 1) % COMMIT_ROWS == 0:
            sizes.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert sizes[-1] - sizes[1] < 4 * COMMIT_ROWS  # a byte per image


def test_a_duplicate_is_known_before_and_after_its_original_is_handed_over() -> None:
    store = Numbered(Clock(), 0.0)
    writer = Writer(Progress(kept=np.zeros(8, np.int64)), store)
    label, row = replace(label_row("0"), id=f"{0:032x}"), input_row("0")
    assert writer.claim(label.id)
    duplicate = Done(input=row, num_bytes=1, id=label.id)
    writer.write(duplicate)  # overtakes its original
    assert writer.progress.duplicates == 0
    writer.write(Done(input=row, num_bytes=1, id=label.id, label=label))
    writer.write(duplicate)
    assert writer.progress.duplicates == 2
    writer.flush()
    assert not writer.claim(label.id)
    writer.write(duplicate)
    assert (writer.progress.images, writer.progress.duplicates) == (1, 3)
