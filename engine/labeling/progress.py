"""What a labeling run has done so far."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..model.taxonomy import Taxonomy
from .thread_stages import StageTime


@dataclass
class Progress:
    """Counts of a run so far, and the times of its stages."""

    planned: int = 0
    """Inputs that this run is to deal with."""
    images: int = 0
    """Images labeled, duplicates not counted."""
    duplicates: int = 0
    """Inputs whose bytes another input had already."""
    rejects: Counter[str] = field(default_factory=Counter)
    """Inputs that could not be decoded, by kind."""
    pixels: int = 0
    """Pixels of the labeled images."""
    kept: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    """(K,): pixels that carry a label of each target."""
    input_bytes: int = 0
    """Bytes read."""
    label_bytes: int = 0
    """Bytes of label maps written."""
    weight_bytes: int = 0
    """Bytes of weight maps written."""
    seconds: float = 0.0
    """Time since the first image was asked for."""
    stages: list[StageTime] = field(default_factory=list)
    """What each stage has done."""
    interrupted: bool = False
    """The run was stopped before its end."""

    @property
    def inputs(self) -> int:
        """Inputs dealt with: labeled, duplicates and rejects."""
        return self.images + self.duplicates + sum(self.rejects.values())

    @property
    def rate(self) -> float:
        """Images labeled a second."""
        return self.images / self.seconds if self.seconds > 0 else 0.0

    @property
    def kept_share(self) -> float:
        """Share of pixels that carry a label."""
        return float(self.kept.sum() / self.pixels) if self.pixels else 0.0

    @property
    def bottleneck(self) -> str:
        """The stage whose threads were busy for the largest share of the time."""
        return max(self.stages, key=lambda stage: stage.busy / stage.threads).name if self.stages else ""

    def to_json(self, taxonomy: Taxonomy) -> dict[str, Any]:
        """Plain data."""
        busy = sum(stage.busy for stage in self.stages)
        labeled = max(int(self.kept.sum()), 1)
        return {
            "images": self.images,
            "duplicates": self.duplicates,
            "rejects": dict(self.rejects),
            "interrupted": self.interrupted,
            "seconds": self.seconds,
            "images_per_second": self.rate,
            "kept": self.kept_share,
            "classes": {
                name: {"pixels": int(count), "share_of_kept": int(count) / labeled}
                for name, count in zip(taxonomy.targets, self.kept, strict=True)
            },
            "bytes": {"read": self.input_bytes, "label_png": self.label_bytes, "weight_png": self.weight_bytes},
            "stages": {
                stage.name: {
                    "threads": stage.threads,
                    "items": stage.items,
                    "ms_an_item": 1000 * stage.busy / max(stage.items, 1),
                    "cpu_ms_an_item": 1000 * stage.cpu / max(stage.items, 1),
                    "share": stage.busy / busy if busy else 0.0,
                }
                for stage in self.stages
            },
            "bottleneck": self.bottleneck,
        }
