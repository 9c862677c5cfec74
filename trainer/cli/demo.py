"""The command that runs the demonstration."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated

import typer

from ...engine.report.terminal import PlainConsole, say
from ...errors import install_command


def demo(
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Folder for the results.")] = Path(
        "demo-output"
    ),
    student: Annotated[
        bool, typer.Option("--student/--no-student", help="Train a student on the labels as well (about a minute).")
    ] = True,
) -> None:
    """Label the Earth: fit a small teacher in the west, calibrate and label in the east, measure, draw, train."""
    from ..demo.run import run_demo

    console = PlainConsole()
    figures = run_demo(output, console=console)
    if student and importlib.util.find_spec("torch") is None:
        say(f"the student needs PyTorch; install it with: {install_command('demo,train')}, then run the demo again")
    elif student:
        from ..demo.student import run_student

        run_student(output / "earth", figures, console=console)
