"""Shared parts of the student benchmarks: resumable runs, a file of results with a line per run, and tables."""

from __future__ import annotations

import json
import os
import platform
import shutil
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from maskmill.trainer.data.corpus import Corpus
from maskmill.trainer.data.parts import LabeledImages
from maskmill.trainer.evaluate import score_images
from maskmill.trainer.recipes import Recipe
from maskmill.trainer.run import LAST
from maskmill.trainer.students.models import load_run
from maskmill.trainer.train import train

Key = tuple[str, str, int]
"""Teacher or data set, row, seed."""


class Results:
    """Results of a benchmark: a JSON Lines file to which every finished run is appended at once."""

    def __init__(self, file: Path, benchmark: str) -> None:
        self._file = file
        self._benchmark = benchmark
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        self._records: dict[Key, dict[str, Any]] = {}
        for record in map(json.loads, lines):
            if record["benchmark"] == benchmark:
                self._records[record["group"], record["row"], record["seed"]] = record

    def add(self, group: str, row: str, seed: int, values: Mapping[str, Any]) -> dict[str, Any]:
        """Append the figures of a run to the file."""
        record = {"benchmark": self._benchmark, "group": group, "row": row, "seed": seed, **values}
        record |= {"date": f"{datetime.now(UTC):%Y-%m-%d}", "machine": machine()}
        self._records[group, row, seed] = record
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())
        return record

    def find(self, group: str, row: str, seed: int) -> dict[str, Any] | None:
        """Return the figures of a run; None if it is not finished."""
        return self._records.get((group, row, seed))

    def rows(self, group: str, seeds: Iterable[int]) -> dict[str, list[dict[str, Any]]]:
        """Return the records of the rows of a group that have all seeds, by row, in the order of their first run."""
        seeds = list(seeds)
        names = dict.fromkeys(row for other, row, _ in self._records if other == group)
        records = {row: [self._records.get((group, row, seed)) for seed in seeds] for row in names}
        return {row: [run for run in runs if run] for row, runs in records.items() if all(runs)}

    def run(
        self,
        group: str,
        row: str,
        seed: int,
        folder: Path,
        recipe: Recipe,
        corpus: Corpus,
        scored: Mapping[str, LabeledImages],
        *,
        init: Path | None = None,
        keep: bool = False,
    ) -> dict[str, Any]:
        """Train and score a student, unless its figures exist; ``init`` is the run of a warm start.

        ``scored`` are sets of images by name. The folder is deleted afterwards unless ``keep``.
        """
        if (record := self.find(group, row, seed)) is not None and (not keep or folder.exists()):
            return record
        resumed, started = (folder / LAST).exists(), time.process_time()
        if train(folder, recipe, corpus, init=init, device="cpu", workers=0).interrupted:
            raise KeyboardInterrupt
        if record is not None:
            return record
        # processor time of a single thread; unknown for a run that was resumed
        seconds = None if resumed else round(time.process_time() - started, 1)
        student = load_run(folder)
        figures = {}
        for name, images in scored.items():
            scores = score_images(student.module, images, student.run, device="cpu", thresholds=student.thresholds)
            predicted = float(scores.confusion.sum(axis=0)[student.run.background or 0] / scores.confusion.sum())
            figures[name] = {
                "miou": round(scores.miou, 5), "accuracy": round(scores.accuracy, 5),
                "confidence": round(scores.reliability.confidence, 5), "ece": round(scores.reliability.ece, 5),
                "background": round(predicted, 5),
                "iou": {key: round(float(value), 4) for key, value in zip(scores.classes, scores.iou, strict=True)},
            }  # fmt: skip
            if scores.selected is not None:
                total = scores.selected.total()
                for measure in ("sampling", "accuracy", "recall"):
                    value = float(getattr(total, measure)[0])
                    figures[name][f"selected_{measure}"] = None if np.isnan(value) else round(value, 5)
        steps = student.run.recipe.steps
        record = self.add(group, row, seed, {"steps": steps, "seconds": seconds, **figures})
        if not keep:
            shutil.rmtree(folder)
        brief = {key: (values["miou"], values["accuracy"]) for key, values in figures.items()}
        print(f"{group}, {row}, seed {seed}: {brief}, {seconds} s", flush=True)
        return record

    def print_table(self, groups: Iterable[str], seeds: Iterable[int], scored: str) -> None:
        """Print the rows with all seeds as Markdown, and name the others."""
        seeds = list(seeds)
        for group in groups:
            print(f"\n{group}\n\n| student | mIoU | accuracy | confidence | mIoU by seed | processor seconds |")
            print("|---|---|---|---|---|---|")
            rows = self.rows(group, seeds)
            for row, runs in rows.items():
                if scored not in runs[0]:
                    continue  # figures of labels, not of a student
                columns = {
                    key: [run[scored][key] for run in runs if key in run[scored]]
                    for key in ("miou", "accuracy", "confidence")
                }
                miou, accuracy = (
                    f"{np.mean(columns[key]):.3f} ± {np.std(columns[key]):.3f}" for key in ("miou", "accuracy")
                )
                by_seed = ", ".join(f"{value:.3f}" for value in columns["miou"])
                seconds = [run["seconds"] for run in runs if run.get("seconds") is not None]
                time_used = f"{np.mean(seconds):.0f}" if seconds else "-"
                print(
                    f"| {row} | {miou} | {accuracy} | {np.mean(columns['confidence']):.3f} | {by_seed} | {time_used} |"
                )
            unfinished = {row for other, row, _ in self._records if other == group} - set(rows)
            if unfinished:
                print(f"\nWithout all seeds, and therefore not shown: {', '.join(sorted(unfinished))}")


def machine() -> str:
    """Describe processor, threads and versions in a line."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("maskmill", "torch", "numpy"))
    return f"{platform.processor() or platform.machine()}, 1 thread, Python {platform.python_version()}, {versions}"


def write_shrunk(images: Path, labels: Path, folder: Path, factor: int) -> Path:
    """Write images and label maps to ``folder/images`` and ``folder/labels``, smaller by ``factor``."""
    for source, target, filter in (
        (images, folder / "images", Image.Resampling.BOX),
        (labels, folder / "labels", Image.Resampling.NEAREST),
    ):
        target.mkdir(parents=True, exist_ok=True)
        for path in sorted(source.iterdir()):
            if not (shrunk := target / f"{path.stem}.png").exists():
                with Image.open(path) as image:
                    image.resize((image.width // factor, image.height // factor), filter).save(shrunk)
    return folder
