"""What every predictor returns and offers: score maps and the predictor protocol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from ...kernels.types import Activation, Layout
from ..backends.base import Backend
from ..backends.host import HOST
from ..model.bundle import Bundle


@dataclass(frozen=True, kw_only=True, repr=False)
class ScoreMap:
    """Per-class scores of one image at the model's resolution."""

    scores: Any
    """(C, h, w) or (h, w, C), float32 or a 16-bit float: the stored values, before ``activation``."""
    layout: Layout
    """Order of the axes of ``scores``."""
    activation: Activation
    """What turns the values into scores."""
    size: tuple[int, int]
    """(height, width) of the image, in pixels."""
    region: tuple[float, float, float, float]
    """(y0, x0, y1, x1) in score-map pixels: the part that covers the image."""
    backend: Backend = HOST
    """Where ``scores`` lies."""

    def on_host(self) -> ScoreMap:
        """The same map with its scores in main memory."""
        with self.backend.queue():
            (scores,) = self.backend.download(self.scores)
        return replace(self, scores=scores, backend=HOST)

    def __repr__(self) -> str:
        return (
            f"ScoreMap(scores={self.scores.dtype}{tuple(self.scores.shape)} {self.layout}, "
            f"activation={self.activation}, size={self.size}, region={self.region})"
        )


class Predictor(Protocol):
    """What the pipeline drives: ``prepare`` on decode threads, ``run`` on model threads."""

    @property
    def bundle(self) -> Bundle:
        """The model whose scores are thresholded; its verdicts may prove a calibration of another artifact."""
        ...

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the scores besides the bundle's files: recorded with labels and calibrations."""
        ...

    @property
    def batch(self) -> int:
        """How many prepared images one ``run`` should get."""
        ...

    @property
    def threads(self) -> int:
        """Threads that one ``run`` uses on the host."""
        ...

    @property
    def backend(self) -> Backend:
        """Where images are decoded and scores lie."""
        ...

    def prepare(self, image: Any, uri: str = "") -> Any:
        """HWC uint8 RGB, on the host or on ``backend`` → what ``run`` takes; ``uri`` names the image."""
        ...

    def run(self, prepared: Sequence[Any]) -> list[ScoreMap]:
        """Score maps of the prepared images."""
        ...
