"""Measure the time of a commit of leases per image in a store that grows to millions of rows.

    python benchmarks/scale.py [--rows 5000000] [--folder DIR] [--output FILE]

Lease files of 2,048 rows with maps of 300 bytes are handed back, and 32 of them are committed at a time, as the driver
of a run does: files read, duplicates found, two merges, files deleted. A line of JSON per commit: rows stored before,
seconds, and microseconds of time and of processor time per image; every 16 commits also the cost of commits of 512 and
4,096 rows (`LabelStore.commit_tables`, median of 3), bytes per row on the disk, and peak memory. The rows are random:
they have the size of labels, not their meaning, and their hashes are not those of their columns.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from maskmill.engine.cluster.committer import COMMIT_ROWS, Committer
from maskmill.engine.cluster.leases import Leases
from maskmill.engine.cluster.planner import LARGEST_LEASE
from maskmill.engine.labeling.progress import Progress
from maskmill.engine.store.label_store import LabelStore
from maskmill.engine.store.schema import SCHEMAS

MAP_BYTES = 300


def binary(rng: np.random.Generator, count: int, size: int) -> pa.Array:
    """Return ``count`` random values of ``size`` bytes."""
    data = pa.py_buffer(rng.bytes(count * size))
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(size), count, [None, data])


def make_tables(rng: np.random.Generator, start: int, count: int) -> tuple[pa.Table, pa.Table]:
    """Return labels and inputs of ``count`` images, with random names."""
    digits = rng.bytes(16 * count).hex()
    ids = pa.array([digits[32 * index : 32 * index + 32] for index in range(count)])
    numbers = range(start, start + count)
    labels = {
        "id": ids,
        "width": pa.array([8] * count, pa.int32()),
        "height": pa.array([8] * count, pa.int32()),
        "label": binary(rng, count, MAP_BYTES).cast(pa.binary()),
        "weight": binary(rng, count, MAP_BYTES).cast(pa.binary()),
        "counts": pa.array([[64] * 8] * count),
        "kept": pa.array([1.0] * count),
        "confidence": pa.array(rng.random(count)),
        "row_hash": binary(rng, count, 16),
    }
    inputs = {
        "uri": pa.array([f"/photos/{number // 1000:07d}/{number:09d}.jpg" for number in numbers]),
        "size": pa.array(numbers, pa.int64()),
        "stamp": pa.array(["1764000000000000000"] * count),
        "condition": pa.array([""] * count),
        "id": ids,
        "time": pa.array([1_764_000_000_000_000] * count, pa.int64()),
        "fingerprint": binary(rng, count, 16),
        "row_hash": binary(rng, count, 16),
    }
    tables = []
    for name, columns in (("labels", labels), ("inputs", inputs)):
        schema = SCHEMAS[name]
        arrays = [columns.get(field.name, pa.nulls(count, field.type)) for field in schema]
        tables.append(pa.table([array.cast(field.type) for array, field in zip(arrays, schema, strict=True)], schema))
    return tables[0], tables[1]


def peak_megabytes() -> float:
    """Return the peak memory of this process so far."""
    return int(re.findall(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[0]) / 1024


def main() -> None:
    """Fill a store and print a line per commit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--folder", type=Path, help="where to store; a temporary folder that is deleted if left out")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="maskmill-scale-"))
    store = LabelStore.create(folder / "store", {"benchmark": "scale"})
    leases = Leases(folder / "store")
    committer = Committer(store, leases, lambda done, inputs: True)
    rng, stored, number, meta = np.random.default_rng(0), 0, 0, {"progress": Progress().record()}
    while stored < options.rows:
        for _ in range(COMMIT_ROWS // LARGEST_LEASE):
            labels, inputs = make_tables(rng, stored + number % 32 * LARGEST_LEASE, LARGEST_LEASE)
            leases.finish(f"{number:08d}", "benchmark", labels, inputs, meta)
            number += 1
        started, cpu = time.perf_counter(), time.process_time()
        committer.step(leases.finished())
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
        line = {"stored": stored, "seconds": seconds}
        line |= {"us_per_image": 1e6 * seconds / COMMIT_ROWS, "cpu_us_per_image": 1e6 * cpu / COMMIT_ROWS}
        stored += COMMIT_ROWS
        if number // 32 % 16 == 0:
            for size in (512, 4096):
                rounds, cpu_rounds = [], []
                for _ in range(3):
                    tables = make_tables(rng, 1_000_000_000 + stored, size)
                    started, cpu = time.perf_counter(), time.process_time()
                    store.commit_tables(*tables)
                    rounds.append(time.perf_counter() - started)
                    cpu_rounds.append(time.process_time() - cpu)
                    stored += size
                line[f"us_per_image_{size}"] = 1e6 * statistics.median(rounds) / size
                line[f"cpu_us_per_image_{size}"] = 1e6 * statistics.median(cpu_rounds) / size
            files = [path.stat().st_size for path in store.path.rglob("*") if path.is_file()]
            line |= {"bytes_per_row": sum(files) / stored, "files": len(files), "peak_mb": peak_megabytes()}
        text = json.dumps(line)
        print(text, flush=True)
        if options.output is not None:
            with options.output.open("a") as file:
                file.write(text + "\n")
    if options.folder is None:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
