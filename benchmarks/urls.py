"""Measure a list of 1,000 URLs of which 20 never answer, 20 answer slowly without end, 20 redirect in a loop, 20 fail.

    python benchmarks/urls.py [--json]

A server of this process answers on the loopback interface; 8 readers, a time limit of 5 s, 2 retries. Claims: finished
within 120 s, every good photo labeled, one reject per bad URL of the right kind, and a peak of resident memory below
1 GB.
"""

from __future__ import annotations

import argparse
import io
import json
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from maskmill.engine.inputs.sources import open_source
from maskmill.engine.labeling.label_run import label
from maskmill.engine.labeling.selection import Selection
from maskmill.engine.model.taxonomy import Taxonomy
from maskmill.engine.predictors.semantic import SemanticPredictor
from maskmill.engine.reading.access import Access
from maskmill.engine.runtimes.onnx_runtime import OnnxSession
from tests.hostile_server import hostile_server
from tests.models import color_bundle

BAD = ("silent", "slow", "loop", "error")
EACH = 20
TOTAL = 1000


def photo(seed: int) -> bytes:
    """Return the bytes of a small photo."""
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def main() -> None:
    """Label the list and print what happened."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, hostile_server() as server:
        folder = Path(name)
        predictor = SemanticPredictor(bundle := color_bundle(folder), OnnxSession(bundle))
        taxonomy = Taxonomy.of_model(bundle)
        good = TOTAL - EACH * len(BAD)
        server.files = {f"{number}.jpg": photo(number) for number in range(good)}
        urls = [f"{server.url}/ok/{number}.jpg" for number in range(good)]
        urls += [f"{server.url}/{kind}/{number}.jpg" for kind in BAD for number in range(EACH)]
        np.random.default_rng(0).shuffle(urls)
        (folder / "list.txt").write_text("\n".join(urls))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        source = open_source(folder / "list.txt", access=Access(timeout=5.0, retries=2))
        started = time.perf_counter()
        run = label(predictor, source, folder / "store", taxonomy, Selection.argmax(), workers=8)
        seconds = time.perf_counter() - started
        result = {
            "seconds": round(seconds, 1),
            "images": run.images,
            "rejects": dict(run.rejects),
            "requests": {kind: server.requests[kind] for kind in ("ok", *BAD)},
            "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
            "peak_before_mb": round(before / 1024),
        }
    if options.json:
        print(json.dumps(result))
    else:
        for key, value in result.items():
            print(f"{key}: {value}")


if __name__ == "__main__":
    main()
