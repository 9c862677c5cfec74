"""Options that the labeling commands share; see :mod:`.options`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ...labeling.drift import OnDrift
from ...labeling.selection import Method, Weight
from ...model.storage import location_of

OutputOption = Annotated[
    Path | None,
    typer.Option("-o", "--output", metavar="STORE", parser=location_of, help="Label store to make or to continue."),
]
RequiredOutput = Annotated[
    Path,
    typer.Option("-o", "--output", metavar="STORE", parser=location_of, help="Label store to make or to continue."),
]
SelectOption = Annotated[
    Method,
    typer.Option(
        metavar="METHOD",
        help="Pixels to keep: all (argmax), confident ones (threshold), or those whose class calibration supports "
        "(conformal).",
    ),
]
CalibrationOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", parser=location_of, help="Calibration to select with (--select conformal)."),
]
ThresholdOption = Annotated[
    float | None, typer.Option(metavar="SCORE", help="Lowest confidence to keep (--select threshold).")
]
WeightOption = Annotated[
    Weight,
    typer.Option(
        metavar="NAME", help="Weight of each kept pixel: none (1), confidence, pcos (as CSL's code) or pcos-supplement."
    ),
]
OnDriftOption = Annotated[
    OnDrift,
    typer.Option(
        "--on-drift",
        metavar="NAME",
        help="If the images do not look like the calibration images: say so at the end (warn), or stop the run (stop).",
    ),
]
LevelsOption = Annotated[
    int, typer.Option(min=3, max=256, metavar="N", help="Distinct weights; fewer levels make smaller files.")
]
KeepScoresOption = Annotated[
    str | None,
    typer.Option(
        "--keep-scores",
        metavar="ALPHA",
        help="Keep the scores that reselect needs for this alpha and above (--select conformal).",
        show_default="not kept",
    ),
]
InstancesOption = Annotated[
    bool, typer.Option("--instances", help="Store single objects as well, from a model that gives them.")
]
MinScoreOption = Annotated[
    float, typer.Option(min=0, max=1, metavar="SCORE", help="Lowest score of an object (--instances).")
]
ShardOption = Annotated[
    str | None, typer.Option(metavar="I/N", help="Label part I of N only (0 to N-1), split by a hash of the uri.")
]
LimitOption = Annotated[int | None, typer.Option(min=1, metavar="N", help="Stop after this many inputs.")]
RetryOption = Annotated[bool, typer.Option("--retry-rejects", help="Try rejected inputs again.")]
MaxPixelsOption = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Reject larger images.", show_default="178,956,970")
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Label a sample; print hours and gigabytes for the whole source.")
]
EmbeddingCacheOption = Annotated[
    float | None,
    typer.Option(
        min=0.001,
        metavar="GIGABYTES",
        help="Keep the encoder's results in the store, up to this size.",
        show_default="not kept",
    ),
]
PromptCam = Annotated[
    Path | None,
    typer.Option(
        "--cam",
        metavar="BUNDLE",
        parser=location_of,
        help="Prompts from activation maps of this classifier.",
        show_default=False,
    ),
]
RequiredSam = Annotated[
    Path,
    typer.Option("--sam", metavar="BUNDLE", parser=location_of, help="Promptable model, such as Segment Anything."),
]
