"""False alarms of the drift watch, and photos until it notices a change.

    python benchmarks/drift.py --json

``false alarms`` is the share of 200 exchangeable streams that raise an alarm at level .05: 92 calibration numbers and
a stream of 2,000, all drawn from one distribution; ``fixed`` repeats it with p-values against the 92 alone, which is
what the watch does not do. ``until alarm`` is the median number of photos, over 40 random splits of MSRC's 296 photos
(92 calibrate DeepLabv3 257 px, 204 follow), until an alarm for photos as they are, darkened to 60 %, blurred (sigma
5 px), and cropped to the middle half; and the share of the splits with an alarm.

The data folder is ``$MASKMILL_DATA``, or ``../shared/data`` beside the repository.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from msrc import adopt, find_data

from maskmill.engine.calibration.drift import DriftWatch
from maskmill.engine.inputs.images import decode_image
from maskmill.engine.inputs.ordered_map import ordered_map
from maskmill.engine.labeling.selection import Selection, select
from maskmill.engine.predictors.semantic import SemanticPredictor
from maskmill.engine.runtimes.onnx_runtime import OnnxSession
from maskmill.kernels.processors import usable_processors

NUM_CALIBRATION, NUM_STREAMS, LENGTH, NUM_SPLITS = 92, 200, 2000, 40


class FixedWatch(DriftWatch):
    """A watch that compares with the calibration numbers alone."""

    def update(self, value: float, name: str) -> float:
        """Add one number and forget it."""
        values = list(self._values)
        p_value = super().update(value, name)
        self._values = values
        return p_value


def alarm(watch: DriftWatch, stream: Any, seed: int) -> int | None:
    for index, value in enumerate(stream):
        watch.update(float(value), f"{seed}/{index}")
        if watch.alarm is not None:
            break
    return watch.alarm


def views(image: np.ndarray) -> dict[str, np.ndarray]:
    height, width = image.shape[:2]
    middle = image[height // 4 : height - height // 4, width // 4 : width - width // 4]
    return {
        "as they are": image,
        "darkened": (image * 0.6).astype(np.uint8),
        "blurred": cv2.GaussianBlur(image, (0, 0), 5.0),
        "cropped": np.ascontiguousarray(middle),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    data, started = find_data(), time.perf_counter()
    rng = np.random.default_rng(0)
    alarms = {"transductive": 0, "fixed": 0}
    for seed in range(NUM_STREAMS):
        values = rng.beta(8, 2, NUM_CALIBRATION + LENGTH)
        for name, kind in (("transductive", DriftWatch), ("fixed", FixedWatch)):
            found = alarm(kind(values[:NUM_CALIBRATION]), values[NUM_CALIBRATION:], seed)
            alarms[name] += found is not None
    with tempfile.TemporaryDirectory(prefix="maskmill-drift-") as folder:
        bundle, taxonomy = adopt(data, Path(folder), antialias=True)
        predictor = SemanticPredictor(bundle, OnnxSession(bundle))

        def numbers(photo: Path) -> dict[str, float]:
            pictures = views(decode_image(photo.read_bytes()))
            return {
                name: select(predictor.predict(picture), taxonomy, Selection.argmax()).drift or 0.0
                for name, picture in pictures.items()
            }

        rows = list(ordered_map(numbers, sorted((data / "msrc" / "images").glob("*.jpg")), usable_processors()))
    until: dict[str, list[int | None]] = {name: [] for name in rows[0]}
    for seed in range(NUM_SPLITS):
        order = np.random.default_rng(seed).permutation(len(rows))
        calibration = [rows[index]["as they are"] for index in order[:NUM_CALIBRATION]]
        for name, found in until.items():
            stream = [rows[index][name] for index in order[NUM_CALIBRATION:]]
            found.append(alarm(DriftWatch(calibration), stream, seed))
    report = {
        "benchmark": "drift",
        "command": " ".join(["benchmarks/drift.py", *sys.argv[1:]]),
        "false alarms": {name: count / NUM_STREAMS for name, count in alarms.items()},
        "until alarm": {
            name: {
                "share with alarm": sum(value is not None for value in found) / len(found),
                "median photos": float(np.median([value for value in found if value is not None]))
                if any(found)
                else None,
            }
            for name, found in until.items()
        },
        "seconds": round(time.perf_counter() - started, 1),
    }
    print(json.dumps(report, indent=2) if options.json else json.dumps(report, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
