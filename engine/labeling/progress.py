"""Counts and times of a labeling run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..inputs.summary import MAX_NAMES, SourceSummary
from ..model.taxonomy import Taxonomy
from .thread_stages import StageTime

STALL_SECONDS = 30.0
"""Time in seconds after which a step that has not finished its image, or batch, is reported."""


@dataclass
class Progress:
    """Counts of a run so far and the times of its stages."""

    planned: int = 0
    """Number of inputs that this run will process."""
    stored: int = 0
    """Number of inputs in the store when the run started."""
    images: int = 0
    """Number of images labeled, without duplicates."""
    duplicates: int = 0
    """Number of inputs with the same content as an image labeled before."""
    rejects: Counter[str] = field(default_factory=Counter)
    """Number of rejected inputs per kind of error."""
    earlier_rejects: Counter[str] = field(default_factory=Counter)
    """Number of inputs per kind of error that an earlier run rejected and this one skips."""
    pixels: int = 0
    """Number of pixels in the labeled images."""
    kept: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    """(K,): number of pixels labeled with each target class."""
    input_bytes: int = 0
    """Number of bytes read."""
    label_bytes: int = 0
    """Size of the label maps written, in bytes."""
    weight_bytes: int = 0
    """Size of the weight maps written, in bytes."""
    seconds: float = 0.0
    """Time since the stages started."""
    stages: list[StageTime] = field(default_factory=list)
    """Counts and times of each stage."""
    source: SourceSummary = field(default_factory=SourceSummary)
    """Files that were used and skipped."""
    limited: bool = False
    """True if a limit on the number of inputs left some out."""
    interrupted: bool = False
    """True if the run was stopped before its end."""
    stalled: str = ""
    """Step that has worked on one image, or batch, for more than :data:`STALL_SECONDS`; empty if none has."""
    warnings: list[str] = field(default_factory=list)
    """Faults that did not end the run, such as the death of a worker process."""
    drifted: bool = False
    """True if the run stopped because its images do not look like the calibration images."""

    @property
    def inputs(self) -> int:
        """Number of inputs processed: labeled, duplicates and rejects."""
        return self.images + self.duplicates + sum(self.rejects.values())

    @property
    def rate(self) -> float:
        """Images labeled per second."""
        return self.images / self.seconds if self.seconds > 0 else 0.0

    @property
    def kept_share(self) -> float:
        """Share of pixels with a label, in [0, 1]."""
        return float(self.kept.sum() / self.pixels) if self.pixels else 0.0

    @property
    def bottleneck(self) -> str:
        """Name of the stage whose threads were busy for the largest share of the time."""
        return max(self.stages, key=lambda stage: stage.busy / stage.threads).name if self.stages else ""

    def summary(self) -> SourceSummary:
        """Return the files that were used and skipped so far."""
        return replace(self.source, images=self.images + self.duplicates, rejected=self.rejects)

    def record(self) -> dict[str, Any]:
        """Return everything as plain data, for another process."""
        return {
            **{name: getattr(self, name) for name in _NUMBERS},
            "stored": self.stored,
            "rejects": dict(self.rejects),
            "earlier_rejects": dict(self.earlier_rejects),
            "kept": self.kept.tolist(),
            "stages": [asdict(stage) for stage in self.stages],
            "skipped": dict(self.source.skipped),
            "low_range": list(self.source.low_range),
            "limited": self.limited,
            "interrupted": self.interrupted,
            "drifted": self.drifted,
            "warnings": list(self.warnings),
        }

    @classmethod
    def from_record(cls, raw: Mapping[str, Any]) -> Progress:
        """Return the progress of :meth:`record`'s data."""
        return cls(
            **{name: raw[name] for name in _NUMBERS},
            stored=raw.get("stored", 0),
            rejects=Counter(raw["rejects"]),
            earlier_rejects=Counter(raw["earlier_rejects"]),
            kept=np.array(raw["kept"], np.int64),
            stages=[StageTime(**stage) for stage in raw["stages"]],
            source=SourceSummary(skipped=Counter(raw["skipped"]), low_range=list(raw["low_range"])),
            limited=raw.get("limited", False),
            interrupted=raw["interrupted"],
            drifted=raw["drifted"],
            warnings=list(raw["warnings"]),
        )

    @classmethod
    def total(cls, parts: Sequence[Progress]) -> Progress:
        """Sum the counts, stage times included, of parts of one run that ran at the same time."""
        kept_pixels = np.zeros(max((len(part.kept) for part in parts), default=0), np.int64)
        stages: dict[str, StageTime] = {}
        for part in parts:
            kept_pixels[: len(part.kept)] += part.kept
            for stage in part.stages:
                total = stages.setdefault(stage.name, StageTime(stage.name, 0))
                total.threads += stage.threads
                total.items += stage.items
                total.busy += stage.busy
                total.cpu += stage.cpu
        numbers = {name: sum(getattr(part, name) for part in parts) for name in _NUMBERS}
        return cls(
            **{**numbers, "seconds": max((part.seconds for part in parts), default=0.0)},
            stored=max((part.stored for part in parts), default=0),
            rejects=sum((part.rejects for part in parts), Counter()),
            earlier_rejects=sum((part.earlier_rejects for part in parts), Counter()),
            kept=kept_pixels,
            stages=list(stages.values()),
            source=SourceSummary(
                skipped=sum((part.source.skipped for part in parts), Counter()),
                low_range=[uri for part in parts for uri in part.source.low_range][:MAX_NAMES],
            ),
            limited=any(part.limited for part in parts),
            interrupted=any(part.interrupted for part in parts),
            warnings=[warning for part in parts for warning in part.warnings],
        )

    def to_json(self, taxonomy: Taxonomy) -> dict[str, Any]:
        """Return the counts and times as plain data."""
        busy_seconds = sum(stage.busy for stage in self.stages)
        num_kept = max(int(self.kept.sum()), 1)
        return {
            "images": self.images,
            "duplicates": self.duplicates,
            "rejects": dict(self.rejects),
            "earlier_rejects": dict(self.earlier_rejects),
            "source": self.summary().to_json(),
            "interrupted": self.interrupted,
            "warnings": list(self.warnings),
            "drifted": self.drifted,
            "seconds": self.seconds,
            "images_per_second": self.rate,
            "kept": self.kept_share,
            "classes": {
                name: {"pixels": int(count), "share_of_kept": int(count) / num_kept}
                for name, count in zip(taxonomy.targets, self.kept, strict=True)
            },
            "bytes": {"read": self.input_bytes, "label_png": self.label_bytes, "weight_png": self.weight_bytes},
            "stages": {
                stage.name: {
                    "threads": stage.threads,
                    "items": stage.items,
                    "ms_per_item": 1000 * stage.busy / max(stage.items, 1),
                    "cpu_ms_per_item": 1000 * stage.cpu / max(stage.items, 1),
                    "share": stage.busy / busy_seconds if busy_seconds else 0.0,
                }
                for stage in self.stages
            },
            "bottleneck": self.bottleneck,
        }


_NUMBERS = (
    "planned",
    "images",
    "duplicates",
    "pixels",
    "input_bytes",
    "label_bytes",
    "weight_bytes",
    "seconds",
)
