"""Batches from a plan of draws: the images of each step, and the worker processes that load them.

The plan is a pure function of the step, so that resuming a run needs no saved state. The draws of a step depend on the
seed and the global batch only; processes and accumulated parts divide them, so a global batch contains the same samples
for any number of processes.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...engine.model.input_spec import InputSpec
from ...errors import TrainingError, UsageError
from ..phases import Phase
from ..run import import_torch
from .datasets import STREAMS, Draw, TrainingImages

ROLES = {
    "union": "labeled", "labeled": "labeled", "stored": "labeled", "unlabeled": "unlabeled", "partners": "partners",
}  # fmt: skip
"""Role of the samples of each stream in the losses."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The draws of one process from step ``start`` on: one list per part of a step."""

    phases: tuple[Phase, ...]
    """Phases of the recipe, with the numbers of images per step and stream."""
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
        for phase in self.phases:
            for stream, count in phase.draws.items():
                if count % parts:
                    raise UsageError(
                        f"{count} {stream} images per step cannot be divided among {self.world} processes with "
                        f"{self.accumulate} parts each; choose a multiple of {parts}"
                    )
                if count and not self.sizes.get(stream):
                    raise UsageError(f"this recipe needs {_NEEDED[stream]}")

    def __len__(self) -> int:
        """Return the number of batches."""
        return (self.phases[-1].stop - self.start) * self.accumulate

    def __iter__(self) -> Iterator[list[Draw]]:
        orders: dict[str, tuple[int, NDArray[np.int64]]] = {}
        for step in range(self.start, self.phases[-1].stop):
            for part in range(self.accumulate):
                yield list(self._draws(step, part, orders))

    def draws(self, step: int, part: int = 0) -> list[Draw]:
        """Return the draws of this process for a part of a step."""
        return list(self._draws(step, part, {}))

    def _draws(self, step: int, part: int, orders: dict[str, tuple[int, NDArray[np.int64]]]) -> Iterator[Draw]:
        for stream, count in phase_at(self.phases, step).draws.items():
            share = count // (self.world * self.accumulate)
            # counted from the first step of the run: a stream continues across phases
            first = _drawn_before(self.phases, stream, step) + (self.rank * self.accumulate + part) * share
            for position in range(first, first + share):
                epoch, index = divmod(position, self.sizes[stream])
                if orders.get(stream, (-1, None))[0] != epoch:
                    rng = np.random.default_rng([self.seed, STREAMS.index(stream), epoch])
                    orders[stream] = epoch, rng.permutation(self.sizes[stream])
                yield Draw(stream, int(orders[stream][1][index]), position)


_NEEDED = {
    "union": "labeled images or a label store: give --labeled DIR or a STORE",
    "labeled": "labeled images: give --labeled DIR",
    "stored": "labels of a teacher: give a STORE",
    "unlabeled": "unlabeled images: give a STORE or --unlabeled SOURCE",
    "partners": "unlabeled images: give a STORE or --unlabeled SOURCE",
}


def phase_at(phases: Sequence[Phase], step: int) -> Phase:
    """Return the phase that a step belongs to."""
    return next(phase for phase in phases if step < phase.stop)


def _drawn_before(phases: Sequence[Phase], stream: str, step: int) -> int:
    return sum(
        (min(step, phase.stop) - phase.start) * phase.draws.get(stream, 0) for phase in phases if phase.start < step
    )


def open_loader(
    data: TrainingImages, plan: Plan, *, workers: int, pin_memory: bool = False
) -> Iterator[dict[str, Any]]:
    """Yield the batches of a plan in order, made by ``workers`` processes, or by this process if ``workers`` is 0.

    A batch maps a role to its samples: tensors stacked, uris as a list. Raises :class:`TrainingError` if a sample
    cannot be made.
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
    """Collate samples into a batch by role; return the first error among them, if any."""
    torch = import_torch()
    roles: dict[str, list[dict[str, Any]]] = {}
    for sample in samples:
        if isinstance(sample, TrainingError):
            return sample
        roles.setdefault(ROLES[sample["stream"]], []).append(sample)
    batch: dict[str, Any] = {}
    for role, members in roles.items():
        columns = {key: [sample[key] for sample in members] for key in members[0]}
        batch[role] = {
            key: values if isinstance(values[0], str) else torch.stack(values) for key, values in columns.items()
        }
    return batch


def count_pixels(batches: Sequence[Mapping[str, Any]], ignore: int) -> list[int]:
    """Count the pixels that enter the losses in all parts of a step: labeled pixels, then unlabeled pixels."""
    return [
        sum(int((batch["labeled"]["label"] != ignore).sum()) for batch in batches if "labeled" in batch),
        sum(int(batch["unlabeled"]["real"].sum()) for batch in batches if "unlabeled" in batch),
    ]


def to_device(batch: Mapping[str, Any], device: Any, spec: InputSpec, *, channels_last: bool = False) -> dict[str, Any]:
    """Move the tensors of a batch to a device, without waiting for it, and normalize its images."""
    torch = import_torch()
    mean, std = _constants(spec.mean, spec.std, device)
    layout = torch.channels_last if channels_last else torch.contiguous_format

    def move(name: str, value: Any) -> Any:
        if name in ("uri", "stream"):
            return value
        value = value.to(device, non_blocking=True)
        if name not in ("image", "strong", "second"):
            return value
        return ((value.float() * spec.scale - mean) / std).contiguous(memory_format=layout)

    tensors = {role: {name: move(name, value) for name, value in samples.items()} for role, samples in batch.items()}
    for role, samples in batch.items():
        if "segments" in samples:  # sizes of later arrays; elsewhere they would need a sync
            tensors[role]["num_segments"] = int(samples["segments"].max())
    return tensors


@lru_cache(maxsize=8)
def _constants(mean: tuple[float, ...], std: tuple[float, ...], device: Any) -> tuple[Any, Any]:
    """Return mean and standard deviation (3, 1, 1) on a device; cached, since a copy waits for the device."""
    torch = import_torch()
    return tuple(torch.tensor(values, device=device)[:, None, None] for values in (mean, std))


def _start_worker(_: int) -> None:
    import cv2

    cv2.setNumThreads(0)
    # the training loop handles interrupts: it finishes its step and saves
    signal.signal(signal.SIGINT, signal.SIG_IGN)
