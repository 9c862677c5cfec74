"""The demonstration's last part: a student trained on the labels that were vouched for.

It learns from the thirty tiles with true labels that calibrated the teacher and from the vouched labels of the eighty
others, whose truth it never sees, and is measured on those against what the teacher itself said::

    figures = run_demo(output, console=console)
    figures["student"] = run_student(output / "earth", figures, console=console)
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.corpus import open_corpus
from ..data.datasets import LabeledImages
from ..evaluate import run_taxonomy, score_images
from ..recipes import weighted
from ..run import import_torch
from ..students.models import load_run
from ..train import train

if TYPE_CHECKING:
    from rich.console import Console

_SETTINGS: dict[str, Any] = {
    "steps": 500,
    "batch": 8,
    "labeled": 4,
    "crop": 96,
    "scale": (0.8, 1.4),
    "optimizer": "adamw",
    "lr": 1e-3,
    "head_lr": 3.0,
    "weight_decay": 0.01,
    "warmup": 20,
}
"""For about a minute on two cores; half of each step has true labels, which alone show all of the rare zones."""


def run_student(folder: Path, figures: Mapping[str, Any], *, console: Console) -> dict[str, float]:
    """Train a student in the demonstration's folder, measure it, and print one table of teacher, labels and student.

    ``figures`` are those of the demonstration, whose labels are in the folder. Returns ``accuracy``, ``miou`` and
    ``seconds``. Raises :class:`MissingPackageError` without the packages of the ``train`` extra.
    """
    import_torch()
    started = time.perf_counter()
    run, store = folder / "student", folder / "labels" / "conformal"
    shutil.rmtree(run, ignore_errors=True)
    recipe = weighted(**_SETTINGS)
    corpus = open_corpus(stores=[store], labeled=folder / "calibration")
    console.print(
        f"Training a student on the vouched labels and on the calibration tiles: {recipe.steps} steps of "
        f"{recipe.batch} tiles (about a minute)"
    )
    if train(run, recipe, corpus, device="cpu", workers=0).interrupted:
        raise KeyboardInterrupt
    student = load_run(run)
    scores = score_images(student.module, LabeledImages.open(folder / "scored", run_taxonomy(student.run)), student.run)
    found = {"accuracy": scores.accuracy, "miou": scores.miou, "seconds": time.perf_counter() - started}
    _print_table(figures, found, console)
    return found


def _print_table(figures: Mapping[str, Any], student: Mapping[str, float], console: Console) -> None:
    from rich.table import Table

    table = Table(title="Teacher, labels and student on the tiles whose truth none of them was shown")
    table.add_column("who says it")
    for column in ("accuracy", "mIoU", "of the pixels"):
        table.add_column(column, justify="right")
    for title, name in (("the teacher", "argmax"), ("the labels it can vouch for", "conformal")):
        found = figures[name]
        table.add_row(title, f"{found['accuracy_kept']:.3f}", f"{found['miou_kept']:.3f}", f"{found['kept']:.3f}")
    table.add_row("a student of these labels", f"{student['accuracy']:.3f}", f"{student['miou']:.3f}", "1.000")
    console.print(table)
