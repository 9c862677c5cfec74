"""Find boxes with a detector, as prompts for a promptable model: text → boxes → masks.

::

    detector = BoxDetector(bundle, OnnxSession(bundle), settings=BoxSettings(box_score=0.4))
    (found,) = detector.run([detector.prepare(image)])     # image: HWC uint8 RGB
    found.boxes, found.classes, found.scores

A row of the detector's output is one box with a score per class; its class is the best one. Boxes below a score are
left out, and so are all but the best of overlapping boxes of one class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ....errors import SessionError, UsageError
from ...backends.base import Backend
from ...backends.host import HOST
from ...model.bundle import Bundle
from ...runtimes.base import Session
from ..base import stack_padded


@dataclass(frozen=True, kw_only=True)
class BoxSettings:
    """Boxes of a detector that become prompts."""

    box_score: float = 0.3
    """Lowest score of a box."""
    box_overlap: float = 0.5
    """Largest IoU of two boxes of one class; 1 keeps all."""
    max_boxes: int = 100
    """Largest number of boxes per image, best first."""

    def __post_init__(self) -> None:
        for name in ("box_score", "box_overlap"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{name} must be from 0 to 1, got {getattr(self, name)}")
        if self.max_boxes < 1:
            raise UsageError(f"max_boxes must be at least 1, got {self.max_boxes}")


@dataclass(frozen=True, kw_only=True, repr=False)
class Boxes:
    """Boxes of one image, best first."""

    boxes: NDArray[np.float32]
    """(K, 4): x0, y0, x1, y1 as fractions of the image, within it."""
    classes: NDArray[np.intp]
    """(K,): index of each box's class."""
    scores: NDArray[np.float32]
    """(K,) in [0, 1]."""

    def __len__(self) -> int:
        return len(self.scores)


class BoxDetector:
    """A ``detector`` bundle with its session, and the choice of its boxes.

    Parameters
    ----------
    bundle, session
        The detector and its session.
    settings
        Boxes that are used.
    batch
        Images per call.
    backend
        Device that prepares images; the session must accept its arrays.
    """

    def __init__(
        self,
        bundle: Bundle,
        session: Session,
        *,
        settings: BoxSettings | None = None,
        batch: int = 1,
        backend: Backend = HOST,
    ) -> None:
        check_detector(bundle)
        self.bundle = bundle
        self.session = session
        self.classes: tuple[str, ...] = bundle.classes
        """Names of the classes, without the background."""
        self.chosen: BoxSettings = settings or BoxSettings()
        """Boxes that are used."""
        self._batch = batch
        self._backend = backend
        kinds = [output.kind for output in bundle.outputs]
        self._boxes_at, self._scores_at = kinds.index("boxes"), kinds.index("box_scores")

    @property
    def settings(self) -> dict[str, Any]:
        """Bundle, session, and the choice of boxes."""
        return {
            "bundle": self.bundle.fingerprint,
            "session": self.session.kind,
            "artifact": self.session.artifact,
            **asdict(self.chosen),
        }

    def prepare(self, image: Any) -> tuple[Any, tuple[float, float]]:
        """Resize and normalize one image on the backend; returns it with the fractions of the input that it covers."""
        return self._backend.preprocess(image, self.bundle.input)

    def run(self, prepared: Sequence[tuple[Any, tuple[float, float]]]) -> list[Boxes]:
        """Find the boxes of prepared images; call it inside ``backend.queue()``."""
        detections, limit = [], self.session.max_batch or self._batch
        for start in range(0, len(prepared), limit):
            chunk = prepared[start : start + limit]
            tensors = stack_padded([tensor for tensor, _ in chunk], self.session, self._backend.xp)
            outputs = self.session.run(tensors)
            boxes, scores = self._backend.download(outputs[self._boxes_at], outputs[self._scores_at])
            self._check(boxes, scores, len(tensors))
            detections += [
                choose_boxes(boxes[row], scores[row], covers, self.chosen) for row, (_, covers) in enumerate(chunk)
            ]
        return detections

    def _check(self, boxes: NDArray[Any], scores: NDArray[Any], num: int) -> None:
        expected = (num, *boxes.shape[1:2], len(self.classes))
        if boxes.shape != (*expected[:2], 4) or scores.shape != expected:
            raise SessionError(
                f"the detector gave boxes {boxes.shape} and scores {scores.shape} for {num} image(s); expected "
                f"({num}, Q, 4) and ({num}, Q, {len(self.classes)}); export it again"
            )


def check_detector(bundle: Bundle) -> None:
    """Raise :class:`UsageError` for a bundle that gives no boxes."""
    if bundle.task != "detector":
        raise UsageError(f"{bundle.location} is a {bundle.task} bundle; boxes need a detector, such as Grounding DINO")


def choose_boxes(
    boxes: NDArray[Any], scores: NDArray[Any], covers: tuple[float, float], settings: BoxSettings
) -> Boxes:
    """Choose among boxes (Q, 4), fractions of the input, with class scores (Q, C).

    ``covers`` are the fractions of the input's height and width that the image covers.
    """
    best = np.asarray(scores, np.float32).max(axis=1)
    extent = np.array([covers[1], covers[0], covers[1], covers[0]], np.float32)
    corners = np.clip(np.asarray(boxes, np.float32) / extent, 0, 1)
    # NaN fails every comparison
    is_usable = (best >= settings.box_score) & (corners[:, 2:] > corners[:, :2]).all(axis=1)
    rows = np.flatnonzero(is_usable)
    rows = rows[np.argsort(-best[rows], kind="stable")]
    classes = scores[rows].argmax(axis=1) if len(rows) else np.zeros(0, np.intp)
    if settings.box_overlap < 1 and len(rows):
        sides = np.concatenate([corners[rows, :2], corners[rows, 2:] - corners[rows, :2]], axis=1)
        stay = cv2.dnn.NMSBoxesBatched(
            sides.astype(float).tolist(), best[rows].tolist(), classes.tolist(), 0.0, settings.box_overlap
        )
        places = np.sort(np.asarray(stay, np.intp).reshape(-1))
        rows, classes = rows[places], classes[places]
    rows, classes = rows[: settings.max_boxes], classes[: settings.max_boxes]
    return Boxes(boxes=corners[rows], classes=classes, scores=best[rows])
