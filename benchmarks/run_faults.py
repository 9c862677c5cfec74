"""Break runs of several processes in many ways, and compare the stores with a run in one process.

    python benchmarks/run_faults.py [NAME ...] [--runner array ray] [--output FILE]

240 photos of 12x16 px; two processes of ``--runner array``, or a driver and two workers on a Ray cluster of two nodes
on this machine; leases of 8 inputs, commits of 32 rows, a compaction every two commits. A fault hits a run under way;
then the same command runs again without it. A line of JSON per fault: exit status and last line of every process of
the first run and of the next, raw rows as Lance reads them (``twice`` counts rows above one per key), inputs without a
row, and labels that differ from those of the run in one process. Full disks and read-only stores are tmpfs mounts, so
the script needs root and Linux; buckets are moto's server behind a proxy that answers with errors, late or not at all.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks"), str(ROOT / "tests/engine/cluster/opening")]

import bucket_faults  # noqa: E402
import numpy as np  # noqa: E402
from lease_jobs import open_predictor  # noqa: E402  # pyright: ignore[reportMissingImports]

from maskmill.engine.cluster import committer, driver, job, leases, worker  # noqa: E402
from maskmill.engine.cluster.job import Job  # noqa: E402
from maskmill.engine.cluster.leases import Leases  # noqa: E402
from maskmill.engine.cluster.runner import run_array, run_on  # noqa: E402
from maskmill.engine.inputs.sources import open_source  # noqa: E402
from maskmill.engine.labeling import writer  # noqa: E402
from maskmill.engine.labeling.label_run import label  # noqa: E402
from maskmill.engine.labeling.selection import Selection  # noqa: E402
from maskmill.engine.store import label_store, table  # noqa: E402
from maskmill.engine.store.label_store import LabelStore  # noqa: E402
from maskmill.engine.store.waiting import presence  # noqa: E402
from maskmill.errors import MaskmillError  # noqa: E402

IMAGES = 240
OPTIONS = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "aws_region": "us-east-1"}
STAGES: dict[str, tuple[Any, str]] = {
    "create": (table.Table, "create"),
    "publish": (leases.Leases, "publish"),
    "claim": (leases.Leases, "claim"),
    "beat": (leases.Leases, "beat"),
    "report": (leases.Leases, "report"),
    "hand-back": (leases.Leases, "finish"),
    "commit": (LabelStore, "commit_tables"),
    "inputs": (table.Table, "merge"),
    "compact": (table.Table, "compact"),
}
"""Steps of a run at which the disk becomes full, and the functions that perform them."""


# in the processes of a run


def apply(fault: str, folder: Path) -> None:
    """Prepare this process for a fault, such as ``full:commit``."""
    kind, _, value = fault.partition(":")
    if kind == "full":
        owner, name = STAGES[value]
        real = getattr(owner, name)

        def filled(*arguments: Any, **options: Any) -> Any:
            if value != "inputs" or arguments[0].name == "inputs":
                fill(folder / "disk" / "ballast")
            return real(*arguments, **options)

        setattr(owner, name, staticmethod(filled) if name == "create" else filled)
    elif kind == "hold":  # a commit takes a while between the labels and their inputs
        commit = LabelStore.commit_tables

        def slow(self: LabelStore, labels: Any, inputs: Any) -> None:
            commit(self, labels, inputs.slice(0, 0))
            (folder / "committing").touch()
            time.sleep(float(value))
            commit(self, labels.slice(0, 0), inputs)

        LabelStore.commit_tables = slow
    elif kind == "memory":
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + (int(value) << 20)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def fill(ballast: Path) -> None:
    """Fill the disk, at the first call of any process of the run."""
    try:
        file = ballast.open("xb", buffering=0)
    except OSError:
        return
    with file, suppress(OSError):
        for size in (1 << 16, 512, 1):
            with suppress(OSError):
                while file.write(bytes(size)):
                    pass


def opening(bundle: Path, pause: float, fault: str, folder: Path) -> Any:
    """Open the model in a worker; a worker on Ray meets its fault here."""
    if fault.startswith("one-"):  # a fault of the first worker alone
        fault = fault.removeprefix("one-") if is_first(folder / "met") else ""
    if fault and os.environ.get("FAULT_PROCESS") != "driver":
        apply(fault, folder)
    predictor, taxonomy = open_predictor(bundle, pause, None)
    run = predictor.run
    if fault.startswith("memory"):
        predictor.run = lambda prepared: (np.empty(1200 << 20, np.uint8), run(prepared))[1]
    elif fault.startswith("eats"):  # and keeps it
        eaten: list[Any] = []
        predictor.run = lambda prepared: (eaten.append(np.ones(int(fault[5:]) << 17)), run(prepared))[1]
    return predictor, taxonomy


def is_first(path: Path) -> bool:
    """Return True in the first process that calls it."""
    try:
        path.open("x").close()
    except FileExistsError:
        return False
    return True


def make_job(folder: Path, options: argparse.Namespace) -> Job:
    """Describe the run of a process."""
    if options.version:
        job.installed_version = lambda: options.version
    extra = {"version": options.version} if options.version else {}
    if "://" in options.store:
        extra["storage_options"] = {**OPTIONS, "aws_endpoint": options.endpoint}
    return Job(
        opening=partial(opening, folder / options.bundle, options.pause, options.fault, folder),
        selection=Selection.argmax(),
        source=photos_of(folder, options.photos, extra.get("storage_options")),
        store=options.store,
        **extra,
    )


def photos_of(folder: Path, photos: str, storage_options: dict[str, str] | None) -> Any:
    """Open a run's photos, which are in its folder or in the bucket."""
    return open_source(photos, storage_options=storage_options) if "://" in photos else open_source(folder / photos)


