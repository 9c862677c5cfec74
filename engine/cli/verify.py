"""Command that checks a label store row by row."""

from __future__ import annotations

from typing import Annotated

import typer

from .options import JsonOption, StoreArgument, print_json

_SHOWN = 20


def verify_store(
    store: StoreArgument,
    repair: Annotated[
        bool, typer.Option("--repair", help="Remove what is damaged, so that the next run labels it again.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Check every row of a store against its hash, decode its maps, and name what is damaged.

    Exit status: 0 if nothing is damaged or everything damaged was removed, 1 otherwise. Let no other command use the
    store during a repair.
    """
    from ..report import display
    from ..store.verify import verify

    with display.counter("verifying", quiet=as_json) as progress:
        result = verify(store, repair=repair, progress=progress)
    if as_json:
        print_json(result.to_json())
    else:
        for damage in result.damages[:_SHOWN]:
            typer.echo(f"damaged: {damage}")
        if len(result.damages) > _SHOWN:
            typer.echo(f"… and {len(result.damages) - _SHOWN:,} more; --json lists all")
        counts = ", ".join(f"{count:,} {name}" for name, count in result.rows.items())
        for tag, version in result.pins.items():
            typer.echo(f"pinned: version {version} of labels, by {tag}")
        if not result.damages:
            typer.echo(f"{store}: nothing is damaged ({counts})")
        elif repair:
            typer.echo(f"{store}: {len(result.damages):,} damaged rows or files removed, {counts} are sound")
            typer.echo("Run the command that made the labels again to replace them.")
        else:
            typer.echo(f"{store}: {len(result.damages):,} damaged rows or files; remove them with --repair")
    if not result.sound:
        raise typer.Exit(1)
