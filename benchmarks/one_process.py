"""Measure the time that a run in one process needs to store its rows in a store of millions of rows.

    python benchmarks/one_process.py [--rows 5000000] [--images 131072] [--rate 51]

The store is filled with random rows (those of scale.py, 500,000 per commit). Then rows are handed over, 512 at a time,
as the last stage of a run does, with a clock that runs as if ``--rate`` images per second were labeled. Keys:
`commits`, (rows, seconds, seconds of processor time) each; `cpu_us_per_image` and `us_per_image`, everything from a
finished row to its commit, files of waiting rows included, conversion of rows to tables left out; `share` of the time
of the labeling.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from scale import make_tables  # the script beside this one

from maskmill.engine.store.label_store import LabelStore
from maskmill.engine.store.waiting import waiting_rows

FILL_ROWS = 500_000
HANDED_ROWS = 512


class Clock:
    """The module ``time``, some seconds ahead."""

    ahead = 0.0

    def monotonic(self) -> float:
        """Return the seconds of a run that also labels."""
        return time.monotonic() + self.ahead


def main() -> None:
    """Fill, hand over and print a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--images", type=int, default=131_072)
    parser.add_argument("--rate", type=float, default=51.0, help="images per second of the labeling")
    options = parser.parse_args()
    rng, clock = np.random.default_rng(0), Clock()
    commits: list[tuple[int, float, float]] = []
    patched: Any = waiting_rows
    patched.time = clock
    patched.label_table = patched.input_table = lambda table: table
    with tempfile.TemporaryDirectory() as folder:
        store = LabelStore.create(Path(folder) / "store", {"benchmark": "one process"})
        for start in range(0, options.rows, FILL_ROWS):
            store.commit_tables(*make_tables(rng, start, min(FILL_ROWS, options.rows - start)))
        store = LabelStore.open(store.path)
        commit = store.commit_tables

        def timed(labels: Any, inputs: Any) -> None:
            started, cpu = time.perf_counter(), time.process_time()
            commit(labels, inputs)
            commits.append((len(inputs), time.perf_counter() - started, time.process_time() - cpu))

        store.commit_tables = timed  # pyright: ignore[reportAttributeAccessIssue]
        rows: Any = waiting_rows.WaitingRows(store)
        seconds = cpu_seconds = 0.0
        for start in range(0, options.images, HANDED_ROWS):
            tables = make_tables(rng, 100_000_000 + start, HANDED_ROWS)
            clock.ahead += HANDED_ROWS / options.rate
            started, cpu = time.perf_counter(), time.process_time()
            rows.is_ending = start + HANDED_ROWS >= options.images
            rows.commit(*tables)
            seconds += time.perf_counter() - started
            cpu_seconds += time.process_time() - cpu
    result = {"stored": options.rows, "images": options.images, "rate": options.rate, "commits": commits}
    result |= {"cpu_us_per_image": 1e6 * cpu_seconds / options.images, "us_per_image": 1e6 * seconds / options.images}
    print(json.dumps(result | {"share": seconds * options.rate / options.images}))


if __name__ == "__main__":
    main()
