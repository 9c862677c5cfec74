"""The training loop.

::

    maskmill train labels/ --labeled photos/ --recipe weighted -o run/
    torchrun --nproc-per-node 4 -m maskmill train labels/ --labeled photos/ --recipe csl -o run/

The same command resumes a run that was stopped, with the losses of an uninterrupted run: samples, random numbers and
learning rate are functions of the step, so a checkpoint only needs weights, optimizer and step. After an interrupt, the
run finishes its step and saves.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from ..engine.model.input_spec import InputSpec
from ..errors import TrainingError
from ..kernels.processors import limit_torch_threads
from .data.corpus import Corpus, training_images
from .data.loading import Plan, count_pixels, open_loader, phase_at, to_device
from .evaluate import score_images, search_background
from .log import RunLog
from .loop.device_settings import device_settings
from .loop.loss_watch import LossWatch
from .loop.optim import learning_rate, make_average, make_optimizer, set_learning_rate
from .methods import Consistency, S2c
from .objectives.base import Losses, Moment
from .objectives.parallel import parallel_objectives
from .phases import num_steps, phases, with_epochs
from .processes import Process, interrupts, joined
from .recipes import Recipe
from .run import BEST, LAST, Run, import_torch, open_run, read_checkpoint, write_checkpoint
from .students.conformal import fit_student_thresholds
from .students.prediction import label_image
from .students.start import build_student, load_student


@dataclass(frozen=True, kw_only=True)
class TrainingProgress:
    """Progress of a training run; the last one is its summary."""

    step: int
    """Finished steps."""
    steps: int
    """Total number of steps."""
    loss: float | None
    """Loss of the last logged step; None if the run was already finished."""
    images_per_second: float
    """Images per second since the previous row of the log."""
    miou: float | None
    """Last mIoU on the validation images; None without them."""
    best: float | None
    """Best mIoU so far."""
    seconds: float
    """Seconds since the process began to train."""
    interrupted: bool = False
    """True if an interrupt stopped the run before the last step."""
    only_class: str | None = None
    """Only class that the finished student predicts, on images with several classes; None if it predicts several."""


def train(
    folder: str | os.PathLike[str],
    recipe: Recipe,
    corpus: Corpus,
    *,
    init: str | os.PathLike[str] | None = None,
    device: str | None = None,
    workers: int = 2,
    observer: Callable[[TrainingProgress], None] | None = None,
) -> TrainingProgress:
    """Train a student into ``folder``, or resume the same run.

    Parameters
    ----------
    folder
        Folder of the run; created if needed.
    recipe, corpus
        Configuration and images; both are recorded, and a folder with another record is refused.
    init
        A finished run with the same network and classes, whose student is the start (warm start).
    device
        ``cpu``, ``cuda`` or ``cuda:N``; None uses a CUDA device if there is one.
    workers
        Loader processes per training process; 0 makes samples in the training process.
    observer
        Called after each row of the log, and at least every ten seconds while steps finish, in the first process.

    Raises :class:`UsageError` for a recipe that does not fit the images or the processes, and :class:`TrainingError`
    for an image that cannot be read or a loss that is not finite: it names the images of the step.
    """
    failing = ExitStack()
    failing.callback(corpus.abandon)
    with failing, joined(device) as process, device_settings(process.device, recipe):
        torch = import_torch()
        limit_torch_threads()
        # the weights of a new student are the same in every process
        torch.manual_seed(recipe.seed)
        student = build_student(recipe, corpus.taxonomy, corpus.num_channels)
        data = training_images(recipe, corpus)
        recipe = with_epochs(recipe, data.sizes())
        run = _record(recipe, corpus, student, init)
        plan = Plan(
            phases=phases(recipe),
            sizes=data.sizes(),
            seed=recipe.seed,
            accumulate=recipe.accumulate,
            rank=process.rank,
            world=process.world,
        )
        # after all checks: the folder is created only for a run that can start
        if process.first:
            open_run(Path(folder), run)
        process.wait()
        failing.pop_all()  # the run exists: the pins of the stores stay until it is complete
        loop = _Loop(Path(folder), run, corpus, student, process)
        loader = open_loader(
            data, replace(plan, start=loop.step), workers=workers, pin_memory=process.device.type == "cuda"
        )
        progress = loop.execute(loader, observer)
        if process.first and not progress.interrupted:
            corpus.release()  # an interrupted run keeps the pins of the stores until it is resumed
        return progress


def _record(recipe: Recipe, corpus: Corpus, student: Any, init: str | os.PathLike[str] | None) -> Run:
    data = dict(corpus.record)
    if init is not None:
        data["init"] = {"path": str(init), "sha256": load_student(student, init, corpus.taxonomy)}
    return Run(
        recipe=recipe,
        model_options=student.options,
        classes=corpus.taxonomy.targets,
        background=corpus.taxonomy.background,
        labels=corpus.taxonomy.labels,
        input=_input_of(student, recipe, corpus),
        data=data,
        versions={name: version(name) for name in ("maskmill", "torch")},
    )


def _input_of(student: Any, recipe: Recipe, corpus: Corpus) -> InputSpec:
    """Return the network's preprocessing of an image; for bands, with their statistics instead of those of colors."""
    spec, bands = student.input_spec(recipe.crop, recipe.crop), corpus.normalization
    if bands is None:
        return spec
    return replace(spec, bands=bands.bands, scale=1.0, mean=bands.mean, std=bands.std, pad_value=bands.mean)


