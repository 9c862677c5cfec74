"""Measure the time of a whole run per image, for runs of several sizes with a real model, and of its syncs.

    python benchmarks/run_sizes.py [--sizes 1000,3000,1000,10000,1000] [--rounds 3] [--output FILE]

deeplabv3-257 labels MSRC photos, repeated with distinct bytes, in one process with two threads, after a run that loads
everything. One line of JSON per run: `cpu_us_per_image`, processor time from the listing of the photos to the closed
store; `seconds`; `syncs` and `sync_seconds`, calls of `os.fsync` and the time in them, summed over threads. The first
line holds the processor time of the process before.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import threading
import time
from functools import partial
from pathlib import Path

from label_run import DATA, adopt  # the scripts beside this one
from memory import repeated
from million import say_line

from maskmill.engine.inputs.sources import open_source
from maskmill.engine.labeling.label_run import label
from maskmill.engine.labeling.selection import Selection
from maskmill.engine.model.taxonomy import Taxonomy
from maskmill.engine.predictors.semantic import SemanticPredictor
from maskmill.engine.runtimes.onnx_runtime import OnnxSession

FIRST = 64


class Syncs:
    """Counts the calls of ``os.fsync`` and their time."""

    def __init__(self) -> None:
        self.count, self.seconds, self._lock, self._sync = 0, 0.0, threading.Lock(), os.fsync
        os.fsync = self._timed

    def _timed(self, descriptor: int) -> None:
        started = time.perf_counter()
        self._sync(descriptor)
        with self._lock:
            self.count, self.seconds = self.count + 1, self.seconds + time.perf_counter() - started


def main() -> None:
    """Run and print a line per run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="1000,3000,1000,10000,1000")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    sizes = [int(size) for size in options.sizes.split(",")]

    say = partial(say_line, options.output)
    with tempfile.TemporaryDirectory(prefix="maskmill-sizes-") as name:
        folder = Path(name)
        bundle = adopt(folder)
        taxonomy, predictor = Taxonomy.of_model(bundle), SemanticPredictor(bundle, OnnxSession(bundle))
        say(imports_cpu=time.process_time())
        photos = sorted((DATA / "msrc" / "images").glob("*.jpg"))
        names = sorted(repeated(photos, folder / "photos", max(FIRST, *sizes)).iterdir())
        lists = {size: folder / f"{size}.txt" for size in {FIRST, *sizes}}
        for size, path in lists.items():
            path.write_text("".join(f"{photo}\n" for photo in names[:size]))
        syncs = Syncs()
        for number, size in [(-1, FIRST)] + [(number, size) for number in range(options.rounds) for size in sizes]:
            count, waited = syncs.count, syncs.seconds
            started, cpu = time.perf_counter(), time.process_time()
            store = folder / "store"
            run = label(predictor, open_source(lists[size]), store, taxonomy, Selection(weight="pcos"), workers=2)
            seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
            assert run.images == size, f"{run.images} of {size} images were labeled"
            if number >= 0:
                waits = {"syncs": syncs.count - count, "sync_seconds": syncs.seconds - waited}
                figures = {"seconds": seconds, "cpu": cpu, "cpu_us_per_image": 1e6 * cpu / size}
                say(round=number, images=size, **figures, **waits, load=os.getloadavg()[0])
            shutil.rmtree(store)


if __name__ == "__main__":
    main()
