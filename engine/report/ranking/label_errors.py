"""Score given labels by the model's probability of them, as cleanlab does for segmentation (Lad and Mueller 2023).

A pixel's score is the probability of its given class. An image's score is the soft minimum of its pixels' scores:
their mean with weights that are exponential in 1 - score, over a temperature. A low score is a likely error. The model
must not have been trained on these labels, since it would repeat their errors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....errors import UsageError
from ...calibration.scores.observe import decode_labeled
from ...inputs.labeled_source import LabeledSource
from ...inputs.ordered_map import ordered_map
from ...inputs.sources import Source
from ...model.taxonomy import Taxonomy
from ...predictors.base import Predictor

TEMPERATURE = 0.1
"""Temperature of the soft minimum, that of cleanlab."""
DOUBTED = 0.5
"""Pixels whose given class has a lower probability than this, and than another class, count as doubted."""


@dataclass(frozen=True, kw_only=True)
class LabelDoubt:
    """Doubt about the given labels of one image."""

    uri: str
    """The image."""
    score: float
    """Soft minimum of the probabilities of the given labels, in [0, 1]; low scores come first."""
    doubted: float
    """Share of the pixels with a label whose given class is doubted."""
    given: str | None
    """Given class with the most doubted pixels; None without any."""
    suggested: str | None
    """Class that the model prefers on most of these pixels; None if it is none of the classes."""


def softmin(scores: NDArray[np.float32], temperature: float = TEMPERATURE) -> float:
    """Compute the soft minimum of scores (n,) in [0, 1]; 1 without scores."""
    if not len(scores):
        return 1.0
    exponents = (1 - scores) / np.float32(temperature)
    weights = np.exp(exponents - exponents.max())
    return float((weights * scores).sum(dtype=np.float64) / weights.sum(dtype=np.float64))


def doubt_labels(
    predictor: Predictor, source: Source, labeled: LabeledSource, taxonomy: Taxonomy, *, workers: int = 1
) -> list[LabelDoubt]:
    """Score the given labels of every image, the most doubtful first; images without data have no labels to doubt.

    Raises :class:`UsageError` if a label map and its image differ in size, :class:`ImageError` if an image cannot be
    decoded.
    """

    def observe(item: Any) -> LabelDoubt | None:
        data = source.read(item)
        image = decode_labeled(predictor, labeled, item, data)
        if image is None:
            return None
        truth = labeled.read(item.uri, data)
        if truth.shape != image.shape[:2]:
            raise UsageError(
                f"{labeled.name_of(item.uri)} is {truth.shape[1]}x{truth.shape[0]} px and {item.uri} is "
                f"{image.shape[1]}x{image.shape[0]} px; {labeled.size_hint(item.uri, data)}"
            )
        (score_map,) = predictor.run([predictor.prepare(image, item.uri)])
        truth = labeled.on_data(truth, score_map.with_data)
        backend = predictor.backend
        with backend.queue():
            stats = score_map.decode(taxonomy, truth=truth, outputs=("top", "true_score"))
            top, score = backend.download(stats.top, stats.true_score)
        valid = truth != taxonomy.ignore_index
        return doubt_image(item.uri, 1 - score[valid], truth[valid], top[valid], taxonomy.targets)

    results = [doubt for doubt in ordered_map(observe, labeled.items, workers) if doubt is not None]
    labeled.summary.without_data += len(labeled.items) - len(results)
    return sorted(results, key=lambda doubt: doubt.score)


def doubt_image(
    uri: str,
    probability: NDArray[np.float32],
    given: NDArray[Any],
    top: NDArray[Any],
    targets: Sequence[str],
) -> LabelDoubt:
    """Score one image from the probability (n,) of the given class, that class, and the model's class at n pixels."""
    doubted = (probability < DOUBTED) & (top != given)
    classes, counts = np.unique(given[doubted], return_counts=True)
    name = suggestion = None
    if len(classes):
        worst = classes[np.argmax(counts)]
        values, votes = np.unique(top[doubted & (given == worst)], return_counts=True)
        choice = int(values[np.argmax(votes)])
        name, suggestion = targets[int(worst)], targets[choice] if choice < len(targets) else None
    return LabelDoubt(
        uri=uri,
        score=softmin(probability),
        doubted=float(doubted.mean()) if len(doubted) else 0.0,
        given=name,
        suggested=suggestion,
    )
