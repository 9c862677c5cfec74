"""The command that imports corrected labels."""

from __future__ import annotations

import getpass
from typing import Annotated

import typer

from ....errors import UsageError
from ...formats.open import InputFormat
from ...labeling.import_labels import Unchanged
from ...report.terminal import say
from ..command import needs
from ..options.common import JsonOption, WorkersOption, options_of_call, print_json
from ..options.truth import IdsOption
from ..options.urls import reads_urls


@reads_urls
@needs(ids="withdraw")
def import_labels(
    context: typer.Context,
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="STORE... [REVIEWED]",
            help="One or more label stores, then the corrected labels: a file, folder or URL in any input format "
            "(none with --withdraw).",
        ),
    ],
    format: Annotated[
        InputFormat | None,
        typer.Option("--format", metavar="FORMAT", help="Format of the labels.", show_default="detected"),
    ] = None,
    reviewer: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Person who corrected the labels.", show_default="the user's name"),
    ] = None,
    unchanged: Annotated[
        Unchanged,
        typer.Option(
            metavar="FATE",
            help="Images that came back unchanged: skip, or accept if a person looked at every one.",
        ),
    ] = "skip",
    note: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Remark to keep with the reviews.", show_default=False)
    ] = None,
    withdraw: Annotated[
        bool,
        typer.Option(
            "--withdraw", help="Withdraw reviews instead: all, those of --reviewer, or those of the images in --ids."
        ),
    ] = False,
    ids: IdsOption = None,
    workers: WorkersOption = None,
    as_json: JsonOption = False,
) -> None:
    """Import corrected labels from CVAT, Label Studio, COCO and other files, as reviews.

    Reviewed pixels take precedence wherever labels are read, exported or trained on; the model's labels are never
    edited. With several stores, each receives the reviews of the images that it holds.
    """
    from ....kernels.processors import count_workers
    from ...inputs.names import read_ids
    from ...labeling import import_labels as reviews
    from ...report import display
    from ...store.several.joined import open_stores

    stores, reviewed = (paths, None) if withdraw else (paths[:-1], paths[-1])
    if not stores:
        raise UsageError(
            f"expected STORE and REVIEWED, a file or folder of corrected labels, got {paths[0]} alone; or add "
            "--withdraw, to withdraw the reviews of a store"
        )
    if withdraw:
        names = options_of_call(context)
        if foreign_options := names.keys() & {"format", "unchanged", "note", "workers"}:
            raise UsageError(
                f"{', '.join(sorted(names[name] for name in foreign_options))} applies to corrected labels, not to "
                "--withdraw; leave it out"
            )
    label_store = open_stores(stores)
    folders = ", ".join(map(str, label_store.folders))
    if reviewed is None:
        number = reviews.withdraw_reviews(
            label_store, reviewer=reviewer or getpass.getuser(), of=reviewer, names=read_ids(ids) if ids else None
        )
        if as_json:
            print_json({"withdrawn": number})
        else:
            say(f"{folders}: {number} reviews withdrawn; these images have the model's labels again")
        return
    with display.counter("importing", quiet=as_json) as progress:
        summary = reviews.import_labels(
            label_store,
            reviewed,
            format=format,
            reviewer=reviewer or getpass.getuser(),
            unchanged=unchanged,
            note=note,
            workers=count_workers(workers),
            progress=progress,
        )
    if as_json:
        print_json(vars(summary) | {"unknown": list(summary.unknown)})
        return
    say(
        f"{folders}: {summary.corrected} images corrected ({summary.pixels:,} pixels), "
        f"{summary.accepted} accepted, {summary.unchanged} unchanged"
    )
    if len(stores) > 1:
        for path, number in summary.stores.items():
            say(f"{path}: received {number} reviews")
    if summary.unknown:
        say(f"{len(summary.unknown)} images are not in the store, e.g. {summary.unknown[0]}")
