"""Predict class scores and objects from external prompts: from files (:mod:`.given_prompts`) or a detector.

Every prompt's object has a mask and a confidence; the score of a class in a pixel, and the background's, follow from
them as in :mod:`.class_masks`. Of the masks that the model gives for a prompt the one with the best predicted IoU is
used, and its confidence is the prompt's score times that IoU. A part of a coarse mask is prompted in several ways, with
the part itself as a mask if the decoder takes one; the mask that agrees best with the part, by IoU, is used, with the
agreement as its confidence. If none reaches :data:`MIN_AGREEMENT`, the part is kept unchanged, with that confidence.

The encoder runs once per image, and not at all if there is no prompt; the prompts of all images of a batch go to the
decoder together, and a detector sees all images of a batch in one call. Boxes and masks are chosen on the host.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ....errors import UsageError
from ...backends.base import Backend
from ...backends.host import HOST
from ...model.bundle import OBJECT_KINDS, Bundle, OutputSpec
from ...runtimes.base import Session
from ..base import Objects, ScoreMap, SessionPredictor, stack_padded
from .boxes import BoxDetector, Boxes
from .class_masks import ClassMask, score_map
from .embedding_cache import rounded
from .given_prompts import GivenPrompts, Prompt, Target, box_prompt, within_image
from .mask_decoder import PromptDecoder
from .prompts import PADDING, Prompts, mask_logits

BACKGROUND = "background"
MIN_AGREEMENT = 0.5
"""IoU with the part of the coarse mask below which a refined mask is not used."""
_CERTAIN = 6.0  # magnitude of the logits of a coarse mask that is kept unchanged


@dataclass(frozen=True, kw_only=True)
class PreparedGiven:
    """One preprocessed image with its prompts."""

    tensor: Any
    """The encoder's input, without the batch axis; None without prompts."""
    detection: Any
    """The detector's input, without the batch axis, with the fractions that the image covers; None without one."""
    size: tuple[int, int]
    """(height, width) of the image, in pixels."""
    covers: tuple[float, float]
    """Fractions of the encoder's input that the image covers."""
    targets: Sequence[Target]
    """Objects to segment; those of a detector are not known yet."""


