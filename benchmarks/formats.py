"""Label maps as COCO run-length encodings and as PNG: speed against pycocotools and Pillow, memory of a whole export.

    python benchmarks/formats.py [--json] [--images 20000] [--rounds 5]

The maps are MSRC's true labels, repeated. Encoding runs on one thread, in turns with the other library on the same
maps; figures are medians over the rounds. pycocotools is called once for each class that occurs, as a loop over classes
does, and its strings must be equal byte for byte. Exports run in processes of their own, one of a tenth of the images
and one of all; keys: `ratio` (speed over the other library's) and `rss_growth` (peak memory of the large export over
that of the small one).
"""

from __future__ import annotations

import argparse
import io
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from msrc import find_data
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco

from maskmill.engine.formats.mask_folders import index_palette
from maskmill.engine.formats.rle import encode_classes
from maskmill.engine.labeling.export_labels import export_labels
from maskmill.engine.model.png import encode_png
from maskmill.engine.store.label_store import InputRow, LabelRow, LabelStore, content_id

NUM_CLASSES = 24
Maps = list[NDArray[np.uint8]]


def our_rle(maps: Maps) -> list[list[bytes]]:
    """Encode all classes of each map in one pass."""
    return [[mask.counts.encode() for mask in encode_classes(label)] for label in maps]


def their_rle(maps: Maps) -> list[list[bytes]]:
    """Encode each class that occurs with pycocotools."""
    return [[coco.encode(np.asfortranarray(label == value))["counts"] for value in np.unique(label)] for label in maps]


def our_png(maps: Maps) -> list[bytes]:
    """Encode palette images."""
    palette = index_palette(NUM_CLASSES)
    return [encode_png(label, palette) for label in maps]


def their_png(maps: Maps) -> list[bytes]:
    """Encode palette images with Pillow and its default compression."""
    palette = index_palette(NUM_CLASSES).tobytes()
    files = []
    for label in maps:
        image, buffer = Image.fromarray(label, mode="P"), io.BytesIO()
        image.putpalette(palette)
        image.save(buffer, "PNG")
        files.append(buffer.getvalue())
    return files


def compare(ours: Callable[[Maps], Any], theirs: Callable[[Maps], Any], maps: Maps, images: int, rounds: int) -> dict:
    """Time both in turns; ``images`` is the number of maps encoded over all rounds."""
    repeats = max(1, round(images / rounds / len(maps)))
    seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
    for index in range(rounds):
        order = [("ours", ours), ("theirs", theirs)]
        for name, function in order if index % 2 else reversed(order):
            started = time.perf_counter()
            for _ in range(repeats):
                function(maps)
            seconds[name].append((time.perf_counter() - started) / (repeats * len(maps)))
    ratios = [other / own for own, other in zip(seconds["ours"], seconds["theirs"], strict=True)]
    return {
        "images": repeats * len(maps) * rounds,
        "images_per_second": 1 / statistics.median(seconds["ours"]),
        "other_images_per_second": 1 / statistics.median(seconds["theirs"]),
        "ratio": statistics.median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
    }


def make_store(maps: Maps, folder: Path, images: int) -> LabelStore:
    """Make a store with ``images`` rows, the maps repeated under distinct ids."""
    names = [f"class {index}" for index in range(NUM_CLASSES)]
    classes = {"targets": names, "background": 0, "model": list(range(NUM_CLASSES)), "labels": {}}
    store = LabelStore.create(folder, {"classes": classes, "select": "argmax"})
    weight = encode_png(np.zeros((1, 1), np.uint8))
    encoded = [encode_png(label) for label in maps]
    counts = [np.bincount(label.ravel(), minlength=NUM_CLASSES) for label in maps]
    for start in range(0, images, 4096):
        labels, inputs = [], []
        for index in range(start, min(start + 4096, images)):
            id, number = content_id(str(index).encode()), index % len(maps)
            height, width = maps[number].shape
            row = LabelRow(
                id=id,
                width=width,
                height=height,
                label=encoded[number],
                weight=weight,
                counts=counts[number],
                kept=1.0,
                confidence=1.0,
            )
            labels.append(row)
            uri = f"/photos/{index // 1000:03d}/{index:06d}.jpg"
            inputs.append(InputRow(uri=uri, size=1, stamp="", id=id, error=None, message=None))
        store.commit(labels, inputs)
    return store


def export(store: str, output: str, format: Any) -> None:
    """Export a store and print seconds, images and peak memory; run in a process of its own."""
    started = time.perf_counter()
    summary = export_labels(LabelStore.open(store), output, format)
    seconds = time.perf_counter() - started
    # getrusage would count the memory of the process that started this one
    status = Path("/proc/self/status").read_text()
    peak = next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM"))
    print(json.dumps({"images": summary.num_images, "images_per_second": summary.num_images / seconds, "rss_mb": peak}))


def measure_export(store: LabelStore, output: Path, format: str) -> dict[str, Any]:
    """Run :func:`export` in a new process."""
    command = [sys.executable, __file__, "--export", str(store.path), str(output), format]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--export", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.export:
        export(*options.export)
        return 0
    files = sorted((find_data() / "msrc" / "labels").glob("*.png"))
    maps = [np.array(Image.open(file)) for file in files]
    equal = our_rle(maps) == their_rle(maps)
    report: dict[str, Any] = {
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "python": platform.python_version(),
            **{name: version(name) for name in ("maskmill", "pycocotools", "pillow", "numba", "numpy")},
        },
        "rle": compare(our_rle, their_rle, maps, options.images, options.rounds) | {"strings_equal": equal},
        "png": compare(our_png, their_png, maps, options.images, options.rounds)
        | {"bytes": sum(map(len, our_png(maps))), "other_bytes": sum(map(len, their_png(maps)))},
        "export": {},
    }
    with tempfile.TemporaryDirectory(prefix="maskmill-formats-") as name:
        folder = Path(name)
        stores = [make_store(maps, folder / f"store{part}", options.images // part) for part in (10, 1)]
        for format in ("coco", "png"):
            small, large = (measure_export(store, folder / f"{format}{len(store)}", format) for store in stores)
            report["export"][format] = large | {
                "small": small,
                "rss_growth": large["rss_mb"] / small["rss_mb"],
            }
    if options.json:
        print(json.dumps(report, indent=1))
    else:
        for name, other in (("rle", "pycocotools"), ("png", "Pillow")):
            row = report[name]
            print(
                f"{name}: {row['images_per_second']:,.0f} images/s, {other} {row['other_images_per_second']:,.0f}; "
                f"ratio {row['ratio']:.1f} ({row['ratio_range'][0]:.1f} to {row['ratio_range'][1]:.1f})"
            )
        print(f"RLE strings equal to pycocotools': {equal}")
        for format, row in report["export"].items():
            print(
                f"export to {format}: {row['images']:,} images, {row['images_per_second']:,.0f} images/s, peak "
                f"{row['rss_mb']:,.0f} MB ({row['small']['rss_mb']:,.0f} MB for {row['small']['images']:,})"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