def task(options: argparse.Namespace) -> int:
    """Run one process of a run; prints the counts or the line of an error."""
    folder = Path(options.task)
    committer.COMMIT_ROWS, committer.COMMIT_SECONDS, label_store.COMPACT_EVERY = 32, 3.0, 2
    driver.FIRST_LEASE = driver.SMALLEST_LEASE = driver.LARGEST_LEASE = 8
    presence.BEAT_SECONDS = driver.BEAT_SECONDS = worker.BEAT_SECONDS = 0.5
    presence.EXPIRY_SECONDS = driver.EXPIRY_SECONDS = options.expiry
    presence.Watcher.__init__.__defaults__ = (options.expiry,)
    writer.COMMIT_ROWS = 32
    if options.fault and options.kind == "ray":
        os.environ["FAULT_PROCESS"] = "driver"
        apply(options.fault, folder)
    run = make_job(folder, options)
    try:
        if options.kind == "array":
            progress = run_array(run, threads=1)
        elif options.kind == "ray":
            from maskmill.engine.cluster.ray_pool import RayPool, RaySettings

            settings = RaySettings(address=options.address, min_workers=2, max_workers=2, cpus_per_worker=1)
            progress = run_on(RayPool(run, settings), run)
        else:
            predictor, taxonomy = run.opening()
            assert run.selection is not None
            progress = label(predictor, run.source, options.store, taxonomy, run.selection, workers=1)
    except MaskmillError as error:
        print(f"error: {error}")
        return error.exit_code
    except Exception as error:
        traceback.print_exc()
        print(f"TRACEBACK {type(error).__name__}: {error}")
        return 1
    print(json.dumps({"planned": progress.planned, "images": progress.images, "inputs": progress.inputs,
                      "rejects": dict(progress.rejects), "warnings": progress.warnings[:3],
                      "num_warnings": len(progress.warnings)}))  # fmt: skip
    return 0


# in the process that breaks them


