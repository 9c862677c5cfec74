"""Point and box prompts as arrays: what a promptable model's decoder is asked.

A prompt is a set of points on one image; prompts of several images and classes lie in one padded array, so that a
decoder can take them together::

    prompts = peak_prompts(peaks, classes, grid, mode="points")
    masks, scores = decoder.run(embeddings, prompts)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

POSITIVE, BOX_START, BOX_END, PADDING = 1.0, 2.0, 3.0, -1.0
"""Labels of points: on the object, a box's top left and bottom right corner, and no point at all."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Prompts:
    """N prompts of at most P points each."""

    image: NDArray[np.int64]
    """(N,): which image of the batch a prompt is on."""
    target: NDArray[np.int64]
    """(N,): the class it asks for."""
    points: NDArray[np.float32]
    """(N, P, 2): (x, y) in pixels of the encoder's input; 0 where padded."""
    labels: NDArray[np.float32]
    """(N, P): 1 on the object, 0 off it, 2 and 3 a box's corners, -1 padding, which comes last."""

    def __len__(self) -> int:
        return len(self.image)

    def __repr__(self) -> str:
        return f"Prompts({len(self)} of at most {self.labels.shape[1]} points)"

    @property
    def num_points(self) -> NDArray[np.int64]:
        """(N,): points of each prompt, padding not counted."""
        return (self.labels != PADDING).sum(axis=1)

    def on_image(self, image: int) -> Prompts:
        """The same prompts, all on another image of the batch."""
        return Prompts(
            image=np.full(len(self), image, np.int64), target=self.target, points=self.points, labels=self.labels
        )


def join_prompts(parts: Sequence[Prompts]) -> Prompts:
    """Prompts of several images in one array, padded to the longest."""
    width = max((part.labels.shape[1] for part in parts), default=0)

    def padded(values: NDArray[Any], value: float) -> NDArray[Any]:
        pad = [(0, 0)] * values.ndim
        pad[1] = (0, width - values.shape[1])
        return np.pad(values, pad, constant_values=value)

    if not parts:
        return NO_PROMPTS
    return Prompts(
        image=np.concatenate([part.image for part in parts]),
        target=np.concatenate([part.target for part in parts]),
        points=np.concatenate([padded(part.points, 0.0) for part in parts]),
        labels=np.concatenate([padded(part.labels, PADDING) for part in parts]),
    )


NO_PROMPTS = Prompts(
    image=np.zeros(0, np.int64),
    target=np.zeros(0, np.int64),
    points=np.zeros((0, 1, 2), np.float32),
    labels=np.zeros((0, 1), np.float32),
)
"""No prompt at all."""
