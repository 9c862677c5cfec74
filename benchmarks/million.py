"""Label a million tiny distinct images, and follow time, memory and commits.

    python benchmarks/million.py [--images 1000000] [--runner local|array] [--store FOLDER] [--output FILE]
    python benchmarks/million.py --sizes 1,1000,3000,1,10000,1000,30000,1,100000 [--milliseconds 5] [--rounds 3]

Images, decoder and model are synthetic: a manifest names images that do not exist, their bytes are their names, each
is 16x16 px, and the model returns a piece of a table of random numbers, so that the maps of all images differ.
Everything else is as in any run. A line of JSON per 20,000 images: seconds, processor time, resident memory; one per
commit: rows, rows stored before, seconds; a last one with the time of the plan, from the start to the first image read,
the most memory of all, and the bytes per row on the disk. ``--store`` continues in a store that exists.

``--sizes`` measures the processor time per image of whole runs of these sizes in one process, in turn, after a run that
loads everything; the model works ``--milliseconds`` on each image. Small runs vary most, so repeat their sizes. Runs of
one image tell what a run costs besides its images.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from maskmill.engine.backends.host import HostBackend  # noqa: E402
from maskmill.engine.cluster.job import Job  # noqa: E402
from maskmill.engine.cluster.runner import run_array  # noqa: E402
from maskmill.engine.inputs.sources import Item, Source  # noqa: E402
from maskmill.engine.labeling.label_run import label  # noqa: E402
from maskmill.engine.labeling.progress import Progress  # noqa: E402
from maskmill.engine.labeling.selection import Selection  # noqa: E402
from maskmill.engine.model.bundle import Bundle  # noqa: E402
from maskmill.engine.model.taxonomy import Taxonomy  # noqa: E402
from maskmill.engine.predictors.base import ScoreMap  # noqa: E402
from maskmill.engine.reading.manifest import write_manifest  # noqa: E402
from maskmill.engine.store.label_store import LabelStore  # noqa: E402

SIDE = 16
EVERY = 20_000


class Names(Source):
    """Source whose images hold their own names."""

    first = 0.0

    def read(self, item: Item) -> bytes:
        """Return the name."""
        self.first = self.first or time.perf_counter()
        return item.uri.encode()


class Backend(HostBackend):
    """Decoder that returns the same image for all files."""

    image = np.zeros((SIDE, SIDE, 3), np.uint8)

    def decode_batch(self, files: Sequence[bytes], **options: Any) -> list[Any]:
        """Return an image per file."""
        return [self.image] * len(files)


class Model:
    """Predictor whose scores are a piece of a table of random numbers, chosen by the name of the image."""

    batch = threads = 1

    def __init__(self, bundle: Bundle, milliseconds: float) -> None:
        self.bundle, self.settings, self.backend = bundle, {"benchmark": "million"}, Backend()
        self._milliseconds = milliseconds
        self._shape = (len(bundle.classes), SIDE, SIDE)
        self._table = _random_table()

    def condition(self, uri: str) -> str:
        """Return nothing: labels depend on the pixels alone."""
        return ""

    def prepare(self, image: Any, uri: str = "") -> int:
        """Return the place of the image's scores in the table."""
        return zlib.crc32(uri.encode()) % (self._table.size - math.prod(self._shape))

    def run(self, prepared: Sequence[int]) -> list[ScoreMap]:
        """Return the score maps."""
        until = time.thread_time() + self._milliseconds / 1000 * len(prepared)
        while time.thread_time() < until:
            np.dot(_SQUARE, _SQUARE)
        region = (0.0, 0.0, float(SIDE), float(SIDE))
        parts = [self._table[start : start + math.prod(self._shape)].reshape(self._shape) for start in prepared]
        return [
            ScoreMap(scores=part, layout="CHW", activation="softmax", size=(SIDE, SIDE), region=region,
                     backend=self.backend)
            for part in parts
        ]  # fmt: skip


@cache
def _random_table() -> Any:
    return np.random.default_rng(0).normal(0, 2, 4_000_000).astype(np.float32)


_SQUARE = np.ones((48, 48), np.float32)


def open_model(bundle: Path, milliseconds: float) -> tuple[Any, Taxonomy]:
    """Open the model in a worker."""
    model = Bundle.load(bundle)
    return Model(model, milliseconds), Taxonomy.of_model(model)


def resident_megabytes(name: str = "VmRSS") -> float:
    """Return the memory of this process; ``VmHWM`` is the most so far."""
    return round(int(re.findall(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())[0]) / 1024, 1)


def make_manifest(path: Path, num: int) -> Path:
    """Write the names of images that do not exist."""

    def items() -> Iterator[tuple[Any, ...]]:
        for number in range(num):
            yield f"/photos/{number // 1000:07d}/{number:09d}.jpg", 2_000, "1764000000000000000", None, None, ""

    write_manifest(items(), path)
    return path


