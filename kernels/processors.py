"""Number of processors that this process may use: the affinity mask, limited by the CPU quotas of its control groups.

Containers usually limit CPU time by a quota and leave the affinity mask at all processors of the machine. Thread pools
that are sized by the mask alone are then throttled: their threads wait, often spinning, for one another.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from ..checks import check_count

_ROOT = Path("/")


def usable_processors(root: Path = _ROOT) -> int:
    """Return the number of processors that this process may keep busy, at least 1.

    A quota of 1.5 processors counts as 2. ``root`` is the folder that holds ``proc`` and ``sys``.
    """
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [-(-quota // period) for quota, period in _quotas(root) if quota > 0 and period > 0]
    return max(1, min([available, *quotas]))


def count_workers(workers: int | None) -> int:
    """Return the number of workers to start: the one given, or one per usable processor if None.

    Raises :class:`UsageError` for a number below 1.
    """
    if workers is None:
        return usable_processors()
    check_count("workers", workers, least=1)
    return workers


def let_idle_threads_sleep() -> None:
    """Let OpenMP threads sleep instead of spinning while they wait, unless ``OMP_WAIT_POLICY`` says otherwise.

    Call it before a library with OpenMP is loaded: the variable is read only then. On a busy machine, spinning threads
    occupy the processor that the thread they wait for needs. Measured for 30 small training steps of PyTorch, with two
    threads on two processors shared with about 20 other processes: 131 and 154 s spinning, 2.4 and 9.1 s sleeping.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def limit_torch_threads() -> None:
    """Let PyTorch use no more threads than this process may keep busy.

    Its default follows the affinity mask alone, and the threads that a quota stops spin and slow all others down.
    """
    import torch

    limit = usable_processors()
    if torch.get_num_threads() > limit:
        torch.set_num_threads(limit)


def _quotas(root: Path) -> Iterator[tuple[int, int]]:
    """Yield the CPU quota and period, in microseconds, of every control group that this process belongs to."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers == "":  # version 2
            for folder in _with_parents(group, root / "sys/fs/cgroup", root / "sys/fs/cgroup/unified"):
                limits = _text(folder / "cpu.max").split()
                if len(limits) == 2 and limits[0] != "max":
                    yield int(limits[0]), int(limits[1])
        elif "cpu" in controllers.split(","):  # version 1
            for folder in _with_parents(group, root / "sys/fs/cgroup" / controllers, root / "sys/fs/cgroup/cpu"):
                quota, period = (_text(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period"))
                if quota and period:
                    yield int(quota), int(period)


def _with_parents(group: str, *mounts: Path) -> Iterator[Path]:
    """Return the folders of a control group and of its parents: the quota of each applies.

    The mount's own folder is included, since a container without a namespace of its own sees its group there.
    """
    path = PurePosixPath(group.lstrip("/"))
    for mount in mounts:
        for folder in (path, *path.parents):
            yield mount / folder


def _text(path: Path) -> str:
    """Return the contents of a file, or an empty string if it cannot be read."""
    try:
        return path.read_text()
    except OSError:
        return ""
