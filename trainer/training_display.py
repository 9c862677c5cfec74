"""Output of a training run: a progress bar on a terminal, lines in a log file, JSON lines for programs."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from ..engine.report.terminal import PlainConsole, figures_table, say
from .data.parts import LabeledImages, PlainImages
from .evaluate import Scores
from .processes import resolve_device
from .recipes import Recipe
from .train import TrainingProgress

_LONG_ON_CPU = 10**10
"""Total pixels of a run's crops above which a CPU needs hours."""


@contextmanager
def observing(*, as_json: bool) -> Iterator[Callable[[TrainingProgress], None]]:
    """Yield an observer of a run: a bar on a terminal, JSON lines if ``as_json``, otherwise plain lines."""
    console = PlainConsole(stderr=True)
    if as_json:
        yield lambda run: print(json.dumps({"event": "progress", **dataclasses.asdict(run)}), flush=True)
    elif not console.is_terminal:
        yield _Lines()
    else:
        columns = (
            TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
        )  # fmt: skip
        with Bar(*columns, console=console, transient=True) as bar:
            task = bar.add_task("training", total=None, note="")
            yield lambda run: bar.update(task, completed=run.step, total=run.steps, note=_note(run))


class _Lines:
    """Lines of a log file; those after a validation contain the mIoU."""

    def __init__(self) -> None:
        self._miou: float | None = None

    def __call__(self, run: TrainingProgress) -> None:
        shown = run if run.miou != self._miou else dataclasses.replace(run, miou=None)
        say(f"step {run.step} of {run.steps}, {_note(shown)}")
        self._miou = run.miou


def print_plan(recipe: Recipe, device: str | None, *, as_json: bool) -> None:
    """Print what a run will do before it begins; only the first process prints."""
    if as_json or os.environ.get("RANK", "0") != "0":
        return
    length = f"{recipe.steps:,} steps" if recipe.epochs is None else f"{recipe.epochs:,} epochs in steps"
    place = resolve_device(device).type
    say(
        f"{recipe.name}: {length} of {recipe.batch} crops of {recipe.crop}x{recipe.crop} pixels, "
        f"network {recipe.model}, on {place}"
    )
    if place == "cpu" and recipe.epochs is None and recipe.steps * recipe.batch * recipe.crop**2 > _LONG_ON_CPU:
        say("on a CPU this takes hours or days; for a first student try --set steps=500 --set batch=8 --set crop=96")


def print_sources(parts: Mapping[str, LabeledImages | PlainImages | None], *, as_json: bool) -> None:
    """Print the files that each part of a corpus uses and skips; only the first process prints."""
    if os.environ.get("RANK", "0") != "0":
        return
    for name, part in parts.items():
        if part is not None and as_json:
            print(json.dumps({"event": "source", "part": name, **part.summary.to_json()}), flush=True)
        elif part is not None:
            say(f"{name}: {part.summary.line()}")


def print_summary(run: TrainingProgress, folder: Path, *, as_json: bool) -> None:
    """Print the summary of a run; only the first process prints."""
    if os.environ.get("RANK", "0") != "0":
        return
    if as_json:
        print(json.dumps({"event": "summary", **dataclasses.asdict(run)}), flush=True)
        return
    best = "" if run.best is None else f", best mIoU {run.best:.3f}"
    say(f"{folder}: {run.step} of {run.steps} steps, {run.seconds:.0f} s{_loss(run)}{best}")
    if run.only_class is not None:
        say(
            f"warning: the student predicts {run.only_class} everywhere on the images that were checked; train longer, "
            "with a higher lr, or use a larger model"
        )
    if run.interrupted:
        say("interrupted: the run is saved; run the same command again to resume")


def print_reliability(scores: Scores) -> None:
    """Print the calibration of a student's confidence, and the quality of the pseudo-labels that it selects."""
    reliability = scores.reliability
    say(
        f"confidence {reliability.confidence:.3f} at accuracy {scores.accuracy:.3f}, calibration error "
        f"{reliability.ece:.3f}, best temperature {reliability.temperature:.2f}"
    )
    if scores.selected is None:
        return
    table = figures_table("predicted class", "predictions", "sampling", "accuracy", "recall")
    for names, selected in ((scores.classes, scores.selected), (("all",), scores.selected.total())):
        measures = selected.sampling, selected.accuracy, selected.recall
        for name, count, *values in zip(names, selected.predicted, *measures, strict=True):
            if count:
                table.add_row(name, f"{count:,}", *("-" if value != value else f"{value:.3f}" for value in values))
    PlainConsole().print(table)


def _note(run: TrainingProgress) -> str:
    miou = "" if run.miou is None else f", mIoU {run.miou:.3f}"
    return f"{run.images_per_second:.1f} images/s{_loss(run)}{miou}"


def _loss(run: TrainingProgress) -> str:
    return "" if run.loss is None else f", loss {run.loss:.4f}"
