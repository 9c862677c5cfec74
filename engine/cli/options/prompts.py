"""Options of a promptable model and of the sources of its prompts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, ClassVar

import typer

from ....errors import UsageError
from ...model.storage import location_of
from ...predictors.open import PromptedOptions
from ...reading.geotiff import Windows
from .groups import OptionGroup
from .runner import RunnerGroup

CamOption = Annotated[
    Path | None,
    typer.Option(
        "--cam",
        metavar="BUNDLE",
        parser=location_of,
        help="Prompts from activation maps of this classifier.",
        show_default=False,
    ),
]
SamOption = Annotated[
    Path | None,
    typer.Option("--sam", metavar="BUNDLE", parser=location_of, help="Promptable model, such as Segment Anything."),
]
DetectorOption = Annotated[
    Path | None,
    typer.Option(
        "--detector",
        metavar="BUNDLE",
        parser=location_of,
        help="Prompts from the boxes of this detector.",
        show_default=False,
    ),
]
BoxesOption = Annotated[
    Path | None,
    typer.Option(
        "--boxes",
        metavar="FILE",
        parser=location_of,
        help="Prompts from boxes: a CSV or COCO file.",
        show_default=False,
    ),
]
PointsOption = Annotated[
    Path | None,
    typer.Option(
        "--points", metavar="FILE", parser=location_of, help="Prompts from points: a CSV file.", show_default=False
    ),
]
MasksOption = Annotated[
    Path | None,
    typer.Option(
        "--coarse-masks",
        metavar="STORE",
        parser=location_of,
        help="Coarse masks to refine: a label store or label files.",
        show_default=False,
    ),
]
ImageLabelsOption = Annotated[
    Path | None,
    typer.Option(
        "--image-labels",
        metavar="FILE",
        parser=location_of,
        help="Classes that each image shows: CSV, JSON lines or COCO.",
        show_default="as the classifier predicts",
    ),
]
PromptSettings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="Prompt setting; repeat for several. With --cam: mode, peaks, tau, min_distance, max_peaks, "
        "box_threshold, pick, keep, scales, flip, class_threshold; with --detector: box_score, box_overlap, max_boxes.",
        show_default=False,
    ),
]


@dataclass(frozen=True, kw_only=True)
class PromptFileGroup(OptionGroup):
    """Sources of prompts that name their classes."""

    panel: ClassVar[str] = "Prompts"
    detector: DetectorOption = None
    boxes: BoxesOption = None
    points: PointsOption = None
    coarse_masks: MasksOption = None

    def options(self, sam: Path) -> PromptedOptions:
        """Return the promptable model with its source of prompts."""
        return PromptedOptions(
            sam=sam, detector=self.detector, boxes=self.boxes, points=self.points, masks=self.coarse_masks
        )


@dataclass(frozen=True, kw_only=True)
class PromptGroup(PromptFileGroup):
    """Sources of prompts, and their settings."""

    cam: CamOption = None
    image_labels: ImageLabelsOption = None
    settings: PromptSettings = None

    @property
    def source(self) -> Path | None:
        """The source of prompts, or None."""
        return self.cam or self.detector or self.boxes or self.points or self.coarse_masks

    def check_windows(self, windows: Windows | None) -> None:
        """Raise :class:`UsageError` if the prompts describe whole files, and files are read by windows."""
        if windows is not None and self.image_labels is not None:
            raise UsageError("--image-labels describe whole files, not windows; leave out --image-labels or --windows")

    def reached(self, sam: Path, place: RunnerGroup, *, embedding_cache: float | None = None) -> PromptedOptions:
        """Return the models and prompts, with paths that every worker can open."""
        options = self.options(sam)
        return replace(
            options,
            sam=place.reached(options.sam),
            cam=place.reached(self.cam),
            detector=place.reached(options.detector),
            boxes=place.reached(options.boxes),
            points=place.reached(options.points),
            masks=place.reached(options.masks),
            image_labels=place.reached(self.image_labels),
            prompt=tuple(self.settings or ()),
            embedding_cache=embedding_cache,
        )
