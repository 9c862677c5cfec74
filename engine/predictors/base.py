"""Score maps, and the protocol of the predictors that make them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ... import kernels
from ...checks import check_count
from ...kernels.types import Activation, BackendArray, ClassStats, Dispersion, Layout, Rule
from ..backends.base import Backend
from ..backends.host import HOST
from ..model.bundle import Bundle
from ..model.taxonomy import Taxonomy
from ..runtimes.base import Session


@dataclass(frozen=True, kw_only=True, repr=False)
class Objects:
    """Objects that a model found in one image, on the device of its score map."""

    scores: Any
    """(K,) float32 in [0, 1]."""
    classes: Any
    """(K,) float32: index of each object's model class."""
    masks: Any
    """(K, h, w) float32 logits on the grid of the score map."""
    qualities: Any = None
    """(K,) float32 in [0, 1]: the IoU that the model predicts for each mask; None if it predicts none."""

    def __repr__(self) -> str:
        return f"Objects({self.masks.shape[0]} masks of {self.masks.shape[1]}x{self.masks.shape[2]})"


@dataclass(frozen=True, kw_only=True, repr=False)
class ScoreMap:
    """Per-class scores of one image at the model's resolution."""

    scores: Any
    """(C, h, w) or (h, w, C), float32 or a 16-bit float: the stored values, before ``activation``."""
    layout: Layout
    """Order of the axes of ``scores``."""
    activation: Activation
    """Function that turns the values into scores."""
    size: tuple[int, int]
    """(height, width) of the image, in pixels."""
    region: tuple[float, float, float, float]
    """(y0, x0, y1, x1) in score-map pixels: the part that covers the image."""
    backend: Backend = HOST
    """Device that holds ``scores``."""
    objects: Objects | None = None
    """Single objects that the model found; None if it gives none."""
    with_data: NDArray[np.bool_] | None = None
    """(H, W) on the host: False for pixels without data, which are never labeled; None if all have data."""

    def decode(
        self,
        taxonomy: Taxonomy,
        *,
        size: tuple[int, int] | None = None,
        thresholds: NDArray[Any] | None = None,
        rule: Rule = "argmax",
        truth: Any = None,
        outputs: Sequence[str] = ("label", "confidence"),
        dispersion: Dispersion = "official",
    ) -> ClassStats[Any]:
        """Decode the scores to pixels of target classes in one pass; the arrays stay on ``backend``.

        Call it inside ``backend.queue()``; :func:`maskmill.kernels.class_stats` describes the outputs.

        Parameters
        ----------
        taxonomy
            Maps the model's classes to targets.
        size
            (height, width) of the outputs; the image's if None.
        thresholds
            Largest nonconformity score in the prediction set, on the host: a scalar, one per scored class (Ke,), or a
            map of ``size``. None: no prediction set.
        rule
            How the prediction set decides the label.
        truth
            (H, W) target indices of ``size``, on the host or on ``backend``, for ``true_score``.
        outputs
            Names of the :class:`~maskmill.kernels.types.ClassStats` fields to fill.
        dispersion
            Form of CSL's residual dispersion: its code's (``official``), or the variance itself (``exact``).
        """
        xp = self.backend.xp
        return kernels.class_stats(
            self.scores,
            size or self.size,
            layout=self.layout,
            activation=self.activation,
            groups=taxonomy.groups,
            num_targets=taxonomy.num_targets,
            region=self.region,
            thresholds=None if thresholds is None else self.backend.constant(np.asarray(thresholds, np.float32)),
            rule=rule,
            dispersion=dispersion,
            background=taxonomy.background,
            ignore=taxonomy.ignore_index,
            truth=None if truth is None else xp.asarray(truth),
            outputs=outputs,
        )

    def on_host(self) -> ScoreMap:
        """Copy the map to main memory."""
        with self.backend.queue():
            (scores,) = self.backend.download(self.scores)
            objects = self.objects
            if objects is not None:
                arrays = {name: array for name, array in vars(objects).items() if array is not None}
                objects = Objects(**dict(zip(arrays, self.backend.download(*arrays.values()), strict=True)))
        return replace(self, scores=scores, objects=objects, backend=HOST)

    def __repr__(self) -> str:
        return (
            f"ScoreMap(scores={self.scores.dtype}{tuple(self.scores.shape)} {self.layout}, "
            f"activation={self.activation}, size={self.size}, region={self.region})"
        )


class Predictor(Protocol):
    """Model that a labeling run drives: ``prepare`` on decode threads, ``run`` on model threads."""

    @property
    def bundle(self) -> Bundle:
        """Bundle of the model; its gate verdicts may allow a calibration made with another artifact."""
        ...

    @property
    def settings(self) -> dict[str, Any]:
        """Options that decide the scores, recorded with labels and calibrations."""
        ...

    @property
    def batch(self) -> int:
        """Number of prepared images per call of ``run``."""
        ...

    @property
    def threads(self) -> int:
        """Number of host threads that one call of ``run`` uses."""
        ...

    @property
    def backend(self) -> Backend:
        """Device that decodes images and holds scores."""
        ...

    def condition(self, uri: str) -> str:
        """Return the text that decides the scores of this image besides its pixels, "" if nothing does."""
        ...

    def prepare(self, image: Any, uri: str = "") -> object:
        """Prepare one image for ``run``: HWC uint8 RGB, on the host or on ``backend``; ``uri`` names it."""
        ...

    def run(self, prepared: Sequence[Any]) -> list[ScoreMap]:
        """Compute the score maps of prepared images."""
        ...


class SessionPredictor(ABC):
    """Batch size, threads and backend of a predictor whose images go through ``session`` first."""

    def __init__(self, session: Session, *, batch: int, backend: Backend) -> None:
        check_count("batch", batch, least=1)
        self._session = session
        self._batch = batch
        self._backend = backend

    @property
    def batch(self) -> int:
        """Number of prepared images per call of ``run``: the batch size that the session needs, else the one given."""
        return self._session.max_batch or self._batch

    @property
    def threads(self) -> int:
        """Number of host threads that one call of ``run`` uses: the session's."""
        return self._session.threads

    @property
    def backend(self) -> Backend:
        """Device that decodes images and holds scores."""
        return self._backend

    def condition(self, uri: str) -> str:
        """Return "": only the pixels decide."""
        return ""

    @abstractmethod
    def prepare(self, image: Any, uri: str = "") -> object:
        """Prepare one image for ``run``: HWC uint8 RGB, on the host or on ``backend``; ``uri`` names it."""

    @abstractmethod
    def run(self, prepared: Sequence[Any]) -> list[ScoreMap]:
        """Compute the score maps of prepared images."""

    def predict(self, image: NDArray[Any], uri: str = "") -> ScoreMap:
        """Compute the scores of one image, HWC uint8 RGB, or (H, W, C) samples of the model's bands."""
        return self.run([self.prepare(image, uri)])[0]


def stack_padded(tensors: Sequence[Any], session: Session, xp: Any) -> BackendArray:
    """Stack a call's tensors; behind them the first one is repeated up to the batch size that the session needs."""
    return xp.stack([*tensors, *[tensors[0]] * ((session.max_batch or 0) - len(tensors))])
