"""Measure the time of a commit per image, in stores of different sizes and for commits of different sizes.

    python benchmarks/commits.py [--stored 10000,100000] [--rounds 5]

Label maps of 300 bytes, in memory-backed files if the system has them. A figure is the median of the rounds, in
microseconds per image, of `LabelStore.commit` with one input per image: two merges, hashes and the record of the
manifests included. Each round's rows are new and stay in the store.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from maskmill.engine.inputs.identity import content_id
from maskmill.engine.store.label_store import InputRow, LabelRow, LabelStore

SIZES = (512, 2048, 8192)
_MAP = b"\x89PNG" + bytes(296)


def make_rows(start: int, stop: int) -> tuple[list[LabelRow], list[InputRow]]:
    """Return labels and inputs of the images ``start`` to ``stop``."""
    ids = [content_id(b"%d" % number) for number in range(start, stop)]
    labels = [
        LabelRow(id=id, width=8, height=8, label=_MAP + id.encode(), weight=_MAP, counts=[64] * 8, kept=1.0,
                 confidence=1.0)
        for id in ids
    ]  # fmt: skip
    inputs = [
        InputRow(uri=f"/photos/{number:09d}.jpg", size=number, stamp="1", id=id, error=None, message=None)
        for number, id in zip(range(start, stop), ids, strict=True)
    ]
    return labels, inputs


def main() -> None:
    """Print a table: one row per store size, one column per commit size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stored", default="10000,100000", metavar="ROWS,ROWS")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        store, stored = LabelStore.create(Path(folder) / "store", {"benchmark": "commits"}), 0
        print("stored rows   " + "".join(f"{size:>10,} rows" for size in SIZES))
        for target in map(int, options.stored.split(",")):
            while stored < target:
                count = min(16_384, target - stored)
                store.commit(*make_rows(stored, stored + count))
                stored += count
            figures = []
            for size in SIZES:
                seconds = []
                for _ in range(options.rounds):
                    rows = make_rows(stored, stored + size)
                    started = time.perf_counter()
                    store.commit(*rows)
                    seconds.append(time.perf_counter() - started)
                    stored += size
                figures.append(1e6 * statistics.median(seconds) / size)
            print(f"{target:>11,}   " + "".join(f"{figure:>12.1f} us" for figure in figures), flush=True)


if __name__ == "__main__":
    main()
