"""Command that checks a label store row by row, and an export file by file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ....errors import UsageError
from ...report.terminal import say
from ..options import JsonOption, print_json

_SHOWN = 20


def verify_store(
    store: Annotated[Path, typer.Argument(metavar="STORE", help="Folder of a label store, or of an export of labels.")],
    repair: Annotated[
        bool, typer.Option("--repair", help="Remove what is damaged, so that the next run labels it again.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Check every row of a store against its hash, decode its maps, and name what is damaged.

    Of an export, every file is compared with the hash in its certificate, and the promise is printed.

    Exit status: 0 if nothing is damaged or everything damaged was removed, 1 otherwise. Let no other command use the
    store during a repair.
    """
    from ...formats.open import is_exported
    from ...report import display
    from ...store.verify import verify

    if is_exported(str(store)):
        if repair:
            raise UsageError(f"{store} is an export, which --repair cannot restore; ask for it again")
        if not _check_export(store, as_json=as_json):
            raise typer.Exit(1)
        return
    with display.counter("verifying", quiet=as_json) as progress:
        result = verify(store, repair=repair, progress=progress)
    if as_json:
        print_json(result.to_json())
    else:
        for damage in result.damages[:_SHOWN]:
            say(f"damaged: {damage}")
        if len(result.damages) > _SHOWN:
            say(f"… and {len(result.damages) - _SHOWN:,} more; --json lists all")
        counts = ", ".join(f"{count:,} {name}" for name, count in result.rows.items())
        if result.rows.get("reviews"):
            counts += f", {result.num_reviews_in_force:,} of them in force"
        for tag, version in result.pins.items():
            say(f"pinned: version {version} of labels, by {tag}")
        if not result.damages:
            say(f"{store}: nothing is damaged ({counts})")
        elif repair:
            say(f"{store}: {len(result.damages):,} damaged rows or files removed, {counts} are sound")
            say("Run the command that made the labels again to replace them.")
        else:
            say(f"{store}: {len(result.damages):,} damaged rows or files; remove them with --repair")
    if not result.sound:
        raise typer.Exit(1)


def _check_export(folder: Path, *, as_json: bool) -> bool:
    """Compare an export with its certificate and print the result; returns True if nothing is damaged."""
    from ...labeling.certificate import verify_export

    check = verify_export(folder)
    if as_json:
        print_json({"files": check.num_files, "faults": list(check.faults), "certificate": dict(check.certificate)})
        return not check.faults
    for fault in check.faults[:_SHOWN]:
        say(f"damaged: {fault}")
    if len(check.faults) > _SHOWN:
        say(f"… and {len(check.faults) - _SHOWN:,} more; --json lists all")
    if check.faults:
        say(f"{folder}: {len(check.faults):,} of {check.num_files:,} files are not as they were exported")
        return False
    export = check.certificate["export"]
    say(f"{folder}: {check.num_files:,} files are as they were exported ({export['num_images']:,} images)")
    say(f"promise: {check.certificate['promise']}")
    return True
