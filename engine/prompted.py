"""From image-level classes to class scores: activation maps → peaks → prompts → masks (S2C).

A classifier says where in the image each class that it shows is, a promptable model says what belongs together there::

    predictor = PromptedPredictor(cam_bundle, sam_bundle, cam_session, encoder_session, decoder_session,
                                  labels=ImageLabels.load("labels.csv"))
    score_map = predictor.predict(image, "1.jpg")

The score map has the classifier's classes behind a background, at the resolution of the promptable model's masks;
:mod:`maskmill.engine.masks` says what a score is. Selection, calibration, weights, store and resume are those of every
predictor. The encoder runs once an image, and not at all where nothing is asked; prompts of all images and classes of a
batch go to the decoder together.
"""

from __future__ import annotations

import dataclasses
import math
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError
from ..export.bundle import Bundle
from .cams import CamInput, CamModel, Cams, scored_bundle
from .decoder import PromptDecoder
from .embeddings import EmbeddingCache, rounded
from .image_labels import ImageLabels
from .images import image_covers, preprocess
from .masks import ClassMask, MaskSettings, merge_masks, pick_masks, score_map
from .place import HOST, Place
from .predict import ScoreMap
from .prompts import Prompts, PromptSettings, join_prompts, prompts_of
from .session import Session


@dataclass(frozen=True, kw_only=True)
class PreparedPrompted:
    """One image, ready for the classifier and the encoder."""

    cam: CamInput
    """What the classifier takes."""
    tensor: NDArray[np.float32] | None
    """What the encoder takes, without the batch axis; None where its embeddings are kept already."""
    embeddings: list[NDArray[Any]] | None
    """Kept embeddings, without the batch axis."""
    key: str | None
    """The image's name in the cache; None without one."""
    size: tuple[int, int]
    """(height, width) of the image, in pixels."""
    covers: tuple[float, float]
    """Fractions of the encoder's input that the image covers."""
    classes: list[int] | None
    """The classifier's classes that the image shows; None where the classifier is to say."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Stages:
    """What each stage gave for one image: for pictures, and for those who want to look inside."""

    classes: list[int]
    """The classifier's classes that the image was taken to show."""
    cams: NDArray[np.float32]
    """(len(classes), rows, columns) in [0, 1]: their activation maps on the grid of masks."""
    prompts: Prompts
    """What was asked; ``target`` counts ``classes``, points are in pixels of the encoder's input."""
    masks: list[ClassMask]
    """The merged masks of each class; ``target`` is the class's channel in the score map."""
    score_map: ScoreMap
    """What labelling goes on with."""


