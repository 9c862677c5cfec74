"""Measure the growth of resident memory from 1,000 to 20,000 labeled images.

    python benchmarks/memory.py [--json] [--images 20000]

deeplabv3-257 on the MSRC photos, repeated under distinct names and with distinct bytes (appended to the JPEG). Key:
`rss_ratio`, resident memory at the end over that after 1,000 images; the claim is at most 1.05.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import psutil
from label_run import DATA, adopt  # the script beside this one

from maskmill.engine.inputs.sources import open_source
from maskmill.engine.labeling.label_run import label
from maskmill.engine.labeling.progress import Progress
from maskmill.engine.labeling.selection import Selection
from maskmill.engine.model.taxonomy import Taxonomy
from maskmill.engine.predictors.semantic import SemanticPredictor
from maskmill.engine.runtimes.onnx_runtime import OnnxSession

FIRST = 1000


def repeated(photos: list[Path], folder: Path, num: int) -> Path:
    """Write ``num`` photos with distinct names and bytes."""
    folder.mkdir()
    data = [photo.read_bytes() for photo in photos]
    for index in range(num):
        (folder / f"{index:06d}.jpg").write_bytes(data[index % len(data)] + index.to_bytes(4, "big"))
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--images", type=int, default=20_000)
    arguments = parser.parse_args()
    process = psutil.Process()
    samples: list[tuple[int, float]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle = adopt(folder)
        taxonomy = Taxonomy.of_model(bundle)
        selection = Selection(
            method="conformal", rule="agree", thresholds=np.full(taxonomy.num_scored, 0.5, np.float32), weight="pcos"
        )
        photos = repeated(sorted((DATA / "msrc" / "images").glob("*.jpg")), folder / "photos", arguments.images)

        def observe(run: Progress) -> None:
            samples.append((run.images, process.memory_info().rss / 1e6))

        predictor = SemanticPredictor(bundle, OnnxSession(bundle))
        run = label(predictor, open_source(photos), folder / "store", taxonomy, selection, observer=observe)
    after_first = next(rss for images, rss in samples if images >= FIRST)
    result = {
        "rss_ratio": round(samples[-1][1] / after_first, 4),
        "rss_mb_after_1000": round(after_first, 1),
        "rss_mb_at_the_end": round(samples[-1][1], 1),
        "rss_mb_peak": round(max(rss for _, rss in samples), 1),
        "images": run.images,
        "images_per_second": round(run.rate, 1),
    }
    print(json.dumps(result, indent=2) if arguments.json else "\n".join(f"{k}: {v}" for k, v in result.items()))


if __name__ == "__main__":
    main()
