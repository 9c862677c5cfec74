"""Measure the time in which a finished run finds that no input is left.

    python benchmarks/resume.py [--json] [--inputs 1000000] [--rounds 3]

A million empty files in a thousand folders, all of them finished in a store. Keys: `resume_1m_s`, median seconds from
opening the store to the end of the plan in a new process, including one stat per file; `list_1m_s`, listing the source
alone; `peak_mb`, peak memory above that after the imports. Files and store are in the system's temporary folder
(`TMPDIR`), with warm caches: the files were just made.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from maskmill.engine.inputs.sources import Item, open_source
from maskmill.engine.store.label_store import InputRow, LabelStore

FOLDERS = 1000
RUN = {"benchmark": "resume"}

PLAN = r"""
import json, re, sys, time
from maskmill.engine.inputs.sources import open_source
from maskmill.engine.store.label_store import LabelStore

def peak():
    return int(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1]) / 1024

before, started = peak(), time.perf_counter()
todo = sum(1 for _ in LabelStore.open(sys.argv[1]).plan(open_source(sys.argv[2])))
seconds, rise = time.perf_counter() - started, peak() - before
started = time.perf_counter()
listed = sum(1 for _ in open_source(sys.argv[2]))
print(json.dumps({"todo": todo, "listed": listed, "plan": seconds, "list": time.perf_counter() - started, "mb": rise}))
"""


def make_files(folder: Path, num: int) -> None:
    """Create ``num`` empty files."""
    for first in range(0, num, num // FOLDERS):
        part = folder / f"{first:07d}"
        part.mkdir(parents=True)
        for index in range(first, min(first + num // FOLDERS, num)):
            os.mknod(f"{part}/photo-{index:07d}.jpg")


def finish(store: LabelStore, items: Iterable[Item]) -> None:
    """Enter every item as finished."""
    items = iter(items)
    while part := list(islice(items, 50_000)):
        rows = [InputRow(uri=i.uri, size=i.size, stamp=i.stamp, id="0" * 32, error=None, message=None) for i in part]
        store.commit([], rows)


def measure(inputs: int = 1_000_000, rounds: int = 3) -> dict[str, float]:
    """Measure the figures of the module docstring, scaled to a million inputs."""
    with tempfile.TemporaryDirectory() as name:
        files, path = Path(name) / "files", Path(name) / "store"
        make_files(files, inputs)
        finish(LabelStore.create(path, RUN), open_source(files))
        results = []
        for _ in range(rounds):
            command = [sys.executable, "-c", PLAN, str(path), str(files)]
            results.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    if any(result["todo"] or result["listed"] != inputs for result in results):
        raise SystemExit(f"the plan is wrong: {results}")
    scale = 1_000_000 / inputs
    return {
        "resume_1m_s": scale * statistics.median(result["plan"] for result in results),
        "list_1m_s": scale * statistics.median(result["list"] for result in results),
        "peak_mb": statistics.median(result["mb"] for result in results),
        "inputs": inputs,
        "rounds": rounds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    result = measure(arguments.inputs, arguments.rounds)
    if arguments.json:
        print(json.dumps(result))
    else:
        for key, value in result.items():
            print(f"{key:12s} {value:.2f}")


if __name__ == "__main__":
    main()
