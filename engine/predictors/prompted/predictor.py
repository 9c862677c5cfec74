"""From image-level classes to class scores: activation maps → peaks → prompts → masks (S2C).

A classifier says where in the image each class that it shows is, a promptable model says what belongs together there::

    predictor = PromptedPredictor(cam_bundle, sam_bundle, cam_session, encoder_session, decoder_session,
                                  labels=ImageLabels.load("labels.csv"))
    score_map = predictor.predict(image, "1.jpg")

The score map has the classifier's classes behind a background, at the resolution of the promptable model's masks;
:mod:`maskmill.engine.predictors.prompted.class_masks` says what a score is. Selection, calibration, weights, store
and resume are those of every
predictor. The encoder runs once an image, and not at all where nothing is asked; prompts of all images and classes of a
batch go to the decoder together.

All arrays lie in the predictor's backend (:mod:`maskmill.engine.backends.base`). With ``backend=CudaBackend()``
images, activation maps,
points, embeddings, masks and scores stay on the device; what a batch brings down is how many peaks each map has and how
confident each mask is, the probabilities of classes where no image-level labels are given, and with modes that draw
boxes the maps and their peaks. Kept embeddings go up and down, and so does an image that was decoded there, for its
name in the cache.
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

from ....errors import UsageError
from ...backends.base import Backend
from ...backends.host import HOST
from ...inputs.image_labels import ImageLabels
from ...inputs.images import image_covers
from ...model.bundle import Bundle
from ...runtimes.base import Session
from ...runtimes.device_arrays import is_device_array
from ..base import ScoreMap
from .activation_maps import CamInput, CamModel, Cams, scored_bundle
from .class_masks import Answered, ClassMask, MaskSettings, merge_masks, pick_masks, score_map
from .embedding_cache import EmbeddingCache, rounded
from .mask_decoder import PromptDecoder
from .prompts import Prompts, PromptSettings, join_prompts, prompts_of


@dataclass(frozen=True, kw_only=True)
class PreparedPrompted:
    """One image, ready for the classifier and the encoder, in the predictor's backend."""

    cam: CamInput
    """What the classifier takes."""
    tensor: Any
    """What the encoder takes, without the batch axis; None where its embeddings are kept already."""
    embeddings: list[Any] | None
    """Kept embeddings, float32, without the batch axis."""
    key: str | None
    """The image's name in the cache; None without one."""
    size: tuple[int, int]
    """(height, width) of the image, in pixels."""
    covers: tuple[float, float]
    """Fractions of the encoder's input that the image covers."""
    classes: list[int] | None
    """The classifier's classes that the image shows; None where the classifier is to say."""


