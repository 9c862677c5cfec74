"""ConformalSAM's label tables on MSRC: raw, constant confidence and conformal labels of a good and of two bad teachers.

    python benchmarks/label_tables.py              # all teachers that have no figures yet
    python benchmarks/label_tables.py --table

Ten random splits of the 296 photos, 92 to calibrate on, as in the paper's smallest split of VOC, and 204 to score.
Teachers and photos are those of ``students_msrc.py``. Rows: raw labels and the rule foreground with thresholds per
position (tables 9 and 11 of ConformalSAM); constant confidences; pooled thresholds and thresholds per class (the
paper's variants); the rule agree, which is maskmill's default. ``own`` gives every class in the calibration photos a
threshold of its own, ``shared`` the one of the pooled foreground to a class in few of them; classes in none are never
emitted. At alpha .01 a threshold per position would need 99 photos; it is then the largest score, as the paper's
figures suggest. ``kept`` is the share of pixels that get a label; mIoU and accuracy are over kept pixels, and
``miou_all`` counts pixels without a label as wrong.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
from fractions import Fraction
from pathlib import Path
from typing import Any, get_args

import numpy as np
from students import Results
from students_msrc import RESULTS, Photos
from teachers import Teacher

from maskmill.engine.calibration.calibration import fewest_images
from maskmill.engine.calibration.scores.observe import Observations
from maskmill.engine.calibration.sharing import Group, share_thresholds
from maskmill.engine.calibration.thresholds import count_classes, fit_thresholds
from maskmill.engine.inputs.images import decode_image
from maskmill.engine.inputs.labeled_source import pair_images
from maskmill.engine.inputs.labels import LabelFolder
from maskmill.engine.inputs.sources import open_source
from maskmill.engine.labeling.selection import Selection, select
from maskmill.engine.report.evaluate import Quality, confusion
from maskmill.kernels.types import Rule

NUM_SPLITS, NUM_CALIBRATION = 10, 92
GRID = (71, 107)


@dataclasses.dataclass(frozen=True)
class Row:
    """One way to select labels."""

    name: str
    confidence: float | None = None
    group: Group | None = None
    alpha: str = "0.05"
    rule: Rule = "foreground"
    own: bool = False
    """Give every class in the calibration photos a threshold of its own."""


ROWS = (
    Row("raw"),
    Row("confidence .7", confidence=0.7),
    Row("confidence .9", confidence=0.9),
    *(Row(f"position, foreground, {alpha}", group="position", alpha=alpha) for alpha in ("0.10", "0.05", "0.01")),
    *(Row(f"pooled, foreground, {alpha}", group="pooled", alpha=alpha) for alpha in ("0.10", "0.05", "0.01")),
    *(Row(f"class, shared, foreground, {alpha}", group="class", alpha=alpha) for alpha in ("0.10", "0.05")),
    *(Row(f"class, own, foreground, {alpha}", group="class", alpha=alpha, own=True) for alpha in ("0.10", "0.05")),
    *(Row(f"class, shared, agree, {alpha}", group="class", alpha=alpha, rule="agree") for alpha in ("0.10", "0.05")),
    *(
        Row(f"class, own, agree, {alpha}", group="class", alpha=alpha, rule="agree", own=True)
        for alpha in ("0.10", "0.05")
    ),
)


def measure(teacher: Teacher, photos: Photos, folder: Path) -> dict[str, list[dict[str, float]]]:
    """Measure every row on every split."""
    predictor, taxonomy = photos.teacher(teacher), photos.taxonomy
    source, labels = open_source(photos.folder / "images"), LabelFolder(photos.folder / "labels")
    labeled = pair_images(source, labels, taxonomy)
    observed: dict[bool, Observations] = {}
    for position in (False, True):
        (folder / str(position)).mkdir()
        observed[position] = Observations(folder / str(position), taxonomy, grid=GRID if position else None)
        observed[position].collect(predictor, source, labeled)
    samples = []
    for item in labeled.items:
        data = source.read(item)
        image = decode_image(data)
        samples.append((predictor.predict(image, item.uri), labeled.read(item.uri, data)))
    figures: dict[str, list[dict[str, float]]] = {row.name: [] for row in ROWS}
    for seed in range(NUM_SPLITS):
        order = np.random.default_rng(seed).permutation(len(samples))
        calibration, scored = order[:NUM_CALIBRATION].tolist(), order[NUM_CALIBRATION:].tolist()
        for row in ROWS:
            selection = selection_of(row, observed, taxonomy, calibration)
            counts: Any = sum(
                confusion(select(samples[index][0], taxonomy, selection).label, samples[index][1], taxonomy)
                for index in scored
            )
            quality = Quality(confusion=counts, targets=taxonomy.targets, num_images=len(scored))
            keys = ("miou_kept", "accuracy_kept", "kept", "miou_all")
            figures[row.name].append({key: round(float(getattr(quality, key)), 5) for key in keys})
    return figures


def selection_of(row: Row, observed: dict[bool, Observations], taxonomy: Any, images: list[int]) -> Selection:
    """Return the selection of a row, calibrated on the images with these numbers."""
    if row.confidence is not None:
        return Selection.threshold(row.confidence)
    if row.group is None:
        return Selection.argmax()
    spill, alpha = observed[row.group == "position"].spill, Fraction(row.alpha)
    _, num_images = count_classes(spill, images, taxonomy.num_targets)
    sharing = share_thresholds(
        row.group, num_images, min_images=1 if row.own else fewest_images(alpha), background=taxonomy.background
    )
    fitted = fit_thresholds(
        spill, images, sharing, num_scored=taxonomy.num_scored, alpha=alpha, unit="pixel", on_small_n="max"
    )
    return Selection(method="conformal", rule=row.rule, thresholds=fitted.values)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/students-msrc"), help="folder for photos and scores")
    parser.add_argument("--results", type=Path, default=RESULTS, help="file of results")
    parser.add_argument("--table", action="store_true", help="print finished rows and do nothing else")
    options = parser.parse_args()
    results = Results(options.results, "label_tables")
    for teacher in get_args(Teacher):
        if not options.table and not results.find(teacher, ROWS[0].name, 0):
            with tempfile.TemporaryDirectory() as name:
                for row, splits in measure(teacher, Photos.open(options.work), Path(name)).items():
                    for seed, figures in enumerate(splits):
                        results.add(teacher, row, seed, {"labels": figures})
        print(
            f"\n{teacher}\n\n| labels | mIoU kept | accuracy kept | kept | mIoU of all pixels |\n|---|---|---|---|---|"
        )
        for row, records in results.rows(teacher, range(NUM_SPLITS)).items():
            columns = [np.array([record["labels"][key] for record in records]) for key in records[0]["labels"]]
            cells = " | ".join(f"{values.mean():.3f} ± {values.std():.3f}" for values in columns)
            print(f"| {row} | {cells} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
