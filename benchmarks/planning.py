"""Measure how long it takes to plan a run from a manifest against a store of millions of inputs.

    python benchmarks/planning.py [--stored 5000000] [--inputs 1000000,10000000] [--folder DIR]

The store has random inputs (those of scale.py), the manifest names of images that do not exist, so that everything is
planned; the items are counted and dropped, as the planner of leases does. One line of JSON per number of inputs, each
from a process of its own: `seconds` and `cpu` from opening the store to the end, `peak_mb` of the process; and for the
manifest `write_cpu` and `megabytes`. ``--folder`` keeps store and manifests for another run.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from million import make_manifest  # the scripts beside this one
from scale import make_tables

from maskmill.engine.store.label_store import LabelStore

FILL_ROWS = 500_000

PLAN = r"""
import json, re, sys, time
from maskmill.engine.inputs.sources import open_source
from maskmill.engine.store.label_store import LabelStore

started, cpu = time.perf_counter(), time.process_time()
planned = sum(1 for _ in LabelStore.open(sys.argv[1]).plan(open_source(sys.argv[2])))
seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
peak = int(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1]) / 1024
print(json.dumps({"planned": planned, "seconds": seconds, "cpu": cpu, "peak_mb": peak}))
"""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stored", type=int, default=5_000_000)
    parser.add_argument("--inputs", default="1000000,10000000")
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="maskmill-planning-") as name:
        folder = options.folder or Path(name)
        store = folder / "store"
        if not store.exists():
            rng, stored = np.random.default_rng(0), LabelStore.create(store, {"benchmark": "planning"})
            for start in range(0, options.stored, FILL_ROWS):
                _, inputs = make_tables(rng, start, min(FILL_ROWS, options.stored - start))
                stored.commit_tables([], inputs)  # pyright: ignore[reportArgumentType]
        for num in map(int, options.inputs.split(",")):
            manifest, line = folder / f"{num}.parquet", {"stored": options.stored, "inputs": num}
            if not manifest.exists():
                cpu = time.process_time()
                make_manifest(manifest, num)
                line["write_cpu"] = time.process_time() - cpu
            line["megabytes"] = manifest.stat().st_size / 1e6
            command = [sys.executable, "-c", PLAN, str(store), str(manifest)]
            answer = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            assert answer.pop("planned") == num
            print(json.dumps(line | answer), flush=True)


if __name__ == "__main__":
    main()
