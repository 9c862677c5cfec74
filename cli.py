"""The command line: one application, each package's commands added to it.

Commands import what they need when they run, so ``maskmill --help`` is quick and works without optional packages.
"""

from __future__ import annotations

import os
import sys

import typer

from . import __version__
from .engine.cli.label import add_commands as add_engine_commands
from .errors import MaskmillError
from .export.cli.adopt import add_commands as add_export_commands
from .export.cli.build import add_commands as add_build_commands
from .export.cli.gate import add_commands as add_gate_commands
from .trainer.cli.demo import add_commands as add_demo_commands
from .trainer.cli.export import add_commands as add_model_commands
from .trainer.cli.train import add_commands as add_trainer_commands

app = typer.Typer(
    name="maskmill",
    help="Calibrated, weighted pseudo-labels from foundation segmentation models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
add_model_commands(app)
add_export_commands(app)
add_gate_commands(app)
add_build_commands(app)
add_engine_commands(app)
add_trainer_commands(app)
add_demo_commands(app)


@app.callback(invoke_without_command=True)
def _options(
    version: bool = typer.Option(False, "--version", help="Print the version and exit."),
    debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error."),  # read by main
) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


def main() -> None:
    """Run the command line; errors a user can act on are one line on standard error."""
    # Lance reports on standard error when two writers tidy up at once, which is no news to a user
    os.environ.setdefault("LANCE_LOG", "error")
    try:
        app()
    except MaskmillError as error:
        if "--debug" in sys.argv:
            raise
        typer.echo(f"maskmill: {' '.join(str(error).split())}", err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        typer.echo("maskmill: interrupted", err=True)
        sys.exit(130)
