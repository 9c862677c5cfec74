"""Compare the runners, and a bucket with a disk: images per second and processor time per image.

    python benchmarks/runners.py [--images 590] [--rounds 3] [--sides local array ray bucket …] [--output FILE]

deeplabv3-257 on the MSRC photos, repeated with distinct bytes; one process with two threads, or one worker on a Ray
cluster of this machine with two processors. The sides alternate within a round. ``bucket`` is ``array`` with photos and
store in a bucket of moto's server on this machine, ``photos`` and ``store`` have one of them there and the other on the
disk. Figures are of the labeling process between its 64th and its last
image, so without starts: `rate` in images per second, `cpu_ms` of the process per image, and `driver_ms` of the process
that drives a run on Ray. The last line holds medians over rounds, and ratios within rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from label_run import DATA, adopt  # noqa: E402
from memory import repeated  # noqa: E402

from maskmill.engine.cluster.job import Job  # noqa: E402
from maskmill.engine.cluster.runner import run_array, run_on  # noqa: E402
from maskmill.engine.inputs.sources import open_source  # noqa: E402
from maskmill.engine.labeling.label_run import label  # noqa: E402
from maskmill.engine.labeling.selection import Selection  # noqa: E402
from maskmill.engine.model.bundle import Bundle  # noqa: E402
from maskmill.engine.model.storage import location_of  # noqa: E402
from maskmill.engine.model.taxonomy import Taxonomy  # noqa: E402
from maskmill.engine.predictors.base import ScoreMap  # noqa: E402
from maskmill.engine.predictors.semantic import SemanticPredictor  # noqa: E402
from maskmill.engine.runtimes.onnx_runtime import OnnxSession  # noqa: E402

FIRST = 64
BUCKETS = {"bucket", "photos", "store"}
KEYS = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "aws_region": "us-east-1"}


class Counting(SemanticPredictor):
    """Predictor that notes the times of its process every eight images."""

    log: Path
    _count = 0
    _lock = threading.Lock()

    def run(self, prepared: Sequence[Any]) -> list[ScoreMap]:
        """Run the model."""
        maps = super().run(prepared)
        with Counting._lock:
            Counting._count += len(maps)
            if Counting._count % 8 == 0:
                with self.log.open("a") as file:
                    file.write(f"{Counting._count} {time.perf_counter()} {time.process_time()}\n")
        return maps


def open_model(bundle: Path, log: Path) -> tuple[SemanticPredictor, Taxonomy]:
    """Open the model in a worker."""
    model = Bundle.load(bundle)
    predictor = Counting(model, OnnxSession(model))
    predictor.log = log
    return predictor, Taxonomy.of_model(model)


def task(options: argparse.Namespace) -> None:
    """Label in this process, or drive a run on Ray."""
    from runners import open_model as opening  # by its name, so that workers on Ray import it

    folder = Path(options.folder)
    storage = {**KEYS, "aws_endpoint": options.endpoint} if options.endpoint else {}
    in_bucket = options.task in ("bucket", "photos")
    source = open_source("s3://bucket/photos" if in_bucket else folder / "photos", storage_options=storage)
    job = Job(
        opening=partial(opening, folder / "deeplab", folder / options.log), selection=Selection(weight="pcos"),
        source=source, store=options.store, storage_options=storage,
    )  # fmt: skip
    if options.task == "local":
        predictor, taxonomy = job.opening()
        assert job.selection is not None
        progress = label(predictor, source, options.store, taxonomy, job.selection, workers=2)
    elif options.task == "ray":
        from maskmill.engine.cluster.ray_pool import RayPool, RaySettings

        settings = RaySettings(address=options.address, min_workers=1, max_workers=1, cpus_per_worker=2)
        progress = run_on(RayPool(job, settings), job)
    else:
        progress = run_array(job, threads=2)
    print(json.dumps({"images": progress.images, "cpu": time.process_time(), "warnings": progress.warnings}))


def measure(side: str, number: int, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Run one side."""
    name = f"{side}-{number}"
    store = f"s3://bucket/{name}" if side in ("bucket", "store") else str(folder / name)
    command = [sys.executable, str(Path(__file__)), "--task", side, "--folder", str(folder), "--store", store]
    command += ["--log", f"{name}.txt", "--address", options.address or ""]
    command += ["--endpoint", options.endpoint if side in BUCKETS else ""]
    answer = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    assert answer["images"] == options.images, answer
    lines = [list(map(float, line.split())) for line in (folder / f"{name}.txt").read_text().splitlines()]
    first, last = next(line for line in lines if line[0] >= FIRST), lines[-1]
    num = last[0] - first[0]
    result = {
        "side": side,
        "round": number,
        "rate": num / (last[1] - first[1]),
        "cpu_ms": 1e3 * (last[2] - first[2]) / num,
    }
    if side == "ray":
        result["driver_ms"] = 1e3 * answer["cpu"] / options.images
    return result


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=590)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sides", nargs="*", default=["local", "array", "ray", "bucket"])
    parser.add_argument("--output", type=Path)
    for name in ("task", "folder", "store", "log", "address", "endpoint"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        task(options)
        return
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")])
    os.environ["RAY_AUTH_MODE"] = "disabled"
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="maskmill-runners-") as name:
        folder = Path(name)
        adopt(folder)
        distinct = {photo.read_bytes(): photo for photo in sorted((DATA / "msrc" / "images").glob("*.jpg"))}
        photos = repeated(list(distinct.values()), folder / "photos", options.images)
        cluster = server = None
        if "ray" in options.sides:
            from ray.cluster_utils import Cluster

            cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
            options.address = cluster.address
        if BUCKETS & set(options.sides):
            from tests.engine.cluster.bucket_server import Server

            server = Server()
            options.endpoint = f"http://127.0.0.1:{server.port}"
            target: Any = location_of("s3://bucket/photos", {**KEYS, "aws_endpoint": options.endpoint})
            for photo in photos.iterdir():
                (target / photo.name).write_bytes(photo.read_bytes())
        try:
            for number in range(options.rounds):
                for side in options.sides:
                    results.append(measure(side, number, folder, options))
                    print(json.dumps(results[-1]), flush=True)
        finally:
            if cluster is not None:
                cluster.shutdown()
            if server is not None:
                server.process.kill()
                server.process.wait()
    summary: dict[str, Any] = {"images": options.images, "rounds": options.rounds}
    for side in options.sides:
        rows = [row for row in results if row["side"] == side]
        summary[side] = {
            key: statistics.median(row[key] for row in rows) for key in rows[0] if key not in ("side", "round")
        }
        base = {"ray": "local", "array": "local"}.get(side, "array" if side in BUCKETS else "")
        if base in options.sides:
            pairs = list(zip(rows, (row for row in results if row["side"] == base), strict=True))
            for key in ("rate", "cpu_ms"):
                summary[side][f"{key}_over_{base}"] = [round(row[key] / other[key], 4) for row, other in pairs]
    print(json.dumps(summary))
    if options.output is not None:
        options.output.write_text(json.dumps({"rows": results, "summary": summary}, indent=1) + "\n")


if __name__ == "__main__":
    main()
