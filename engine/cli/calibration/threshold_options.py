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

    panel: ClassVar[str] = "Thresholds"
    group: Annotated[
        Group | None,
        typer.Option(
            metavar="NAME",
            help="Pixels that share a threshold: all (pooled), those of a class (class, or shrunk: moved toward a "
            "constant threshold), of similar classes (cluster), or at a position.",
            show_default="class; pooled for --unit image",
        ),
    ] = None
    unit: Annotated[
        Unit | None,
        typer.Option(
            metavar="NAME",
            show_default="pixel, or that of --calibration",
            help="pixel promises nothing; coverage is measured. image promises, on average over new images like "
            "these, that the prediction set misses the true class on at most RATE of an image's pixels (pooled) "
            "or of a class's pixels (class).",
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
            help="With --control false-label-rate: probability that the rate does not hold.",
            show_default="it holds on average",
        ),
    ] = None
    min_images: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Images that a class needs for a threshold of its own.",
            show_default="ceil(1/alpha) - 1",
        ),
    ] = None
    fallback: Annotated[
        Fallback,
        typer.Option(
            metavar="NAME",
            help="Threshold of classes with fewer images: that of all foreground classes together (foreground) or of "
            "all classes (pooled).",
        ),
    ] = "foreground"
    unseen: Annotated[
        Unseen,
        typer.Option(
            metavar="NAME",
            help="Classes without a calibration pixel: never used as a label (never), used above the constant "
            "confidence that keeps as many pixels (confident), or at the pooled threshold (pooled).",
        ),
    ] = "never"
    on_small_n: Annotated[
        SmallSample,
        typer.Option(
            metavar="NAME",
            help="If there are too few images for RATE: refuse, use the largest score as the threshold (max), or put "
            "every class into every set (inf).",
        ),
    ] = "refuse"
    grid: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="CELLS", help="Cells per side of the grid of --group position.", show_default="512"
        ),
    ] = None
    clusters: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Groups of similar cells (k-means), with --group position."),
    ] = None

    def check(self) -> None:
        """Raise :class:`UsageError` for options that exclude each other."""
        if self.group != "position" and (self.grid is not None or self.clusters is not None):
            raise UsageError("--grid and --clusters apply to --group position only; leave them out")
        if self.control != "miscoverage" and self.on_small_n != "refuse":
            raise UsageError(f"--on-small-n applies to --control miscoverage, not to {self.control}; leave it out")
        pools = self.group in ("pooled", "position") or (self.group is None and self.unit == "image")
        if (pools or self.control != "miscoverage") and (self.min_images is not None or self.fallback != "foreground"):
            raise UsageError(
                "--min-images and --fallback apply to thresholds of classes: leave them out, or choose --group class, "
                "cluster or shrunk with --control miscoverage"
            )

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