@dataclass(frozen=True, kw_only=True, repr=False)
class PromptedSteps:
    """What each stage gave for one image: for pictures, and for those who want to look inside.

    Maps, points of prompts and masks lie where the score map does.
    """

    classes: list[int]
    """The classifier's classes that the image was taken to show."""
    cams: Any
    """(len(classes), rows, columns) float32 in [0, 1]: their activation maps on the grid of masks."""
    prompts: Prompts
    """What was asked; ``target`` counts ``classes``, points are in pixels of the encoder's input."""
    masks: list[ClassMask]
    """The merged masks of each class; ``target`` is the class's channel in the score map."""
    score_map: ScoreMap
    """What labeling goes on with."""


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
    backend
        Where everything lies but what decides how much is asked; the sessions must take arrays from there.
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
        backend: Backend = HOST,
    ) -> None:
        if batch < 1:
            raise UsageError(f"the batch must be at least 1, got {batch}")
        if not 0 <= class_threshold <= 1:
            raise UsageError(f"the class threshold is a probability, got {class_threshold}")
        if labels is not None:
            labels.check([*cam.classes, "background"])
        self.cam = CamModel(cam, cam_session, scales=scales, flip=flip, backend=backend)
        self.decoder = PromptDecoder(sam, decoder, backend=backend)
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
        self._backend = backend
        self.first = len(self.bundle.classes) - len(cam.classes)
        """Channel of the classifier's first class."""
        self._lock = threading.Lock()
        self._decoder_kind, self._decoder_artifact = decoder.kind, decoder.artifact
        self.seconds: dict[str, float] = dict.fromkeys(("cam", "prompts", "encoder", "decoder", "masks"), 0.0)
        """Wall time inside each stage of ``run`` so far, summed over threads; on a device that of queueing its work and
        of waiting for what comes down."""
        self.encoded = 0
        """Images that the encoder saw so far."""

    @property
    def settings(self) -> dict[str, Any]:
        """Bundles, sessions, files and everything that decides prompts and masks; not the image-level labels."""
        cam = self.cam
        return {
            "bundle": cam.bundle.fingerprint,
            "session": cam.session.kind,
            "artifact": cam.session.artifact,
            "promptable": {
                "bundle": self.sam.fingerprint,
                "encoder": {"session": self.encoder.kind, "artifact": self.encoder.artifact},
                "decoder": {"session": self._decoder_kind, "artifact": self._decoder_artifact},
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
    def backend(self) -> Backend:
        """Where images are decoded and scores lie."""
        return self._backend

    def predict(self, image: NDArray[np.uint8], uri: str = "") -> ScoreMap:
        """Scores of one image, HWC uint8 RGB; ``uri`` names it in the image-level labels."""
        return self.run([self.prepare(image, uri)])[0]

    def prepare(self, image: Any, uri: str = "") -> PreparedPrompted:
        """Resize and normalize one image, HWC uint8 RGB, for the classifier and the encoder.

        The image lies on the host or on ``backend``. Raises :class:`ImageError` of the kind ``no-labels`` where the
        image-level labels do not list ``uri``.
        """
        classes = None if self._labels is None else self._labels.classes_of(uri, self.cam.bundle.classes)
        cache = self._cache
        key, kept, tensor, spec, xp = None, None, None, self.sam.input, self.backend.xp
        with self.backend.queue():
            if cache is not None:
                (pixels,) = self.backend.download(image) if is_device_array(image) else (image,)
                key = cache.key(pixels)
                kept = cache.get(key)
            image = xp.asarray(image)  # once, for all that look at it
            if kept is None:
                tensor, covers = self.backend.preprocess(image, spec)
            else:
                covers = image_covers(image.shape[0], image.shape[1], spec)
                kept = [xp.asarray(values).astype(np.float32) for values in kept]
            cam = self.cam.prepare(image)
        return PreparedPrompted(
            cam=cam,
            tensor=tensor,
            embeddings=kept,
            key=key,
            size=(image.shape[0], image.shape[1]),
            covers=covers,
            classes=classes,
        )

    def run(self, prepared: Sequence[PreparedPrompted]) -> list[ScoreMap]:
        """Score maps of prepared images."""
        return [steps.score_map for steps in self.steps(prepared)]

    def steps(self, prepared: Sequence[PreparedPrompted]) -> list[PromptedSteps]:
        """What every stage gives for prepared images."""
        with self.backend.queue():
            with self._timed("cam"):
                cams = self.cam.run([one.cam for one in prepared], self._batch)
            with self._timed("prompts"):
                shown = self._shown(prepared, cams)
                grids = [self._grid(one) for one in prepared]
                maps = [
                    found.on_grid(size, extent, classes)
                    for found, (size, extent), classes in zip(cams, grids, shown, strict=True)
                ]
                asked = prompts_of(maps, self.prompts, scale=self.cell, backend=self.backend)
                prompts = join_prompts(asked, self.backend.xp)
            with self._timed("encoder"):
                embeddings = self._embed(prepared, [len(one) > 0 for one in asked])
            with self._timed("decoder"):
                masks, scores = self.decoder.run(embeddings, self._among(prompts))
            with self._timed("masks"):
                merged = self._merged(asked, maps, masks, scores)
                return [
                    self._steps_of(one, classes, cams, prompts, found, extent)
                    for one, classes, cams, prompts, found, (_, extent) in zip(
                        prepared, shown, maps, asked, merged, grids, strict=True
                    )
                ]

    def _shown(self, prepared: Sequence[PreparedPrompted], cams: Sequence[Cams]) -> list[list[int]]:
        """The classes that each image is taken to show, as it is labeled or as its probabilities say."""
        unknown = [found.probabilities for one, found in zip(prepared, cams, strict=True) if one.classes is None]
        probabilities = iter(self.backend.download(*unknown) if unknown else ())
        shown = [
            np.flatnonzero(next(probabilities) > self._class_threshold).tolist() if one.classes is None else one.classes
            for one in prepared
        ]
        return [[index for index in classes if index != self.cam.bundle.background] for classes in shown]

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

    def _embed(self, prepared: Sequence[PreparedPrompted], needed: Sequence[bool]) -> list[Any]:
        """Embeddings of the images that something is asked of, each (images, …); others have none."""
        xp = self.backend.xp
        found: list[list[Any]] = [one.embeddings or [] for one in prepared]
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
            outputs = self.encoder.run(xp.stack([*tensors, *padding]))
            for row, index in enumerate(chunk):
                found[index] = rounded([output[row] for output in outputs], xp)
        for index in missing:
            key = prepared[index].key
            if self._cache is not None and key is not None:
                self._cache.put(key, self.backend.download(*found[index]))
        with self._lock:
            self.encoded += len(missing)
        used = [embeddings for embeddings, need in zip(found, needed, strict=True) if need]
        return [xp.stack(level) for level in zip(*used, strict=True)]

    @staticmethod
    def _among(prompts: Prompts) -> Prompts:
        """The same prompts, images counted among those that something is asked of."""
        _, image = np.unique(prompts.image, return_inverse=True)
        return dataclasses.replace(prompts, image=image.reshape(-1))

    def _merged(self, asked: Sequence[Prompts], maps: Sequence[Any], masks: Any, scores: Any) -> list[list[ClassMask]]:
        """The masks of each image's classes, of all prompts' (N, M, …) and their scores (N, M)."""
        answered, end, xp = [], 0, self.backend.xp
        threshold = self.prompts.box_threshold
        for prompts, cams in zip(asked, maps, strict=True):
            rows = slice(end, end + len(prompts))
            end = rows.stop
            if len(prompts):
                of_class = cams[xp.asarray(prompts.target)]
                covered = masks[rows, :, : cams.shape[1], : cams.shape[2]]
                picked = pick_masks(covered, scores[rows], of_class, pick=self.masks.pick, threshold=threshold, xp=xp)
                answered.append(Answered(prompts=prompts, masks=picked, maps=of_class))
        merged = iter(merge_masks(answered, keep=self.masks.keep, threshold=threshold, backend=self.backend))
        return [next(merged) if len(prompts) else [] for prompts in asked]

    def _steps_of(
        self,
        one: PreparedPrompted,
        shown: list[int],
        maps: Any,
        prompts: Prompts,
        merged: list[ClassMask],
        extent: tuple[float, float],
    ) -> PromptedSteps:
        masks = [dataclasses.replace(mask, target=shown[mask.target] + self.first) for mask in merged]
        size, background = (maps.shape[1], maps.shape[2]), self.bundle.background or 0
        return PromptedSteps(
            classes=shown,
            cams=maps,
            prompts=prompts,
            masks=masks,
            score_map=ScoreMap(
                scores=score_map(masks, size, len(self.bundle.classes), background, self.backend.xp),
                layout="CHW",
                activation="none",
                size=one.size,
                region=(0.0, 0.0, *extent),
                backend=self.backend,
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
