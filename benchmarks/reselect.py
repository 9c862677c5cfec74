"""Labels made again from kept scores against labels of a fresh run: differences, speed and size, on MSRC.

    python benchmarks/reselect.py --json

DeepLabv3 (257 px) is calibrated per class at alpha .05 on 92 photos and labels the 204 others once with
``--keep-scores 0.05``. Each change of the selection is then made twice, by ``reselect`` and by a run of the model with
the same calibration; ``calibrated anew`` takes the exact thresholds of a calibration at alpha .10 instead of those that
the store's own calibration gives. ``labels`` is the share of pixels with another label, ``weights`` the share whose
weight differs by more than 0, 1 and 4 of 255 levels.

``speed`` alternates labeling and reselection of the same photos; the ratio of images per second is that of the medians,
and ``processor time`` that of processor seconds per image, which other work on the machine disturbs less. ``kept``
compares a labeling run that keeps scores with one that does not.

The data folder is ``$MASKMILL_DATA``, or ``../shared/data`` beside the repository.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from choose import open_teacher
from msrc import find_data

from maskmill.engine.calibration.calibrate import calibrate
from maskmill.engine.calibration.calibration import Calibration
from maskmill.engine.inputs.labels import open_labels
from maskmill.engine.inputs.sources import open_source
from maskmill.engine.labeling.label_run import label
from maskmill.engine.labeling.reselection.reselect import Reselection, reselect
from maskmill.engine.labeling.selection import Selection
from maskmill.engine.store.label_store import LabelStore
from maskmill.kernels.processors import usable_processors

NUM_CALIBRATION = 92


def differences(new: LabelStore, fresh: LabelStore) -> dict[str, float]:
    """Return the shares of pixels with another label, and with weights that differ by more than 0, 1 and 4 levels."""
    num, labels, weights = 0, 0, np.zeros(3)
    for row in fresh.iter_rows():
        expected, found = fresh.maps(row), new.read_id(row.id)
        num += expected[0].size
        labels += int((expected[0] != found[0]).sum())
        distance = np.abs(expected[1].astype(int) - found[1])
        weights += [(distance > levels).sum() for levels in (0, 1, 4)]
    shares = {f"weights > {levels}": float(count / num) for levels, count in zip((0, 1, 4), weights, strict=True)}
    return {"labels": labels / num, **shares}


def timed(work: Any) -> tuple[float, float]:
    """Return images per second, and processor milliseconds per image, of a run."""
    processor = time.process_time()
    progress = work()
    return progress.rate, 1000 * (time.process_time() - processor) / progress.images


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--photos", type=int, default=204)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    data = find_data()
    photos = sorted((data / "msrc" / "images").glob("*.jpg"))
    order = np.random.default_rng(0).permutation(len(photos))
    with tempfile.TemporaryDirectory(prefix="maskmill-reselect-") as name:
        folder = Path(name)
        predictor, taxonomy = open_teacher(data, "deeplabv3-257", folder / "teacher")
        ids = frozenset(photos[index].stem for index in order[:NUM_CALIBRATION])

        def calibrated(alpha: str) -> Calibration:
            return calibrate(
                predictor, open_source(data / "msrc" / "images"), open_labels(data / "msrc" / "labels"), taxonomy,
                alpha=alpha, group="class", ids=ids, workers=usable_processors(),
            )  # fmt: skip

        first, anew = calibrated("0.05"), calibrated("0.1")
        ten = first.at("0.1")
        others = order[NUM_CALIBRATION:][: options.photos]
        (folder / "photos.txt").write_text("\n".join(str(photos[index].resolve()) for index in others))
        source = open_source(folder / "photos.txt")

        def fresh(store: str, selection: Selection) -> Any:
            return label(predictor, source, folder / store, taxonomy, selection)

        fresh("kept", Selection.conformal(first, weight="pcos", keep_scores="0.05"))
        kept = LabelStore.open(folder / "kept")
        rows = list(kept.iter_rows(extras=True))
        sizes = {key: np.mean([len(getattr(row, key) or b"") for row in rows]) for key in ("scores", "label", "weight")}
        changes: dict[str, tuple[Reselection, Selection]] = {
            "alpha .05 → .10": (Reselection(alpha="0.1"), Selection.conformal(ten, rule="agree", weight="pcos")),
            "alpha .05 → .10, calibrated anew": (
                Reselection(calibration=anew), Selection.conformal(anew, weight="pcos"),
            ),
            "agree → foreground": (
                Reselection(rule="foreground"), Selection.conformal(first, rule="foreground", weight="pcos"),
            ),
            "agree → single": (Reselection(rule="single"), Selection.conformal(first, rule="single", weight="pcos")),
            "pcos → none": (Reselection(weight="none"), Selection.conformal(first)),
        }  # fmt: skip
        table = {}
        for number, (title, (change, selection)) in enumerate(changes.items()):
            reselect(kept, folder / f"new{number}", change)
            fresh(f"fresh{number}", selection)
            table[title] = differences(
                LabelStore.open(folder / f"new{number}"), LabelStore.open(folder / f"fresh{number}")
            )
        speeds: dict[str, list[tuple[float, float]]] = {"label": [], "label, keeping scores": [], "reselect": []}
        for number in range(options.rounds):
            plain, keeping = (Selection.conformal(first, weight="pcos", keep_scores=alpha) for alpha in (None, "0.05"))
            speeds["label"].append(timed(lambda: fresh(f"timed{number}", plain)))  # noqa: B023
            speeds["label, keeping scores"].append(timed(lambda: fresh(f"keeping{number}", keeping)))  # noqa: B023
            change = Reselection(alpha="0.1")
            speeds["reselect"].append(timed(lambda: reselect(kept, folder / f"again{number}", change)))  # noqa: B023
    medians = {kind: np.median(np.array(rounds), axis=0) for kind, rounds in speeds.items()}
    report = {
        "benchmark": "reselect",
        "command": " ".join(["benchmarks/reselect.py", *sys.argv[1:]]),
        "photos": len(rows),
        "processors": usable_processors(),
        "bytes per image": {key: round(float(size)) for key, size in sizes.items()},
        "differences": table,
        "speed": {
            kind: {"images per second": round(float(rate), 1), "processor ms per image": round(float(cpu), 3)}
            for kind, (rate, cpu) in medians.items()
        },
        "ratio": {
            "images per second": round(float(medians["reselect"][0] / medians["label"][0]), 2),
            "processor time": round(float(medians["label"][1] / medians["reselect"][1]), 2),
            "keeping scores, processor time": round(
                float(medians["label, keeping scores"][1] / medians["label"][1]), 3
            ),
        },
        "versions": {name: version(name) for name in ("maskmill", "numpy", "onnxruntime", "pyarrow")},
    }
    if options.json:
        print(json.dumps(report, indent=2, ensure_ascii=False))
        return 0
    for key in ("bytes per image", "differences", "speed", "ratio"):
        for name, value in report[key].items():
            print(f"{key}: {name}: {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
