"""The command that ranks images for people: what to label next, and which labels to doubt."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ....errors import UsageError
from ...model.storage import location_of
from ...report.terminal import say
from ..command import needs
from ..options.common import JsonOption, StoresArgument, WorkersOption, print_json, replacement, writable_file
from ..options.model import ProviderOption
from ..options.truth import TruthGroup
from ..options.urls import reads_urls

_SHOWN = 10


@reads_urls
@needs(provider="model", ids="labels", labels_format="labels", pairing="labels", labels_as_stored="labels")
def rank(
    stores: StoresArgument,
    truth: TruthGroup,
    budget: Annotated[
        int, typer.Option(min=0, metavar="N", help="Images to choose for labeling; 0 only looks for errors in labels.")
    ] = 100,
    output: Annotated[
        Path,
        typer.Option("-o", "--output", metavar="FILE", help="Queue (.json) to write; other commands read it as --ids."),
    ] = Path("queue.json"),
    calibration: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            parser=location_of,
            help="Calibration of the labels; classes that it has too few images of come first.",
            show_default=False,
        ),
    ] = None,
    images: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE",
            help="Calibration images, to report their near-duplicates in the store; with --labels, the images of "
            "these labels.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            metavar="BUNDLE",
            parser=location_of,
            help="Model that made the labels, to run again on the candidates; required by --labels.",
            show_default=False,
        ),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            metavar="LABELS",
            help="True labels of --images, to look for errors in: a folder of label maps, or another format.",
            show_default=False,
        ),
    ] = None,
    provider: ProviderOption = "cpu",
    workers: WorkersOption = None,
    as_json: JsonOption = False,
) -> None:
    """Choose the images that people should label next, and find likely errors in labels that they made.

    With --model, or in a store that keeps scores, the queue prefers images whose labels are doubtful, that show classes
    with too few calibration images, and that differ from each other; otherwise it is random. Near-duplicates are left
    out. `maskmill export-labels --ids queue.json` exports these images with their labels for CVAT or Label Studio.
    """
    from ...labels_api import rank as run

    writable_file(output, ".json")
    note = replacement(output)
    if labels is not None and (images is None or model is None):
        raise UsageError(
            "--labels needs --images SOURCE, the images of these labels, and --model BUNDLE, to judge them"
        )
    names = truth.names
    label_source = None if labels is None else truth.open(labels)
    queue = run(
        stores,
        budget,
        output=output,
        calibration=calibration,
        images=images,
        model=model,
        labels=label_source,
        ids=None if names is None else sorted(names),
        provider=provider,
        workers=workers,
        progress=not as_json,
    )
    if as_json:
        print_json(queue.to_json())
        return
    for number, image in enumerate(queue.images[:_SHOWN], 1):
        if queue.basis == "random":
            say(f"{number:>3} {image.uri} (labeled {image.kept:.0%})")
            continue
        shows = f", shows {', '.join(image.classes)}" if image.classes else ""
        say(f"{number:>3} {image.uri} (labeled {image.kept:.0%}, doubt {image.doubt:.0%}{shows})")
    if len(queue.images) > _SHOWN:
        say(f"    … {len(queue.images) - _SHOWN} more in {output}")
    for doubt in queue.label_errors[:_SHOWN]:
        reason = f", {doubt.given} on pixels that look like {doubt.suggested or 'no class'}" if doubt.given else ""
        say(f"label {doubt.score:.3f} {doubt.uri} ({doubt.doubted:.1%} doubted{reason})")
    if queue.calibration_twins:
        say(f"warning: {len(queue.calibration_twins)} images are near-duplicates of calibration images:")
        for first, second in queue.calibration_twins[:_SHOWN]:
            say(f"  {second} is like {first}")
    if queue.images and queue.basis == "random":
        say("note: drawn at random, without near-duplicates; --model BUNDLE or kept scores give an order")
    parts = [f"{len(queue.images)} of {queue.num_candidates} candidates", f"{len(queue.twins)} near-duplicate pairs"]
    if labels is not None:
        parts.append(f"{len(queue.label_errors)} labels judged")
    say(f"{output}: {', '.join(parts)}{note}")
