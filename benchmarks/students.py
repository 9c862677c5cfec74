"""Shared parts of the student benchmarks: resumable runs, their scores as files, and the table."""

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
    """Results of a benchmark: a folder with a file per row and seed."""

    def __init__(self, folder: Path, rows: Sequence[str]) -> None:
        self._folder = folder
        self._rows = list(rows)

    def _file(self, row: str, seed: int) -> Path:
        number = self._rows.index(row) if row in self._rows else row
        return self._folder / f"{number}-seed{seed}.json"

    def add(self, row: str, seed: int, values: dict[str, Any]) -> None:
        """Store the figures of a run."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._file(row, seed).write_text(json.dumps({"row": row, "seed": seed, **values}, indent=1))

    def find(self, row: str, seed: int) -> dict[str, Any] | None:
        """Read the figures of a run; None if it is not finished."""
        path = self._file(row, seed)
        return json.loads(path.read_text()) if path.exists() else None

    def run(
        self,
        row: str,
        seed: int,
        folder: Path,
        recipe: Recipe,
        corpus: Corpus,
        scored: LabeledImages,
        *,
        init: Path | None = None,
    ) -> dict[str, Any]:
        """Train and score a student, unless its figures exist; ``init`` is the run of a warm start."""
        if (figures := self.find(row, seed)) is not None:
            return figures
        resumed, started = (folder / LAST).exists(), time.process_time()
        if train(folder, recipe, corpus, init=init, device="cpu", workers=0).interrupted:
            raise KeyboardInterrupt
        # processor time of a single thread; unknown for a run that was resumed
        seconds = None if resumed else time.process_time() - started
        student = load_run(folder)
        scores = score_images(student.module, scored, student.run, device="cpu")
        reliability = scores.reliability
        figures = {
            "miou": scores.miou, "accuracy": scores.accuracy, "confidence": reliability.confidence,
            "ece": reliability.ece, "seconds": seconds, "recipe": recipe.to_json(),
        }  # fmt: skip
        self.add(row, seed, figures)
        print(f"{row}, seed {seed}: mIoU {scores.miou:.3f}", flush=True)
        return figures

    def summary(self) -> list[dict[str, Any]]:
        """Compute mean and standard deviation over the seeds of each row with results."""
        summary = []
        for row in self._rows:
            seeds = [
                json.loads(path.read_text()) for path in sorted(self._folder.glob(f"{self._rows.index(row)}-seed*"))
            ]
            if seeds:
                figures = {
                    key: [run[key] for run in seeds if run.get(key) is not None]
                    for key in ("miou", "accuracy", "confidence", "ece", "seconds")
                }
                summary.append({"row": row, **{key: _spread(values) for key, values in figures.items()}})
        return summary

    def print_json(self) -> None:
        """Print the table with the values of every seed, the quality of the labels if measured, machine and
        versions.
        """
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
        """Print the table as Markdown."""
        print("| student | mIoU | accuracy | confidence | by seed | seconds |\n|---|---|---|---|---|---|")
        for row in self.summary():
            miou, accuracy = (f"{row[key]['mean']:.3f} ± {row[key]['std']:.3f}" for key in ("miou", "accuracy"))
            seeds = ", ".join(f"{value:.3f}" for value in row["miou"]["values"])
            seconds, confidence = row["seconds"]["mean"], row["confidence"]["mean"]
            last = "-" if seconds is None else f"{seconds:.0f}"
            mean = "-" if confidence is None else f"{confidence:.3f}"
            print(f"| {row['row']} | {miou} | {accuracy} | {mean} | {seeds} | {last} |")


def write_halved(images: Path, labels: Path, folder: Path) -> Path:
    """Write images and label maps at half their size to ``folder/images`` and ``folder/labels``."""
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
