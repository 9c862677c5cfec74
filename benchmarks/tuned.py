"""Compare a labeling run on the runtime and precision that `maskmill tune` chooses with the obvious loops.

    python benchmarks/tuned.py [--photos 60] [--rounds 5] [--gate-photos 50] [--precisions int8]
        [--only deeplab|segformer] [--processors 2] [--models FOLDER] [-o FILE]

deeplabv3-257: `label` with PCOS weights as in label_run.py, on ONNX Runtime and on the choice of
`tune --precisions int8`, against label_run.py's obvious loop. SegFormer-B0 with 512 x 512 inputs and random weights of
the true architecture: `label` on ONNX Runtime and on the choice of `tune` (without conversion: random weights say
nothing about int8), against transformers' image-segmentation pipeline whose class masks are written as one PNG. Sides
alternate within a round. Figures are ratios to the loop, of wall and of processor time, medians and ranges over rounds.
``--models`` keeps SegFormer-B0 and the choice for another run. ``--processors`` limits the rounds, not `tune`, to that
many processors: PyTorch's threads spin while they wait, which says nothing of either side on a busy machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from label_run import DATA, adopt, obvious  # the scripts beside this one
from peers import copies, make_models, open_pipeline, run_pipeline

from maskmill.engine.inputs.sources import open_source
from maskmill.engine.labeling.label_run import label
from maskmill.engine.labeling.selection import Selection
from maskmill.engine.model.bundle import Bundle
from maskmill.engine.model.taxonomy import Taxonomy
from maskmill.engine.predictors.semantic import SemanticPredictor
from maskmill.engine.runtimes import tuned
from maskmill.engine.runtimes.open import open_session
from maskmill.export.gate.bench import Row
from maskmill.export.gate.judge import GateImages
from maskmill.export.precision.tune import tune
from maskmill.kernels.processors import usable_processors


def timed(function: Callable[[], Any]) -> tuple[float, float]:
    wall, processor = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - wall, time.process_time() - processor


def compare(sides: dict[str, Callable[[], Any]], base: str, rounds: int) -> Iterator[dict[str, Any]]:
    """Time the sides, alternating; yields the figures after each round."""
    for function in sides.values():
        function()
    times: dict[str, list[tuple[float, float]]] = {side: [] for side in sides}
    for _ in range(rounds):
        for side, function in sides.items():
            times[side].append(timed(function))
        yield {
            side: {
                name: {
                    "ratio": round(statistics.median(ratios), 3),
                    "range": [round(min(ratios), 3), round(max(ratios), 3)],
                    "seconds": round(statistics.median(pair[index] for pair in times[side]), 3),
                }
                for index, name in enumerate(("wall", "processor"))
                for ratios in [[b[index] / p[index] for b, p in zip(times[base], times[side], strict=True)]]
            }
            for side in sides
        }


def labeling(bundle: Bundle, provider: Any, precision: str, photos: Path, work: Path) -> Callable[[], None]:
    """Return a labeling run into a new store."""
    session = open_session(bundle, provider=provider, precision=precision)
    predictor, taxonomy = SemanticPredictor(bundle, session), Taxonomy.of_model(bundle)
    thresholds = np.full(taxonomy.num_scored, 0.5, np.float32)
    selection = Selection(method="conformal", rule="agree", thresholds=thresholds, weight="pcos")
    numbers = iter(range(10**6))

    def run() -> None:
        store = work / f"{bundle.path.name}-{provider}-{precision}-{next(numbers)}"
        progress = label(predictor, open_source(str(photos)), store, taxonomy, selection)
        assert not progress.rejects

    return run


def sides_of(bundle: Bundle, choice: Any, photos: Path, work: Path) -> dict[str, Callable[[], None]]:
    sides = {"ONNX Runtime fp32": labeling(bundle, "cpu", "fp32", photos, work)}
    if (choice.provider, choice.precision) != ("cpu", "fp32"):
        name = f"tuned: {choice.provider} {choice.precision}"
        sides[name] = labeling(bundle, choice.provider, choice.precision, photos, work)
    return sides


def table(rows: list[Row]) -> list[list[Any]]:
    return [[row.provider, row.precision, row.images_per_second, row.gate] for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--gate-photos", type=int, default=50)
    parser.add_argument("--precisions", nargs="*", default=["int8"])
    parser.add_argument("--only", choices=("deeplab", "segformer"))
    parser.add_argument("--processors", type=int)
    parser.add_argument("--models", type=Path)
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    results: dict[str, Any] = {
        "photos": options.photos,
        "rounds": options.rounds,
        "processors": options.processors or usable_processors(),
    }

    def record() -> None:
        results["load"] = round(os.getloadavg()[0], 1)
        print(json.dumps(results), flush=True)
        if options.output:
            options.output.write_text(json.dumps(results, indent=1) + "\n")

    def limit() -> None:
        if options.processors:
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.processors])

    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        photos = copies(sorted((DATA / "msrc/images").glob("*.jpg")), options.photos, work / "photos")
        images = GateImages.open(str(DATA / "msrc/images"), limit=options.gate_photos)
        if options.only != "segformer":
            bundle = adopt(work)
            choice, rows = tune(bundle, images, precisions=options.precisions, seconds=3.0, say=print)
            results["deeplab"] = {"choice": asdict(choice), "rows": table(rows)}
            record()
            bundle = Bundle.load(bundle.path)
            (work / "loop").mkdir()
            limit()
            loop = obvious(bundle.model_path(), sorted(photos.glob("*.jpg")), work / "loop")
            sides = {"obvious loop": loop, **sides_of(bundle, choice, photos, work)}
            for figures in compare(sides, "obvious loop", options.rounds):
                results["deeplab"]["sides"] = figures
                record()
        if options.only != "deeplab":
            models = options.models or work
            if not (models / "b0-bundle").exists():
                models.mkdir(exist_ok=True)
                make_models(models)
            bundle = Bundle.load(models / "b0-bundle")
            if (bundle.path / tuned.FILE).exists():
                choice = tuned.read_choice(bundle)
                results["segformer"] = {"choice": asdict(choice)}
            else:
                choice, rows = tune(bundle, images, seconds=3.0, say=print)
                results["segformer"] = {"choice": asdict(choice), "rows": table(rows)}
            record()
            limit()
            bundle = Bundle.load(bundle.path)
            pipe = open_pipeline(str(models / "b0"))
            pipeline = partial(run_pipeline, pipe, photos, work / "pipeline")
            sides = {"transformers pipeline": pipeline, **sides_of(bundle, choice, photos, work)}
            for figures in compare(sides, "transformers pipeline", options.rounds):
                results["segformer"]["sides"] = figures
                record()


if __name__ == "__main__":
    sys.exit(main())
