"""Compare OpenVINO with ONNX Runtime on a CPU: deeplabv3-257 in fp32, both in one run.

    python benchmarks/runtimes.py [--rounds 7] [--seconds 1.5] [--json]

The two runtimes alternate; a round counts the images that the calling threads process. A figure is the median over the
rounds; a ratio is the median of the rounds' ratios, with its range. ``callers`` x ``threads`` is one calling thread per
processor with one thread per call, as a label run uses a session, one call with all processors, or one processor.
Needs the models of MASKMILL_DATA (or ../shared/data beside the repository).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from label_run import adopt  # the script beside this one

from maskmill.engine.model.bundle import Bundle
from maskmill.engine.runtimes.open import open_session
from maskmill.export.gate.bench import throughput
from maskmill.kernels.processors import usable_processors

RUNTIMES = ("cpu", "openvino")


def compare(bundle: Bundle, callers: int, threads: int, rounds: int, seconds: float) -> dict[str, Any]:
    """Measure images per second of both runtimes, and their ratio."""
    spec = bundle.input
    images = np.random.default_rng(0).uniform(-1, 1, (8, 1, spec.height, spec.width, 3)).astype(np.float32)
    sessions = {name: open_session(bundle, provider=name, threads=threads) for name in RUNTIMES}
    outputs = {name: session.run(images[0])[0] for name, session in sessions.items()}
    rates: dict[str, list[float]] = {name: [] for name in RUNTIMES}
    for _ in range(rounds):
        for name, session in sessions.items():
            rates[name].append(throughput(session, list(images), callers=callers, seconds=seconds))
    ratios = [ours / peer for ours, peer in zip(rates["openvino"], rates["cpu"], strict=True)]
    return {
        "callers": callers,
        "threads": threads,
        **{f"{name}_images_per_second": round(statistics.median(rate), 1) for name, rate in rates.items()},
        "ratio": round(statistics.median(ratios), 3),
        "range": [round(min(ratios), 3), round(max(ratios), 3)],
        "largest_difference": float(np.abs(outputs["openvino"] - outputs["cpu"]).max()),
        "same_top_class": float((outputs["openvino"].argmax(-1) == outputs["cpu"].argmax(-1)).mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    processors = usable_processors()
    with tempfile.TemporaryDirectory() as folder:
        bundle = adopt(Path(folder))
        cases = dict.fromkeys([(processors, 1), (1, processors), (1, 1)])
        rows = [compare(bundle, *case, options.rounds, options.seconds) for case in cases]
    record = {
        "processor": platform.processor() or platform.machine(),
        "processors": processors,
        "versions": {name: version(name) for name in ("onnxruntime", "openvino", "numpy")},
        "load": os.getloadavg()[0],
        "rounds": options.rounds,
        "rows": rows,
    }
    if options.json:
        print(json.dumps(record, indent=2))
        return
    for row in rows:
        print(json.dumps(row))


if __name__ == "__main__":
    main()
