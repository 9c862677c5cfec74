"""Commands about whole stores and sources: merging stores, the progress of runs, manifests."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from ....errors import StoreError, UsageError
from ...cluster.status import Status
from ...model.storage import location_of
from ..options.common import JsonOption, print_json, replacement
from ..options.inputs import EndingOption
from ..options.urls import reads_stores, reads_urls
from .label_options import RequiredOutput


@reads_stores
def merge(
    stores: Annotated[
        list[Path],
        typer.Argument(metavar="STORE", parser=location_of, help="Label stores made with the same options."),
    ],
    output: RequiredOutput,
    as_json: JsonOption = False,
) -> None:
    """Merge label stores into one, such as those of machines without common storage.

    An image that is in several stores is stored once; if an input has several results, the latest is used. Stores made
    with different options are refused. Run the same command again to continue an interrupted merge.
    """
    from ...report import display
    from ...store.several.merge import merge_stores

    with display.counter("merging", quiet=as_json) as progress:
        counts = merge_stores(stores, output, progress=progress)
    if as_json:
        print_json(counts.to_json())
    else:
        display.say(
            f"{output}: {counts.images:,} images of {counts.inputs:,} inputs, {counts.reviews:,} reviews; "
            f"{counts.duplicates:,} images were already there, from another store or an earlier merge"
        )
        if not counts.added:
            display.say("nothing was added: the store already had every row of the merged stores")


@reads_stores
def status(
    stores: Annotated[
        list[Path], typer.Argument(metavar="STORE", parser=location_of, help="Label stores, by folder or URL.")
    ],
    every: Annotated[
        float | None,
        typer.Option(
            "--every",
            min=1.0,
            metavar="SECONDS",
            help="Repeat until the run has ended; with --json, one line of JSON each time.",
            show_default="once",
        ),
    ] = None,
    metrics: Annotated[
        int | None,
        typer.Option(
            "--metrics",
            min=0,
            max=65_535,
            metavar="PORT",
            help="Serve metrics for Prometheus on this port of this machine, until interrupted.",
            show_default="off",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show the progress of the runs that write to a store: inputs, speed, and the state of every process.

    Works on any machine that can read the store, during and after a run. With --json, several stores give a list.
    """
    from ...cluster.metrics import metrics_server
    from ...cluster.status import read_status
    from ...report import display

    if every is not None and metrics is not None:
        raise UsageError("--every and --metrics cannot be combined; give one of them")
    if metrics is not None and as_json:
        raise UsageError("--json and --metrics cannot be combined: --metrics serves the figures for Prometheus")
    if metrics is not None and len(stores) > 1:
        raise UsageError("--metrics serves the figures of one store; start one command per store, each with its port")
    current, fault = [], None
    for store in stores:
        try:
            current.append(read_status(store))
        except StoreError as error:
            fault = fault or error
    if fault is not None:
        _show_status(current, as_json=as_json, is_list=len(stores) > 1, indent=2)
        raise fault
    if metrics is not None:
        with metrics_server(stores[0], metrics) as server:
            display.say(f"metrics at http://127.0.0.1:{server.server_port}/metrics; Ctrl-C ends")
            try:
                server.serve_forever()
            except KeyboardInterrupt:
                return
    while True:
        _show_status(current, as_json=as_json, is_list=len(stores) > 1, indent=2 if every is None else None)
        if every is None or not any(_is_active(entry) for entry in current):
            return
        try:
            time.sleep(every)
        except KeyboardInterrupt:
            return
        current = [read_status(store) for store in stores]


def _show_status(current: list[Status], *, as_json: bool, is_list: bool, indent: int | None) -> None:
    from ...report import display

    if as_json and current:
        reports = [entry.to_json() for entry in current]
        print_json(reports if is_list else reports[0], indent=indent)
    elif not as_json:
        for line in (line for entry in current for line in entry.describe()):
            display.say(line)


def _is_active(current: Status) -> bool:
    return current.run in ("starting", "labeling") or any(worker.state == "labeling" for worker in current.workers)


@reads_urls
def manifest(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="Images: a folder, list, glob, WebDataset tar or URL.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="Parquet file to write.")],
    image_ending: EndingOption = None,
    as_json: JsonOption = False,
) -> None:
    """List a source once into a Parquet file, which every later command reads instead of listing again.

    The file holds the name, size and time of each image. Write it again if the files change.
    """
    from ...inputs.sources import open_source
    from ...model.publishing import published_file
    from ...reading.manifest import write_manifest
    from ...report import display

    if output.suffix != ".parquet":
        raise UsageError(f"a manifest is a Parquet file: expected -o FILE.parquet, got {output}")
    note = replacement(output)
    images = open_source(source, image_ending=image_ending)
    with display.counter("listing", quiet=as_json) as progress, published_file(output) as path:
        num_items = write_manifest(images, path, progress=progress)
    if as_json:
        print_json({"items": num_items, "skipped": dict(images.skipped)})
    else:
        num_others = sum(images.skipped.values())
        display.say(f"{output}: {num_items:,} images; {num_others:,} other files skipped{note}")