class Run:
    """Processes of a run in a folder of their own."""

    def __init__(self, folder: Path, runner: str, address: str, photos_in_bucket: bool = False) -> None:
        self.folder, self.runner, self.address, self.photos_in_bucket = folder, runner, address, photos_in_bucket
        self.store, self.endpoint, self.photos = str(folder / "store"), "", "photos"
        self.lines: dict[str, list[str]] = {"first": [], "next": []}
        self.processes: list[subprocess.Popen[str]] = []

    def start(self, kind: str = "", *, fault: str = "", pause: float = 0.05, bundle: str = "bundle", version: str = "",
              expiry: float = 6.0, **environment: str) -> subprocess.Popen[str]:  # fmt: skip
        """Start a process of the run."""
        kind = kind or self.runner
        command = [sys.executable, str(Path(__file__)), "--task", str(self.folder), "--kind", kind, "--fault", fault]
        command += ["--store", self.store, "--pause", str(pause), "--bundle", bundle, "--version", version]
        command += ["--expiry", str(expiry), "--address", self.address, "--endpoint", self.endpoint]
        command += ["--photos", self.photos]
        log = (self.folder / f"{len(self.processes)}.log").open("w+")
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, text=True, env={**os.environ, **environment}
        )
        process.log = log  # pyright: ignore[reportAttributeAccessIssue]
        self.processes.append(process)
        return process

    def begin(self, **options: Any) -> None:
        """Start the processes of a run."""
        for _ in range(2 if self.runner == "array" else 1):
            self.start(**options)

    def wait(self, part: str, seconds: float = 240.0) -> None:
        """Wait for the end of all processes and keep their output."""
        deadline = time.monotonic() + seconds
        for process in self.processes:
            try:
                status: Any = process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                status = "did not end"
                process.kill()
                process.wait()
            log: Any = process.log  # pyright: ignore[reportAttributeAccessIssue]
            log.seek(0)
            lines = log.read().strip().splitlines()
            bad = [line for line in lines if line.startswith("TRACEBACK")]
            last = (bad or lines or [""])[-1].replace(str(self.folder), "")
            self.lines[part].append(f"{status}: {last[:700]}")
        self.processes = []

    def until(self, condition: Callable[[], Any], seconds: float = 90.0) -> None:
        """Wait until a condition of the run holds."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline or all(process.poll() is not None for process in self.processes):
                raise TimeoutError("the moment of the fault did not come")
            time.sleep(0.02)

    def rows(self, table: str = "inputs") -> int:
        """Return the number of rows of a table that are committed."""
        with suppress(Exception):
            return LabelStore.open(self.store, storage_options=self.storage_options).counts()[table]
        return 0

    @property
    def storage_options(self) -> dict[str, str]:
        """Options of the store's bucket, empty on a disk."""
        return {**OPTIONS, "aws_endpoint": self.endpoint} if "://" in self.store else {}


def compare(run: Run, expected: dict[str, str]) -> dict[str, Any]:
    """Count raw rows and compare the labels with those of a run in one process."""
    import lance

    options = {} if not run.endpoint else {"storage_options": {**OPTIONS, "aws_endpoint": run.endpoint,
                                                               "allow_http": "true"}}  # fmt: skip
    columns: dict[str, Counter[str]] = {}
    for name, key in (("inputs", "uri"), ("labels", "id")):
        dataset = lance.dataset(f"{run.store}/{name}.lance", **options)
        columns[name] = Counter(dataset.to_table(columns=[key])[key].to_pylist())
    store = LabelStore.open(run.store, storage_options=run.storage_options)
    labels = {row.id: row_text(row) for row in store.iter_rows(extras=True)}
    if "://" in run.photos:
        local = str(run.folder / "photos")
        columns["inputs"] = Counter({
            uri.replace(run.photos, local): number for uri, number in columns["inputs"].items()
        })  # fmt: skip
        labels = {id: text.replace(run.photos, local) for id, text in labels.items()}
        run.photos = "photos"
    files = [str(path) for path in (run.folder / run.photos).iterdir()]
    return {
        "inputs": len(columns["inputs"]),
        "labels": len(columns["labels"]),
        "twice": sum(counter.total() - len(counter) for counter in columns.values()),
        "missing": len(set(files) - set(columns["inputs"])),
        "different": sum(labels.get(id) != text for id, text in expected.items()),
        "strange": len(set(labels) - set(expected)),
    }


def row_text(row: Any) -> str:
    return str({name: str(value) for name, value in vars(row).items()})


