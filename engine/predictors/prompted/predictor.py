"""Predict class scores from image-level classes: activation maps → peaks → prompts → masks (S2C).

A classifier locates each class of the image roughly, and a promptable model segments the object at that place::

    predictor = PromptedPredictor(cam_bundle, sam_bundle, cam_session, encoder_session, decoder_session,
                                  labels=ImageLabels.load("labels.csv"))
    score_map = predictor.predict(image, "0001.jpg")

The score map has the classifier's classes behind a background, at the resolution of the promptable model's masks;
:mod:`maskmill.engine.predictors.prompted.class_masks` defines a score. Selection, calibration, weights, store and
resume are those of every predictor. The encoder runs once per image, and not at all for an image without prompts;
prompts of all images and classes of a batch go to the decoder together.

All arrays are on the predictor's backend (:mod:`maskmill.engine.backends.base`). With ``backend=CudaBackend()``
images, activation maps, points, embeddings, masks and scores stay on the device. Each batch downloads the number of
peaks per map, the confidence of each mask, the class probabilities if there are no image-level labels, and for modes
with boxes the maps and their peaks. With a cache, embeddings are uploaded and downloaded, and images that were decoded
on the device are downloaded for their hash.
"""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from ....checks import check_number
from ...backends.base import Backend
from ...backends.host import HOST
from ...inputs.image_labels import ImageLabels
from ...inputs.images import image_covers
from ...model.bundle import Bundle
from ...runtimes.base import Session
from ...runtimes.device_arrays import is_device_array
from ..base import ScoreMap, SessionPredictor, stack_padded
from .activation_maps import CamInput, CamModel, Cams, scored_bundle
from .class_masks import Answered, ClassMask, MaskSettings, merge_masks, pick_masks, score_map
from .embedding_cache import EmbeddingCache, rounded
from .mask_decoder import PromptDecoder
from .prompts import Prompts, PromptSettings, join_prompts, prompts_of


@dataclass(frozen=True, kw_only=True)
class PreparedPrompted:
    """One preprocessed image for the classifier and the encoder, on the predictor's backend."""

    cam: CamInput
    """The classifier's input."""
    tensor: Any
    """The encoder's input, without the batch axis; None if the cache has its embeddings."""
    embeddings: list[Any] | None
    """Embeddings of the cache, float32, without the batch axis; None without them."""
    key: str | None
    """The image's key in the cache; None without a cache."""
    size: tuple[int, int]
    """(height, width) of the image, in pixels."""
    covers: tuple[float, float]
    """Fractions of the encoder's input that the image covers."""
    classes: list[int] | None
    """The classifier's classes that the image shows; None if the classifier decides."""


@dataclass(frozen=True, kw_only=True, repr=False)
class PromptedSteps:
    """Results of every step for one image, for pictures and inspection.

    Maps, points of prompts and masks are on the score map's device.
    """

    classes: list[int]
    """The classifier's classes that were prompted for."""
    cams: Any
    """(len(classes), rows, columns) float32 in [0, 1]: their activation maps on the grid of masks."""
    prompts: Prompts
    """Prompts of the decoder; ``target`` is an index of ``classes``, points are in pixels of the encoder's input."""
    masks: list[ClassMask]
    """The merged masks of each class; ``target`` is the class's channel in the score map."""
    score_map: ScoreMap
    """Class scores for selection."""


