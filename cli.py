"""The command line: one application, to which each package adds its commands.

Commands import what they need when they run, so that ``maskmill --help`` is quick and works without optional packages.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import warnings
from contextlib import suppress
from typing import Annotated, Any, NoReturn

import typer

from .engine.cli import COMMANDS as ENGINE
from .engine.cli.command import PlainCommand, PlainGroup
from .engine.report.terminal import printable
from .errors import MaskmillError, StorageOutageWarning, WaitingRowsWarning
from .export.cli import COMMANDS as EXPORT
from .kernels.processors import let_idle_threads_sleep
from .trainer.cli import COMMANDS as TRAINER

_SHOW_WARNING = warnings.showwarning

app = typer.Typer(
    name="maskmill",
    cls=PlainGroup,
    help="Label images with a foundation model, keep the pixels that calibration supports, and train a student.",
    rich_markup_mode="markdown",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for _panel in ("Models", "Calibration", "Labels", "Looking", "Exchange", "Students", "Setup"):
    for _commands in (EXPORT, ENGINE, TRAINER):
        for _name, _function in _commands.get(_panel, {}).items():
            app.command(_name, cls=PlainCommand, rich_help_panel=_panel)(_function)


@app.callback(invoke_without_command=True)
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,  # read by main
) -> None:
    if version:
        from . import __version__

        typer.echo(__version__)
        raise typer.Exit


def main() -> None:
    """Run the command line; print an error that a user can act on as one line on standard error."""
    # Lance reports on standard error when two writers compact at the same time, which is harmless
    os.environ.setdefault("LANCE_LOG", "error")
    let_idle_threads_sleep()
    warnings.showwarning = _show_warning
    try:
        app(prog_name="maskmill")
    except MaskmillError as error:
        if "--debug" in sys.argv:
            raise
        typer.echo(f"maskmill: {printable(' '.join(str(error).split()))}", err=True)
        _exit(error.exit_code)
    except MemoryError as error:
        if "--debug" in sys.argv:
            raise
        typer.echo(
            f"maskmill: out of memory ({error}); what was committed is safe: use fewer --workers, a smaller --batch or "
            "--max-pixels, and run the same command again",
            err=True,
        )
        _exit(1)
    except KeyboardInterrupt:
        typer.echo("maskmill: interrupted", err=True)
        _exit(130)
    except SystemExit as end:
        _exit(end.code)


def _show_warning(message: Warning | str, category: type[Warning], *rest: Any, **options: Any) -> None:
    """Print a warning of this package on one line, and others as Python does."""
    if issubclass(category, WaitingRowsWarning | StorageOutageWarning):
        typer.echo(f"maskmill: warning: {printable(' '.join(str(message).split()))}", err=True)
    else:
        _SHOW_WARNING(message, category, *rest, **options)


def _exit(code: Any) -> NoReturn:
    """Exit; at once if threads hang in a model or wait for a server, which would crash or hold up the ordinary way.

    A signal during the exit does not change the exit status.
    """
    number = code if isinstance(code, int) else int(code is not None)
    with suppress(ValueError):  # not on the main thread
        signal.signal(signal.SIGINT, lambda *_: os._exit(number))
    # fsspec closes its connections on exit, each within seconds if the server does not answer
    prefixes = ("maskmill", "fsspecIO") if number == 130 else ("maskmill",)
    if any(thread.name.startswith(prefixes) for thread in threading.enumerate()):
        if (storage := sys.modules.get("maskmill.engine.model.storage")) is not None:
            storage.remove_copies()
        with suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(number)
    sys.exit(code)
