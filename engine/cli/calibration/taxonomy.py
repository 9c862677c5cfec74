"""The command that drafts a class mapping."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ....errors import UsageError
from ...model.color_tables import TableName
from ...model.taxonomy_draft import Unmatched
from ...report.terminal import say
from ..command import needs
from ..options.common import BundleArgument
from ..options.model import TextOption
from ..options.prompts import PromptFileGroup
from ..options.truth import FormatOption
from ..options.urls import reads_urls


@reads_urls
@needs(labels_format="labels")
def draft_taxonomy(
    bundle: BundleArgument,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="TOML file to write.")],
    prompting: PromptFileGroup,
    labels: Annotated[
        str | None, typer.Option(metavar="LABELS", help="Labels whose values are mapped as well.")
    ] = None,
    labels_format: FormatOption = None,
    label_names: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|SET",
            help="Names of the label values: a file, or voc, cityscapes, ade20k or camvid.",
            show_default="classes.txt in or above --labels",
        ),
    ] = None,
    colors: Annotated[
        TableName | None,
        typer.Option(
            metavar="SET",
            help="Color table of label maps that store colors: voc, cityscapes, ade20k or camvid.",
            show_default="label maps store indices",
        ),
    ] = None,
    unmatched: Annotated[
        Unmatched,
        typer.Option(metavar="NAME", help="Target of names without a match: ignore or background."),
    ] = "ignore",
    text: TextOption = None,
) -> None:
    """Draft a class mapping from matching names, and list the names that did not match.

    A promptable model has the classes that its source of prompts names: give --boxes, --points, --coarse-masks or
    --detector as for labeling, and --text for a text model.
    """
    from ...inputs.labeled_source import value_names
    from ...inputs.labels import open_labels
    from ...inputs.summary import SourceSummary
    from ...model.bundle import Bundle
    from ...model.color_tables import named_table
    from ...model.taxonomy_draft import draft, read_label_names
    from ...predictors.open import prompted_model
    from ...predictors.prompted.activation_maps import scored_bundle
    from ...predictors.texts import parse_texts, text_bundle

    prompted = prompting.options(bundle)
    if prompted.sources and text is not None:
        raise UsageError(f"{', '.join(prompted.sources)} and --text name classes of different models; give one")
    if prompted.sources:
        model = prompted_model(prompted)
    elif text is not None:
        model = text_bundle(Bundle.load(bundle), parse_texts(text))
    else:
        model = scored_bundle(Bundle.load(bundle))
    if output.exists():
        raise UsageError(f"{output} exists already; remove it or choose another name")
    table = None if colors is None else named_table(colors)
    names = None if table is None else dict(table.names)
    if label_names is not None:
        names = read_label_names(label_names)
    by_name = False
    if labels is not None:
        source = open_labels(labels, format=labels_format)
        by_name = source.by_name
        names = value_names(source, names, colors=table)
        say(
            SourceSummary(images=len(source), skipped=source.skipped, labels_format=source.format).line(
                "labeled images"
            )
        )
    text, notes = draft(model, names, unmatched=unmatched, by_name=by_name, colors=colors)
    output.write_text(text, encoding="utf-8")
    say(f"wrote {output}; check every line before you use it")
    if notes:
        say("no matching name:")
        for note in notes:
            say(f"  {note}")
