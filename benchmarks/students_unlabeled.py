"""Students without a teacher at convergence: gain from unlabeled images, by the rule that selects their labels.

    python benchmarks/students_unlabeled.py                  # all rows and seeds that have no figures yet
    python benchmarks/students_unlabeled.py --table          # print the rows with all seeds

Images are shrunk to a third so that a CPU can train on them. ``CamVid``: 37 of the 367 training images are labeled,
the others unlabeled; 40 of the 101 validation images validate and 61 are scored. ``MSRC``, with its own 21 classes: 30
photos are labeled, 138 unlabeled, 48 validate and 80 are scored; long training on so few photos makes an overconfident
student. Every student is the built-in ``lite0`` network.

For each of three seeds a supervised run on the labeled images comes first. On CamVid it is validated every 100 steps
and the best student is kept, on MSRC the last. ``CamVid, flat`` continues on the labeled images alone until
validation is flat, and its rows start with that student. Every row takes 120 more steps from its start at a third
of the learning rate with 4 labeled and 4 unlabeled images each; labeled images alone take four times as many steps of 4
images, which need as much time. All rows but UniMatch have the views of CSL. Scores are those of the student after the
last step, with its mean confidence beside its accuracy; ``selected_…`` are the labels that the rule selects, on the
same images.

Every finished run is a line of the results file at once; finished runs are not repeated, and interrupted ones resume.
``--steps N`` takes N steps per run, to try the script. The data folder is ``$MASKMILL_DATA``, or ``../shared/data``
beside the repository.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from msrc import find_data
from students import Results, write_shrunk
from students_msrc import RESULTS, Split

from maskmill.engine.model.files import read_class_names
from maskmill.engine.model.taxonomy import Taxonomy
from maskmill.trainer.data.corpus import Corpus, classes_taxonomy, open_corpus
from maskmill.trainer.data.parts import LabeledImages
from maskmill.trainer.methods import Consistency
from maskmill.trainer.objectives.pseudo_labels import confidence_and_label, select
from maskmill.trainer.recipes import Recipe, csl, supervised, unimatch
from maskmill.trainer.students.models import load_run
from maskmill.trainer.students.prediction import predict_scores

SEEDS = (0, 1, 2)
SHRINK = 3
NUM_LABELED, NUM_VALIDATION = 37, 40
UNLABELED_INDEX = 11
WARM_STEPS, STEPS, ALONE_STEPS = 1200, 120, 480
FLAT_STEPS, FLAT_EVERY = 8800, 400
"""Steps after :data:`WARM_STEPS` and between two validations."""
COMMON: dict[str, Any] = {
    "crop": 64,
    "scale": (0.8, 1.6),
    "padding": "mean",
    "optimizer": "adamw",
    "lr": 1e-3,
    "head_lr": 3.0,
    "weight_decay": 1e-2,
    "warmup": 20,
    "save_every": 50,
    "channels_last": True,
}
WARM, FLAT = "warm start", "flat start"
CELL = 8
"""Nearly as many cells per crop as the authors' 32 pixels at 321."""


def consistent(recipe: Callable[..., Recipe], **method: Any) -> Callable[..., Recipe]:
    """Return a function that makes ``recipe`` with changed settings of its method."""

    def make(**settings: Any) -> Recipe:
        settings = {"steps": STEPS, "batch": 8, "labeled": 4, **settings}
        return recipe(**settings, method=dataclasses.replace(recipe().method, **method))

    return make


def averaged(recipe: Callable[..., Recipe], ema: float) -> Callable[..., Recipe]:
    """Return a function that makes ``recipe`` with a moving average as the student, and a tenth of the rate."""

    def make(**settings: Any) -> Recipe:
        return recipe(**{**settings, "lr": COMMON["lr"] / 10, "ema": ema})

    return make


