"""Last part of the demonstration: train a student on the conformal labels.

The student learns from the true labels of the thirty calibration tiles and from the conformal labels of the eighty
other tiles, and is measured on the true labels of these eighty, which it never sees::

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
from ..data.parts import LabeledImages
from ..evaluate import score_images
from ..recipes import weighted
from ..run import import_torch
from ..students.models import load_run
from ..students.prediction import run_taxonomy
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
"""About a minute on two cores. Half of each batch has true labels, the only ones with all rare zones."""


def run_student(folder: Path, figures: Mapping[str, Any], *, console: Console) -> dict[str, float]:
    """Train and measure a student in the folder of the demonstration; print a table of teacher, labels and student.

    ``figures`` are the result of :func:`.run.run_demo`. Returns ``accuracy``, ``miou`` and
    ``seconds``. Raises :class:`MissingPackageError` without the packages of the ``train`` extra.
    """
    import_torch()
    start = time.perf_counter()
    run, store = folder / "student", folder / "labels" / "conformal"
    shutil.rmtree(run, ignore_errors=True)
    recipe = weighted(**_SETTINGS)
    corpus = open_corpus(stores=[store], labeled=folder / "calibration", run=run)
    console.print(
        f"Training a student on the conformal labels and the calibration tiles: {recipe.steps} steps of "
        f"{recipe.batch} tiles (about a minute)"
    )
    if train(run, recipe, corpus, device="cpu", workers=0).interrupted:
        raise KeyboardInterrupt
    student = load_run(run)
    scores = score_images(student.module, LabeledImages.open(folder / "scored", run_taxonomy(student.run)), student.run)
    quality = {"accuracy": scores.accuracy, "miou": scores.miou, "seconds": time.perf_counter() - start}
    _print_table(figures, quality, console)
    return quality


def _print_table(figures: Mapping[str, Any], student: Mapping[str, float], console: Console) -> None:
    from rich.table import Table

    table = Table(title="Teacher, labels and student on the 80 tiles whose true labels none of them saw")
    table.add_column("labels of")
    for column in ("accuracy", "mIoU", "share of pixels"):
        table.add_column(column, justify="right")
    for title, name in (("the teacher", "argmax"), ("the conformal labels", "conformal")):
        labels = figures[name]
        table.add_row(title, *(f"{labels[key]:.3f}" for key in ("accuracy_kept", "miou_kept", "kept")))
    table.add_row("a student trained on these labels", f"{student['accuracy']:.3f}", f"{student['miou']:.3f}", "1.000")
    console.print(table)
