"""What the two student benchmarks share: one run after another, scored, their results kept as files, and the table."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from maskmill.trainer.data.corpus import Corpus
from maskmill.trainer.data.datasets import LabeledImages
from maskmill.trainer.evaluate import score_images
from maskmill.trainer.recipes import Recipe
from maskmill.trainer.run import LAST
from maskmill.trainer.students.models import load_run
from maskmill.trainer.train import train


class Results:
    """A folder with a file for each row and seed."""

    def __init__(self, folder: Path, rows: Sequence[str]) -> None:
        self._folder = folder
        self._rows = list(rows)

    def _file(self, row: str, seed: int) -> Path:
        number = self._rows.index(row) if row in self._rows else row
        return self._folder / f"{number}-seed{seed}.json"

    def add(self, row: str, seed: int, values: dict[str, Any]) -> None:
        """Keep the figures of one run."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._file(row, seed).write_text(json.dumps({"row": row, "seed": seed, **values}, indent=1))

    def find(self, row: str, seed: int) -> dict[str, Any] | None:
        """The figures of one run, where it is done."""
        path = self._file(row, seed)
        return json.loads(path.read_text()) if path.exists() else None

    def run(
        self, row: str, seed: int, folder: Path, recipe: Recipe, corpus: Corpus, scored: LabeledImages
    ) -> dict[str, Any]:
        """Train and score a student, unless it is done."""
        if (found := self.find(row, seed)) is not None:
            return found
        resumed, started = (folder / LAST).exists(), time.process_time()
        if train(folder, recipe, corpus, device="cpu", workers=0).interrupted:
            raise KeyboardInterrupt
        # of one processor, since training uses one thread here; that of a run which was stopped is not known
        seconds = None if resumed else time.process_time() - started
        student = load_run(folder)
        scores = score_images(student.module, scored, student.run, device="cpu")
        found = {"miou": scores.miou, "accuracy": scores.accuracy, "seconds": seconds, "recipe": recipe.to_json()}
        self.add(row, seed, found)
        print(f"{row}, seed {seed}: mIoU {scores.miou:.3f}", flush=True)
        return found

    def summary(self) -> list[dict[str, Any]]:
        """Mean and standard deviation over the seeds of each row that has results."""
        summary = []
        for row in self._rows:
            seeds = [
                json.loads(path.read_text()) for path in sorted(self._folder.glob(f"{self._rows.index(row)}-seed*"))
            ]
            if seeds:
                figures = {
                    key: [run[key] for run in seeds if run[key] is not None] for key in ("miou", "accuracy", "seconds")
                }
                summary.append({"row": row, **{key: _spread(values) for key, values in figures.items()}})
        return summary

    def print_json(self) -> None:
        """The table with the values of every seed, the labels' quality where it is known, and what ran it."""
        labels = [json.loads(path.read_text()) for path in sorted(self._folder.glob("labels-seed*"))]
        recipes = {
            row: json.loads(path.read_text())["recipe"]
            for number, row in enumerate(self._rows)
            if (path := self._folder / f"{number}-seed0.json").exists()
        }
        machine = {
            "processor": platform.processor() or platform.machine(),
            "threads": 1,
            "python": platform.python_version(),
        }
        versions = {name: version(name) for name in ("maskmill", "torch", "numpy")}
        report = {"machine": machine | versions, "rows": self.summary(), "labels": labels, "recipes": recipes}
        print(json.dumps(report, indent=1))

    def print_table(self) -> None:
        """As Markdown."""
        print("| student | mIoU | accuracy | by seed | seconds |\n|---|---|---|---|---|")
        for row in self.summary():
            miou, accuracy = (f"{row[key]['mean']:.3f} ± {row[key]['std']:.3f}" for key in ("miou", "accuracy"))
            seeds = ", ".join(f"{value:.3f}" for value in row["miou"]["values"])
            seconds = row["seconds"]["mean"]
            print(f"| {row['row']} | {miou} | {accuracy} | {seeds} | {'-' if seconds is None else f'{seconds:.0f}'} |")


def write_halved(images: Path, labels: Path, folder: Path) -> Path:
    """Photos and label maps at half their size, in ``folder/images`` and ``folder/labels``."""
    for source, target, filter in (
        (images, folder / "images", Image.Resampling.BOX),
        (labels, folder / "labels", Image.Resampling.NEAREST),
    ):
        target.mkdir(parents=True, exist_ok=True)
        for path in sorted(source.iterdir()):
            if not (halved := target / f"{path.stem}.png").exists():
                with Image.open(path) as image:
                    image.resize((image.width // 2, image.height // 2), filter).save(halved)
    return folder


def _spread(values: list[float]) -> dict[str, Any]:
    return (
        {"mean": float(np.mean(values)), "std": float(np.std(values)), "values": values} if values else {"mean": None}
    )