ALONE, CSL = "labeled images alone, equal time", "CSL: PCOS and mask perturbation"
CONFIDENT = "confidence ≥ .95"
ROWS: Mapping[str, Callable[..., Recipe]] = {
    ALONE: partial(supervised, batch=4, steps=ALONE_STEPS),
    CONFIDENT: consistent(csl, selection="threshold", cover_probability=0.0),
    "PCOS": consistent(csl, cover_probability=0.0),
    CSL: consistent(csl, cell=CELL),
    "UniMatch": consistent(unimatch),
    "confidence, as many pixels as PCOS": consistent(csl, selection="matched", cover_probability=0.0),
}
"""In the order of their importance."""
MORE_ROWS: Mapping[str, Callable[..., Recipe]] = {
    "PCOS per class": consistent(csl, groups="class", cover_probability=0.0),
    "conformal": consistent(csl, selection="conformal", cover_probability=0.0, recalibrate=40),
}
OURS = "ours: PCOS per class, averaged, a tenth of the rate"
OUR_ROWS: Mapping[str, Callable[..., Recipe]] = {
    OURS: averaged(consistent(csl, groups="class", cover_probability=0.0, teacher="average"), ema=0.98),
    "labeled images alone, averaged, a tenth of the rate": averaged(ROWS[ALONE], ema=0.99),
}
"""The candidate with the best validation mIoU, and the same without unlabeled images."""
LONGER = 4
ALONE_LONGER, CSL_LONGER, CONFIDENT_LONGER = (f"{name}, {LONGER} times as long" for name in (ALONE, CSL, CONFIDENT))
LONG_ROWS: Mapping[str, Callable[..., Recipe]] = {
    ALONE_LONGER: partial(ROWS[ALONE], steps=LONGER * ALONE_STEPS),
    CSL_LONGER: partial(ROWS[CSL], steps=LONGER * STEPS),
    CONFIDENT_LONGER: partial(ROWS[CONFIDENT], steps=LONGER * STEPS),
}
"""Longer rows: labeled images alone show if the baseline is flat."""
BOUND = "true labels of all images, equal time"
"""Bound of every selection: the unlabeled images with their true labels."""
ALL_ROWS = {**ROWS, **MORE_ROWS, **OUR_ROWS, **LONG_ROWS, BOUND: ROWS[ALONE]}
CLASS_ROWS = (CONFIDENT, "PCOS", OURS, BOUND)
"""Rows whose IoU of each class is shown."""


@dataclasses.dataclass(frozen=True)
class DataSet:
    """A data set of small images."""

    name: str
    train: Path
    """``images`` and ``labels`` of the labeled and unlabeled images."""
    held_out: Path
    taxonomy: Taxonomy
    flat: bool = False
    """True if the rows start with the student of :data:`FLAT`, False for that of :data:`WARM`."""

    @property
    def group(self) -> str:
        """Name of the rows' group in the results."""
        return f"{self.name}, flat" if self.flat else self.name

    @classmethod
    def camvid_flat(cls, work: Path) -> DataSet:
        """Return CamVid with rows that start from a flat validation curve."""
        return dataclasses.replace(cls.camvid(work), flat=True)

    @classmethod
    def camvid(cls, work: Path) -> DataSet:
        """Return CamVid with its 11 classes."""
        data = find_data() / "camvid"
        train, held_out = (
            write_shrunk(data / part / "images", data / part / "labels", work / "camvid" / part, SHRINK)
            for part in ("train", "val")
        )
        classes = [name for index, name in read_class_names(data / "classes.txt").items() if index != UNLABELED_INDEX]
        taxonomy = classes_taxonomy(classes)
        taxonomy = dataclasses.replace(taxonomy, labels={**taxonomy.labels, UNLABELED_INDEX: -1})
        return cls("CamVid", train, held_out, taxonomy)

    @classmethod
    def msrc(cls, work: Path) -> DataSet:
        """Return MSRC with its own classes; void is ignored."""
        data = find_data() / "msrc"
        folder = write_shrunk(data / "images", data / "labels", work / "msrc", SHRINK)
        names = read_class_names(data / "classes.txt")
        classes = [name for name in names.values() if name != "void"]
        labels = {index: -1 if name == "void" else classes.index(name) for index, name in names.items()}
        return cls("MSRC", folder, folder, dataclasses.replace(classes_taxonomy(classes), labels=labels))

    def split(self, seed: int) -> tuple[list[str], list[str], list[str], list[str]]:
        """Return the names of the labeled, unlabeled, validation and scored images of a seed."""
        images = sorted((self.train / "images").iterdir())
        if self.name == "MSRC":
            parts = Split.of_seed(images, seed)
            labeled, unlabeled, validation, scored = (
                [path.stem for path in part]
                for part in (parts.labeled, parts.unlabeled, parts.validation, parts.scored)
            )
            return labeled, unlabeled, validation, scored
        rng = np.random.default_rng(seed)
        names = [images[index].stem for index in rng.permutation(len(images))]
        others = sorted(path.stem for path in (self.held_out / "images").iterdir())
        others = [others[index] for index in rng.permutation(len(others))]
        return names[:NUM_LABELED], names[NUM_LABELED:], others[:NUM_VALIDATION], others[NUM_VALIDATION:]


