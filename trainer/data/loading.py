"""From a plan of draws to batches: which images each step takes, and the worker processes that make them.

The plan is a pure function of the step: nothing needs to be kept to go on with a run. The draws of a step depend on
the seed and the global batch; processes and accumulated parts share them out, so that the same global batch is made of
the same samples whatever the number of processes.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...engine.model.bundle import InputSpec
from ...errors import TrainingError, UsageError
from ..recipes import Stage
from ..run import import_torch
from .datasets import STREAMS, Draw, TrainingImages

ROLES = {"union": "labeled", "labeled": "labeled", "stored": "labeled", "unlabeled": "unlabeled"}
"""What the samples of a stream are to the losses."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The draws of one process, one list a part of a step, from step ``start`` on."""

    stages: tuple[Stage, ...]
    """What each step draws."""
    sizes: Mapping[str, int]
    """Images of each stream."""
    seed: int
    """Seed of the orders."""
    accumulate: int = 1
    """Parts of a step, each a batch of its own."""
    rank: int = 0
    """Number of this process, from 0."""
    world: int = 1
    """Processes."""
    start: int = 0
    """First step."""

    def __post_init__(self) -> None:
        parts = self.world * self.accumulate
        for stage in self.stages:
            for stream, count in stage.draws.items():
                if count % parts:
                    raise UsageError(
                        f"{count} {stream} images a step cannot be shared by {self.world} processes in "
                        f"{self.accumulate} parts each; choose a multiple of {parts}"
                    )
                if count and not self.sizes.get(stream):
                    raise UsageError(f"this recipe needs {_NEEDED[stream]}")

    def __len__(self) -> int:
        """Batches."""
        return (self.stages[-1].stop - self.start) * self.accumulate

    def __iter__(self) -> Iterator[list[Draw]]:
        orders: dict[str, tuple[int, NDArray[np.int64]]] = {}
        for step in range(self.start, self.stages[-1].stop):
            for part in range(self.accumulate):
                yield list(self._draws(step, part, orders))

    def draws(self, step: int, part: int = 0) -> list[Draw]:
        """What this process draws for a part of a step."""
        return list(self._draws(step, part, {}))

    def _draws(self, step: int, part: int, orders: dict[str, tuple[int, NDArray[np.int64]]]) -> Iterator[Draw]:
        for stream, count in stage_at(self.stages, step).draws.items():
            share = count // (self.world * self.accumulate)
            # counted from the run's first step: a stream goes on in the next stage where it stopped in the last
            first = _drawn_before(self.stages, stream, step) + (self.rank * self.accumulate + part) * share
            for position in range(first, first + share):
                epoch, backend = divmod(position, self.sizes[stream])
                if orders.get(stream, (-1, None))[0] != epoch:
                    rng = np.random.default_rng([self.seed, STREAMS.index(stream), epoch])
                    orders[stream] = epoch, rng.permutation(self.sizes[stream])
                yield Draw(stream, int(orders[stream][1][backend]), position)


_NEEDED = {
    "union": "labeled images or a label store: give --labeled DIR or a STORE",
    "labeled": "labeled images: give --labeled DIR",
    "stored": "labels of a teacher: give a STORE",
    "unlabeled": "unlabeled images: give a STORE or --unlabeled SOURCE",
}


def stage_at(stages: Sequence[Stage], step: int) -> Stage:
    """The stage that a step belongs to."""
    return next(stage for stage in stages if step < stage.stop)


def _drawn_before(stages: Sequence[Stage], stream: str, step: int) -> int:
    return sum(
        (min(step, stage.stop) - stage.start) * stage.draws.get(stream, 0) for stage in stages if stage.start < step
    )


def open_loader(
    data: TrainingImages, plan: Plan, *, workers: int, pin_memory: bool = False
) -> Iterator[dict[str, Any]]:
    """Batches of a plan, in order; with ``workers`` processes, or in this one where it is 0.

    A batch maps a role to its samples: tensors stacked, uris as a list. Raises the :class:`TrainingError` of a sample
    that cannot be made.
    """
    torch = import_torch()
    options: dict[str, Any] = {}
    if workers:
        # neither Lance nor Numba's threads survive fork
        options = {"multiprocessing_context": "forkserver", "worker_init_fn": _start_worker, "prefetch_factor": 4}
    loader = torch.utils.data.DataLoader(
        data, batch_sampler=plan, num_workers=workers, collate_fn=collate, pin_memory=pin_memory, **options
    )
    for batch in loader:
        if isinstance(batch, TrainingError):
            raise batch
        yield batch


def collate(samples: Sequence[dict[str, Any] | TrainingError]) -> dict[str, Any] | TrainingError:
    """Samples → a batch by role; the first error where there is one."""
    torch = import_torch()
    roles: dict[str, list[dict[str, Any]]] = {}
    for sample in samples:
        if isinstance(sample, TrainingError):
            return sample
        roles.setdefault(ROLES[sample["stream"]], []).append(sample)
    batch: dict[str, Any] = {}
    for role, chosen in roles.items():
        columns = {key: [sample[key] for sample in chosen] for key in chosen[0]}
        batch[role] = {
            key: values if isinstance(values[0], str) else torch.stack(values) for key, values in columns.items()
        }
    return batch


def count_pixels(batches: Sequence[Mapping[str, Any]], ignore: int) -> list[int]:
    """Pixels that the losses of each role are over, in all parts of a step: labeled ones, then unlabeled ones."""
    return [
        sum(int((batch["labeled"]["label"] != ignore).sum()) for batch in batches if "labeled" in batch),
        sum(int(batch["unlabeled"]["real"].sum()) for batch in batches if "unlabeled" in batch),
    ]


def to_device(batch: Mapping[str, Any], device: Any, spec: InputSpec) -> dict[str, Any]:
    """A batch with its tensors on the device, and its images normalized."""
    torch = import_torch()
    mean, std = (torch.tensor(values, device=device)[:, None, None] for values in (spec.mean, spec.std))

    def move(name: str, value: Any) -> Any:
        if name in ("uri", "stream"):
            return value
        value = value.to(device, non_blocking=True)
        return (value.float() * spec.scale - mean) / std if name in ("image", "strong", "masked") else value

    return {role: {name: move(name, value) for name, value in samples.items()} for role, samples in batch.items()}


def _start_worker(_: int) -> None:
    import cv2

    cv2.setNumThreads(0)
    # an interrupt is the loop's affair: it finishes its step and saves
    signal.signal(signal.SIGINT, signal.SIG_IGN)
