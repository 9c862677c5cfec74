"""Options of labeled images and of their true labels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from ...formats.open import InputFormat
from ...model.storage import location_of
from .groups import OptionGroup
from .inputs import SOURCE_HELP

if TYPE_CHECKING:
    from ...inputs.labels import LabelSource

ImagesOption = Annotated[
    str | None,
    typer.Option("--images", metavar="SOURCE", help=f"Labeled images: {SOURCE_HELP}.", show_default=False),
]
LabelsOption = Annotated[
    str | None,
    typer.Option(
        "--labels",
        metavar="LABELS",
        help="True labels of the images: a folder of label maps, or a file or folder in another format.",
        show_default=False,
    ),
]
FormatOption = Annotated[
    InputFormat | None,
    typer.Option(
        "--labels-format", metavar="NAME", help="Format of the true labels, such as coco.", show_default="detected"
    ),
]
IdsOption = Annotated[
    Path | None,
    typer.Option(
        "--ids",
        metavar="FILE",
        parser=location_of,
        help="Names of the images to use, one per line.",
        show_default="all",
    ),
]
PairingOption = Annotated[
    str | None,
    typer.Option(
        "--pairing",
        metavar="IMAGE=LABEL",
        help="Naming rule of the label maps, with \\* for the equal part, as in '\\*=\\*_gt'.",
        show_default="known names are recognized",
    ),
]
AsStoredOption = Annotated[
    bool,
    typer.Option("--labels-as-stored", help="Label maps match the photos as stored, before EXIF rotation."),
]


@dataclass(frozen=True, kw_only=True)
class LabelGroup(OptionGroup):
    """How true labels are read and paired with their images."""

    panel: ClassVar[str] = "True labels"
    labels_format: FormatOption = None
    pairing: PairingOption = None
    labels_as_stored: AsStoredOption = False

    def open(self, labels: str) -> LabelSource:
        """Open ``--labels``."""
        from ...inputs.labels import open_labels

        return open_labels(labels, pairing=self.pairing, as_stored=self.labels_as_stored, format=self.labels_format)


@dataclass(frozen=True, kw_only=True)
class TruthGroup(LabelGroup):
    """Images to use, and how their true labels are read."""

    ids: IdsOption = None

    @property
    def names(self) -> frozenset[str] | None:
        """Names of the images to use; None for all."""
        from ...inputs.names import read_ids

        return None if self.ids is None else read_ids(self.ids)
