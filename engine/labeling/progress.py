"""Counts and times of a labeling run."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..inputs.summary import SourceSummary
from ..model.taxonomy import Taxonomy
from .thread_stages import StageTime


@dataclass
class Progress:
    """Counts of a run so far and the times of its stages."""

    planned: int = 0
    """Number of inputs that this run will process."""
    images: int = 0
    """Number of images labeled, without duplicates."""
    duplicates: int = 0
    """Number of inputs with the same content as an image labeled before."""
    rejects: Counter[str] = field(default_factory=Counter)
    """Number of rejected inputs per kind of error."""
    earlier_rejects: Counter[str] = field(default_factory=Counter)
    """Number of inputs per kind of error that an earlier run rejected and this one passes over."""
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
    """Files that were used and passed over."""
    interrupted: bool = False
    """True if the run was stopped before its end."""

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
        """Return the files that were used and passed over so far."""
        return replace(self.source, images=self.images + self.duplicates, rejected=self.rejects)

    def to_json(self, taxonomy: Taxonomy) -> dict[str, Any]:
        """Return the counts and times as plain data."""
        busy = sum(stage.busy for stage in self.stages)
        num_kept = max(int(self.kept.sum()), 1)
        return {
            "images": self.images,
            "duplicates": self.duplicates,
            "rejects": dict(self.rejects),
            "earlier_rejects": dict(self.earlier_rejects),
            "source": self.summary().to_json(),
            "interrupted": self.interrupted,
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
                    "share": stage.busy / busy if busy else 0.0,
                }
                for stage in self.stages
            },
            "bottleneck": self.bottleneck,
        }
