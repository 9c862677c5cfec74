"""Students of MSRC: gain from the labels of a good and of two bad teachers, by the rule that selects them.

    python benchmarks/students_msrc.py                 # all rows and seeds that have no figures yet
    python benchmarks/students_msrc.py --table         # print the rows with all seeds

Photos are shrunk to a third, about 107x71 pixels, so that a CPU can train on them. For each of three seeds 30 are
labeled, 138 unlabeled, 48 validate choices and 80 are scored. Teachers are files of scores (``teachers.py``): ``good``,
``blurred`` and ``eager``, which predicts objects everywhere; they processed the photos at full size. The 30 labeled
photos calibrate them by class at alpha .10, with the defaults of ``calibrate``: a class in fewer than nine of the
photos takes the threshold of the pooled foreground, a class in none is not emitted. ``own thresholds`` gives every
class in the photos its own. Every student is the built-in ``lite0`` network and takes the same number of steps of the
same size with the same optimizer: rows differ in the labels of the 138 photos alone, and in the second phase of
ConformalSAM, which is added. Scores are those of the student after the last step.

Every finished run is a line of the results file at once; finished runs are not repeated, and interrupted ones resume.
``--steps N`` takes N steps per run, to try the script. The data folder is ``$MASKMILL_DATA``, or ``../shared/data``
beside the repository.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from msrc import adopt, find_data
from students import Results, write_shrunk
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
from maskmill.engine.report.evaluate import evaluate_store
from maskmill.engine.store.label_store import LabelStore
from maskmill.kernels.types import Rule
from maskmill.trainer.data.corpus import open_corpus
from maskmill.trainer.data.parts import LabeledImages
from maskmill.trainer.recipes import Recipe, conformalsam, csl, supervised

RESULTS = Path(__file__).parent / "results" / "2026-11-28-students.jsonl"
SEEDS = (0, 1, 2)
NUM_LABELED, NUM_VALIDATION, NUM_SCORED = 30, 48, 80
ALPHA = "0.10"
SHRINK = 3
NONE = "no teacher"
COMMON: dict[str, Any] = {
    "steps": 200,
    "batch": 8,
    "crop": 64,
    "scale": (0.7, 1.4),
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

    recipe: Callable[..., Recipe]
    labels: str
    """Name of the labels of the unlabeled photos; see :func:`selection_of`."""


ROWS: Mapping[str, Row] = {
    "+ raw labels": Row(supervised, "raw"),
    "+ conformal, rule agree": Row(supervised, "agree"),
    "+ conformal, rule foreground": Row(supervised, "foreground"),
    "+ confidence ≥ .9": Row(supervised, "confidence .9"),
    "ConformalSAM, two phases": Row(conformalsam, "foreground"),
    "+ conformal, rule argmax": Row(supervised, "argmax"),
    "+ confidence ≥ .7": Row(supervised, "confidence .7"),
    "raw labels, two phases": Row(conformalsam, "raw"),
    "rule agree, two phases": Row(conformalsam, "agree"),
    "+ conformal, rule agree, own thresholds": Row(supervised, "agree, own thresholds"),
    "+ conformal, rule single": Row(supervised, "single"),
}
"""In the order of their importance."""
ALONE = "labeled photos alone"
ALONE_LONGER = "labeled photos alone, 300 steps"
"""As long as the rows of :data:`SECOND`."""
FIRST = "+ conformal, rule agree"
"""Row whose student is the start of the rows of :data:`SECOND`."""
THEN = "rule agree, then labeled photos alone"
"""Row of :data:`SECOND` whose student is the start of the rows of :data:`THIRD`."""


def consistent(**method: Any) -> Callable[..., Recipe]:
    """Return a function that makes the recipe ``csl`` with changed settings of its method."""

    def make(**settings: Any) -> Recipe:
        settings = {"labeled": 4, **settings, "lr": COMMON["lr"] / 3}
        return csl(**settings, method=dataclasses.replace(csl().method, **method))

    return make


def labeled_alone(**settings: Any) -> Recipe:
    """Make the control of the rows of :data:`SECOND` and :data:`THIRD`."""
    return supervised(**{**settings, "lr": COMMON["lr"] / 3})


SECOND: Mapping[str, Callable[..., Recipe]] = {
    THEN: labeled_alone,
    "rule agree, then own labels, conformal": consistent(selection="conformal", cover_probability=0.0, recalibrate=25),
    "rule agree, then own labels, PCOS": consistent(cover_probability=0.0),
    "rule agree, then own labels, conformal and PCOS": consistent(
        selection="conformal-pcos", cover_probability=0.0, recalibrate=25
    ),
    "rule agree, then own labels, conformal, masked and screened": consistent(
        selection="conformal", cell=8, screen=0.9, recalibrate=25
    ),
}
"""Second stages: 100 steps from the student of :data:`FIRST`, with photos that it labels itself."""
TRUE_LABELS = "third stage: true labels of all photos"
THIRD: Mapping[str, Callable[..., Recipe]] = {
    "third stage: labeled photos alone": labeled_alone,
    TRUE_LABELS: labeled_alone,
    "third stage: PCOS": consistent(cover_probability=0.0),
}
"""Third stages of the teacher ``eager``: 100 steps from the student of :data:`THEN`. True labels of all photos are the
bound of every selection.
"""
SECOND_STEPS = 100


@dataclasses.dataclass(frozen=True)
class Split:
    """The photos of a seed."""

    labeled: Sequence[Path]
    unlabeled: Sequence[Path]
    validation: Sequence[Path]
    scored: Sequence[Path]

    @classmethod
    def of_seed(cls, photos: Sequence[Path], seed: int) -> Split:
        """Draw a random split."""
        order = [photos[index] for index in np.random.default_rng(seed).permutation(len(photos))]
        tested = len(order) - NUM_SCORED
        known = tested - NUM_VALIDATION
        return cls(order[:NUM_LABELED], order[NUM_LABELED:known], order[known:tested], order[tested:])


@dataclasses.dataclass(frozen=True)
class Photos:
    """The shrunk photos, their classes, and the scores of the teachers."""

    data: Path
    work: Path
    folder: Path
    """``images`` and ``labels`` at a third of the size."""
    taxonomy: Taxonomy
    files: Sequence[Path]

    @classmethod
    def open(cls, work: Path) -> Photos:
        """Shrink the photos, unless that is done."""
        data = find_data()
        work.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as name:
            _, taxonomy = adopt(data, Path(name), antialias=True)
        folder = write_shrunk(data / "msrc" / "images", data / "msrc" / "labels", work / "photos", SHRINK)
        return cls(data, work, folder, taxonomy, sorted((folder / "images").iterdir()))

    def teacher(self, kind: Teacher) -> ScoreFiles:
        """Open a teacher; writes its scores the first time."""

        def truth_of(photo: Path) -> np.ndarray:
            path = self.data / "msrc" / "labels" / f"{photo.stem}.png"
            return self.taxonomy.encode(read_label_map(path), str(path))

        photos = sorted((self.data / "msrc" / "images").glob("*.jpg"))
        write_teacher(kind, self.data, photos, truth_of, self.work)
        return ScoreFiles.open(self.work / kind)

    def calibrate(self, predictor: Predictor, photos: Sequence[Path], rule: Rule, **options: Any) -> Calibration:
        """Calibrate a teacher on some photos."""
        source, labels = open_source(self.folder / "images"), LabelFolder(self.folder / "labels")
        ids = frozenset(photo.stem for photo in photos)
        settings = {"alpha": ALPHA, "group": "class"} | options
        return calibrate(predictor, source, labels, self.taxonomy, rule=rule, ids=ids, **settings)

    def images(self, photos: Sequence[Path]) -> LabeledImages:
        """Open some photos with their true labels."""
        return LabeledImages.open(self.folder, self.taxonomy, ids=[photo.stem for photo in photos])


def selection_of(name: str, photos: Photos, predictor: Predictor, split: Split) -> Selection:
    """Return the selection of a row's labels, calibrated on the labeled photos."""
    if name == "raw":
        return Selection.argmax()
    if name.startswith("confidence"):
        return Selection.threshold(float(name.split()[1]))
    rule, _, own = name.partition(", ")
    if rule not in get_args(Rule):
        raise ValueError(name)
    options = {"min_images": 1} if own else {}
    return Selection.conformal(photos.calibrate(predictor, split.labeled, rule, **options))


