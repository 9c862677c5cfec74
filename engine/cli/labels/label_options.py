"""Options that the labeling commands share; see :mod:`..options`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import typer

from ....errors import UsageError
from ...labeling.drift import OnDrift
from ...labeling.instances import InstanceSettings
from ...labeling.selection import ALL_LEVELS, Method, Selection, Weight
from ...model.storage import location_of
from ...runtimes.open import ON_GPU, Provider
from ..options.groups import OptionGroup
from ..options.inputs import ImageGroup
from ..options.runner import RunnerGroup

OutputOption = Annotated[
    Path | None,
    typer.Option("-o", "--output", metavar="STORE", parser=location_of, help="Label store to create or continue."),
]
RequiredOutput = Annotated[
    Path,
    typer.Option("-o", "--output", metavar="STORE", parser=location_of, help="Label store to create or continue."),
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
    typer.Option(metavar="FILE", parser=location_of, help="Calibration file for --select conformal."),
]
ThresholdOption = Annotated[
    float | None, typer.Option(metavar="SCORE", help="Lowest confidence to keep (--select threshold).")
]
WeightOption = Annotated[
    Weight,
    typer.Option(
        metavar="NAME",
        help="Weight of each kept pixel: none (always 1), confidence, pcos (as in CSL's code) or pcos-supplement.",
    ),
]
OnDriftOption = Annotated[
    OnDrift,
    typer.Option(
        "--on-drift",
        metavar="NAME",
        help="If the images do not look like the calibration images: warn at the end (warn), or stop the run (stop).",
    ),
]
DevicesOption = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="CUDA:N,...",
        help="GPUs to use, one process per GPU, such as cuda:0,cuda:1.",
        show_default="the first GPU, if the provider runs on one",
    ),
]
LevelsOption = Annotated[
    int,
    typer.Option(min=3, max=256, metavar="N", help="Number of distinct weights (--weight); fewer make smaller files."),
]
KeepScoresOption = Annotated[
    str | None,
    typer.Option(
        "--keep-scores",
        metavar="ALPHA",
        help="Also store the scores that reselect needs for this alpha and larger ones (--select conformal).",
        show_default="not kept",
    ),
]
InstancesOption = Annotated[
    bool, typer.Option("--instances", help="Also store single objects, if the model gives them.")
]
MinScoreOption = Annotated[
    float, typer.Option(min=0, max=1, metavar="SCORE", help="Lowest score of an object (--instances).")
]
ShardOption = Annotated[
    str | None,
    typer.Option(metavar="I/N", help="Label only part I of N (0 to N-1); images are split by a hash of the uri."),
]
LimitOption = Annotated[int | None, typer.Option(min=1, metavar="N", help="Stop after this many inputs.")]
RetryOption = Annotated[bool, typer.Option("--retry-rejects", help="Try rejected inputs again.")]
MaxPixelsOption = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Reject larger images.", show_default="178,956,970")
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Label a sample, and estimate hours and gigabytes for the whole source.")
]
EmbeddingCacheOption = Annotated[
    float | None,
    typer.Option(
        min=0.001,
        metavar="GIGABYTES",
        help="Keep the encoder's embeddings in the store, up to this size.",
        show_default="not kept",
    ),
]
RequiredSam = Annotated[
    Path,
    typer.Option("--sam", metavar="BUNDLE", parser=location_of, help="Promptable model, such as Segment Anything."),
]


@dataclass(frozen=True, kw_only=True)
class SelectionGroup(OptionGroup):
    """Selection of the pixels that get a label, and their weights."""

    panel: ClassVar[str] = "Selection"
    select: SelectOption = "argmax"
    calibration: CalibrationOption = None
    threshold: ThresholdOption = None
    weight: WeightOption = "none"
    weight_levels: LevelsOption = ALL_LEVELS
    keep_scores: KeepScoresOption = None
    on_drift: OnDriftOption = "warn"
    instances: InstancesOption = False
    min_score: MinScoreOption = 0.5

    def check(self, shard: str | None, *, dry_run: bool = False) -> None:
        """Raise :class:`UsageError` for options that exclude each other."""
        if (self.calibration is not None) != (self.select == "conformal"):
            raise UsageError("--calibration FILE and --select conformal go together; give both or neither")
        if (self.threshold is not None) != (self.select == "threshold"):
            raise UsageError("--threshold SCORE and --select threshold go together; give both or neither")
        if self.keep_scores is not None and self.select != "conformal":
            raise UsageError(
                "--keep-scores ALPHA needs --select conformal with --calibration FILE; add them or leave it out"
            )
        if self.min_score != InstanceSettings().min_score and not self.instances:
            raise UsageError("--min-score applies to objects only; add --instances, or leave it out")
        if self.on_drift == "stop" and dry_run:
            raise UsageError("--on-drift stop ends a run, and --dry-run only labels a sample; leave --on-drift out")
        if self.on_drift == "stop" and shard is not None:
            raise UsageError(
                "--on-drift stop needs a sample of the whole source, and --shard labels only a part; use --runner "
                "array, or --on-drift warn"
            )
        if self.on_drift == "stop" and self.calibration is None:
            raise UsageError(
                "--on-drift stop needs calibration images to compare with: give --calibration FILE, or leave it out"
            )

    def load(self) -> Selection:
        """Load the calibration, if there is one, and return the selection."""
        from ...calibration.calibration import Calibration

        options: dict[str, Any] = {
            "weight": self.weight,
            "weight_levels": self.weight_levels,
            "instances": InstanceSettings(min_score=self.min_score) if self.instances else None,
        }
        if self.calibration is not None:
            return Selection.conformal(Calibration.load(self.calibration), keep_scores=self.keep_scores, **options)
        if self.threshold is not None:
            return Selection.threshold(self.threshold, **options)
        return Selection.argmax(**options)


@dataclass(frozen=True, kw_only=True)
class CorpusGroup(ImageGroup):
    """Images of a source that a run labels."""

    shard: ShardOption = None
    limit: LimitOption = None
    retry_rejects: RetryOption = False
    max_pixels: MaxPixelsOption = None

    @property
    def part(self) -> tuple[int, int] | None:
        """Number of the shard, and of all shards; raises :class:`UsageError`."""
        if self.shard is None:
            return None
        index, _, count = self.shard.partition("/")
        if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
            raise UsageError(f"--shard must be I/N with I from 0 to N-1, such as 0/8, got {self.shard!r}")
        return int(index), int(count)


@dataclass(frozen=True, kw_only=True)
class LabelingRunnerGroup(RunnerGroup):
    """Processes and devices that label."""

    device: DevicesOption = None

    def gpus(self, provider: Provider, *, dry_run: bool) -> tuple[int, ...]:
        """Return the GPU numbers of ``--device``, none without it; raises :class:`UsageError`."""
        self.check()
        if dry_run and self.runner != "local":
            raise UsageError("--dry-run labels a sample in this process; leave --runner out")
        if self.device is None:
            return ()
        if self.runner != "local":
            raise UsageError(
                "--device applies to --runner local: a process of an array uses the GPU of CUDA_VISIBLE_DEVICES, and "
                "Ray chooses one for each worker"
            )
        if provider not in ON_GPU or dry_run:
            raise UsageError(
                f"--device applies to --provider {' or '.join(ON_GPU)}, and not to --dry-run; leave it out or change "
                "them"
            )
        parts = [part.strip().removeprefix("cuda:") for part in self.device.split(",")]
        if not all(part.isdecimal() for part in parts):
            raise UsageError(f"--device must list GPUs, such as cuda:0,cuda:1, got {self.device!r}")
        return tuple(int(part) for part in parts)