def run(runner: str, bundle: Path, manifest: Path, store: Path, milliseconds: float, observer: Any) -> Any:
    """Label; returns (counts, seconds of the plan)."""
    source = Names(str(manifest))
    started = time.perf_counter()
    if runner == "array":
        job = Job(opening=partial(open_model, bundle, milliseconds), selection=Selection(weight="confidence"),
                  source=source, store=str(store))  # fmt: skip
        progress = run_array(job, threads=2, observer=observer)
    else:
        predictor, taxonomy = open_model(bundle, milliseconds)
        selection = Selection(weight="confidence")
        progress = label(predictor, source, store, taxonomy, selection, workers=2, observer=observer)
    return progress, source.first - started


def grow(options: argparse.Namespace, folder: Path, bundle: Path, say: Any) -> None:
    """Label all images and follow the run."""
    manifest = make_manifest(folder / "photos.parquet", options.images)
    store = options.store or folder / "store"
    state = {"said": -EVERY, "stored": 0}
    if store.exists():
        state["stored"] = LabelStore.open(store).counts()["inputs"]
    before = state["stored"]
    commit, lock = LabelStore.commit_tables, threading.Lock()
    started, cpu = time.perf_counter(), time.process_time()

    def timed(self: LabelStore, labels: Any, inputs: Any) -> None:
        began, thread = time.perf_counter(), time.thread_time()
        commit(self, labels, inputs)
        seconds, thread = time.perf_counter() - began, time.thread_time() - thread
        with lock:
            say(commit=len(inputs), stored=state["stored"], seconds=seconds, thread_seconds=thread)
            state["stored"] += len(inputs)

    def observe(progress: Progress) -> None:
        if progress.inputs - state["said"] >= EVERY:
            state["said"] = progress.inputs
            say(images=progress.inputs, seconds=time.perf_counter() - started, cpu=time.process_time() - cpu,
                rss_mb=resident_megabytes())  # fmt: skip

    LabelStore.commit_tables = timed
    progress, plan = run(options.runner, bundle, manifest, store, options.milliseconds, observe)
    LabelStore.commit_tables = commit
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    size = sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
    say(runner=options.runner, images=progress.images, stored_before=before, seconds=seconds, cpu=cpu,
        cpu_us_per_image=1e6 * cpu / max(progress.images, 1), plan_seconds=plan, rss_mb=resident_megabytes(),
        peak_mb=resident_megabytes("VmHWM"),
        bytes_per_row=size / state["stored"], label_bytes=progress.label_bytes / max(progress.images, 1),
        weight_bytes=progress.weight_bytes / max(progress.images, 1))  # fmt: skip


def compare_sizes(options: argparse.Namespace, folder: Path, bundle: Path, say: Any) -> None:
    """Measure whole runs of several sizes."""
    sizes = [int(size) for size in options.sizes.split(",")]
    manifests = {size: make_manifest(folder / f"{size}.parquet", size) for size in {min(sizes), *sizes}}
    run(options.runner, bundle, manifests[min(sizes)], folder / "first", options.milliseconds, None)
    for number in range(options.rounds):
        for place, size in enumerate(sizes):
            store = folder / f"store-{number}-{place}"
            started, cpu = time.perf_counter(), time.process_time()
            progress, _ = run(options.runner, bundle, manifests[size], store, options.milliseconds, None)
            cpu = time.process_time() - cpu
            assert progress.images == size, f"{progress.images} of {size} images were labeled"
            say(runner=options.runner, round=number, images=size, milliseconds=options.milliseconds,
                seconds=time.perf_counter() - started, cpu=cpu, cpu_us_per_image=1e6 * cpu / size)  # fmt: skip


def say_line(output: Path | None, /, **line: Any) -> None:
    """Print a line of JSON, and append it to a file."""
    text = json.dumps({key: round(value, 6) if isinstance(value, float) else value for key, value in line.items()})
    print(text, flush=True)
    if output is not None:
        with output.open("a") as file:
            file.write(text + "\n")


def main() -> None:
    """Run and print lines of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--runner", choices=("local", "array"), default="local")
    parser.add_argument("--store", type=Path)
    parser.add_argument("--sizes")
    parser.add_argument("--milliseconds", type=float, default=0.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    from tests.models import color_bundle

    say = partial(say_line, options.output)
    with tempfile.TemporaryDirectory(prefix="maskmill-million-") as name:
        bundle = color_bundle(Path(name), classes=[f"class {number}" for number in range(3)]).path
        (compare_sizes if options.sizes else grow)(options, Path(name), bundle, say)


if __name__ == "__main__":
    main()