def label_photos(name: str, photos: Photos, teacher: Teacher, split: Split, folder: Path) -> dict[str, float]:
    """Label the unlabeled photos into a store; returns the quality of the labels."""
    predictor = photos.teacher(teacher)
    selection = selection_of(name, photos, predictor, split)
    folder.parent.mkdir(parents=True, exist_ok=True)
    listed = folder.with_suffix(".txt")
    listed.write_text("\n".join(str(photo.resolve()) for photo in split.unlabeled))
    label(predictor, open_source(listed), folder, photos.taxonomy, selection)
    quality = evaluate_store(LabelStore.open(folder), LabelFolder(photos.folder / "labels"), photos.taxonomy)
    return {key: round(float(getattr(quality, key)), 5) for key in ("miou_kept", "accuracy_kept", "kept")}


def train_row(
    results: Results,
    photos: Photos,
    name: str,
    teacher: Teacher | None,
    seed: int,
    steps: int | None,
    *,
    student_needed: bool = False,
) -> None:
    """Label, train and score one row with one seed, unless its figures, and the student if needed, exist."""
    group, row = teacher or NONE, ROWS.get(name)
    folder = photos.work / group.replace(" ", "-") / f"seed{seed}"
    number = -1 if name == ALONE_LONGER else 0 if row is None else 1 + list(ROWS).index(name)
    needed = student_needed and not (folder / f"run{number}").exists()
    if results.find(group, name, seed) is not None and not needed:
        return
    split = Split.of_seed(photos.files, seed)
    stores = []
    if row is not None and teacher is not None:
        store = folder / f"labels-{row.labels.replace(' ', '-').replace(',', '')}"
        quality = label_photos(row.labels, photos, teacher, split, store)
        if results.find(group, f"labels: {row.labels}", seed) is None:
            results.add(group, f"labels: {row.labels}", seed, {"labels": quality})
        stores = [store]
    corpus = open_corpus(
        stores=stores, labeled=photos.folder, ids=[photo.stem for photo in split.labeled], taxonomy=photos.taxonomy
    )
    usual = COMMON["steps"] + (SECOND_STEPS if name == ALONE_LONGER else 0)
    common = {**COMMON, "steps": steps or usual}
    recipe = (supervised if row is None else row.recipe)(**common, seed=seed)
    keep = name == FIRST
    scored = {"validation": photos.images(split.validation), "scored": photos.images(split.scored)}
    results.run(group, name, seed, folder / f"run{number}", recipe, corpus, scored, keep=keep)


