"""The processes that train together, as ``torchrun`` starts them, and what stops them; one alone needs no launcher."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ..errors import UsageError
from .run import import_torch


@dataclass(frozen=True, kw_only=True)
class Process:
    """One of the processes."""

    rank: int
    """Number of the process, from 0; the first one writes the run's folder."""
    world: int
    """How many there are."""
    device: Any
    """The ``torch.device`` that it computes on."""

    @property
    def first(self) -> bool:
        """Whether it is the one that writes."""
        return self.rank == 0

    def mean(self, values: Sequence[Any]) -> list[float]:
        """Means over the processes of some numbers or scalar tensors; everyone must ask at the same time."""
        torch = import_torch()
        packed = torch.stack([torch.as_tensor(value, dtype=torch.float64, device=self.device) for value in values])
        if self.world > 1:
            torch.distributed.all_reduce(packed)
            packed /= self.world
        return packed.tolist()

    def wait(self) -> None:
        """Until every process is here."""
        if self.world > 1:
            import_torch().distributed.barrier()


@contextmanager
def joined(device: str | None) -> Iterator[Process]:
    """The process among those of its launcher (``RANK``, ``WORLD_SIZE`` and ``LOCAL_RANK`` of ``torchrun``).

    ``device`` is ``cpu``, ``cuda`` or ``cuda:N``; None takes a CUDA device where there is one. Processes exchange
    gradients by NCCL on CUDA devices and by Gloo otherwise. Raises :class:`UsageError`.
    """
    torch = import_torch()
    rank, world, local = (int(os.environ.get(name, default)) for name, default in _LAUNCHER)
    available = torch.cuda.is_available()
    name = device or ("cuda" if available else "cpu")
    if name.startswith("cuda") and not available:
        raise UsageError("there is no CUDA device here; leave --device out, or give --device cpu")
    if name == "cuda":
        name = f"cuda:{local}"
    try:
        backend = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"a device is cpu, cuda or cuda:N, got {name!r}") from error
    if backend.type == "cuda":
        torch.cuda.set_device(backend)
    if world == 1:
        yield Process(rank=0, world=1, device=backend)
        return
    torch.distributed.init_process_group("nccl" if backend.type == "cuda" else "gloo")
    try:
        yield Process(rank=rank, world=world, device=backend)
    finally:
        torch.distributed.destroy_process_group()


@contextmanager
def interrupts() -> Iterator[Callable[[], bool]]:
    """Whether SIGINT or SIGTERM has come; a second one stops at once."""
    came = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield came.is_set
        return

    def handle(number: int, frame: Any) -> None:
        if came.is_set():
            raise KeyboardInterrupt
        came.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield came.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


_LAUNCHER = (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))
