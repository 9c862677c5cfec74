"""The command that runs the demonstration."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import typer


def add_commands(app: typer.Typer) -> None:
    """Add ``demo`` to the application."""
    app.command("demo")(demo)


def demo(
    output: Path = typer.Option(Path("demo-output"), "-o", "--output", metavar="DIR", help="Folder for the results."),
    student: bool = typer.Option(True, help="Train a student on the labels, too (about a minute)."),
) -> None:
    """Label the Earth: fit a small teacher in the west, calibrate and label in the east, measure, draw, train."""
    from rich.console import Console

    from ..demo.run import run_demo

    console = Console()
    figures = run_demo(output, console=console)
    if student and importlib.util.find_spec("torch") is None:
        typer.echo("a student needs PyTorch: pip install 'maskmill[demo,train]', and run the demonstration again")
    elif student:
        from ..demo.student import run_student

        run_student(output / "earth", figures, console=console)
