"""Options that choose where a command runs: in this process, as one of several processes, or on a Ray cluster."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, TypeVar

import typer

from ....errors import UsageError
from ...cluster.runner import Runner
from ...model.storage import is_remote
from ...runtimes.open import ON_GPU, Provider
from .groups import OptionGroup

if TYPE_CHECKING:
    from ...cluster.ray_pool import RaySettings

AnyPath = TypeVar("AnyPath", Path, str, Path | None, str | None)

RunnerOption = Annotated[
    Runner,
    typer.Option(
        "--runner",
        metavar="NAME",
        help="Where to run: in this process (local), as one of many processes that share the work, as in a Slurm "
        "array (array), or on a Ray cluster (ray).",
    ),
]
RunWorkersOption = Annotated[
    str | None,
    typer.Option(
        "--workers",
        metavar="N",
        help="Images processed at the same time; with --runner ray, number of worker processes, N or MIN:MAX.",
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
        "--log",
        metavar="FILE",
        help="Append the events of the run to this file, one JSON object per line.",
        show_default="off",
    ),
]


@dataclass(frozen=True, kw_only=True)
class RunnerGroup(OptionGroup):
    """Processes and machines that a command runs on."""

    panel: ClassVar[str] = "Where to run"
    runner: RunnerOption = "local"
    workers: RunWorkersOption = None
    address: AddressOption = None
    cpus_per_worker: CpusOption = None
    gpus_per_worker: GpusOption = None
    log: LogOption = None

    @property
    def threads(self) -> int | None:
        """Images in progress of one process, None for one per core; raises :class:`UsageError`."""
        if self.workers is None or self.runner == "ray":
            return None
        if not self.workers.isdecimal() or int(self.workers) < 1:
            raise UsageError(f"--workers must be at least 1, or MIN:MAX with --runner ray; got {self.workers!r}")
        return int(self.workers)

    def check(self) -> None:
        """Raise :class:`UsageError` for an option of Ray without ``--runner ray``."""
        options = {
            "--address": self.address,
            "--cpus-per-worker": self.cpus_per_worker,
            "--gpus-per-worker": self.gpus_per_worker,
        }
        for name, value in options.items():
            if value is not None and self.runner != "ray":
                raise UsageError(f"{name} applies to --runner ray; leave it out, or add --runner ray")

    def ray_settings(self, provider: Provider) -> RaySettings:
        """Return the cluster and its workers for a model that runs on ``provider``."""
        from ...cluster.ray_pool import RaySettings, parse_workers

        low, high = parse_workers(self.workers)
        return RaySettings(
            address=self.address,
            min_workers=low,
            max_workers=high,
            cpus_per_worker=self.cpus_per_worker,
            gpus_per_worker=float(provider in ON_GPU) if self.gpus_per_worker is None else self.gpus_per_worker,
        )

    def reached(self, path: AnyPath) -> AnyPath:
        """Return an absolute path, since workers on Ray run in other folders; URLs are unchanged."""
        if self.runner != "ray" or path is None or is_remote(path) or "://" in str(path):
            return path
        return type(path)(os.path.abspath(path))