class _Loop:
    """Training loop of one process."""

    def __init__(self, folder: Path, run: Run, corpus: Corpus, student: Any, process: Process) -> None:
        torch, recipe = import_torch(), run.recipe
        self.folder, self.run, self.recipe, self.process, self.corpus = folder, run, recipe, process, corpus
        if process.world > 1 and process.device.type == "cuda" and recipe.sync_batchnorm:
            student = torch.nn.SyncBatchNorm.convert_sync_batchnorm(student)
        layout = torch.channels_last if recipe.channels_last else torch.preserve_format
        self.student = student.to(process.device, memory_format=layout)
        self.optimizer = make_optimizer(self.student, recipe)
        self.scaler = torch.amp.GradScaler(process.device.type, enabled=recipe.precision == "fp16")
        self.average = make_average(self.student, recipe) if recipe.ema else None
        self.calibration, self.thresholds = corpus.calibration_images(recipe), None
        self.step, self.best, self.miou = 0, None, None
        self.watch = LossWatch()
        if (folder / LAST).is_file():
            try:
                self._restore(read_checkpoint(folder / LAST, str(process.device)))
            except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
                raise TrainingError(f"{folder / LAST} is not a state of this run: {error}; train again") from error
        if recipe.compile:
            self.student.encode, self.student.decode = map(torch.compile, (self.student.encode, self.student.decode))
        self.losses = parallel_objectives(self.student, process)
        self.phases, self.steps = phases(recipe), num_steps(recipe)

    def execute(
        self, loader: Iterator[dict[str, Any]], observer: Callable[[TrainingProgress], None] | None
    ) -> TrainingProgress:
        """Train on the batches of the remaining steps."""
        recipe, process = self.recipe, self.process
        start = since = time.perf_counter()
        wait_seconds, last_logged_step, reports = 0.0, self.step, 0
        progress = TrainingProgress(
            step=self.step, steps=self.steps, loss=None, images_per_second=0.0, miou=self.miou,
            best=self.best, seconds=0.0,
        )  # fmt: skip
        self.student.train()
        logging = RunLog(self.folder, step=self.step) if process.first else nullcontext()
        with interrupts() as interrupted, logging as log:
            while self.step < self.steps:
                begun = time.perf_counter()
                batches = [next(loader) for _ in range(recipe.accumulate)]
                wait_seconds += time.perf_counter() - begun
                *counts, stop = process.mean([*count_pixels(batches, self.run.ignore), float(interrupted())])
                if stop:
                    progress = replace(progress, interrupted=True)
                    break
                self._recalibrate()
                rate = learning_rate(recipe, self.step)
                try:
                    losses = self._update(batches, dict(zip(_ROLES, counts, strict=True)), rate)
                except RuntimeError:
                    self.watch.check()  # NaN also makes linear algebra fail: report the loss in which it occurred first
                    raise
                self.step += 1
                last = self.step == self.steps
                seconds = time.perf_counter() - since
                if observer is not None and process.first and seconds > _SILENCE * (reports + 1):
                    reports += 1
                    speed = (self.step - last_logged_step) * recipe.batch / seconds
                    observer(replace(progress, step=self.step, images_per_second=speed))
                validates = self.corpus.validation is not None and (last or self.step % recipe.validate_every == 0)
                if last or validates or self.step % recipe.log_every == 0:
                    self.watch.check()
                    row = dict(zip(losses, process.mean(list(losses.values())), strict=True))
                    seconds, num_images = time.perf_counter() - since, (self.step - last_logged_step) * recipe.batch
                    row |= {"images_per_second": num_images / seconds, "waited": wait_seconds / seconds}
                    if validates:
                        row |= self._validate()
                    progress = TrainingProgress(
                        step=self.step, steps=self.steps, loss=row["loss"], miou=self.miou, best=self.best,
                        images_per_second=row["images_per_second"], seconds=time.perf_counter() - start,
                    )  # fmt: skip
                    if log is not None:
                        log.add(self.step, {"lr": rate, **row})
                        if observer is not None:
                            observer(progress)
                    since, wait_seconds, last_logged_step, reports = time.perf_counter(), 0.0, self.step, 0
                if last or self.step % recipe.save_every == 0:
                    self._save(LAST)
            if progress.interrupted:
                self._save(LAST)
        only_class = self._only_class() if process.first and not progress.interrupted else None
        return replace(progress, step=self.step, seconds=time.perf_counter() - start, only_class=only_class)

    def _only_class(self) -> str | None:
        """Return the only class that the student predicts on some labeled images; None if it predicts several."""
        parts = (self.corpus.validation, self.corpus.labeled, *self.corpus.stored)
        part = next(part for part in parts if part is not None)
        module = self.student if self.average is None else self.average.module
        module.eval()
        predicted: set[int] = set()
        true_classes: set[int] = set()
        for sample in map(part.read, range(min(len(part.uris), _CHECKED_IMAGES))):
            label = label_image(module, sample.image, self.run, device=self.process.device)
            predicted |= set(np.unique(label).tolist())
            true_classes |= set(np.unique(sample.label[sample.label != self.run.ignore]).tolist())
            if len(predicted) > 1:
                return None
        return self.run.classes[min(predicted)] if predicted and true_classes - predicted else None

    def _update(self, batches: Sequence[Any], counts: Mapping[str, float], rate: float) -> dict[str, Any]:
        """Run one optimizer step on all parts of a batch; returns its loss, terms and figures in this process."""
        torch, process = import_torch(), self.process
        # seeded at each step, so that a resumed run draws the same numbers
        torch.manual_seed(_seed(self.recipe.seed, self.step, process.rank))
        moment = Moment(
            recipe=self.recipe, phase=phase_at(self.phases, self.step), step=self.step, ignore=self.run.ignore,
            counts=counts, thresholds=self.thresholds, teacher=None if self.average is None else self.average.module,
        )  # fmt: skip
        sums: dict[str, Any] = {}
        for number, batch in enumerate(batches, start=1):
            is_last = number == len(batches)
            with nullcontext() if is_last or process.world == 1 else self.losses.no_sync():
                losses: Losses = self.losses(
                    to_device(batch, process.device, self.run.input, channels_last=self.recipe.channels_last), moment
                )
                self.watch.add(self.step, losses, batch)
                self.scaler.scale(losses.total).backward()
            values = {"loss": losses.total, **losses.terms}
            values |= {name: figure / len(batches) for name, figure in losses.figures.items()}
            sums = {name: sums.get(name, 0) + value.detach() for name, value in values.items()}
        set_learning_rate(self.optimizer, rate)
        if self.recipe.clip:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.student.parameters(), self.recipe.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update_parameters(self.student)
        return sums

    def _recalibrate(self) -> None:
        """Calibrate the student on the labeled images if it is time: before its first unlabeled loss, and regularly."""
        method = self.recipe.method
        if self.calibration is None or not isinstance(method, Consistency) or self.step < method.start:
            return
        if self.thresholds is not None and (self.step - method.start) % method.recalibrate:
            return
        module = self.average.module if method.teacher == "average" and self.average is not None else self.student
        module.eval()
        order = np.random.default_rng(self.recipe.seed).permutation(len(self.calibration.uris))[:_CALIBRATION_IMAGES]
        samples = ((sample.image, sample.label) for sample in map(self.calibration.read, order.tolist()))
        values = fit_student_thresholds(module, samples, self.run, alpha=method.alpha, device=self.process.device)
        self.student.train()
        self.thresholds = import_torch().from_numpy(values).to(self.process.device)

    def _validate(self) -> dict[str, float]:
        """Measure the student on the validation images, which the processes share; keep the best student.

        Returns the figures for the log.
        """
        validation, process = self.corpus.validation, self.process
        assert validation is not None, "called only with validation images"
        module = self.student if self.average is None else self.average.module
        module.eval()
        if isinstance(self.recipe.method, S2c) and process.world == 1:
            search_background(module, validation, self.run, device=process.device)
        share = (process.rank, process.world)
        limits = None if self.thresholds is None else self.thresholds.cpu().numpy()
        scores = score_images(module, validation, self.run, device=process.device, thresholds=limits, share=share)
        self.student.train()
        self.miou = scores.miou
        if self.best is None or self.miou > self.best:
            self.best = self.miou
            self._save(BEST)
        figures = {
            "miou": scores.miou, "accuracy": scores.accuracy, "confidence": scores.reliability.confidence,
            "ece": scores.reliability.ece, "temperature": scores.reliability.temperature,
        }  # fmt: skip
        if scores.selected is not None:
            total = scores.selected.total()
            figures |= {f"pseudo_{name}": float(getattr(total, name)[0]) for name in ("sampling", "accuracy", "recall")}
        return figures

    def _save(self, name: str) -> None:
        self.watch.check()  # a checkpoint never holds the weights of a loss that was not finite
        if self.process.first:
            state = {
                "step": self.step,
                "model": self.student.state_dict(),
                "ema": None if self.average is None else self.average.module.state_dict(),
                "num_averaged": 0 if self.average is None else int(self.average.n_averaged),
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict() if self.scaler.is_enabled() else None,
                "thresholds": self.thresholds,
                "best": self.best,
                "miou": self.miou,
            }
            write_checkpoint(self.folder / name, state)
        self.process.wait()

    def _restore(self, state: Mapping[str, Any]) -> None:
        self.student.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if state["scaler"] is not None:
            self.scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            self.average.module.load_state_dict(state["ema"])
            self.average.n_averaged.fill_(state["num_averaged"])
        self.thresholds = state.get("thresholds")
        self.step, self.best, self.miou = state["step"], state["best"], state["miou"]


_ROLES = ("labeled", "unlabeled")
_SILENCE = 10.0
"""Seconds after which the observer is called with the steps since the last row of the log."""
_CHECKED_IMAGES = 10
"""Labeled images, at most, on which a finished student must predict more than one class."""
_CALIBRATION_IMAGES = 200
"""Labeled images that calibrate a student while it trains, at most; the seed of the recipe chooses them."""


def _seed(seed: int, step: int, rank: int) -> int:
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> 1)
