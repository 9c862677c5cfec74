"""Workers on the GPUs of this machine: one process per device, which sees no other device."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from ...errors import MaskmillError, UsageError
from ..store.waiting.presence import new_token
from .driver import Driver
from .job import Job
from .leases import Leases
from .runner import is_over
from .worker import Worker

MAX_RESTARTS = 20
"""Number of worker deaths after which no worker is restarted."""

MAX_FAILED_STARTS = 3
"""Number of workers that die before opening their model after which no worker is restarted."""


class DevicePool:
    """One process per GPU; one that dies is started again, one that reports an error is not."""

    def __init__(self, job: Job, devices: Sequence[int], *, threads: int | None = None) -> None:
        """Create a pool; raises :class:`UsageError` for devices that do not exist."""
        if len(set(devices)) != len(devices) or not devices or min(devices) < 0:
            raise UsageError(
                f"expected distinct device numbers counted from 0, as in 0,1; got {','.join(map(str, devices))!r}"
            )
        visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
        if visible and max(devices) >= len(visible):
            raise UsageError(
                f"expected device numbers below {len(visible)}, the number of devices in CUDA_VISIBLE_DEVICES; "
                f"got {max(devices)}"
            )
        self._names = {device: visible[device] if visible else str(device) for device in devices}
        self._job = job
        self._threads = threads
        self._context = multiprocessing.get_context("spawn")
        self._processes: dict[int, tuple[str, Any]] = {}
        self._ended: set[int] = set()
        self._deaths = self._failed_starts = 0
        self._stopping = False

    def tend(self, driver: Driver) -> int:
        """See :meth:`maskmill.engine.cluster.runner.Pool.tend`."""
        for device, name in self._names.items():
            if device in self._processes:
                token, process = self._processes[device]
                if process.is_alive():
                    continue
                process.join()
                del self._processes[device]
                if process.exitcode == 0:
                    self._ended.add(device)
                    continue
                driver.lost.add(token)
                self._deaths += 1
                self._failed_starts += not driver.has_started(token)
                driver.num_failures += 1
                driver.warnings.append(f"the process of device {device} ended with status {process.exitcode}")
            if device not in self._ended and not self._stopping and self._may_start():
                token = new_token()
                arguments = (name, device, token, driver.token, self._job, self._threads)
                process = self._context.Process(target=_work, args=arguments, name=f"maskmill-device-{device}")
                process.start()
                self._processes[device] = token, process
        return len(self._processes)

    def _may_start(self) -> bool:
        return self._deaths <= MAX_RESTARTS and self._failed_starts < MAX_FAILED_STARTS

    def stop(self) -> None:
        """See :meth:`maskmill.engine.cluster.runner.Pool.stop`."""
        self._stopping = True
        for _, process in self._processes.values():
            if process.is_alive():
                with suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGINT)

    def close(self) -> None:
        """See :meth:`maskmill.engine.cluster.runner.Pool.close`."""
        self._stopping = True
        deadline = time.monotonic() + 10.0
        for _, process in self._processes.values():
            process.join(max(0.0, deadline - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()


def _work(device_name: str, device: int, token: str, driver: str, job: Job, threads: int | None) -> None:
    """Run a worker in a child process; modules that touch a device are imported after the device is chosen."""
    os.environ["CUDA_VISIBLE_DEVICES"] = device_name
    # own process group: Ctrl-C in a terminal then reaches only the parent, which forwards it
    os.setpgrp()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    leases = Leases(job.store, job.storage_options)
    worker = Worker(job, leases, token=token, threads=threads, name=f"device {device}")
    parent = os.getppid()
    try:
        worker.run(is_over=lambda: os.getppid() != parent or is_over(leases, driver))
    except MaskmillError:
        return  # the error is in the worker's record
    except KeyboardInterrupt:
        return
    except Exception:
        traceback.print_exc()
