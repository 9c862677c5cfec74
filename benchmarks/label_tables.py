"""ConformalSAM's label tables: raw, constant confidence and conformal labels of a good and of two bad teachers.

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

``CamVid`` has no background, as the paper's table 9b: the teacher of ``choose.py`` and the 368 photos at a third of the
size that it was not fitted to, with the rule argmax in place of foreground.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
from choose import NUM_CAMVID, camvid_teacher, link_camvid
from msrc import find_data
from students import Results, write_shrunk
from students_msrc import RESULTS, SHRINK, Photos
from teachers import Teacher

from maskmill.engine.calibration.scores.observe import Observations
from maskmill.engine.calibration.sharing import Group, share_thresholds
from maskmill.engine.calibration.thresholds import count_classes, fewest_images, fit_thresholds
from maskmill.engine.inputs.images import decode_image
from maskmill.engine.inputs.labeled_source import pair_images
from maskmill.engine.inputs.labels import LabelFolder
from maskmill.engine.inputs.sources import open_source
from maskmill.engine.labeling.selection import Selection, select
from maskmill.engine.model.taxonomy import Taxonomy
from maskmill.engine.predictors.base import ScoreMap
from maskmill.engine.predictors.score_files import ScoreFiles
from maskmill.engine.report.evaluate import Quality, confusion
from maskmill.kernels.types import Rule

NUM_SPLITS, NUM_CALIBRATION = 10, 92
GRID, CAMVID_GRID = (71, 107), (45, 60)


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


CAMVID = "CamVid"
CAMVID_ROWS = tuple(
    dataclasses.replace(row, rule="argmax", name=row.name.replace("foreground", "argmax"))
    if row.rule == "foreground" and row.group
    else row
    for row in ROWS
)
Figures = dict[str, list[dict[str, float]]]


@dataclasses.dataclass
class Samples:
    """Scores and true labels of the photos of a teacher."""

    taxonomy: Taxonomy
    maps: Sequence[tuple[ScoreMap, np.ndarray]]
    """Score map and true classes of each photo."""
    observed: Mapping[bool, Observations]
    """Scores of the true classes, by whether they have positions."""

    @classmethod
    def collect(
        cls, predictor: ScoreFiles, folder: Path, taxonomy: Taxonomy, work: Path, *,
        ids: frozenset[str] | None = None, grid: tuple[int, int] | None,
    ) -> Samples:  # fmt: skip
        """Predict the photos of a folder with ``images`` and ``labels``; ``grid`` is that of the positions."""
        source = open_source(folder / "images")
        labeled = pair_images(source, LabelFolder(folder / "labels"), taxonomy, ids=ids)
        observed: dict[bool, Observations] = {}
        for position in (False, True) if grid else (False,):
            (work / str(position)).mkdir()
            observed[position] = Observations(work / str(position), taxonomy, grid=grid if position else None)
            observed[position].collect(predictor, source, labeled)
        maps = []
        for item in labeled.items:
            data = source.read(item)
            maps.append((predictor.predict(decode_image(data), item.uri), labeled.read(item.uri, data)))
        return cls(taxonomy, maps, observed)

    def measure(self, rows: Sequence[Row], calibration: list[int], scored: list[int]) -> Figures:
        """Measure every row with thresholds from some photos on others."""
        figures: Figures = {}
        for row in rows:
            selection = selection_of(row, self.observed, self.taxonomy, calibration)
            counts: Any = sum(
                confusion(
                    select(self.maps[index][0], self.taxonomy, selection).label, self.maps[index][1], self.taxonomy
                )
                for index in scored
            )
            quality = Quality(confusion=counts, targets=self.taxonomy.targets, num_images=len(scored))
            keys = ("miou_kept", "accuracy_kept", "kept", "miou_all")
            figures[row.name] = [{key: round(float(getattr(quality, key)), 5) for key in keys}]
        return figures


def split_of(num: int, seed: int) -> tuple[list[int], list[int]]:
    """Draw the photos that calibrate and those that are scored."""
    order = np.random.default_rng(seed).permutation(num)
    return order[:NUM_CALIBRATION].tolist(), order[NUM_CALIBRATION:].tolist()


def joined(parts: Iterable[Figures]) -> Figures:
    """Join the figures of splits."""
    figures: Figures = {}
    for part in parts:
        for row, values in part.items():
            figures.setdefault(row, []).extend(values)
    return figures


def measure(teacher: Teacher, photos: Photos, folder: Path) -> Figures:
    """Measure every row on every split of MSRC."""
    samples = Samples.collect(photos.teacher(teacher), photos.folder, photos.taxonomy, folder, grid=GRID)
    return joined(samples.measure(ROWS, *split_of(len(samples.maps), seed)) for seed in range(NUM_SPLITS))


def measure_camvid(folder: Path) -> Figures:
    """Measure every row on every split of CamVid, which has no background."""
    photos, truth = link_camvid(find_data() / "camvid", folder)
    predictor, taxonomy = camvid_teacher(photos, truth, folder)
    small = write_shrunk(folder / "photos", folder / "labels", folder / "small", SHRINK)
    names = frozenset(path.stem for path in photos[NUM_CAMVID:])
    samples = Samples.collect(predictor, small, taxonomy, folder, ids=names, grid=CAMVID_GRID)
    return joined(samples.measure(CAMVID_ROWS, *split_of(len(samples.maps), seed)) for seed in range(NUM_SPLITS))


def selection_of(row: Row, observed: Mapping[bool, Observations], taxonomy: Any, images: list[int]) -> Selection:
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
    jobs: list[tuple[str, str, Callable[[Path], Figures]]] = []
    for teacher in get_args(Teacher):
        jobs.append((teacher, ROWS[0].name, partial(measure, teacher, Photos.open(options.work))))
    jobs.append((CAMVID, CAMVID_ROWS[0].name, measure_camvid))
    for group, first, job in jobs:
        if not options.table and not results.find(group, first, 0):
            with tempfile.TemporaryDirectory() as name:
                for row, splits in job(Path(name)).items():
                    for seed, figures in enumerate(splits):
                        results.add(group, row, seed, {"labels": figures})
    for teacher in (*get_args(Teacher), CAMVID):
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
