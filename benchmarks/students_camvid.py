"""Students of CamVid without a teacher: gain from unlabeled images, by the method that labels them.

    python benchmarks/students_camvid.py --work /tmp/students-camvid          # all rows and seeds
    python benchmarks/students_camvid.py --work /tmp/students-camvid --table  # print finished rows, or --json

Images are halved, to 240x180 pixels, so that a CPU can train on them. For each of three seeds 37 of the 367 training
images are labeled and the others unlabeled; the 101 validation images are scored. Every student is the built-in
``lite0`` network. A supervised run of 1,200 steps on the labeled images comes first; every row starts with its student
and takes 480 more steps with 4 labeled images each, all but the first with 4 unlabeled ones as well. Scores are those
of the student after the last step, with its mean confidence beside its accuracy.

Finished runs are not repeated, and interrupted ones resume; results are files in the work folder. ``--steps N`` takes N
steps per run, to try the script.

The data folder is ``$MASKMILL_DATA``, or ``../shared/data`` beside the repository.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from msrc import find_data
from students import Results, write_halved

from maskmill.engine.model.files import read_class_names
from maskmill.trainer.data.corpus import classes_taxonomy, open_corpus
from maskmill.trainer.data.datasets import LabeledImages
from maskmill.trainer.recipes import Recipe, csl, fixmatch, supervised, unimatch

SEEDS = (0, 1, 2)
NUM_LABELED = 37
UNLABELED_INDEX = 11
WARM_STEPS, STEPS = 1200, 480
COMMON: dict[str, Any] = {
    "crop": 128,
    "scale": (0.8, 1.6),
    "padding": "mean",
    "optimizer": "adamw",
    "lr": 1e-3,
    "head_lr": 3.0,
    "weight_decay": 1e-2,
    "warmup": 20,
}
WARM = "warm start"
CELL = 16
"""Nearly as many cells per crop as the authors' 32 pixels at 321."""


def consistent(recipe: Callable[..., Recipe], **method: Any) -> Callable[..., Recipe]:
    """Return a function that makes ``recipe`` with changed settings of its method."""

    def make(**settings: Any) -> Recipe:
        base = recipe()
        return recipe(**settings, batch=8, labeled=4, method=dataclasses.replace(base.method, **method))

    return make


ROWS: dict[str, Callable[..., Recipe]] = {
    "labeled images alone": partial(supervised, batch=4),
    "FixMatch": consistent(fixmatch),
    "UniMatch": consistent(unimatch),
    "CSL without mask perturbation": consistent(csl, cover_probability=0.0),
    "CSL": consistent(csl, cell=CELL),
    "CSL as in its supplement": consistent(csl, cell=CELL, pcos="supplement", mask_form="supplement"),
    "CSL by class": consistent(csl, cell=CELL, groups="class"),
    "CSL, screened labels under the mask": consistent(csl, cell=CELL, screen=0.9),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for images, runs and results")
    parser.add_argument("--table", action="store_true", help="print finished rows and do nothing else")
    parser.add_argument("--json", action="store_true", help="print them as JSON")
    parser.add_argument("--rows", help="numbers of the rows to run, from 0, separated by commas")
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)))
    parser.add_argument("--steps", type=int, help="steps per run, to try the script")
    options = parser.parse_args()
    names = list(ROWS)
    results = Results(options.work / "results", [*names, WARM])
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
        folder = options.work / f"seed{seed}"
        warm = supervised(**COMMON, batch=4, steps=options.steps or WARM_STEPS, seed=seed)
        results.run(WARM, seed, folder / "warm", warm, corpus, scored)
        for row in rows:
            recipe = ROWS[row](**COMMON, steps=options.steps or STEPS, seed=seed)
            path = folder / f"run{names.index(row)}"
            results.run(row, seed, path, recipe, corpus, scored, init=folder / "warm")
    results.print_table()
    return 0


if __name__ == "__main__":
    sys.exit(main())
