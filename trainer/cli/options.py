"""Command-line options that the trainer's commands share."""

from __future__ import annotations

from typing import Annotated

import typer

DeviceOption = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="DEVICE",
        help="Device of the student: cpu, cuda or cuda:N.",
        show_default="cuda if there is a GPU, else cpu",
    ),
]

AllowCodeOption = Annotated[
    bool,
    typer.Option("--allow-code", help="Import and call the function that is named as the model; it can run any code."),
]
