"""Arguments and options of many commands, and checks of output files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from ....errors import UsageError
from ...model.storage import location_of
from ..command import is_given, name_of

BundleArgument = Annotated[
    Path, typer.Argument(metavar="BUNDLE", parser=location_of, help="Folder or URL of the model bundle.")
]
ChangedBundleArgument = Annotated[
    Path, typer.Argument(metavar="BUNDLE", help="Folder of the model bundle, which receives the result.")
]
StoresArgument = Annotated[
    list[Path],
    typer.Argument(
        metavar="STORE", parser=location_of, help="Label stores, by folder or URL; several are read as one."
    ),
]
TaxonomyOption = Annotated[
    Path | None,
    typer.Option(
        "--taxonomy",
        metavar="FILE",
        parser=location_of,
        help="Class mapping (TOML).",
        show_default="the model's own classes",
    ),
]
WorkersOption = Annotated[
    int | None,
    typer.Option(
        "--workers", min=1, metavar="N", help="Images processed at the same time.", show_default="one per core"
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


def options_of_call(context: typer.Context) -> dict[str, str]:
    """Return the names of the parameters that the command line gives: in Python, and as the user writes them."""
    parameters = [parameter for parameter in context.command.params if is_given(context, parameter)]
    return {parameter.name or "": name_of(parameter).strip("[]") for parameter in parameters}


def print_json(raw: object, indent: int | None = 2) -> None:
    """Print plain data as JSON on standard output."""
    import json

    typer.echo(json.dumps(raw, indent=indent))


def new_file(path: Path, suffix: str) -> None:
    """Refuse an output file that exists or cannot be written, before any work is done.

    Raises :class:`UsageError` as :func:`writable_file` does, and for a file that exists.
    """
    writable_file(path, suffix)
    if path.exists():
        raise UsageError(f"{path} exists already, and other files may refer to it; choose another name, or remove it")


def replacement(path: Path) -> str:
    """Return the end of a line that says that a file was written: empty, or that it takes an earlier one's place.

    Call it before the file is written.
    """
    return ", in place of an earlier file" if path.exists() else ""


def writable_file(path: Path, suffix: str) -> None:
    """Refuse an output file that cannot be written, before any work is done.

    Raises :class:`UsageError` if the suffix differs, or the folder does not exist or cannot be written to.
    """
    if path.suffix != suffix or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise UsageError(f"cannot write {path}: expected a {suffix} file in an existing folder")
