"""Options of the place where a command runs: this process, one of several processes, or a Ray cluster."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from ...errors import UsageError
from ..cluster.runner import Runner
from ..model.storage import is_remote

AnyPath = TypeVar("AnyPath", Path, str, Path | None, str | None)

RunnerOption = Annotated[
    Runner,
    typer.Option(
        "--runner",
        metavar="NAME",
        help="Where to run: this process (local), one of many that share the store, as in a Slurm array (array), or "
        "a Ray cluster (ray).",
    ),
]
RunWorkersOption = Annotated[
    str | None,
    typer.Option(
        "--workers",
        metavar="N",
        help="Images in progress at the same time; with --runner ray worker processes, N or MIN:MAX.",
        show_default="one per core",
    ),
]
AddressOption = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="HOST:PORT",
        help="Ray cluster (--runner ray).",
        show_default="that of this machine, or a new one",
    ),
]
CpusOption = Annotated[
    int | None,
    typer.Option(
        "--cpus-per-worker",
        min=1,
        metavar="N",
        help="Processors of each worker (--runner ray).",
        show_default="those of a machine, at most 8",
    ),
]
GpusOption = Annotated[
    float | None,
    typer.Option(
        "--gpus-per-worker",
        min=0.0,
        metavar="N",
        help="GPUs of each worker (--runner ray).",
        show_default="1 if the provider runs on one",
    ),
]

LogOption = Annotated[
    Path | None,
    typer.Option(
        "--log", metavar="FILE", help="Append what happens to this file, a JSON object per line.", show_default="off"
    ),
]


def threads_of(workers: str | None, runner: Runner) -> int | None:
    """Return the images in progress of one process, None for one per core; raises :class:`UsageError`."""
    if workers is None or runner == "ray":
        return None
    if not workers.isdecimal() or int(workers) < 1:
        raise UsageError(f"--workers must be at least 1, or MIN:MAX with --runner ray; got {workers!r}")
    return int(workers)


def check_ray_options(
    runner: Runner, address: str | None, cpus_per_worker: int | None, gpus_per_worker: float | None
) -> None:
    """Raise :class:`UsageError` for an option of Ray without ``--runner ray``."""
    options = {"--address": address, "--cpus-per-worker": cpus_per_worker, "--gpus-per-worker": gpus_per_worker}
    for name, value in options.items():
        if value is not None and runner != "ray":
            raise UsageError(f"{name} applies to --runner ray; leave it out, or add --runner ray")


def reached(path: AnyPath, runner: Runner) -> AnyPath:
    """Return a path that workers on Ray, which run in other folders, reach as well; URLs as they are."""
    if runner != "ray" or path is None or is_remote(path) or "://" in str(path):
        return path
    return type(path)(os.path.abspath(path))