class PromptedPredictor(SessionPredictor):
    """Class scores of images whose classes are known or guessed; implements the ``Predictor`` protocol.

    Parameters
    ----------
    cam, sam
        A ``cam`` and a ``promptable`` bundle.
    cam_session, encoder, decoder
        Sessions of the classifier and of the promptable bundle's two graphs.
    prompts, masks
        Settings of the conversions from maps to prompts and from masks to scores.
    scales, flip
        Input sizes of the classifier as multiples of its own; also use the mirrored image.
    labels
        Classes of each image. If None, an image is prompted for the classes with a probability above
        ``class_threshold``.
    class_threshold
        Smallest probability of a class to be prompted for; not used with ``labels``.
    cache
        Cache of the encoder's embeddings, or None.
    batch
        Images per call of ``run``.
    backend
        Device that holds all arrays, except those that decide the number of prompts; the sessions must accept its
        arrays.
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
        super().__init__(encoder, batch=batch, backend=backend)
        check_number("class_threshold", class_threshold, least=0, most=1)
        if labels is not None:
            labels.check([*cam.classes, "background"])
        self.cam: CamModel = CamModel(cam, cam_session, scales=scales, flip=flip, backend=backend)
        self.decoder: PromptDecoder = PromptDecoder(sam, decoder, backend=backend)
        self.bundle: Bundle = scored_bundle(cam)
        """The classifier's bundle with the classes of the score maps."""
        self.sam = sam
        self.encoder = encoder
        self.prompts: PromptSettings = prompts or PromptSettings()
        self.masks: MaskSettings = masks or MaskSettings()
        self._labels = labels
        self._class_threshold = class_threshold
        self._cache = cache
        self.first: int = len(self.bundle.classes) - len(cam.classes)
        """Channel of the classifier's first class."""
        self._lock = threading.Lock()
        self._decoder_kind, self._decoder_artifact = decoder.kind, decoder.artifact
        self.seconds: dict[str, float] = dict.fromkeys(("cam", "prompts", "encoder", "decoder", "masks"), 0.0)
        """Wall time in seconds inside each step of ``run`` so far, summed over threads; on a device the time to queue
        work and to wait for downloads."""
        self.encoded = 0
        """Number of images that the encoder processed so far."""

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
    def threads(self) -> int:
        """Number of host threads that one call of ``run`` uses."""
        return max(self.cam.session.threads, self.encoder.threads)

    def condition(self, uri: str) -> str:
        """Return the image-level labels of an image as text, "" without them."""
        return labels_condition(self._labels, uri)

    def prepare(self, image: Any, uri: str = "") -> PreparedPrompted:
        """Resize and normalize one image, HWC uint8 RGB, for the classifier and the encoder.

        The image is on the host or on ``backend``. Raises :class:`ImageError` of the kind ``no-labels`` if the
        image-level labels do not list ``uri``.
        """
        classes = None if self._labels is None else self._labels.classes_of(uri, self.cam.bundle.classes)
        cache = self._cache
        key, embeddings, tensor, spec, xp = None, None, None, self.sam.input, self.backend.xp
        source, image = image, self.backend.upload(image)
        with self.backend.queue():
            if cache is not None:
                (pixels,) = self.backend.download(image) if is_device_array(source) else (source,)
                key = cache.key(pixels)
                embeddings = cache.get(key)
            if embeddings is None:
                tensor, covers = self.backend.preprocess(image, spec)
            else:
                covers = image_covers(image.shape[0], image.shape[1], spec)
                embeddings = [xp.asarray(values).astype(np.float32) for values in embeddings]
            cam = self.cam.prepare(image)
        return PreparedPrompted(
            cam=cam,
            tensor=tensor,
            embeddings=embeddings,
            key=key,
            size=(image.shape[0], image.shape[1]),
            covers=covers,
            classes=classes,
        )

    def run(self, prepared: Sequence[PreparedPrompted]) -> list[ScoreMap]:
        """Compute the score maps of prepared images."""
        return [steps.score_map for steps in self.steps(prepared)]

    def steps(self, prepared: Sequence[PreparedPrompted]) -> list[PromptedSteps]:
        """Run all steps for prepared images and return all their results."""
        with self.backend.queue():
            with self._timed("cam"):
                cams = self.cam.run([image.cam for image in prepared], self._batch)
            with self._timed("prompts"):
                classes_of = self._classes_of(prepared, cams)
                grids = [self.decoder.grid(image.covers) for image in prepared]
                maps = [
                    activations.on_grid(size, extent, classes)
                    for activations, (size, extent), classes in zip(cams, grids, classes_of, strict=True)
                ]
                prompts_by_image = prompts_of(
                    maps,
                    self.prompts,
                    scale=self.cell,
                    grid=(self.decoder.spec.mask_height, self.decoder.spec.mask_width),
                    backend=self.backend,
                )
                prompts = join_prompts(prompts_by_image, self.backend.xp)
            with self._timed("encoder"):
                embeddings = self._embed(prepared, [len(prompts) > 0 for prompts in prompts_by_image])
            with self._timed("decoder"):
                masks, scores = self.decoder.run(embeddings, self._among(prompts))
            with self._timed("masks"):
                merged_masks = self._merged(prompts_by_image, maps, masks, scores)
                steps = [
                    self._steps_of(image, classes, cams, prompts, class_masks, extent)
                    for image, classes, cams, prompts, class_masks, (_, extent) in zip(
                        prepared, classes_of, maps, prompts_by_image, merged_masks, grids, strict=True
                    )
                ]
                for image_steps, activations in zip(steps, cams, strict=True):
                    # a failure of the classifier must not look like an image of background only
                    image_steps.score_map.scores[:] += activations.zero_or_nan()
                return steps

    def _classes_of(self, prepared: Sequence[PreparedPrompted], cams: Sequence[Cams]) -> list[list[int]]:
        """List the classes to prompt for in each image, from its labels or from the classifier's probabilities."""
        unlabeled = [maps.probabilities for image, maps in zip(prepared, cams, strict=True) if image.classes is None]
        probabilities = iter(self.backend.download(*unlabeled) if unlabeled else ())
        classes_of = [
            np.flatnonzero(next(probabilities) > self._class_threshold).tolist()
            if image.classes is None
            else image.classes
            for image in prepared
        ]
        return [[index for index in classes if index != self.cam.bundle.background] for classes in classes_of]

    @property
    def cell(self) -> tuple[float, float]:
        """Size of a mask's cell in pixels of the encoder's input, (vertical, horizontal)."""
        spec, mask = self.sam.input, self.decoder.spec
        return spec.height / mask.mask_height, spec.width / mask.mask_width

    def _embed(self, prepared: Sequence[PreparedPrompted], needs: Sequence[bool]) -> list[Any]:
        """Compute the embeddings, each (images, …), of the images with prompts."""
        xp = self.backend.xp
        embeddings: list[list[Any]] = [image.embeddings or [] for image in prepared]
        missing_indices = [
            index
            for index, image in enumerate(prepared)
            if needs[index] and image.embeddings is None and image.tensor is not None
        ]
        for start in range(0, len(missing_indices), self.batch):
            chunk = missing_indices[start : start + self.batch]
            outputs = self.encoder.run(stack_padded([prepared[index].tensor for index in chunk], self.encoder, xp))
            for row, index in enumerate(chunk):
                embeddings[index] = rounded([output[row] for output in outputs], xp)
        for index in missing_indices:
            key = prepared[index].key
            if self._cache is not None and key is not None:
                self._cache.put(key, self.backend.download(*embeddings[index]))
        with self._lock:
            self.encoded += len(missing_indices)
        used_embeddings = [levels for levels, need in zip(embeddings, needs, strict=True) if need]
        return [xp.stack(level) for level in zip(*used_embeddings, strict=True)]

    @staticmethod
    def _among(prompts: Prompts) -> Prompts:
        """Renumber the images of prompts, counting only images with prompts."""
        _, image = np.unique(prompts.image, return_inverse=True)
        return dataclasses.replace(prompts, image=image.reshape(-1))

    def _merged(self, images: Sequence[Prompts], maps: Sequence[Any], masks: Any, scores: Any) -> list[list[ClassMask]]:
        """Merge all prompts' masks (N, M, …) with scores (N, M) to the masks of each image's classes."""
        answered, end, xp = [], 0, self.backend.xp
        threshold = self.prompts.box_threshold
        for prompts, cams in zip(images, maps, strict=True):
            rows = slice(end, end + len(prompts))
            end = rows.stop
            if len(prompts):
                of_class = cams[xp.asarray(prompts.target)]
                covered = masks[rows, :, : cams.shape[1], : cams.shape[2]]
                picked = pick_masks(covered, scores[rows], of_class, pick=self.masks.pick, threshold=threshold, xp=xp)
                answered.append(Answered(prompts=prompts, masks=picked, maps=of_class))
        merged_masks = iter(merge_masks(answered, keep=self.masks.keep, threshold=threshold, backend=self.backend))
        return [next(merged_masks) if len(prompts) else [] for prompts in images]

    def _steps_of(
        self,
        image: PreparedPrompted,
        classes: list[int],
        maps: Any,
        prompts: Prompts,
        merged: list[ClassMask],
        extent: tuple[float, float],
    ) -> PromptedSteps:
        masks = [dataclasses.replace(mask, target=classes[mask.target] + self.first) for mask in merged]
        size, background = (maps.shape[1], maps.shape[2]), self.bundle.background or 0
        return PromptedSteps(
            classes=classes,
            cams=maps,
            prompts=prompts,
            masks=masks,
            score_map=ScoreMap(
                scores=score_map(masks, size, len(self.bundle.classes), background, self.backend.xp),
                layout="CHW",
                activation="none",
                size=image.size,
                region=(0.0, 0.0, *extent),
                backend=self.backend,
            ),
        )

    @contextmanager
    def _timed(self, step: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            with self._lock:
                self.seconds[step] += time.perf_counter() - started


def labels_condition(labels: ImageLabels | None, uri: str) -> str:
    """Return the image-level labels of an image as text, "" without them."""
    names = None if labels is None else labels.find(uri)
    return "" if names is None else f"image-level labels: {json.dumps(sorted(names), ensure_ascii=False)}"
