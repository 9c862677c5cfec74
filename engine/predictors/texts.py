"""Predict class scores for class names: texts are encoded once per run, and each image once for all classes.

::

    predictor = TextPredictor(bundle, encoder, decoder, encode_texts(bundle, text_session, ("person", "car")))
    score_map = predictor.predict(image)          # image: HWC uint8 RGB

The tokenizer is a file of the bundle, so that no network is needed. The classes of several images go to the decoder
together, :data:`CHUNK` per call, which bounds the memory for masks.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import MissingPackageError, SessionError, UsageError
from ..backends.base import Backend
from ..backends.host import HOST
from ..model.bundle import OBJECT_KINDS, Bundle, TextSpec, check_class_names
from ..runtimes.base import Session
from .base import Objects, ScoreMap, SessionPredictor, stack_padded

CHUNK = 8
"""Classes per call of the decoder."""
TEXTS = 64
"""Texts per call of the text encoder."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Texts:
    """Encoded class names."""

    names: tuple[str, ...]
    """The class names."""
    features: NDArray[np.float32]
    """(C, T, D): features of the tokens, up to the longest text."""
    present: NDArray[np.bool_]
    """(C, T): False for padding."""
    session: str
    """Runtime, device and precision of the text encoder."""
    artifact: str
    """Hash of the text encoder's file."""


@dataclass(frozen=True, kw_only=True)
class PreparedImage:
    """One preprocessed image."""

    tensor: Any
    """The encoder's input, without the batch axis."""
    size: tuple[int, int]
    """(height, width) of the image, in pixels."""
    covers: tuple[float, float]
    """Fractions of the input that the image covers."""


def parse_texts(text: str) -> tuple[str, ...]:
    """Split ``person, car`` into class names; raises :class:`UsageError` for empty and repeated ones."""
    names = tuple(name.strip() for name in text.split(","))
    check_class_names(names)
    return names


def text_spec(bundle: Bundle) -> TextSpec:
    """Return how a bundle takes class names; raises :class:`UsageError` for a bundle that does not."""
    if bundle.text is None:
        raise UsageError(
            f"{bundle.location} is a {bundle.task} bundle with classes of its own; leave --text out, or export a model "
            "that takes class names, such as SAM 3, without --classes"
        )
    return bundle.text


def text_bundle(bundle: Bundle, names: Sequence[str]) -> Bundle:
    """Return a text bundle as one that scores the classes ``names``, with a background in front unless it is named."""
    spec = text_spec(bundle)
    if not names:
        raise UsageError(f'{bundle.location} takes its classes as text; name them: --text "person, car"')
    classes = tuple(names) if spec.background in names else (spec.background, *names)
    return dataclasses.replace(
        bundle,
        task="semantic",
        text=None,
        outputs=tuple(output for output in bundle.outputs if output.kind not in ("embedding", "text_features")),
        classes=classes,
        background=classes.index(spec.background),
    )


