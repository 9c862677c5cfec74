"""Options of thresholds: pixels that share one, the guarantee, and how the prediction set decides the label."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import typer

from ....errors import UsageError
from ...calibration.calibration import Control, RuleChoice
from ...calibration.sharing import Fallback, Group, Unseen
from ...calibration.thresholds import SmallSample, Unit
from ..options.groups import OptionGroup


@dataclass(frozen=True, kw_only=True)
class ThresholdGroup(OptionGroup):
    """Thresholds to compute, and their guarantee."""

    panel: ClassVar = "Thresholds"
    group: Annotated[
        Group | None,
        typer.Option(
            metavar="NAME",
            help="Pixels that share a threshold: all (pooled), a class, a cluster of similar classes, a class, moved "
            "toward a constant threshold (shrunk), or a position.",
            show_default="class; pooled for --unit image",
        ),
    ] = None
    unit: Annotated[
        Unit | None,
        typer.Option(
            metavar="NAME",
            show_default="pixel, or that of --calibration",
            help="What is promised: with pixel nothing, coverage is measured; with image, on average over new images "
            "like these, at most RATE of an image's pixels (pooled) or of a class's pixels (class) miss their class.",
        ),
    ] = None
    rule: Annotated[
        RuleChoice | None,
        typer.Option(
            metavar="NAME",
            help="How the prediction set decides the label: argmax, foreground, single or agree; auto takes the best "
            "of them on held-out images.",
            show_default="agree; argmax for another --control",
        ),
    ] = None
    control: Annotated[
        Control,
        typer.Option(
            metavar="NAME",
            help="Error whose rate is controlled: pixels whose set misses their class (miscoverage), or, on average "
            "over new images like these, an image's labeled pixels that are wrong (false-label-rate) or a class's "
            "pixels that are not labeled as it (miss-rate).",
        ),
    ] = "miscoverage"
    delta: Annotated[
        str | None,
        typer.Option(
            metavar="SHARE",
            help="With --control false-label-rate: the rate holds except with this probability.",
            show_default="it holds on average",
        ),
    ] = None
    min_images: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Fewest images for a threshold of a class's own.",
            show_default="ceil(1/alpha) - 1",
        ),
    ] = None
    fallback: Annotated[
        Fallback,
        typer.Option(
            metavar="NAME",
            help="Threshold of a class with fewer images: of all foreground classes together, or of all (pooled).",
        ),
    ] = "foreground"
    unseen: Annotated[
        Unseen,
        typer.Option(
            metavar="NAME",
            help="Classes without a calibration pixel: never emitted, emitted if as confident as a constant threshold "
            "would demand to keep as many pixels (confident), or at the pooled threshold.",
        ),
    ] = "never"
    on_small_n: Annotated[
        SmallSample,
        typer.Option(
            metavar="NAME",
            help="If there are too few images for RATE: refuse, take the largest score (max), or let every set hold "
            "every class (inf).",
        ),
    ] = "refuse"
    grid: Annotated[
        int | None,
        typer.Option(min=1, metavar="CELLS", help="Side of the grid of --group position.", show_default="512"),
    ] = None
    clusters: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Groups of similar cells (k-means), with --group position."),
    ] = None

    def check(self) -> None:
        """Raise :class:`UsageError` for options that exclude each other."""
        if self.group != "position" and (self.grid is not None or self.clusters is not None):
            raise UsageError("--grid and --clusters apply to --group position only; leave them out")

    @property
    def settings(self) -> dict[str, Any]:
        """Keyword arguments of :func:`.calibrate`."""
        from ...calibration.calibrate import DEFAULT_GRID

        return {
            "group": self.group,
            "unit": self.unit or "pixel",
            "rule": self.rule,
            "control": self.control,
            "delta": self.delta,
            "min_images": self.min_images,
            "fallback": self.fallback,
            "unseen": self.unseen,
            "on_small_n": self.on_small_n,
            "grid": DEFAULT_GRID if self.grid is None else (self.grid, self.grid),
            "clusters": self.clusters,
        }