@contextmanager
def disk(run: Run, megabytes: int = 24) -> Iterator[Path]:
    """Put the store on a small disk of its own."""
    place = run.folder / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(place)], check=True)
    run.store = str(place / "store")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


Finish = Callable[[], None]
FAULTS: dict[str, Callable[[Run, Finish], None]] = {}
ONLY_ON_RAY = ("memory-monitor",)
"""Faults that another runner does not have: only Ray watches the memory of its workers."""


def fault(function: Callable[[Run, Finish], None]) -> Callable[[Run, Finish], None]:
    """Enter a fault in the table under the function's name."""
    FAULTS[function.__name__.replace("_", "-")] = function
    return function


def full_disk(stage: str, run: Run, finish: Finish) -> None:
    """The disk gets full at a step of the run."""
    with disk(run):
        run.begin(fault=f"full:{stage}")
        run.wait("first")
        (run.folder / "disk" / "ballast").unlink(missing_ok=True)
        finish()


for _stage in STAGES:
    FAULTS[f"full-disk-{_stage}"] = partial(full_disk, _stage)


@fault
def read_only_from_the_start(run: Run, finish: Finish) -> None:
    with disk(run) as place:
        subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
        run.begin()
        run.wait("first")
        subprocess.run(["mount", "-o", "remount,rw", str(place)], check=True)
        finish()


@fault
def read_only_in_the_middle(run: Run, finish: Finish) -> None:
    """A second mount of the store is read-only; files that are open keep the first from being remounted."""
    with disk(run) as place:
        run.begin()
        run.until(lambda: run.rows() >= 32)
        command = ["mount", "-o", "remount,ro", str(place)]
        while subprocess.run(command, check=False, stderr=subprocess.DEVNULL).returncode:
            time.sleep(0.005)
        run.wait("first")
        subprocess.run(["mount", "-o", "remount,rw", str(place)], check=True)
        finish()


def clock_jump(days: int, run: Run, finish: Finish) -> None:
    """The clock of one process jumps in the middle of the run, while another commits as well."""
    shim, file = run.folder / "clock.so", run.folder / "clock"
    source = str(ROOT / "benchmarks/clock.c")
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", str(shim), source, "-ldl"], check=True)
    file.write_bytes(struct.pack("q", 0))
    environment = {"LD_PRELOAD": str(shim), "CLOCK_FILE": str(file)}
    run.start("local", fault="hold:0.2", pause=0.1)
    run.start(**environment, fault="hold:0.2", pause=0.1)
    if run.runner == "array":
        run.start(fault="hold:0.2", pause=0.1)
    while any(process.poll() is None for process in run.processes):
        for difference in (0, days):
            time.sleep(0.7)
            with file.open("r+b") as clock:
                clock.write(struct.pack("q", difference * 86_400))
    run.wait("first")
    finish()


for _days in (40, -40):
    FAULTS[f"clock-{_days:+d}-days"] = partial(clock_jump, _days)