def tokenize(bundle: Bundle, names: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the tokens (C, max_tokens) of class names in the bundle's template, and 1 for those that are no padding.

    Raises :class:`UsageError` if two names have the same tokens: their classes would be one.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise MissingPackageError("tokenizers", "text", "naming classes by text") from error
    spec = text_spec(bundle)
    check_class_names(names)
    tokenizer = Tokenizer.from_file(str(bundle.model_path("tokenizer")))
    tokenizer.enable_truncation(spec.max_tokens)
    tokenizer.no_padding()
    texts = [spec.template.replace("{}", name) for name in names]
    ids = np.full((len(texts), spec.max_tokens), spec.padding, np.int64)
    present = np.zeros_like(ids)
    rows: dict[bytes, str] = {}
    for row, (text, encoding) in enumerate(zip(texts, tokenizer.encode_batch(texts), strict=True)):
        ids[row, : len(encoding.ids)], present[row, : len(encoding.ids)] = encoding.ids, 1
        if (same_text := rows.setdefault(ids[row].tobytes(), text)) != text:
            raise UsageError(
                f"the prompts {same_text!r} and {text!r} have the same tokens, so their classes would be the same; use "
                "other names"
            )
    return ids, present


def encode_texts(bundle: Bundle, session: Session, names: Sequence[str]) -> Texts:
    """Encode class names with the bundle's text encoder."""
    ids, present = tokenize(bundle, names)
    features = [
        np.asarray(
            session.run({"input_ids": ids[start : start + TEXTS], "attention_mask": present[start : start + TEXTS]})[0],
            np.float32,
        )
        for start in range(0, len(ids), TEXTS)
    ]
    # tokens after the longest text are only padding, which the decoder ignores
    longest = int(present.sum(axis=1).max())
    return Texts(
        names=tuple(names),
        features=np.ascontiguousarray(np.concatenate(features)[:, :longest]),
        present=present[:, :longest] > 0,
        session=session.kind,
        artifact=session.artifact,
    )


class TextPredictor(SessionPredictor):
    """Class scores for named classes; implements the ``Predictor`` protocol.

    Parameters
    ----------
    source
        A ``text`` bundle.
    encoder, decoder
        Sessions of its graphs for images.
    texts
        The encoded class names.
    batch
        Images per call.
    backend
        Device that holds images and scores; the sessions must accept its arrays.
    """

    def __init__(
        self,
        source: Bundle,
        encoder: Session,
        decoder: Session,
        texts: Texts,
        *,
        batch: int = 1,
        backend: Backend = HOST,
    ) -> None:
        super().__init__(encoder, batch=batch, backend=backend)
        self.source = source
        self.bundle: Bundle = text_bundle(source, texts.names)
        """The bundle with the classes of the score maps."""
        self.encoder = encoder
        self.decoder = decoder
        self.texts = texts
        self._add_background = self.bundle.classes[1:] == texts.names
        self._embeddings = [output.name for output in source.outputs_of("encoder")]
        kinds = [output.kind for output in source.outputs_of("decoder")]
        self._scores_at = kinds.index("scores")
        self._objects_at = [kinds.index(kind) for kind in OBJECT_KINDS] if source.has_objects else []
        self._lock = threading.Lock()
        self.encoder_calls = 0
        """Number of calls of the image encoder so far."""
        self.decoder_calls = 0
        """Number of calls of the decoder so far."""

    @property
    def settings(self) -> dict[str, Any]:
        """Bundle with its class names, sessions, and the encoder of the texts."""
        return {
            "bundle": self.bundle.fingerprint,
            "session": self.encoder.kind,
            "artifact": self.encoder.artifact,
            "decoder": {"session": self.decoder.kind, "artifact": self.decoder.artifact},
            "text": {"session": self.texts.session, "artifact": self.texts.artifact, "names": list(self.texts.names)},
        }

    def prepare(self, image: Any, uri: str = "") -> PreparedImage:
        """Resize and normalize one image, HWC uint8 RGB, on the host or on ``backend``; ``uri`` is not used."""
        tensor, covers = self.backend.preprocess(image, self.source.input)
        return PreparedImage(tensor=tensor, size=(int(image.shape[0]), int(image.shape[1])), covers=covers)

    def run(self, prepared: Sequence[PreparedImage]) -> list[ScoreMap]:
        """Compute the score maps of prepared images; every image goes through the encoder once."""
        maps = []
        with self.backend.queue():
            for start in range(0, len(prepared), self.batch):
                maps += self._run(prepared[start : start + self.batch])
        return maps

    def _run(self, images: Sequence[PreparedImage]) -> list[ScoreMap]:
        xp = self.backend.xp
        tensors = stack_padded([image.tensor for image in images], self.encoder, xp)
        with self._lock:
            self.encoder_calls += 1
        embeddings = dict(zip(self._embeddings, self.encoder.run(tensors), strict=True))
        parts = [self._decode(embeddings, start) for start in range(0, len(self.texts.names), CHUNK)]
        scores = xp.concatenate([part[self._scores_at] for part in parts], axis=1)
        self._check(scores, len(tensors))
        if self._add_background:
            scores = xp.concatenate([1 - scores.max(axis=1, keepdims=True), scores], axis=1)
        objects = self._objects(parts) if self._objects_at else [None] * len(images)
        height, width = scores.shape[2:]
        return [
            ScoreMap(
                scores=scores[row],
                layout="CHW",
                activation="none",
                size=image.size,
                region=(0.0, 0.0, height * image.covers[0], width * image.covers[1]),
                backend=self.backend,
                objects=objects[row],
            )
            for row, image in enumerate(images)
        ]

    def _decode(self, embeddings: dict[str, Any], start: int) -> list[Any]:
        """Run the decoder for all images and the classes from ``start`` on."""
        with self._lock:
            self.decoder_calls += 1
        return self.decoder.run(
            {
                **embeddings,
                "texts": self.backend.constant(self.texts.features[start : start + CHUNK]),
                "present": self.backend.constant(self.texts.present[start : start + CHUNK]),
            }
        )

    def _objects(self, parts: Sequence[list[Any]]) -> list[Objects]:
        """Choose the best objects of all classes, as many per image as the decoder returns per chunk of classes."""
        xp, limit = self.backend.xp, parts[0][self._objects_at[0]].shape[1]
        firsts = np.arange(0, len(self.texts.names), CHUNK, dtype=np.float32) + self._add_background
        values, classes, masks = (xp.concatenate([part[index] for part in parts], axis=1) for index in self._objects_at)
        counts = [part[self._objects_at[0]].shape[1] for part in parts]
        classes = classes + xp.asarray(np.repeat(firsts, counts))
        best = xp.argsort(-values, axis=1)[:, :limit]
        return [
            Objects(scores=values[row][places], classes=classes[row][places], masks=masks[row][places])
            for row, places in enumerate(best)
        ]

    def _check(self, scores: Any, num: int) -> None:
        if scores.ndim != 4 or scores.shape[:2] != (num, len(self.texts.names)):
            raise SessionError(
                f"the decoder gave scores {tuple(scores.shape)} for {num} image(s) and {len(self.texts.names)} "
                "classes; export the model again"
            )