class GivenPredictor(SessionPredictor):
    """Class scores and objects from prompts; implements the ``Predictor`` protocol.

    Parameters
    ----------
    sam
        A ``promptable`` bundle.
    encoder, decoder
        Sessions of its two graphs.
    prompts
        Prompts of every image, or the detector that finds them.
    batch
        Images per call of ``run``.
    backend
        Device that decodes and prepares images; the sessions must accept its arrays.
    """

    def __init__(
        self,
        sam: Bundle,
        encoder: Session,
        decoder: Session,
        prompts: GivenPrompts | BoxDetector,
        *,
        batch: int = 1,
        backend: Backend = HOST,
    ) -> None:
        super().__init__(encoder, batch=batch, backend=backend)
        self.sam = sam
        self.encoder = encoder
        self.decoder: PromptDecoder = PromptDecoder(sam, decoder, backend=backend)
        self.detector: BoxDetector | None = prompts if isinstance(prompts, BoxDetector) else None
        self.prompts: GivenPrompts | None = prompts if isinstance(prompts, GivenPrompts) else None
        self.bundle: Bundle = prompted_bundle(sam, prompts.classes)
        """The promptable bundle with the classes of the score maps."""
        self._decoder_kind, self._decoder_artifact = decoder.kind, decoder.artifact
        self._lock = threading.Lock()
        self.encoded = 0
        """Number of images that the encoder processed so far."""

    @property
    def settings(self) -> dict[str, Any]:
        """Bundle, sessions, and the source of prompts; prompts from a file are their image's condition."""
        source: dict[str, Any] = {}
        if self.prompts is not None:
            source = {"prompt_kind": self.prompts.kind, "prompts_from": self.prompts.origin}
        if self.detector is not None:
            source["detector"] = self.detector.settings
        return {
            "bundle": self.bundle.fingerprint,
            "session": self.encoder.kind,
            "artifact": self.encoder.artifact,
            "decoder": {"session": self._decoder_kind, "artifact": self._decoder_artifact},
            **source,
        }

    def condition(self, uri: str) -> str:
        """Return the prompts of an image as text, "" without them."""
        return self.prompts.condition(uri) if self.prompts else ""

    def prepare(self, image: Any, uri: str = "") -> PreparedGiven:
        """Resize and normalize one image, HWC uint8 RGB, and find its prompts if they are in a file.

        Raises :class:`ImageError` for a prompt outside of the image.
        """
        size = (int(image.shape[0]), int(image.shape[1]))
        targets = within_image(self.prompts.targets_of(uri), size) if self.prompts else []
        for target in targets:
            if target.coarse is not None and target.coarse.shape != size:
                raise UsageError(
                    f"the coarse mask of {uri} has {target.coarse.shape[0]}x{target.coarse.shape[1]} "
                    f"pixels, the image {size[0]}x{size[1]}; they must be of one size"
                )
        with self.backend.queue():
            uploaded = self.backend.upload(image)
            tensor, covers = self.backend.preprocess(uploaded, self.sam.input)
            detection = None if self.detector is None else self.detector.prepare(uploaded)
        if not targets and detection is None:
            tensor = None
        return PreparedGiven(tensor=tensor, detection=detection, size=size, covers=covers, targets=targets)

    def run(self, prepared: Sequence[PreparedGiven]) -> list[ScoreMap]:
        """Compute the score maps of prepared images, with their objects."""
        if self.detector is not None and prepared:
            with self.backend.queue():
                boxes = self.detector.run([image.detection for image in prepared])
            prepared = [
                dataclasses.replace(image, targets=targets_of(found, image.size))
                for image, found in zip(prepared, boxes, strict=True)
            ]
        prompted = [image for image in prepared if image.targets]
        answers = iter(self._answers(prompted) if prompted else ())
        return [self._score_map(image, next(answers) if image.targets else []) for image in prepared]

    def _answers(self, images: Sequence[PreparedGiven]) -> list[list[tuple[NDArray[np.float32], float]]]:
        """Return mask logits (rows, columns), cut to the image, and confidence of each object of each image."""
        prompts = self._prompts(images)
        with self.backend.queue():
            masks, ious = self.decoder.run(self._embed(images), prompts)
            masks, ious = self.backend.download(masks, ious)
        end, answers = 0, []
        for image in images:
            (rows, columns), extent = self.decoder.grid(image.covers)
            results = []
            for target in image.targets:
                part = slice(end, end + len(self._usable(target)))
                end = part.stop
                results.append(_choose(target, masks[part, :, :rows, :columns], ious[part], extent))
            answers.append(results)
        return answers

    def _prompts(self, images: Sequence[PreparedGiven]) -> Prompts:
        """Join the prompts of all images, in pixels of the encoder's input."""
        spec, mask = self.sam.input, self.decoder.spec
        points, labels, numbers, masks = [], [], [], {}
        for number, image in enumerate(images):
            scale = np.array(
                [spec.width * image.covers[1] / image.size[1], spec.height * image.covers[0] / image.size[0]],
                np.float32,
            )
            size, extent = self.decoder.grid(image.covers)
            for target in image.targets:
                for prompt in self._usable(target):
                    if prompt.with_mask and target.coarse is not None:
                        masks[len(points)] = _on_grid(target.coarse, size, extent)
                    points.append(prompt.points * scale)
                    labels.append(prompt.labels)
                    numbers.append(number)
        width = max(1, *map(len, labels))
        joined_points = np.zeros((len(points), width, 2), np.float32)
        marks = np.full((len(points), width), PADDING, np.float32)
        for row, (places, kinds) in enumerate(zip(points, labels, strict=True)):
            joined_points[row, : len(kinds)], marks[row, : len(kinds)] = places, kinds
        logits = np.zeros((len(points), mask.mask_height, mask.mask_width), np.float32) if masks else None
        for row, inside in masks.items():
            assert logits is not None, "made for the masks"
            logits[row] = mask_logits(inside[None], logits.shape[1:])[0]
        none = np.zeros(len(points), np.int64)
        return Prompts(
            image=np.array(numbers, np.int64),
            target=none,
            group=none,
            points=self.backend.xp.asarray(joined_points),
            labels=marks,
            masks=None if logits is None else self.backend.xp.asarray(logits),
        )

    def _usable(self, target: Target) -> list[Prompt]:
        """Return the prompts of an object that the decoder takes."""
        return [prompt for prompt in target.prompts if self.decoder.takes_masks or not prompt.with_mask]

    def _embed(self, images: Sequence[PreparedGiven]) -> list[Any]:
        """Compute the embeddings, each (images, …)."""
        xp, rows = self.backend.xp, []
        for start in range(0, len(images), self.batch):
            tensors = [image.tensor for image in images[start : start + self.batch]]
            outputs = self.encoder.run(stack_padded(tensors, self.encoder, xp))
            rows += [rounded([output[row] for output in outputs], xp) for row in range(len(tensors))]
        with self._lock:
            self.encoded += len(images)
        return [xp.stack(level) for level in zip(*rows, strict=True)]

    def _score_map(self, image: PreparedGiven, answers: Sequence[tuple[NDArray[np.float32], float]]) -> ScoreMap:
        size, extent = self.decoder.grid(image.covers)
        class_masks = []
        for target, (logits, confidence) in zip(image.targets, answers, strict=True):
            claim = 1 / (1 + np.exp(-np.clip(logits, -30, 30)))
            class_masks.append(ClassMask(target=target.target + 1, claim=claim, score=claim * np.float32(confidence)))
        objects = Objects(
            scores=np.array([confidence for _, confidence in answers], np.float32),
            classes=np.array([target.target + 1 for target in image.targets], np.float32),
            masks=np.stack([logits for logits, _ in answers]) if answers else np.zeros((0, *size), np.float32),
            qualities=np.array(
                [
                    confidence / target.score if target.score else 0.0
                    for target, (_, confidence) in zip(image.targets, answers, strict=True)
                ],
                np.float32,
            ),
        )
        return ScoreMap(
            scores=score_map(class_masks, size, len(self.bundle.classes), 0),
            layout="CHW",
            activation="none",
            size=image.size,
            region=(0.0, 0.0, *extent),
            objects=objects,
        )


