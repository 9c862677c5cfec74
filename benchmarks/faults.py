"""Kill workers, machines and drivers of a run on Ray at random moments, and compare the store with a local run's.

    python benchmarks/faults.py [--kills 30] [--images 6000] [--pause 0.05] [--output FILE]

A cluster of a head and two nodes of one processor each on this machine. A driver labels; at moments drawn uniformly a
worker process, a raylet or the driver gets SIGKILL, in turn; every second kill of a driver is while it sleeps inside a
commit, between the labels and their inputs. Raylets and drivers are started again at once. At the end raw rows are
counted as Lance reads them, and every column of every label is compared with those of a run in one process.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "tests/engine/cluster/opening"))

from lease_jobs import color_job  # noqa: E402

from maskmill.engine.cluster import driver  # noqa: E402
from maskmill.engine.cluster.leases import Leases  # noqa: E402
from maskmill.engine.cluster.ray_pool import RayPool, RaySettings  # noqa: E402
from maskmill.engine.cluster.runner import run_on  # noqa: E402
from maskmill.engine.labeling.label_run import label  # noqa: E402
from maskmill.engine.model.bundle import Bundle  # noqa: E402
from maskmill.engine.store.label_store import LabelStore  # noqa: E402
from maskmill.engine.store.waiting.presence import is_here  # noqa: E402

HOLD_SECONDS = 0.5


def drive(folder: Path, address: str, pause: float) -> None:
    """Drive a run in this process, with commits that take a while."""
    from maskmill.engine.cluster import committer

    commit = LabelStore.commit_tables

    def slow(self: LabelStore, labels: Any, inputs: Any) -> None:
        commit(self, labels, inputs.slice(0, 0))
        (folder / "committing").touch()
        time.sleep(HOLD_SECONDS)
        commit(self, labels.slice(0, 0), inputs)

    LabelStore.commit_tables = slow
    committer.COMMIT_ROWS = 256
    driver.FIRST_LEASE = driver.SMALLEST_LEASE = driver.LARGEST_LEASE = 32
    job = color_job(Bundle.load(folder / "bundle"), folder / "photos", folder / "store", pause=pause)
    pool = RayPool(job, RaySettings(address=address, min_workers=2, max_workers=2, cpus_per_worker=1))
    run_on(pool, job)


def compare(folder: Path) -> dict[str, Any]:
    """Label the photos in one process, and compare raw rows and all columns of the labels."""
    import lance

    photos = sorted(str(path) for path in (folder / "photos").iterdir())
    uris = Counter(lance.dataset(folder / "store" / "inputs.lance").to_table(columns=["uri"])["uri"].to_pylist())
    ids = Counter(lance.dataset(folder / "store" / "labels.lance").to_table(columns=["id"])["id"].to_pylist())
    job = color_job(Bundle.load(folder / "bundle"), folder / "photos", folder / "alone")
    predictor, taxonomy = job.opening()
    assert job.selection is not None
    predictor.pause = 0.0
    label(predictor, job.source, folder / "alone", taxonomy, job.selection)
    rows = [
        {row.id: row for row in LabelStore.open(folder / name).iter_rows(extras=True)} for name in ("store", "alone")
    ]
    different = sum(str(vars(rows[0][id])) != str(vars(row)) for id, row in rows[1].items() if id in rows[0])
    return {
        "photos": len(photos),
        "inputs": len(uris),
        "input_rows": uris.total(),
        "labels": len(ids),
        "label_rows": ids.total(),
        "missing": len(set(photos) - set(uris)),
        "missing_labels": len(set(rows[1]) - set(rows[0])),
        "different": different,
    }


def main() -> None:
    """Run, kill, compare and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--images", type=int, default=6000)
    parser.add_argument("--pause", type=float, default=0.05)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--drive", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.drive:
        drive(Path(options.drive[0]), options.drive[1], options.pause)
        return
    from ray.cluster_utils import Cluster

    from tests.engine.corpus import write_photos
    from tests.models import color_bundle

    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(ROOT / "tests/engine/cluster/opening"), os.environ.get("PYTHONPATH", "")]
    )
    os.environ["RAY_AUTH_MODE"] = "disabled"
    folder = Path(tempfile.mkdtemp(prefix="maskmill-faults-"))
    color_bundle(folder)
    write_photos(folder / "photos", options.images)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    leases, moments, counts = Leases(folder / "store"), random.Random(0), Counter()

    def start() -> subprocess.Popen[bytes]:
        command = [sys.executable, __file__, "--pause", str(options.pause), "--drive", str(folder), cluster.address]
        return subprocess.Popen(command)

    process, started, finished_early = start(), time.monotonic(), False
    for number in range(options.kills):
        kind = ("worker", "raylet", "driver")[number % 3]
        in_commit = kind == "driver" and number // 3 % 2 == 0
        time.sleep(moments.uniform(1.0, 8.0))
        if in_commit:
            (folder / "committing").unlink(missing_ok=True)
            deadline = time.monotonic() + 60
            while not (folder / "committing").exists() and time.monotonic() < deadline and process.poll() is None:
                time.sleep(0.01)
            in_commit = (folder / "committing").exists()
        if process.poll() is not None:
            finished_early = True
            break
        if kind == "worker":
            deadline = time.monotonic() + 60
            while not (workers := [record for record in leases.workers().values() if is_here(record)]):
                if time.monotonic() > deadline or process.poll() is not None:
                    break
                time.sleep(0.05)
            if workers:
                os.kill(moments.choice(workers)["process"], signal.SIGKILL)
        elif kind == "raylet":
            cluster.remove_node(nodes.pop(0), allow_graceful=False)
            nodes.append(cluster.add_node(num_cpus=1))
        else:
            process.kill()
            process.wait()
            process = start()
        counts[f"{kind} in a commit" if in_commit else kind] += 1
        print(
            json.dumps({"kill": number, "kind": kind, "in_commit": in_commit, "at": time.monotonic() - started}),
            flush=True,
        )
    status = process.wait()
    result = {"kills": dict(counts), "exit": status, "finished_early": finished_early}
    result |= {"seconds": time.monotonic() - started, **compare(folder)}
    print(json.dumps(result), flush=True)
    if options.output is not None:
        options.output.write_text(json.dumps(result, indent=2) + "\n")
    cluster.shutdown()


if __name__ == "__main__":
    main()