def compare_selections(run: Path, images: LabeledImages) -> dict[str, dict[str, Any]]:
    """Measure the labels that rules would select from a student: share of the labeled pixels, and accuracy.

    ``weight``: both are weighted by PCOS. ``reliable``: pixels that PCOS calls reliable. ``most confident``: as many
    pixels of each image with the highest confidence. ``classes``: share of the pixels of each true class that is
    selected, and share of these that has another label.
    """
    student, method = load_run(run), Consistency()
    num_classes = len(student.run.classes)
    sums: dict[str, np.ndarray] = {}
    for number in range(len(images.uris)):
        sample = images.read(number)
        scores = predict_scores(student.module, sample.image, student.run)
        logits = scores.scores if scores.layout == "CHW" else np.moveaxis(scores.scores, -1, 0)
        truth = torch.from_numpy(sample.label.astype(np.int64))[None]
        valid = truth < num_classes
        maps = torch.from_numpy(np.array(logits, np.float32))[None]
        own = select(maps, torch.ones_like(valid), method, ignore=student.run.ignore)
        confidence, label = confidence_and_label(maps, valid)
        order = confidence.flatten().argsort(descending=True, stable=True)
        rank = torch.empty_like(order)
        rank[order] = torch.arange(len(order))
        rank = rank.view_as(label)
        masks = {
            "all": torch.ones_like(confidence),
            "confidence ≥ .95": confidence >= 0.95,
            "PCOS, weight": own.weight,
            "most confident, as many as the weight of PCOS": rank < own.weight.sum(),
            "PCOS, reliable": own.reliable,
            "most confident, as many as PCOS calls reliable": rank < own.reliable.sum(),
        }
        for rule, mask in masks.items():
            kept = (mask * valid).double()[valid]
            weights = (torch.ones_like(kept), kept, kept * (label == truth)[valid], kept * confidence[valid])
            counts = [torch.bincount(truth[valid], weight, minlength=num_classes).numpy() for weight in weights]
            sums[rule] = sums.get(rule, 0) + np.array(counts)
    return {rule: _selection_figures(values, student.run.classes) for rule, values in sums.items()}


