"""Scores and labels of a student for an image, identical to those of its exported bundle.

A student labels through :class:`maskmill.engine.predictors.semantic.SemanticPredictor`: the whole image at its own
resolution (the nearest size that the network accepts), or overlapping tiles::

    student = load_run("run")
    label = label_image(student.module, image, student.run, tile=320, overlap=107)
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ... import kernels
from ...engine.inputs.rasters.bands import pixels_with_data
from ...engine.model.bundle import Bundle, OutputSpec
from ...engine.model.taxonomy import Taxonomy
from ...engine.predictors.base import ScoreMap
from ...engine.predictors.semantic import SemanticPredictor
from ..run import Run, import_torch

if TYPE_CHECKING:
    from torch import nn

    from ...kernels.types import ClassStats


def label_image(
    module: nn.Module,
    image: NDArray[Any],
    run: Run,
    *,
    device: Any = "cpu",
    tile: int | None = None,
    overlap: int = 0,
) -> NDArray[Any]:
    """Predict the classes (H, W) uint8 or uint16 of an image (H, W, C) with a student in eval mode.

    The image is uint8 RGB, or bands in their sample type; a pixel without data in one of them has the ignore index.
    """
    scores = predict_scores(module, image, run, device=device, tile=tile, overlap=overlap)
    label = np.asarray(decode_scores(scores, ("label",)).label)
    if run.input.bands is not None and (with_data := pixels_with_data(image)) is not None:
        label[~with_data] = run.ignore
    return label


def run_taxonomy(run: Run) -> Taxonomy:
    """Return the classes of a run, with the classes of the label indices of its labeled folder."""
    return Taxonomy(
        targets=run.classes, background=run.background, model=tuple(range(len(run.classes))), labels=run.labels
    )


class StudentSession:
    """Adapter from a student to the session protocol of the engine."""

    artifact = ""
    max_batch = None

    def __init__(self, module: nn.Module, device: Any = "cpu") -> None:
        self._module = module
        self._device = import_torch().device(device)

    @property
    def kind(self) -> str:
        """Return runtime, device and precision."""
        return f"torch/{self._device.type}/fp32"

    @property
    def threads(self) -> int:
        """Return the number of host threads of a call."""
        return import_torch().get_num_threads()

    def run(self, inputs: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """Compute logits (N, K, h, w) of images (N, 3, H, W) float32, normalized."""
        torch = import_torch()
        with torch.no_grad():
            return [self._module(torch.from_numpy(inputs).to(self._device)).float().cpu().numpy()]


def _bundle(run: Run, height: int, width: int) -> Bundle:
    """Describe the student as a bundle without files, with the nearest input size that the network accepts."""
    step = run.input.multiple
    height, width = (max(1, round(length / step)) * step for length in (height, width))
    return Bundle(
        path=Path("student"), task="semantic", files=(), input=replace(run.input, height=height, width=width),
        outputs=(OutputSpec(name="scores"),), classes=run.classes, background=run.background,
    )  # fmt: skip


def predict_scores(
    module: nn.Module,
    image: NDArray[Any],
    run: Run,
    *,
    device: Any = "cpu",
    tile: int | None = None,
    overlap: int = 0,
) -> ScoreMap:
    """Compute the scores of an image (H, W, C) with a student in eval mode: the logits of its network."""
    height, width = image.shape[:2] if tile is None else (min(tile, length) for length in image.shape[:2])
    session = StudentSession(module, device)
    return SemanticPredictor(_bundle(run, height, width), session, tile=tile, overlap=overlap).predict(image)


def decode_scores(scores: ScoreMap, outputs: tuple[str, ...]) -> ClassStats[Any]:
    """Compute statistics of the scores of a student for each pixel of the image."""
    return kernels.class_stats(
        scores.scores, scores.size, layout=scores.layout, activation=scores.activation, region=scores.region,
        outputs=outputs,
    )  # fmt: skip
