"""Students of CamVid without a teacher: what unlabeled images are worth, by how the student's own labels count.

    python benchmarks/students_camvid.py --work /tmp/students-camvid          # all rows and seeds, about 50 minutes
    python benchmarks/students_camvid.py --work /tmp/students-camvid --table  # print what is there, or --json

Images are halved, to 240x180 pixels, so that a processor can train on them. For each of three seeds 37 of the 367
training images are labeled and the others unlabeled; the 101 validation images are scored. Every student is the
built-in ``lite0`` network and takes the same number of steps with 4 labeled images each; all but the first see 4
unlabeled ones as well. Scores are those of the student after the last step.

A run that is done is not done again, and one that was stopped goes on; results are files in the work folder.

The data folder is ``$MASKMILL_DATA``, or ``../shared/data`` beside the repository.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from msrc import find_data
from students import Results, write_halved

from maskmill.engine.model.files import read_class_names
from maskmill.trainer.data.corpus import classes_taxonomy, open_corpus
from maskmill.trainer.data.datasets import LabeledImages
from maskmill.trainer.methods import Consistency
from maskmill.trainer.recipes import Recipe, csl, supervised

SEEDS = (0, 1, 2)
NUM_LABELED = 37
UNLABELED_INDEX = 11
COMMON: dict[str, Any] = {
    "steps": 480,
    "crop": 128,
    "scale": (0.8, 1.6),
    "optimizer": "adamw",
    "lr": 1e-3,
    "head_lr": 3.0,
    "weight_decay": 1e-2,
    "warmup": 20,
}
CELL = 16
"""As many cells a crop as the authors' 32 pixels at 321, roughly."""


def of_method(method: Consistency | None) -> Recipe:
    """The recipe of a row: labeled images alone, or a method."""
    if method is None:
        return supervised(**COMMON, batch=4)
    return csl(**COMMON, batch=8, labeled=4, method=method)


RAMP = 0.6
"""Of the unlabeled losses. CSL trusts half of every image or more from the first step on, which drowned the rarest
class in seed 0 without a ramp: .503 mIoU with an IoU of 0 for bicyclists, .532 with it."""

ROWS: dict[str, Consistency | None] = {
    "labeled images alone": None,
    "confidence ≥ .95": Consistency(selection="threshold", cover_probability=0.0, ramp=RAMP),
    "CSL without mask perturbation": Consistency(cover_probability=0.0, ramp=RAMP),
    "CSL": Consistency(cell=CELL, ramp=RAMP),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for images, runs and results")
    parser.add_argument("--table", action="store_true", help="print the results and do nothing")
    parser.add_argument("--json", action="store_true", help="the same as JSON")
    parser.add_argument("--rows", help="numbers of the rows to run, from 0, with commas between")
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)))
    options = parser.parse_args()
    names = list(ROWS)
    results = Results(options.work / "results", names)
    if options.table or options.json:
        results.print_json() if options.json else results.print_table()
        return 0
    data = find_data() / "camvid"
    torch.set_num_threads(1)
    train, val = (
        write_halved(data / part / "images", data / part / "labels", options.work / part) for part in ("train", "val")
    )
    classes = [name for index, name in read_class_names(data / "classes.txt").items() if index != UNLABELED_INDEX]
    taxonomy = classes_taxonomy(classes)
    taxonomy = dataclasses.replace(taxonomy, labels={**taxonomy.labels, UNLABELED_INDEX: -1})
    images = sorted(path.stem for path in (train / "images").iterdir())
    scored = LabeledImages.open(val, taxonomy)
    rows = [names[int(number)] for number in options.rows.split(",")] if options.rows else names
    for seed in map(int, options.seeds.split(",")):
        ids = [images[index] for index in np.random.default_rng(seed).permutation(len(images))[:NUM_LABELED]]
        corpus = open_corpus(labeled=train, ids=ids, unlabeled=train / "images", taxonomy=taxonomy)
        for row in rows:
            recipe = dataclasses.replace(of_method(ROWS[row]), seed=seed)
            results.run(row, seed, options.work / f"seed{seed}" / f"run{names.index(row)}", recipe, corpus, scored)
    results.print_table()
    return 0


if __name__ == "__main__":
    sys.exit(main())
