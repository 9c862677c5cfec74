"""The training loop.

::

    maskmill train labels/ --labeled photos/ --recipe weighted -o run/
    torchrun --nproc-per-node 4 -m maskmill train labels/ --labeled photos/ --recipe csl -o run/

The same command goes on where a run stopped, with the losses that it would have had. A step's samples, its random
numbers and its learning rate are functions of the step, so a checkpoint holds weights, optimizer and the step, and
nothing else. An interrupt finishes the step and saves.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import TrainingError, UsageError
from .data.corpus import Corpus
from .data.datasets import TrainingImages
from .data.loading import Plan, count_pixels, open_loader, phase_at, to_device
from .data.weak_labels import WeakLabels
from .evaluate import score_images
from .log import RunLog
from .objectives.base import Losses, Moment
from .objectives.steps import OBJECTIVES
from .optim import learning_rate, make_optimizer, set_learning_rate
from .processes import Process, interrupts, joined
from .recipes import Csl, Recipe, S2c, phases
from .run import BEST, LAST, Run, import_torch, open_run, read_checkpoint, write_checkpoint
from .students.models import build_model


@dataclass(frozen=True, kw_only=True)
class TrainingProgress:
    """How far a run is; the last one is its summary."""

    step: int
    """Finished steps."""
    steps: int
    """Steps in all."""
    loss: float | None
    """Loss of the last logged step; None where there was nothing left to do."""
    images_per_second: float
    """Since the row of the log before."""
    miou: float | None
    """Last mIoU on the validation images, where there are any."""
    best: float | None
    """Best of them."""
    seconds: float
    """Since this process began to train."""
    interrupted: bool = False
    """Whether it was stopped before the last step."""


def train(
    folder: str | os.PathLike[str],
    recipe: Recipe,
    corpus: Corpus,
    *,
    device: str | None = None,
    workers: int = 2,
    observer: Callable[[TrainingProgress], None] | None = None,
) -> TrainingProgress:
    """Train a student into ``folder``, or go on where the same run stopped.

    Parameters
    ----------
    folder
        The run's folder, made where it is new.
    recipe, corpus
        How, and on what; both are recorded, and a folder with another record is refused.
    device
        ``cpu``, ``cuda`` or ``cuda:N``; a CUDA device where there is one if None.
    workers
        Processes that make samples, for each training process; 0 makes them in the loop.
    observer
        Called after each row of the log, in the first process.

    Raises :class:`UsageError` for a recipe that does not fit the images or the processes, and :class:`TrainingError`
    for an image that cannot be read or a loss that is not finite: it names the images of the step.
    """
    torch = import_torch()
    with joined(device) as process:
        # the weights of a new student are the same in every process
        torch.manual_seed(recipe.seed)
        classes = corpus.taxonomy
        student = build_model(recipe.model, classes.num_targets, background=classes.background, **recipe.model_options)
        run = _record(recipe, corpus, student)
        data = _samples(recipe, corpus, run.ignore)
        plan = Plan(
            phases=phases(recipe),
            sizes=data.sizes(),
            seed=recipe.seed,
            accumulate=recipe.accumulate,
            rank=process.rank,
            world=process.world,
        )
        # everything that can be refused has been by now: a folder is made for a run that can start
        if process.first:
            open_run(Path(folder), run)
        process.wait()
        loop = _Loop(Path(folder), run, corpus, student, process)
        loader = open_loader(
            data, replace(plan, start=loop.step), workers=workers, pin_memory=process.device.type == "cuda"
        )
        progress = loop.execute(loader, observer)
        if process.first and not progress.interrupted:
            corpus.release()
        return progress


def _record(recipe: Recipe, corpus: Corpus, student: Any) -> Run:
    return Run(
        recipe=recipe,
        model_options=student.options,
        classes=corpus.taxonomy.targets,
        background=corpus.taxonomy.background,
        labels=corpus.taxonomy.labels,
        input=student.input_spec(recipe.crop, recipe.crop),
        data=corpus.record,
        versions={name: version(name) for name in ("maskmill", "torch")},
    )


def _samples(recipe: Recipe, corpus: Corpus, ignore: int) -> TrainingImages:
    return TrainingImages(
        corpus.streams(),
        crop=recipe.crop,
        ignore=ignore,
        scale=recipe.scale,
        flip=recipe.flip,
        seed=recipe.seed,
        views=recipe.method if isinstance(recipe.method, Csl) else None,
        weak=_weak_labels(corpus, recipe),
    )


class _Loop:
    """A run in this process."""

    def __init__(self, folder: Path, run: Run, corpus: Corpus, student: Any, process: Process) -> None:
        torch, recipe = import_torch(), run.recipe
        self.folder, self.run, self.recipe, self.process, self.corpus = folder, run, recipe, process, corpus
        if process.world > 1 and process.device.type == "cuda" and recipe.sync_batchnorm:
            student = torch.nn.SyncBatchNorm.convert_sync_batchnorm(student)
        self.student = student.to(process.device)
        self.optimizer = make_optimizer(self.student, recipe)
        self.scaler = torch.amp.GradScaler(process.device.type, enabled=recipe.precision == "fp16")
        averaging = torch.optim.swa_utils
        self.average = (
            averaging.AveragedModel(
                self.student, multi_avg_fn=averaging.get_ema_multi_avg_fn(recipe.ema), use_buffers=True
            )
            if recipe.ema
            else None
        )
        self.step, self.best, self.miou = 0, None, None
        if (folder / LAST).is_file():
            self._restore(read_checkpoint(folder / LAST, str(process.device)))
        if recipe.compile:
            self.student.encode, self.student.decode = map(torch.compile, (self.student.encode, self.student.decode))
        self.losses = _parallel(self.student, process)
        self.phases = phases(recipe)

    def execute(
        self, loader: Iterator[dict[str, Any]], observer: Callable[[TrainingProgress], None] | None
    ) -> TrainingProgress:
        """Train from the batches of the steps that are left."""
        recipe, process = self.recipe, self.process
        started = since = time.perf_counter()
        waited, logged = 0.0, self.step
        progress = TrainingProgress(
            step=self.step, steps=recipe.steps, loss=None, images_per_second=0.0, miou=self.miou,
            best=self.best, seconds=0.0,
        )  # fmt: skip
        self.student.train()
        logging = RunLog(self.folder, step=self.step) if process.first else nullcontext()
        with interrupts() as interrupted, logging as log:
            while self.step < recipe.steps:
                begun = time.perf_counter()
                batches = [next(loader) for _ in range(recipe.accumulate)]
                waited += time.perf_counter() - begun
                *counts, stop = process.mean([*count_pixels(batches, self.run.ignore), float(interrupted())])
                if stop:
                    progress = replace(progress, interrupted=True)
                    break
                rate = learning_rate(recipe, self.step)
                losses = self._update(batches, dict(zip(_ROLES, counts, strict=True)), rate)
                self.step += 1
                last = self.step == recipe.steps
                validates = self.corpus.validation is not None and (last or self.step % recipe.validate_every == 0)
                if last or validates or self.step % recipe.log_every == 0:
                    row = dict(zip(losses, process.mean(list(losses.values())), strict=True))
                    seconds, num_images = time.perf_counter() - since, (self.step - logged) * recipe.batch
                    row |= {"images_per_second": num_images / seconds, "waited": waited / seconds}
                    if validates:
                        row["miou"] = self._validate()
                    progress = TrainingProgress(
                        step=self.step, steps=recipe.steps, loss=row["loss"], miou=self.miou, best=self.best,
                        images_per_second=row["images_per_second"], seconds=time.perf_counter() - started,
                    )  # fmt: skip
                    if log is not None:
                        log.add(self.step, {"lr": rate, **row})
                        if observer is not None:
                            observer(progress)
                    since, waited, logged = time.perf_counter(), 0.0, self.step
                if last or self.step % recipe.save_every == 0:
                    self._save(LAST)
            if progress.interrupted:
                self._save(LAST)
        return replace(progress, step=self.step, seconds=time.perf_counter() - started)

    def _update(self, batches: Sequence[Any], counts: Mapping[str, float], rate: float) -> dict[str, Any]:
        """One optimizer step on all parts of a batch; returns the step's loss, terms and figures in this process."""
        torch, process = import_torch(), self.process
        # drawn anew each step, so that a run that goes on draws what it would have drawn
        torch.manual_seed(_seed(self.recipe.seed, self.step, process.rank))
        moment = Moment(
            recipe=self.recipe, phase=phase_at(self.phases, self.step), step=self.step, ignore=self.run.ignore,
            counts=counts,
        )  # fmt: skip
        found: dict[str, Any] = {}
        for number, batch in enumerate(batches, start=1):
            is_last = number == len(batches)
            with nullcontext() if is_last or process.world == 1 else self.losses.no_sync():
                losses: Losses = self.losses(to_device(batch, process.device, self.run.input), moment)
                if not bool(torch.isfinite(losses.total)):
                    raise TrainingError(_not_finite(losses, self.step, batch))
                self.scaler.scale(losses.total).backward()
            shown = {"loss": losses.total, **losses.terms}
            shown |= {name: figure / len(batches) for name, figure in losses.figures.items()}
            found = {name: found.get(name, 0) + value.detach() for name, value in shown.items()}
        set_learning_rate(self.optimizer, rate)
        if self.recipe.clip:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.student.parameters(), self.recipe.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update_parameters(self.student)
        return found

    def _validate(self) -> float:
        """The mIoU on the validation images, of which each process labels its share; keeps the best student."""
        assert self.corpus.validation is not None, "asked only where there are images"
        process = self.process
        module = self.student if self.average is None else self.average.module
        module.eval()
        share = (process.rank, process.world)
        self.miou = score_images(module, self.corpus.validation, self.run, device=process.device, share=share).miou
        self.student.train()
        if self.best is None or self.miou > self.best:
            self.best = self.miou
            self._save(BEST)
        return self.miou

    def _save(self, name: str) -> None:
        if self.process.first:
            state = {
                "step": self.step,
                "model": self.student.state_dict(),
                "ema": None if self.average is None else self.average.module.state_dict(),
                "num_averaged": 0 if self.average is None else int(self.average.n_averaged),
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict() if self.scaler.is_enabled() else None,
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
        self.step, self.best, self.miou = state["step"], state["best"], state["miou"]


_ROLES = ("labeled", "unlabeled")


def _parallel(student: Any, process: Process) -> Any:
    """The objectives as a module of the student, so that all of a step's passes are one for DistributedDataParallel."""
    torch = import_torch()

    class Objectives(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.student = student

        def forward(self, batch: Mapping[str, Any], moment: Moment) -> Losses:
            dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(moment.recipe.precision)
            with torch.autocast(process.device.type, dtype=dtype, enabled=dtype is not None):
                return OBJECTIVES[moment.phase.objective](self.student, batch, moment)

    if process.world == 1:
        return Objectives()
    devices = [process.device.index] if process.device.type == "cuda" else None
    return torch.nn.parallel.DistributedDataParallel(Objectives(), device_ids=devices)


def _weak_labels(corpus: Corpus, recipe: Recipe) -> WeakLabels | None:
    if not isinstance(recipe.method, S2c):
        return None
    if corpus.weak is None:
        raise UsageError("this recipe needs segment maps: give --segments STORE or DIR")
    return replace(corpus.weak, compat=recipe.method.compat)


def _seed(seed: int, step: int, rank: int) -> int:
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> 1)


def _not_finite(losses: Losses, step: int, batch: Mapping[str, Any]) -> str:
    values = ", ".join(
        f"{name} {float(value.detach()):g}" for name, value in {"loss": losses.total, **losses.terms}.items()
    )
    images = ", ".join(uri for samples in batch.values() for uri in samples["uri"])
    return (
        f"the loss of step {step} is not finite ({values}); try a lower lr, clip=1, or bf16 in place of fp16. "
        f"Its images: {images}"
    )