def train_later(
    results: Results,
    photos: Photos,
    name: str,
    teacher: Teacher,
    seed: int,
    steps: int | None,
    *,
    student_needed: bool = False,
) -> None:
    """Train and score a later stage, unless its figures, and the student if needed, exist."""
    split, folder = Split.of_seed(photos.files, seed), photos.work / teacher / f"seed{seed}"
    third, then = name in THIRD, folder / f"second{list(SECOND).index(THEN)}"
    output = folder / (f"third{list(THIRD).index(name)}" if third else f"second{list(SECOND).index(name)}")
    if results.find(teacher, name, seed) is not None and not (student_needed and not output.exists()):
        return
    if third:
        train_later(results, photos, THEN, teacher, seed, steps, student_needed=True)
    else:
        train_row(results, photos, FIRST, teacher, seed, steps, student_needed=True)
    listed = folder / "unlabeled.txt"
    listed.write_text("\n".join(str(photo.resolve()) for photo in split.unlabeled))
    known = [*split.labeled, *split.unlabeled] if name == TRUE_LABELS else split.labeled
    unlabeled = {} if name == TRUE_LABELS else {"unlabeled": listed}
    ids = [photo.stem for photo in known]
    corpus = open_corpus(labeled=photos.folder, ids=ids, taxonomy=photos.taxonomy, **unlabeled)
    recipe = {**SECOND, **THIRD}[name](**{**COMMON, "steps": steps or SECOND_STEPS}, seed=seed)
    scored = {"validation": photos.images(split.validation), "scored": photos.images(split.scored)}
    first = then if third else folder / f"run{1 + list(ROWS).index(FIRST)}"
    results.run(teacher, name, seed, output, recipe, corpus, scored, init=first, keep=name == THEN)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/students-msrc"), help="folder for stores and runs")
    parser.add_argument("--results", type=Path, default=RESULTS, help="file of results")
    parser.add_argument("--table", action="store_true", help="print finished rows and do nothing else")
    parser.add_argument("--rows", help="parts of the names of the rows to run, separated by semicolons")
    parser.add_argument("--teachers", help="teachers of the rows to run, separated by commas")
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)))
    parser.add_argument("--steps", type=int, help="steps per run, to try the script")
    options = parser.parse_args()
    results, seeds = Results(options.results, "students_msrc"), [int(seed) for seed in options.seeds.split(",")]
    if options.table:
        results.print_table([NONE, *get_args(Teacher)], seeds, "scored")
        return 0
    torch.set_num_threads(1)
    photos = Photos.open(options.work)
    parts = options.rows.split(";") if options.rows else [""]
    jobs: list[tuple[str, Teacher | None]] = [(ALONE, None), (ALONE_LONGER, None)]
    chosen: tuple[Teacher, ...] = tuple(
        teacher
        for teacher in get_args(Teacher)
        if (teacher in options.teachers.split(",") if options.teachers else teacher != "good")
    )
    names = list(ROWS)
    for name in [*names[:4], *SECOND, *names[4:]]:
        jobs += [(name, teacher) for teacher in chosen]
    jobs += [(name, teacher) for name in THIRD for teacher in chosen if teacher == "eager"]
    for name, teacher in jobs:
        if any(part in name for part in parts):
            for seed in seeds:
                if teacher is not None and name in (*SECOND, *THIRD):
                    train_later(results, photos, name, teacher, seed, options.steps)
                else:
                    train_row(results, photos, name, teacher, seed, options.steps)
    return 0


if __name__ == "__main__":
    sys.exit(main())