class PromptedPredictor:
    """Class scores of images whose classes are known or guessed; implements the ``Predictor`` protocol.

    Parameters
    ----------
    cam, sam
        A ``cam`` and a ``promptable`` bundle.
    cam_session, encoder, decoder
        What runs the classifier, and the promptable bundle's two graphs.
    prompts, masks
        How maps become prompts, and masks scores.
    scales, flip
        Input sizes of the classifier as multiples of its own, and whether it sees the mirrored image, too.
    labels
        Which classes each image shows. Without them an image shows the classes whose probability is above
        ``class_threshold``.
    class_threshold
        See above; not used with ``labels``.
    cache
        Where embeddings are kept, if anywhere.
    batch
        Images that the pipeline hands over together.
    """

    def __init__(
        self,
        cam: Bundle,
        sam: Bundle,
        cam_session: Session,
        encoder: Session,
        decoder: Session,
        *,
        prompts: PromptSettings | None = None,
        masks: MaskSettings | None = None,
        scales: Sequence[float] = (1.0,),
        flip: bool = True,
        labels: ImageLabels | None = None,
        class_threshold: float = 0.5,
        cache: EmbeddingCache | None = None,
        batch: int = 1,
    ) -> None:
        if batch < 1:
            raise UsageError(f"the batch must be at least 1, got {batch}")
        if not 0 <= class_threshold <= 1:
            raise UsageError(f"the class threshold is a probability, got {class_threshold}")
        if labels is not None:
            labels.check([*cam.classes, "background"])
        self.cam = CamModel(cam, cam_session, scales=scales, flip=flip)
        self.decoder = PromptDecoder(sam, decoder)
        self.bundle = scored_bundle(cam)
        """The classifier's bundle with the classes of the score maps."""
        self.sam = sam
        self.encoder = encoder
        self.prompts = prompts or PromptSettings()
        self.masks = masks or MaskSettings()
        self._labels = labels
        self._class_threshold = class_threshold
        self._cache = cache
        self._batch = batch
        self.first = len(self.bundle.classes) - len(cam.classes)
        """Channel of the classifier's first class."""
        self._lock = threading.Lock()
        self._decoder_kind, self._decoder_artefact = decoder.kind, decoder.artefact
        self.seconds: dict[str, float] = dict.fromkeys(("cam", "prompts", "encoder", "decoder", "masks"), 0.0)
        """Wall time inside each stage of ``run`` so far, summed over threads."""
        self.encoded = 0
        """Images that the encoder saw so far."""

    @property
    def settings(self) -> dict[str, Any]:
        """Bundles, sessions, files and everything that decides prompts and masks; not the image-level labels."""
        cam = self.cam
        return {
            "bundle": cam.bundle.fingerprint,
            "session": cam.session.kind,
            "artefact": cam.session.artefact,
            "promptable": {
                "bundle": self.sam.fingerprint,
                "encoder": {"session": self.encoder.kind, "artefact": self.encoder.artefact},
                "decoder": {"session": self._decoder_kind, "artefact": self._decoder_artefact},
            },
            "prompts": {
                "scales": list(cam.scales),
                "flip": cam.flip,
                **dataclasses.asdict(self.prompts),
                **dataclasses.asdict(self.masks),
            },
            "classes_from": "image labels" if self._labels else f"probability above {self._class_threshold}",
        }

    @property
    def batch(self) -> int:
        """How many prepared images one ``run`` should get."""
        return self._batch

    @property
    def threads(self) -> int:
        """Threads that one ``run`` uses on the host."""
        return max(self.cam.session.threads, self.encoder.threads)

    @property
    def place(self) -> Place:
        """Images and scores lie on the host."""
        return HOST

    def predict(self, image: NDArray[np.uint8], uri: str = "") -> ScoreMap:
        """Scores of one image, HWC uint8 RGB; ``uri`` names it in the image-level labels."""
        return self.run([self.prepare(image, uri)])[0]

    def prepare(self, image: Any, uri: str = "") -> PreparedPrompted:
        """Resize and normalise one image, HWC uint8 RGB, for the classifier and the encoder.

        Raises :class:`ImageError` of the kind ``no-labels`` where the image-level labels do not list ``uri``.
        """
        classes = None if self._labels is None else self._labels.classes_of(uri, self.cam.bundle.classes)
        cache = self._cache
        key = None if cache is None else cache.key(image)
        kept = None if cache is None or key is None else cache.get(key)
        tensor, spec = None, self.sam.input
        if kept is None:
            tensor, covers = preprocess(image, spec)
        else:
            covers = image_covers(image.shape[0], image.shape[1], spec)
        return PreparedPrompted(
            cam=self.cam.prepare(image),
            tensor=tensor,
            embeddings=kept,
            key=key,
            size=(image.shape[0], image.shape[1]),
            covers=covers,
            classes=classes,
        )

    def run(self, prepared: Sequence[PreparedPrompted]) -> list[ScoreMap]:
        """Score maps of prepared images."""
        return [stages.score_map for stages in self.stages(prepared)]

    def stages(self, prepared: Sequence[PreparedPrompted]) -> list[Stages]:
        """What every stage gives for prepared images."""
        with self._timed("cam"):
            cams = self.cam.run([one.cam for one in prepared], self._batch)
        with self._timed("prompts"):
            shown = [self._shown(one, found) for one, found in zip(prepared, cams, strict=True)]
            grids = [self._grid(one) for one in prepared]
            maps = [
                found.on_grid(size, extent, classes)
                for found, (size, extent), classes in zip(cams, grids, shown, strict=True)
            ]
            asked = [prompts_of(cam, self.prompts, scale=self.cell) for cam in maps]
            prompts = join_prompts(asked)
        with self._timed("encoder"):
            embeddings = self._embed(prepared, [len(one) > 0 for one in asked])
        with self._timed("decoder"):
            masks, scores = self.decoder.run(embeddings, self._among(prompts))
        with self._timed("masks"):
            found = []
            for index, one in enumerate(prepared):
                rows = np.flatnonzero(prompts.image == index)
                size, extent = grids[index]
                logits = masks[rows][:, :, : size[0], : size[1]]
                found.append(self._finish(one, shown[index], maps[index], asked[index], logits, scores[rows], extent))
        return found

    def _shown(self, one: PreparedPrompted, cams: Cams) -> list[int]:
        if one.classes is not None:
            return [index for index in one.classes if index != self.cam.bundle.background]
        likely = np.flatnonzero(cams.probabilities > self._class_threshold).tolist()
        return [index for index in likely if index != self.cam.bundle.background]

    @property
    def cell(self) -> tuple[float, float]:
        """Size of a mask's cell in pixels of the encoder's input, (vertical, horizontal)."""
        spec, mask = self.sam.input, self.decoder.spec
        return spec.height / mask.mask_height, spec.width / mask.mask_width

    def _grid(self, one: PreparedPrompted) -> tuple[tuple[int, int], tuple[float, float]]:
        """The cells of a mask that the image covers: whole ones, and the real number of them."""
        mask = self.decoder.spec
        extent = mask.mask_height * one.covers[0], mask.mask_width * one.covers[1]
        return (max(1, math.ceil(extent[0])), max(1, math.ceil(extent[1]))), extent

    def _embed(self, prepared: Sequence[PreparedPrompted], needed: Sequence[bool]) -> list[NDArray[Any]]:
        """Embeddings of the images that something is asked of, each (images, …); others have none."""
        found: list[list[NDArray[Any]]] = [one.embeddings or [] for one in prepared]
        missing = [
            index
            for index, one in enumerate(prepared)
            if needed[index] and one.embeddings is None and one.tensor is not None
        ]
        limit = self.encoder.max_batch or self._batch
        for start in range(0, len(missing), limit):
            chunk = missing[start : start + limit]
            tensors = [prepared[index].tensor for index in chunk]
            padding = [tensors[0]] * ((self.encoder.max_batch or 0) - len(chunk))
            outputs = self.encoder.run(np.stack([*tensors, *padding]))  # type: ignore[arg-type]
            for row, index in enumerate(chunk):
                found[index] = rounded([np.asarray(output[row]) for output in outputs])
                key = prepared[index].key
                if self._cache is not None and key is not None:
                    self._cache.put(key, found[index])
        with self._lock:
            self.encoded += len(missing)
        used = [embeddings for embeddings, need in zip(found, needed, strict=True) if need]
        return [np.stack(level) for level in zip(*used, strict=True)]

    @staticmethod
    def _among(prompts: Prompts) -> Prompts:
        """The same prompts, images counted among those that something is asked of."""
        _, image = np.unique(prompts.image, return_inverse=True)
        return dataclasses.replace(prompts, image=image.reshape(-1))

    def _finish(
        self,
        one: PreparedPrompted,
        shown: list[int],
        maps: NDArray[np.float32],
        prompts: Prompts,
        masks: NDArray[np.float32],
        scores: NDArray[np.float32],
        extent: tuple[float, float],
    ) -> Stages:
        settings, threshold = self.masks, self.prompts.box_threshold
        picked = pick_masks(masks, scores, maps[prompts.target], pick=settings.pick, threshold=threshold)
        merged = [
            dataclasses.replace(mask, target=shown[mask.target] + self.first)
            for mask in merge_masks(picked, prompts, maps, keep=settings.keep, threshold=threshold)
        ]
        background = self.bundle.background or 0
        values = score_map(merged, (maps.shape[1], maps.shape[2]), len(self.bundle.classes), background)
        return Stages(
            classes=shown,
            cams=maps,
            prompts=prompts,
            masks=merged,
            score_map=ScoreMap(
                scores=values, layout="CHW", activation="none", size=one.size, region=(0.0, 0.0, *extent)
            ),
        )

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            with self._lock:
                self.seconds[stage] += time.perf_counter() - started