def targets_of(found: Boxes, size: tuple[int, int]) -> list[Target]:
    """Return the objects of a detector's boxes on an image of ``size`` (height, width), in pixels."""
    sides = np.array([size[1], size[0], size[1], size[0]])
    return [
        Target(target=int(index), score=float(score), prompts=(box_prompt(*corners),))
        for corners, index, score in zip((found.boxes * sides).tolist(), found.classes, found.scores, strict=True)
    ]


def prompted_bundle(sam: Bundle, classes: Sequence[str]) -> Bundle:
    """Return a promptable bundle as one that scores classes: the background first, then ``classes``."""
    return dataclasses.replace(
        sam,
        task="semantic",
        prompt=None,
        outputs=(
            OutputSpec(name="scores", activation="none"),
            *(OutputSpec(name=kind, kind=kind, activation="none") for kind in OBJECT_KINDS),
        ),
        classes=(BACKGROUND, *classes),
        background=0,
    )


def _choose(
    target: Target, masks: NDArray[np.float32], ious: NDArray[np.float32], extent: tuple[float, float]
) -> tuple[NDArray[np.float32], float]:
    """Choose among the answers (prompts, M, rows, columns) of one object: a mask and its confidence."""
    if target.coarse is None:
        prompt, best = np.unravel_index(int(ious.argmax()), ious.shape)
        return masks[prompt, best], target.score * float(np.clip(ious[prompt, best], 0, 1))
    part = _on_grid(target.coarse, masks.shape[2:], extent)
    inside = masks > 0
    both, either = (inside & part).sum(axis=(2, 3)), (inside | part).sum(axis=(2, 3))
    agreement = both / np.maximum(either, 1)
    prompt, best = np.unravel_index(int(agreement.argmax()), agreement.shape)
    if agreement[prompt, best] < MIN_AGREEMENT:
        return np.where(part, np.float32(_CERTAIN), np.float32(-_CERTAIN)), target.score * MIN_AGREEMENT
    return masks[prompt, best], target.score * float(agreement[prompt, best])


def _on_grid(part: NDArray[np.bool_], size: tuple[int, ...], extent: tuple[float, float]) -> NDArray[np.bool_]:
    """Resample a mask of the image to the cells (rows, columns), of which the image covers the first ``extent``."""
    rows = np.minimum(((np.arange(size[0]) + 0.5) / extent[0] * part.shape[0]).astype(int), part.shape[0] - 1)
    columns = np.minimum(((np.arange(size[1]) + 0.5) / extent[1] * part.shape[1]).astype(int), part.shape[1] - 1)
    cells = max(extent[0] / part.shape[0], extent[1] / part.shape[1])
    if cells < 0.5:
        # average first if a cell covers several pixels
        smooth = cv2.resize(part.astype(np.float32), (size[1], size[0]), interpolation=cv2.INTER_AREA)
        if (round(extent[0]), round(extent[1])) == (size[0], size[1]):
            return smooth >= 0.5
    return part[rows[:, None], columns[None]]
