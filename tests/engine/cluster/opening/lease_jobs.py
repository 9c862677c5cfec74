"""Jobs with a model that is quick to open, importable in every process."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from maskmill.engine.cluster.job import Job
from maskmill.engine.inputs.labeled_source import LabeledSource, pair_images
from maskmill.engine.inputs.labels import LabelFolder
from maskmill.engine.inputs.sources import Source, open_source
from maskmill.engine.labeling.selection import Selection
from maskmill.engine.model.bundle import Bundle
from maskmill.engine.model.taxonomy import Taxonomy
from maskmill.engine.predictors.base import ScoreMap
from maskmill.engine.predictors.semantic import SemanticPredictor
from maskmill.engine.runtimes.open import open_session
from maskmill.errors import SessionError


class SlowPredictor(SemanticPredictor):
    """Waits before each image; an image called ``deadly.png`` ends the process, as a fault in a decoder would."""

    pause = 0.0

    def prepare(self, image: Any, uri: str = "") -> Any:
        if uri.endswith("deadly.png"):
            os._exit(9)
        return super().prepare(image, uri)

    def run(self, prepared: Sequence[Any]) -> list[ScoreMap]:
        if self.pause:  # even no sleep at all gives the processor away
            time.sleep(self.pause)
        return super().run(prepared)


def open_predictor(bundle: Path, pause: float, seen: Path | None) -> tuple[SemanticPredictor, Taxonomy]:
    """Open the model; ``seen`` notes the device that the process was given, and waits for those that are expected."""
    device = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    if seen is not None:
        (seen / device).touch()
        deadline = time.monotonic() + 300
        while any(not (seen / name.name).exists() for name in seen.glob("expected/*")) and time.monotonic() < deadline:
            time.sleep(0.02)
    if device == "7":
        raise SessionError("no such device")
    model = Bundle.load(bundle)
    predictor = SlowPredictor(model, open_session(model))
    predictor.pause = pause
    return predictor, Taxonomy.of_model(model)


def opening_of(bundle: Bundle) -> Any:
    """Function that opens the model of a bundle in any process."""
    return partial(open_predictor, bundle.path, 0.0, None)


def pair_labels(photos: Path, classes: Taxonomy) -> tuple[Source, LabeledSource, Taxonomy]:
    """Pair the images of a folder with its label maps."""
    source = open_source(photos / "images")
    return source, pair_images(source, LabelFolder(photos / "labels"), classes), classes


def color_job(
    bundle: Bundle, photos: Path, store: Path, *, pause: float = 0.0, seen: Path | None = None, **options: Any
) -> Job:
    """Label a folder into a store by the color of its pixels."""
    return Job(
        opening=partial(open_predictor, bundle.path, pause, seen),
        selection=Selection.argmax(),
        source=open_source(photos),
        store=str(store),
        **options,
    )