def damaged_lease(kind: str, run: Run, finish: Finish) -> None:
    """Files of leases are cut in half: those of inputs, of rows, of claims, of workers, of the driver."""
    run.begin()
    place = Path(run.store) / "leases"
    damaged = 0

    def damage() -> bool:
        nonlocal damaged
        paths = [place / "driver.json"] if kind == "driver" else list((place / kind).glob("*"))
        for path in paths:
            with suppress(OSError):
                data = path.read_bytes()
                if kind == "open" and (place / "claims" / path.name).exists():
                    continue
                path.write_bytes(data[: len(data) // 2])
                damaged += 1
                break
        return damaged >= (1 if kind == "claims" else 5)

    run.until(lambda: run.rows() >= 16)
    with suppress(TimeoutError):
        run.until(damage)
    run.wait("first")
    run.lines["first"].append(f"{damaged} files damaged")
    finish()


for _kind in ("open", "done", "claims", "workers", "driver"):
    FAULTS[f"half-written-{_kind}"] = partial(damaged_lease, _kind)


@fault
def another_version(run: Run, finish: Finish) -> None:
    run.begin(pause=0.2)
    run.until(lambda: (Leases(run.store).driver() or {}).get("state") == "labeling")
    run.start("array", version="9.9.9")
    run.wait("first")
    finish()


@fault
def another_bundle(run: Run, finish: Finish) -> None:
    run.begin(pause=0.2)
    run.until(lambda: (Leases(run.store).driver() or {}).get("state") == "labeling")
    run.start("array", bundle="other")
    run.wait("first")
    finish()


@fault
def bundle_replaced(run: Run, finish: Finish) -> None:
    """The bundle is another one when a worker starts again."""
    run.begin(bundle="copy")
    run.until(lambda: run.rows() >= 16)
    (run.folder / "copy").rename(run.folder / "away")
    (run.folder / "copy").symlink_to(run.folder / "other")
    for record in Leases(run.store).workers().values():
        with suppress(OSError):
            os.kill(record["process"], signal.SIGKILL)
    run.start(bundle="copy")
    run.wait("first")
    finish()


@fault
def memory(run: Run, finish: Finish) -> None:
    """One worker has too little memory."""
    run.begin(fault="" if run.runner == "array" else "memory:1000")
    if run.runner == "array":
        run.until(lambda: run.rows() >= 16)
        run.start(fault="memory:1000")
    run.wait("first")
    finish()


@fault
def memory_of_one_worker(run: Run, finish: Finish) -> None:
    """The first of the workers has too little memory; on Ray another one takes its place."""
    run.begin(fault="one-memory:1000")
    run.wait("first")
    finish()


@fault
def memory_monitor(run: Run, finish: Finish) -> None:
    """A worker takes 300 MB more for every batch, until Ray kills it to save the machine."""
    from ray.cluster_utils import Cluster

    with open("/proc/meminfo") as file:
        sizes = {line.split(":")[0]: int(line.split()[1]) for line in file}
    threshold = 1 - (sizes["MemAvailable"] - (3 << 20)) / sizes["MemTotal"]  # 3 GB more than now
    settings = {"memory_usage_threshold": threshold, "memory_monitor_refresh_ms": 100}
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "_system_config": settings})
    try:
        for _ in range(2):
            nodes.add_node(num_cpus=1)
        run.address = nodes.address
        run.begin(fault="one-eats:300", pause=0.2)
        run.wait("first")
        finish()
    finally:
        nodes.shutdown()


@fault
def two_drivers(run: Run, finish: Finish) -> None:
    run.begin(pause=0.2)
    run.until(lambda: (Leases(run.store).driver() or {}).get("state") == "labeling")
    run.start()
    run.wait("first")
    finish()


@fault
def a_driver_and_local_runs(run: Run, finish: Finish) -> None:
    run.begin(fault="hold:0.2")
    run.start("local", fault="hold:0.2")
    run.start("local")
    run.wait("first")
    finish()


@fault
def frozen_driver(run: Run, finish: Finish) -> None:
    """The driver freezes until it counts as dead, and resumes beside its successor."""
    run.begin(fault="hold:0.3", expiry=3.0)
    run.until(lambda: (run.folder / "committing").exists())
    record = Leases(run.store).driver() or {}
    os.kill(record["process"], signal.SIGSTOP)
    run.start(fault="hold:0.3", expiry=3.0)
    run.until(lambda: (Leases(run.store).driver() or {}).get("token") != record["token"], 30)
    time.sleep(1.0)
    os.kill(record["process"], signal.SIGCONT)
    run.wait("first")
    finish()


@fault
def frozen_worker(run: Run, finish: Finish) -> None:
    """A worker freezes until it counts as dead, and returns its lease late."""
    run.begin(expiry=2.0)
    run.until(lambda: run.rows() >= 16)
    leader = (Leases(run.store).driver() or {}).get("process")
    (process, *_) = [
        record["process"] for record in Leases(run.store).workers().values() if record["process"] != leader
    ]
    os.kill(process, signal.SIGSTOP)
    time.sleep(6.0)
    os.kill(process, signal.SIGCONT)
    run.wait("first")
    finish()


