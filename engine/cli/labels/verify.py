"""Command that checks a label store row by row, and an export file by file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ....errors import UsageError
from ...model.storage import location_of
from ...report.terminal import say
from ..options.common import JsonOption, print_json
from ..options.urls import reads_stores

_SHOWN = 20


@reads_stores
def verify_store(
    stores: Annotated[
        list[Path],
        typer.Argument(
            metavar="STORE", parser=location_of, help="Label stores or exports of labels, by folder or URL."
        ),
    ],
    repair: Annotated[
        bool, typer.Option("--repair", help="Remove what is damaged, so that the next run labels it again.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Check every row of a store against its hash, decode its maps, and list what is damaged.

    In an export, every file is compared with its hash, and the promise in the certificate is printed. With --json,
    several stores give a list.

    Exit status: 0 if nothing is damaged or everything damaged was removed, 1 otherwise. Do not use the store with other
    commands during a repair.
    """
    results = [_verify(store, repair, as_json) for store in stores]
    if as_json:
        reports = [report for report, _ in results]
        print_json(reports if len(reports) > 1 else reports[0])
    if not all(is_sound for _, is_sound in results):
        raise typer.Exit(1)


def _verify(store: Path, repair: bool, as_json: bool) -> tuple[dict[str, Any], bool]:
    """Check a store or an export, and print the result unless ``as_json``; returns (report, nothing is damaged)."""
    from ...formats.open import is_exported
    from ...report import display
    from ...store.verify import verify

    if is_exported(str(store)):
        if repair:
            raise UsageError(f"{store} is an export, which --repair cannot restore; ask for it again")
        return _check_export(store, as_json=as_json)
    with display.counter("verifying", quiet=as_json) as progress:
        result = verify(store, repair=repair, progress=progress)
    if as_json:
        return result.to_json(), result.sound
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
    return {}, result.sound


def _check_export(folder: Path, *, as_json: bool) -> tuple[dict[str, Any], bool]:
    """Compare an export with its certificate; see :func:`_verify`."""
    from ...labeling.certificate import verify_export

    check = verify_export(folder)
    if as_json:
        report = {"files": check.num_files, "faults": list(check.faults), "certificate": dict(check.certificate)}
        return report, not check.faults
    for fault in check.faults[:_SHOWN]:
        say(f"damaged: {fault}")
    if len(check.faults) > _SHOWN:
        say(f"… and {len(check.faults) - _SHOWN:,} more; --json lists all")
    if check.faults:
        say(f"{folder}: {len(check.faults):,} of {check.num_files:,} files are not as they were exported")
        return {}, False
    export = check.certificate["export"]
    say(f"{folder}: {check.num_files:,} files are as they were exported ({export['num_images']:,} images)")
    say(f"promise: {check.certificate['promise']}")
    return {}, True
