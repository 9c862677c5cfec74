"""Distributed processes started by ``torchrun``, or a single process without a launcher; and interrupts."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from .run import import_torch

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Process:
    """One of the processes of a distributed training run."""

    rank: int
    """Number of the process, from 0; process 0 writes the folder of the run."""
    world: int
    """Number of processes."""
    device: Any
    """The ``torch.device`` that it computes on."""
    on_host: Any = None
    """Group of the processes for numbers in main memory; None: the group for tensors."""

    @property
    def first(self) -> bool:
        """True for process 0, which writes files and prints."""
        return self.rank == 0

    def mean(self, values: Sequence[Any]) -> list[float]:
        """Return means over the processes of numbers or scalar tensors; every process must call it at the same
        point. Numbers alone do not wait for the device.
        """
        torch = import_torch()
        tensors = any(isinstance(value, torch.Tensor) for value in values)
        device = self.device if tensors else "cpu"
        packed = torch.stack([torch.as_tensor(value, dtype=torch.float64, device=device) for value in values])
        if self.world > 1:
            torch.distributed.all_reduce(packed, group=None if tensors else self.on_host)
            packed /= self.world
        return packed.tolist()

    def wait(self) -> None:
        """Wait until every process has called this."""
        if self.world > 1:
            import_torch().distributed.barrier()


def resolve_device(name: str | None, *, index: int = 0) -> torch.device:
    """Choose the device of a student: ``cpu``, ``cuda`` (GPU number ``index``) or ``cuda:N``; by default a GPU if any.

    Raises :class:`UsageError` for another name, or if there is no GPU.
    """
    torch = import_torch()
    available = torch.cuda.is_available()
    name = name or ("cuda" if available else "cpu")
    if name.startswith("cuda") and not available:
        raise UsageError("this machine has no CUDA device; omit --device or use --device cpu")
    try:
        return torch.device(f"cuda:{index}" if name == "cuda" else name)
    except RuntimeError as error:
        raise UsageError(f"--device must be cpu, cuda or cuda:N, got {name!r}") from error


@contextmanager
def joined(device: str | None) -> Iterator[Process]:
    """Join the processes of the launcher (``RANK``, ``WORLD_SIZE`` and ``LOCAL_RANK`` of ``torchrun``).

    ``device`` is ``cpu``, ``cuda`` or ``cuda:N``; None uses a CUDA device if there is one. Processes exchange gradients
    with NCCL on CUDA devices and with Gloo otherwise; numbers always with Gloo. Raises :class:`UsageError`.
    """
    torch = import_torch()
    rank, world, local = (int(os.environ.get(name, default)) for name, default in _LAUNCHER)
    torch_device = resolve_device(device, index=local)
    if torch_device.type == "cuda":
        torch.cuda.set_device(torch_device)
    if world == 1:
        yield Process(rank=0, world=1, device=torch_device)
        return
    torch.distributed.init_process_group("nccl" if torch_device.type == "cuda" else "gloo")
    try:
        on_host = torch.distributed.new_group(backend="gloo") if torch_device.type == "cuda" else None
        yield Process(rank=rank, world=world, device=torch_device, on_host=on_host)
    finally:
        torch.distributed.destroy_process_group()


@contextmanager
def interrupts() -> Iterator[Callable[[], bool]]:
    """Yield a function that returns True after SIGINT or SIGTERM; a second signal ends the process at once."""
    arrived = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield arrived.is_set
        return

    def handle(number: int, frame: Any) -> None:
        if arrived.is_set():
            raise KeyboardInterrupt
        arrived.set()

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield arrived.is_set
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


_LAUNCHER = (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))
