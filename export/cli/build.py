"""The command that builds TensorRT engines and proves them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...engine.cli.command import needs
from ...engine.cli.options.common import ChangedBundleArgument
from ...engine.cli.options.model import PrecisionOption
from ...engine.cli.options.urls import reads_urls
from ...engine.report.terminal import say
from ...errors import UsageError
from .gate import SampleGroup

if TYPE_CHECKING:
    from ..gate.judge import GateImages

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


@reads_urls
@needs(num_images="gate_images", image_ending="gate_images", bit_depth="gate_images")
def build(
    bundle: ChangedBundleArgument,
    sample: SampleGroup,
    precision: PrecisionOption = None,
    batch: Annotated[
        str, typer.Option("--batches", metavar="MIN,BEST,MAX", help="Images per call; one number fixes the batch.")
    ] = "1,8,32",
    height: Annotated[
        str | None,
        typer.Option(metavar="MIN,BEST,MAX", help="Rows of a dynamic input.", show_default="the bundle's"),
    ] = None,
    width: Annotated[
        str | None,
        typer.Option(metavar="MIN,BEST,MAX", help="Columns of a dynamic input.", show_default="the bundle's"),
    ] = None,
    prompt_points: Annotated[
        str, typer.Option(metavar="MIN,BEST,MAX", help="Points per prompt of a promptable bundle.")
    ] = "1,2,16",
    workspace: Annotated[
        str | None,
        typer.Option(metavar="BYTES", help="Largest scratch memory, such as 4G or 512M.", show_default="the device's"),
    ] = None,
    hardware_compatible: Annotated[
        bool, typer.Option("--hardware-compatible", help="Make one engine for every GPU from Ampere on; slower.")
    ] = False,
    version_compatible: Annotated[
        bool,
        typer.Option(
            "--version-compatible",
            help="Make an engine that also runs with later versions of the same major TensorRT, and with the lean "
            "runtime; slower.",
        ),
    ] = False,
    gate_images: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE",
            help="Real images to run the gate on; an engine can label only with a passing verdict.",
            show_default="not checked",
        ),
    ] = None,
) -> None:
    """Build TensorRT engines for this machine's GPU, and compare them with the original on real images.

    An engine is built once per file, GPU, TensorRT version and options. Exit status: 0 if it was built and, with
    --gate-images, passed the gate; 1 otherwise.
    """
    from ...engine.model.bundle import Bundle
    from ..build.engine_builder import BuildOptions, build_engine
    from ..gate.proof import roles_of

    model = Bundle.load(bundle)
    model.verify()
    options = BuildOptions(
        batch=_range(batch, "--batches"),
        height=None if height is None else _range(height, "--height"),
        width=None if width is None else _range(width, "--width"),
        points=_range(prompt_points, "--prompt-points"),
        workspace=None if workspace is None else _bytes(workspace),
        hardware_compatible=hardware_compatible,
        version_compatible=version_compatible,
    )
    for role in roles_of(model):
        with _phases() as observer:
            build_result = build_engine(
                model, role=role, precision=precision, options=options, observer=observer, say=say
            )
        model, engine = build_result.bundle, build_result.engine
        outcome = "there already" if build_result.reused else "built"
        say(f"{outcome}: {model.path / engine.path} ({engine.bytes:,} bytes, {engine.gpu}, {engine.tensorrt})")
    if gate_images is None:
        say(
            "the engine has not passed the gate yet, and `maskmill label` refuses it: run "
            f"`maskmill gate {model.location} --provider engine --images SOURCE`"
        )
        return
    _prove(model, precision, sample.open(gate_images, model.input.bands))


def _prove(model: Any, precision: str | None, photos: GateImages) -> None:
    """Run the gate on the engine and record the verdict, whether it passes or not."""
    from ...kernels.processors import usable_processors
    from ..gate.judge import describe, require_pass
    from ..gate.proof import prove_artifact

    verdicts = prove_artifact(model, "engine", precision, photos, threads=usable_processors())
    for verdict in verdicts:
        say(describe(verdict))
        say(photos.summary.line())
    require_pass(*verdicts)


@contextmanager
def _phases() -> Iterator[Any]:
    """Show TensorRT's phases as nested bars on standard error."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from ...engine.report.terminal import PlainConsole

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=PlainConsole(stderr=True), transient=True) as bars:
        yield _Bars(bars)


class _Bars:
    """One bar per running phase, indented below its parent."""

    def __init__(self, bars: Any) -> None:
        self._bars = bars
        self._tasks: dict[str, Any] = {}
        self._depth: dict[str | None, int] = {None: -1}

    def start(self, phase: str, parent: str | None, steps: int) -> None:
        """Add the phase's bar."""
        self._depth[phase] = self._depth.get(parent, -1) + 1
        self._tasks[phase] = self._bars.add_task("  " * self._depth[phase] + phase, total=steps)

    def step(self, phase: str, done: int) -> None:
        """Update the phase's bar."""
        if phase in self._tasks:
            self._bars.update(self._tasks[phase], completed=done)

    def finish(self, phase: str) -> None:
        """Remove the phase's bar."""
        if phase in self._tasks:
            self._bars.remove_task(self._tasks.pop(phase))


def _range(text: str, option: str) -> tuple[int, int, int]:
    parts = text.split(",")
    if len(parts) not in (1, 3) or not all(part.strip().isdecimal() for part in parts):
        raise UsageError(f"{option} must be one number, or smallest, best and largest such as 1,8,32; got {text!r}")
    smallest, best, largest = (int(part) for part in (parts * 3 if len(parts) == 1 else parts))
    return smallest, best, largest


def _bytes(text: str) -> int:
    match = re.fullmatch(r"(\d+)([KMG]?)(i?B)?", text.strip(), re.IGNORECASE)
    if match is None:
        raise UsageError(f"--workspace must be a number of bytes, such as 4G or 512M, got {text!r}")
    return int(match[1]) * _UNITS[match[2].upper()]
