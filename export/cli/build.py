"""The command that builds engines and proves them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Any

import typer

from ...engine.cli.options import BUNDLE
from ...errors import UsageError

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


class Target(StrEnum):
    """What a bundle can be built for."""

    tensorrt = "tensorrt"


def add_commands(app: typer.Typer) -> None:
    """Add ``build`` to the application."""
    app.command("build", rich_help_panel="Models")(build)


def build(
    bundle: Path = BUNDLE,
    target: Target = typer.Option(Target.tensorrt, help="What to build for."),
    precision: str | None = typer.Option(
        None, metavar="PRECISION", help="Which of the bundle's files to build from.  [default: its first]"
    ),
    batch: str = typer.Option("1,8,32", metavar="MIN,BEST,MAX", help="Images in one call; one number fixes it."),
    height: str | None = typer.Option(
        None, metavar="MIN,BEST,MAX", help="Rows of a dynamic input.  [default: the bundle's]"
    ),
    width: str | None = typer.Option(
        None, metavar="MIN,BEST,MAX", help="Columns of a dynamic input.  [default: the bundle's]"
    ),
    points: str = typer.Option("1,2,16", metavar="MIN,BEST,MAX", help="Points of a prompt of a promptable bundle."),
    workspace: str | None = typer.Option(
        None, metavar="BYTES", help="Most scratch memory, as in 4G or 512M.  [default: the device's]"
    ),
    hardware_compatible: bool = typer.Option(
        False, "--hardware-compatible", help="Run on every GPU from Ampere on, more slowly."
    ),
    version_compatible: bool = typer.Option(
        False, "--version-compatible", help="Run with later versions of the same major TensorRT, more slowly."
    ),
    gate_images: str | None = typer.Option(
        None, metavar="SOURCE", help="Real images to prove the engine on; without a verdict it does not label."
    ),
    limit: int = typer.Option(100, min=1, help="Images taken from the source, evenly spaced."),
) -> None:
    """Build TensorRT engines for this machine's GPU, and prove them against the original on real images.

    An engine is built once for the same file, GPU, TensorRT version and options. Exit status: 0 built and, where images
    were given, proved; 1 otherwise.
    """
    from ...engine.model.bundle import Bundle
    from ..build.engine_builder import BuildOptions, build_engine
    from ..gate.proof import roles_of

    model = Bundle.load(bundle)
    model.verify()
    options = BuildOptions(
        batch=_range(batch, "--batch"),
        height=None if height is None else _range(height, "--height"),
        width=None if width is None else _range(width, "--width"),
        points=_range(points, "--points"),
        workspace=None if workspace is None else _bytes(workspace),
        hardware_compatible=hardware_compatible,
        version_compatible=version_compatible,
    )
    for role in roles_of(model):
        with _phases() as observer:
            built = build_engine(
                model, role=role, precision=precision, options=options, observer=observer, say=typer.echo
            )
        model, engine = built.bundle, built.engine
        done = "there already" if built.reused else "built"
        typer.echo(f"{done}: {model.path / engine.path} ({engine.bytes:,} bytes, {engine.gpu}, {engine.tensorrt})")
    if gate_images is None:
        typer.echo(
            "the engine is not proved, and `maskmill label` refuses it: run "
            f"`maskmill gate {model.path} --provider engine --images SOURCE`"
        )
        return
    _prove(model, precision, gate_images, limit)


def _prove(model: Any, precision: str | None, source: str, limit: int) -> None:
    """Run the gate on the engine itself; the verdict is recorded whether it passes or not."""
    from ...kernels.processors import usable_processors
    from ..gate.judge import GateImages, describe, require_pass
    from ..gate.proof import prove_artifact

    photos = GateImages.open(source, limit=limit)
    verdicts = prove_artifact(model, "engine", precision, photos, threads=usable_processors())
    for verdict in verdicts:
        typer.echo(describe(verdict))
    require_pass(*verdicts)


@contextmanager
def _phases() -> Iterator[Any]:
    """TensorRT's phases as nested bars on standard error."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        yield _Bars(bars)


class _Bars:
    """A bar for each phase that is under way, indented below its parent's."""

    def __init__(self, bars: Any) -> None:
        self._bars = bars
        self._tasks: dict[str, Any] = {}
        self._depth: dict[str | None, int] = {None: -1}

    def start(self, phase: str, parent: str | None, steps: int) -> None:
        """Add the phase's bar."""
        self._depth[phase] = self._depth.get(parent, -1) + 1
        self._tasks[phase] = self._bars.add_task("  " * self._depth[phase] + phase, total=steps)

    def step(self, phase: str, done: int) -> None:
        """Move it."""
        if phase in self._tasks:
            self._bars.update(self._tasks[phase], completed=done)

    def finish(self, phase: str) -> None:
        """Take it away."""
        if phase in self._tasks:
            self._bars.remove_task(self._tasks.pop(phase))


def _range(text: str, option: str) -> tuple[int, int, int]:
    parts = text.split(",")
    if len(parts) not in (1, 3) or not all(part.strip().isdecimal() for part in parts):
        raise UsageError(f"{option} must be one number, or smallest, best and largest as in 1,8,32; got {text!r}")
    smallest, best, largest = (int(part) for part in (parts * 3 if len(parts) == 1 else parts))
    return smallest, best, largest


def _bytes(text: str) -> int:
    match = re.fullmatch(r"(\d+)([KMG]?)(i?B)?", text.strip(), re.IGNORECASE)
    if match is None:
        raise UsageError(f"--workspace must be a number of bytes, as in 4G or 512M, got {text!r}")
    return int(match[1]) * _UNITS[match[2].upper()]