def _selection_figures(values: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """Summarize (4, K) sums by true class: pixels, selected, right among these, confidence of these."""
    pixels, kept, right, confidence = values.sum(axis=1)
    return {
        "share": round(kept / pixels, 5),
        "accuracy": round(right / kept, 5),
        "confidence": round(confidence / kept, 5),
        "classes": {
            name: [round(counts[1] / counts[0], 4), round(1 - counts[2] / counts[1], 4)]
            for name, counts in zip(classes, values.T, strict=True)
            if counts[0] and counts[1]
        },
    }


def run_seed(
    results: Results, data: DataSet, seed: int, rows: Mapping[str, Callable[..., Recipe]], work: Path, steps: int | None
) -> None:
    """Train the start of a seed and the rows that have no figures yet."""
    if all(results.find(data.group, row, seed) for row in rows):
        return
    labeled, unlabeled, validation, scored = data.split(seed)
    folder = work / data.name / f"seed{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "unlabeled.txt").write_text(
        "\n".join(str((data.train / "images" / f"{name}.png").resolve()) for name in unlabeled)
    )
    sets = {
        "validation": LabeledImages.open(data.held_out, data.taxonomy, ids=validation),
        "scored": LabeledImages.open(data.held_out, data.taxonomy, ids=scored),
    }

    def corpus(**more: Any) -> Corpus:
        return open_corpus(
            labeled=data.train, ids=labeled, unlabeled=folder / "unlabeled.txt", taxonomy=data.taxonomy, **more
        )

    def start_of(row: str, recipe: Recipe, init: Path | None = None) -> Path:
        """Train a start and record its curve and the labels that rules would select from it."""
        run = folder / row.split()[0]
        group = data.group if row == FLAT else data.name
        results.run(group, row, seed, run, recipe, corpus(**validated), sets, init=init, keep=True)
        if validated and results.find(group, f"{row}: validation", seed) is None:
            results.add(group, f"{row}: validation", seed, {"miou_by_step": read_curve(run)})
        if results.find(group, f"{row}: selections", seed) is None:
            results.add(group, f"{row}: selections", seed, {"selections": compare_selections(run, sets["scored"])})
        return run

    validated = {} if data.name == "MSRC" else {"validation": data.held_out, "validation_ids": validation}
    init = start_of(WARM, supervised(**COMMON, batch=4, steps=steps or WARM_STEPS, seed=seed, validate_every=100))
    if data.flat:
        longer = supervised(**COMMON, batch=4, steps=steps or FLAT_STEPS, seed=seed, validate_every=FLAT_EVERY)
        init = start_of(FLAT, longer, init)
    settings = {**COMMON, "lr": COMMON["lr"] / 3, "seed": seed} | ({} if steps is None else {"steps": steps})
    for row, recipe in rows.items():
        run = folder / f"{init.name}-run{list(ALL_ROWS).index(row)}"
        images = corpus()
        if row == BOUND:
            images = open_corpus(labeled=data.train, ids=[*labeled, *unlabeled], taxonomy=data.taxonomy)
        results.run(data.group, row, seed, run, recipe(**settings), images, sets, init=init)


def rows_of(group: str) -> list[str]:
    """Return the names of the rows of a group."""
    if group == "CamVid":
        return [WARM, *ROWS, ALONE_LONGER, CSL_LONGER]
    if group == "MSRC":
        return [WARM, *ROWS, *OUR_ROWS, ALONE_LONGER]
    return [FLAT, *ROWS, *MORE_ROWS, *OUR_ROWS, ALONE_LONGER, CONFIDENT_LONGER, BOUND]


def read_curve(run: Path) -> dict[int, float]:
    """Read the validation mIoU of a run by step."""
    with (run / "log.csv").open() as log:
        return {int(row["step"]): round(float(row["miou"]), 4) for row in csv.DictReader(log) if row.get("miou")}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--work", type=Path, default=Path("build/students-unlabeled"), help="folder for images and runs"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="file of results")
    parser.add_argument("--table", action="store_true", help="print finished rows and do nothing else")
    parser.add_argument("--data", default="camvid,camvid_flat,msrc", help="data sets, separated by commas")
    parser.add_argument("--rows", help="names of the rows to run, or parts of them, separated by semicolons")
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)))
    parser.add_argument("--steps", type=int, help="steps per run, to try the script")
    options = parser.parse_args()
    results, seeds = Results(options.results, "students_unlabeled"), [int(seed) for seed in options.seeds.split(",")]
    if options.table:
        results.print_table(["CamVid", "CamVid, flat", "MSRC"], seeds, "scored")
        return 0
    torch.set_num_threads(1)
    parts = options.rows.split(";") if options.rows else [""]
    names = {name for part in parts for name in ALL_ROWS if (name == part if part in ALL_ROWS else part in name)}
    rows = {name: recipe for name, recipe in ALL_ROWS.items() if name in names}
    for name in options.data.split(","):
        data = getattr(DataSet, name)(options.work)
        for row, recipe in ((row, recipe) for row, recipe in rows.items() if row in rows_of(data.group)):
            for seed in seeds:
                run_seed(results, data, seed, {row: recipe}, options.work, options.steps)
    return 0


if __name__ == "__main__":
    sys.exit(main())