@fault
def worker_frozen_for_a_minute(run: Run, finish: Finish) -> None:
    """A worker freezes for 80 s with the limits of a real run; the others wait a minute for its lease."""
    run.begin(expiry=60.0)
    run.until(lambda: run.rows() >= 16)
    leader = (Leases(run.store).driver() or {}).get("process")
    (process, *_) = [
        record["process"] for record in Leases(run.store).workers().values() if record["process"] != leader
    ]
    os.kill(process, signal.SIGSTOP)
    time.sleep(80.0)
    with suppress(OSError):  # its run may have ended meanwhile
        os.kill(process, signal.SIGCONT)
    run.wait("first")
    finish()


@fault
def driver_frozen_for_a_minute(run: Run, finish: Finish) -> None:
    """The driver freezes for 80 s between the labels and the inputs of a commit, while another one tries to start."""
    run.begin(fault="hold:0.3", expiry=60.0)
    run.until(lambda: (run.folder / "committing").exists())
    process = (Leases(run.store).driver() or {})["process"]
    os.kill(process, signal.SIGSTOP)
    time.sleep(40.0)
    run.start(expiry=60.0)
    time.sleep(40.0)
    os.kill(process, signal.SIGCONT)
    run.wait("first")
    finish()


@fault
def killed_and_continued_by_one_process(run: Run, finish: Finish) -> None:
    """Every process is killed while finished leases wait; a run in one process continues, and is killed as well."""
    run.begin(fault="hold:1", pause=0.02)
    run.until(lambda: sum(done.num_rows for done in Leases(run.store).finished()) >= 24 and run.rows())
    waiting = {done.lease for done in Leases(run.store).finished()}
    for process in run.processes:
        process.kill()
    run.wait("first")
    run.lines["first"].append(f"{len(waiting)} leases finished, {run.rows()} inputs stored")
    run.start("local", pause=0.1)
    before = run.rows()
    run.until(lambda: not Leases(run.store).finished() and run.rows() > before + 32)
    run.processes[0].kill()
    run.wait("first")
    run.lines["first"].append(f"{run.rows()} inputs stored, {len(Leases(run.store).finished())} leases left")
    finish()


@fault
def folder_of_leases_deleted(run: Run, finish: Finish) -> None:
    run.begin()
    run.until(lambda: run.rows() >= 16)
    shutil.rmtree(Path(run.store) / "leases", ignore_errors=True)
    run.wait("first")
    finish()


@fault
def photos_deleted(run: Run, finish: Finish) -> None:
    """Half of the photos disappear after the plan, and come back."""
    away = run.folder / "away"
    away.mkdir()
    own = run.folder / "own"
    own.mkdir()
    for path in (run.folder / "photos").iterdir():
        os.link(path, own / path.name)
    run.photos = "own"
    run.begin()
    run.until(lambda: run.rows() >= 16)
    moved = sorted(own.iterdir())[::2]
    for path in moved:
        path.rename(away / path.name)
    run.wait("first")
    for path in moved:
        (away / path.name).rename(path)
    finish()


@fault
def hostile_files(run: Run, finish: Finish) -> None:
    """1,000 damaged, hostile and strange files among the photos."""
    run.photos = "hostile"
    run.begin(pause=0.0)
    run.wait("first")
    finish()


FAULTS.update(bucket_faults.FAULTS)


