"""Students of MSRC: gain from the labels of a teacher, by the rule that selects them.

    python benchmarks/students_msrc.py --work /tmp/students-msrc          # all rows and seeds
    python benchmarks/students_msrc.py --work /tmp/students-msrc --table  # print finished rows, or --json

For each of three seeds 30 photos are labeled, 168 unlabeled, and 98, about a third, are scored. The teacher is
DeepLabv3 (MobileNetV2, 257 px) as in ``msrc.py``. The 30 labeled photos calibrate it by class at ConformalSAM's alpha,
0.05, and as there a pixel gets the best foreground class of its prediction set and is left out where the set is empty;
a class that is in fewer than 19 of the photos takes the pooled threshold. Every student is the built-in ``lite0``
network and takes the same number of steps of the same size with the same optimizer: rows differ in the labels of the
168 photos alone, and in the second phase of ConformalSAM, which is added. Scores are those of the student after the
last step; nothing is selected on the scored photos.

Finished runs are not repeated, and interrupted ones resume; results are files in the work folder. ``--steps N`` takes N
steps per run, to try the script.

The data folder is ``$MASKMILL_DATA``, or ``../shared/data`` beside the repository.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from msrc import adopt, find_data
from students import Results
from teachers import Teacher, write_teacher

from maskmill.engine.calibration.calibrate import calibrate
from maskmill.engine.calibration.calibration import Calibration
from maskmill.engine.inputs.label_maps import read_label_map
from maskmill.engine.inputs.labels import LabelFolder
from maskmill.engine.inputs.sources import open_source
from maskmill.engine.labeling.label_run import label
from maskmill.engine.labeling.selection import Selection
from maskmill.engine.model.taxonomy import Taxonomy
from maskmill.engine.predictors.base import Predictor
from maskmill.engine.predictors.score_files import ScoreFiles
from maskmill.engine.predictors.semantic import SemanticPredictor
from maskmill.engine.report.evaluate import evaluate_store
from maskmill.engine.runtimes.onnx_runtime import OnnxSession
from maskmill.engine.store.label_store import LabelStore
from maskmill.kernels.types import Rule
from maskmill.trainer.data.corpus import open_corpus
from maskmill.trainer.data.datasets import LabeledImages
from maskmill.trainer.recipes import Recipe, conformalsam, supervised, weighted

SEEDS = (0, 1, 2)
NUM_LABELED, NUM_SCORED = 30, 98
ALPHA, CONFIDENCE = "0.05", 0.9
RULE: Rule = "foreground"
COMMON: dict[str, Any] = {
    "steps": 480,
    "batch": 8,
    "crop": 160,
    "scale": (0.6, 1.2),
    "optimizer": "adamw",
    "lr": 1e-3,
    "head_lr": 3.0,
    "weight_decay": 1e-2,
    "warmup": 20,
    "save_every": 40,
    "padding": "mean",
    "colors": "none",
}


@dataclasses.dataclass(frozen=True)
class Row:
    """One way to train."""

    name: str
    recipe: Callable[..., Recipe]
    store: str | None
    """Name of the store; None: the labeled photos alone."""


ROWS: tuple[Row, ...] = (
    Row("labeled photos alone", supervised, None),
    Row("+ raw teacher labels", supervised, "raw"),
    Row(f"+ confidence ≥ {CONFIDENCE}", supervised, "confidence"),
    Row("+ conformal labels", supervised, "conformal"),
    Row("+ conformal labels, PCOS weights", weighted, "conformal"),
    Row("ConformalSAM, two phases", conformalsam, "conformal"),
    Row("raw labels, two phases", conformalsam, "raw"),
    Row("+ confidence ≥ 0.7", supervised, "confidence-.7"),
    Row("+ conformal labels, rule argmax", supervised, "conformal-argmax"),
    Row("+ conformal labels, rule agree", supervised, "conformal-agree"),
)


@dataclasses.dataclass(frozen=True)
class Split:
    """The photos of a seed."""

    labeled: list[Path]
    unlabeled: list[Path]
    scored: list[Path]

    @classmethod
    def of_seed(cls, photos: list[Path], seed: int) -> Split:
        """A random split."""
        order = [photos[index] for index in np.random.default_rng(seed).permutation(len(photos))]
        return cls(order[:NUM_LABELED], order[NUM_LABELED:-NUM_SCORED], order[-NUM_SCORED:])


def make_stores(
    data: Path, photos: Path, folder: Path, split: Split, teacher: Teacher
) -> tuple[Taxonomy, dict[str, dict]]:
    """Label the unlabeled photos by each rule; returns the taxonomy and the quality of the labels."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder / "deeplabv3", ignore_errors=True)
    bundle, taxonomy = adopt(data, folder, antialias=True)
    predictor: Predictor = SemanticPredictor(bundle, OnnxSession(bundle))
    if teacher != "good":

        def truth_of(photo: Path) -> np.ndarray:
            path = photos / "labels" / f"{photo.stem}.png"
            return taxonomy.encode(read_label_map(path), str(path))

        write_teacher(teacher, predictor, split.labeled, split.unlabeled, truth_of, folder)
        predictor = ScoreFiles.open(folder / teacher)
    source, labels = open_source(photos / "images"), LabelFolder(photos / "labels")
    ids = frozenset(photo.stem for photo in split.labeled)

    def calibrated(rule: Rule) -> Calibration:
        return calibrate(predictor, source, labels, taxonomy, alpha=ALPHA, group="class", rule=rule, ids=ids)

    found = calibrated(RULE)
    selections = {
        "raw": Selection.argmax(),
        "confidence": Selection.threshold(CONFIDENCE),
        "conformal": Selection.conformal(found, weight="pcos"),
        "confidence-.7": Selection.threshold(0.7),
        **{f"conformal-{rule}": Selection.conformal(calibrated(rule), weight="none") for rule in ("argmax", "agree")},
    }
    listed = folder / "unlabeled.txt"
    listed.write_text("\n".join(str(photo.resolve()) for photo in split.unlabeled))
    quality = {}
    for name, selection in selections.items():
        label(predictor, open_source(listed), folder / name, taxonomy, selection)
        measured = evaluate_store(LabelStore.open(folder / name), labels, taxonomy)
        quality[name] = {key: getattr(measured, key) for key in ("miou_kept", "accuracy_kept", "kept")}
    return taxonomy, quality


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for stores, runs and results")
    parser.add_argument("--table", action="store_true", help="print finished rows and do nothing else")
    parser.add_argument("--json", action="store_true", help="print them as JSON")
    parser.add_argument("--rows", help="numbers of the rows to run, from 0, separated by commas")
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)))
    parser.add_argument("--steps", type=int, help="steps per run, to try the script")
    parser.add_argument("--teacher", choices=get_args(Teacher), default="good", help="bad teachers: see teachers.py")
    options = parser.parse_args()
    results = Results(options.work / options.teacher / "results", [row.name for row in ROWS])
    if options.table or options.json:
        results.print_json() if options.json else results.print_table()
        return 0
    data = find_data()
    torch.set_num_threads(1)
    photos = data / "msrc"
    rows = [ROWS[int(number)] for number in options.rows.split(",")] if options.rows else ROWS
    for seed in map(int, options.seeds.split(",")):
        folder = options.work / options.teacher / f"seed{seed}"
        split = Split.of_seed(sorted((photos / "images").glob("*.jpg")), seed)
        taxonomy, quality = make_stores(data, photos, folder, split, options.teacher)
        results.add("labels", seed, quality)
        scored = LabeledImages.open(photos, taxonomy, ids=[photo.stem for photo in split.scored])
        for row in rows:
            corpus = open_corpus(
                stores=[folder / row.store] if row.store else [],
                labeled=photos,
                ids=[photo.stem for photo in split.labeled],
                taxonomy=taxonomy,
            )
            common = COMMON if options.steps is None else {**COMMON, "steps": options.steps}
            recipe = row.recipe(**common, seed=seed)
            results.run(row.name, seed, folder / f"run{ROWS.index(row)}", recipe, corpus, scored)
    results.print_table()
    return 0


if __name__ == "__main__":
    sys.exit(main())
