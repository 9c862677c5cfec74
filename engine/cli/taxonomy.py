"""The command that drafts a class mapping."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ...errors import UsageError
from .options import BundleArgument


def draft_taxonomy(
    bundle: BundleArgument,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="TOML file to write.")],
    labels: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Label maps of the dataset, to map their values as well.")
    ] = None,
    label_names: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Names of the label values.", show_default="classes.txt in or beside --labels"
        ),
    ] = None,
) -> None:
    """Draft a class mapping from matching names, and list the names that did not match."""
    import numpy as np

    from ..inputs.label_maps import LabelFolder, read_label_map
    from ..model.bundle import Bundle
    from ..model.files import read_class_names
    from ..model.taxonomy import draft
    from ..predictors.prompted.activation_maps import scored_bundle

    model = scored_bundle(Bundle.load(bundle))
    if output.exists():
        raise UsageError(f"{output} exists already; remove it or choose another name")
    names: dict[int, str] | None = None
    if labels is not None:
        present = {int(index) for path in LabelFolder(labels).files() for index in np.unique(read_label_map(path))}
        candidates = [label_names] if label_names else [labels / "classes.txt", labels.parent / "classes.txt"]
        known = next((read_class_names(path) for path in candidates if label_names or path.is_file()), {})
        names = {index: known.get(index, f"label {index}") for index in sorted(present - {255} | set(known))}
    elif label_names is not None:
        names = read_class_names(label_names)
    text, unmatched = draft(model, names)
    output.write_text(text, encoding="utf-8")
    typer.echo(f"wrote {output}; check every line before you use it")
    if unmatched:
        typer.echo("no matching name:\n  " + "\n  ".join(unmatched))