def write_hostile(folder: Path, sound: Sequence[Path]) -> None:
    """Write 1,000 hostile files and 100 photos."""
    import io

    from PIL import Image

    from tests.fuzz.mutation import change_bytes

    folder.mkdir()
    for path in sound[:100]:
        (folder / path.name).write_bytes(path.read_bytes())
    picture = Image.open(sound[0])
    originals = []
    for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"):
        stream = io.BytesIO()
        picture.save(stream, kind)
        originals.append((kind.lower(), stream.getvalue()))
    chance = random.Random(0)
    huge = bytearray(originals[0][1])
    huge[16:24] = struct.pack(">II", 2**31 - 1, 2**31 - 1)
    special = [b"", b"\0", b"GIF89a", b"\xff\xd8\xff", bytes(huge), b"%!PS-Adobe\n/showpage", b"<svg/>"]
    for number in range(970):
        if number < 200:
            (folder / f"x{number:04d}.png").write_bytes(special[number % len(special)] + bytes(number // 8))
        else:
            ending, data = originals[number % len(originals)]
            (folder / f"x{number:04d}.{ending}").write_bytes(change_bytes(data, chance)[0])
    for number in range(10):
        (folder / f"loop{number}.png").symlink_to(folder / f"loop{(number + 1) % 10}.png")
        os.mkfifo(folder / f"pipe{number}.png")
        (folder / f"\x1b[2J{number}\n=1+1.png").write_bytes(originals[0][1] + bytes(number))


def main() -> None:
    """Run every fault, or those named, and print a line of JSON each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(FAULTS))
    parser.add_argument("--runner", nargs="*", choices=["array", "ray"], default=["array", "ray"])
    parser.add_argument("--output", type=Path)
    parser.add_argument("--photos-in-bucket", action="store_true", help="faults of buckets: photos are there, too")
    parser.add_argument("--keep", action="store_true", help="keep the folders")
    for name in ("task", "kind", "fault", "store", "bundle", "version", "address", "endpoint", "photos"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    for name in ("pause", "expiry"):
        parser.add_argument(f"--{name}", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        sys.exit(task(options))
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(ROOT / "benchmarks"), str(ROOT / "tests/engine/cluster/opening"), os.environ.get("PYTHONPATH", "")]
    )
    os.environ["RAY_AUTH_MODE"] = "disabled"
    base = Path(tempfile.mkdtemp(prefix="maskmill-faults-"))
    print(base, file=sys.stderr)
    cluster, address = None, ""
    if "ray" in options.runner:
        from ray.cluster_utils import Cluster

        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        for _ in range(2):
            cluster.add_node(num_cpus=1)
        address = cluster.address
    try:
        for name in options.names or FAULTS:
            for runner in options.runner:
                if name in ONLY_ON_RAY and runner != "ray":
                    continue
                run = Run(base / f"{name}-{runner}", runner, address, options.photos_in_bucket)
                text = json.dumps(try_fault(name, run))
                print(text, flush=True)
                if options.output is not None:
                    with options.output.open("a") as file:
                        file.write(text + "\n")
                if not options.keep:
                    shutil.rmtree(base / f"{name}-{runner}", ignore_errors=True)
    finally:
        if cluster is not None:
            cluster.shutdown()


def try_fault(name: str, run: Run) -> dict[str, Any]:
    """Run with a fault, then without it, and describe both."""
    from tests.engine.corpus import write_photos
    from tests.models import color_bundle

    run.folder.mkdir()
    bundle = color_bundle(run.folder)
    photos = write_photos(run.folder / "photos", IMAGES)
    shutil.copytree(bundle.path, run.folder / "copy")
    color_bundle(run.folder, name="other", gain=2.0)
    if name == "hostile-files":
        write_hostile(run.folder / "hostile", photos)
        run.photos = "hostile"
    expected, run.photos = alone(run), "photos"
    result: dict[str, Any] = {"fault": name, "runner": run.runner}
    started = time.monotonic()

    def finish() -> None:
        result["between"] = run.rows()
        run.begin(pause=0.0)
        run.wait("next")
        result.update(compare(run, expected))

    try:
        FAULTS[name](run, finish)
    except Exception as error:
        result["problem"] = f"{type(error).__name__}: {error}"
        traceback.print_exc()
    for process in run.processes:
        with suppress(OSError):
            os.kill(process.pid, signal.SIGCONT)
        process.kill()
    return result | {**run.lines, "seconds": round(time.monotonic() - started, 1)}


def alone(run: Run) -> dict[str, str]:
    """Label the photos in one process without faults."""
    predictor, taxonomy = open_predictor(run.folder / "bundle", 0.0, None)
    photos = open_source(run.folder / run.photos)
    progress = label(predictor, photos, run.folder / "alone", taxonomy, Selection.argmax())
    run.lines["alone"] = [str(dict(progress.rejects))]
    return {row.id: row_text(row) for row in LabelStore.open(run.folder / "alone").iter_rows(extras=True)}


if __name__ == "__main__":
    main()
