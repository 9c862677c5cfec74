"""Measure a student on labeled images, and label an image with it.

::

    student = load_run("run")
    images = LabeledImages.open("photos", run_taxonomy(student.run))
    scores = score_images(student.module, images, student.run, tile=320, overlap=107)
    scores.miou, scores.iou

A student labels like its exported bundle, through :class:`maskmill.engine.predictors.semantic.SemanticPredictor`: the
whole image at its own resolution (the nearest size that the network accepts), or overlapping tiles.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .. import kernels
from ..engine.model.bundle import Bundle, OutputSpec
from ..engine.model.taxonomy import Taxonomy
from ..engine.predictors.semantic import SemanticPredictor
from ..errors import MissingPackageError, TrainingError
from .data.datasets import LabeledImages
from .run import Run, import_torch

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Agreement of labels with the truth over a set of images; undefined figures are NaN."""

    confusion: NDArray[np.int64]
    """(K, K) int64: number of pixels by true class (row) and label (column), without pixels of the ignore index."""
    classes: tuple[str, ...]
    """Names of the K classes."""
    num_images: int
    """Number of images."""

    @property
    def iou(self) -> NDArray[np.float64]:
        """Return (K,) in [0, 1], the intersection over union of each class; NaN for a class without a true pixel."""
        hit, true = np.diagonal(self.confusion), self.confusion.sum(axis=1)
        union = true + self.confusion.sum(axis=0) - hit
        return np.where(true > 0, hit / np.maximum(union, 1), np.nan)

    @property
    def miou(self) -> float:
        """Return the mean of :attr:`iou` over the classes with true pixels."""
        return float(np.nanmean(self.iou)) if self.confusion.any() else float("nan")

    @property
    def accuracy(self) -> float:
        """Return the share of pixels whose label is the true class."""
        return float(np.trace(self.confusion) / self.confusion.sum()) if self.confusion.any() else float("nan")

    def to_json(self) -> dict[str, Any]:
        """Return plain data, with None for undefined figures."""
        figures = {"miou": self.miou, "accuracy": self.accuracy, **dict(zip(self.classes, self.iou, strict=True))}
        plain = {name: None if np.isnan(value) else float(value) for name, value in figures.items()}
        return {
            "num_images": self.num_images,
            "miou": plain.pop("miou"),
            "accuracy": plain.pop("accuracy"),
            "iou": plain,
        }


def score_images(
    module: nn.Module,
    images: LabeledImages,
    run: Run,
    *,
    device: Any = "cpu",
    tile: int | None = None,
    overlap: int = 0,
    share: tuple[int, int] = (0, 1),
    progress: Callable[[int, int], None] | None = None,
) -> Scores:
    """Label images with a student and compare the labels with the truth.

    Parameters
    ----------
    module, device
        The student in eval mode, and its device.
    images, run
        The labeled images, in the classes of the run.
    tile, overlap
        Side and overlap of square tiles, in image pixels; None labels whole images.
    share
        (rank, processes) of a process group: each process labels its part, and all get the scores over all images.
    progress
        Called with the number of finished images and the total.

    Raises :class:`TrainingError` if the logits of the student are not finite.
    """
    rank, world = share
    indices = range(rank, len(images.uris), world)
    matrix = _confusion_matrix(len(run.classes), run.ignore, device, shared=world > 1)
    for done, index in enumerate(indices, start=1):
        sample = images.read(index)
        label = label_image(module, sample.image, run, device=device, tile=tile, overlap=overlap)
        if label.max(initial=0) >= len(run.classes):
            raise TrainingError(
                f"the student's logits of {images.uris[index]} are not finite; train it with a lower lr"
            )
        matrix.update(*(_tensor(values, device) for values in (label, sample.label)))
        if progress is not None:
            progress(done, len(indices))
    confusion = matrix.compute().cpu().numpy().astype(np.int64)
    return Scores(confusion=confusion, classes=run.classes, num_images=len(images.uris))


def label_image(
    module: nn.Module,
    image: NDArray[np.uint8],
    run: Run,
    *,
    device: Any = "cpu",
    tile: int | None = None,
    overlap: int = 0,
) -> NDArray[Any]:
    """Label an image (H, W, 3) uint8 RGB with a student in eval mode; returns classes (H, W) uint8 or uint16."""
    height, width = image.shape[:2] if tile is None else (min(tile, length) for length in image.shape[:2])
    predictor = SemanticPredictor(
        _bundle(run, height, width), StudentSession(module, device), tile=tile, overlap=overlap
    )
    scores = predictor.predict(image)
    stats = kernels.class_stats(
        scores.scores, scores.size, layout=scores.layout, activation=scores.activation, region=scores.region,
        outputs=("label",),
    )  # fmt: skip
    return np.asarray(stats.label)


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
        """Images (N, 3, H, W) float32, normalized → logits (N, K, h, w)."""
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


def _confusion_matrix(num_classes: int, ignore: int, device: Any, *, shared: bool) -> Any:
    try:
        from torchmetrics.classification import MulticlassConfusionMatrix
    except ImportError as error:
        raise MissingPackageError("torchmetrics", "train", "measuring a student") from error
    # synchronizing without the other processes would wait for them forever
    matrix = MulticlassConfusionMatrix(num_classes, ignore_index=ignore, validate_args=False, sync_on_compute=shared)
    return matrix.to(device)


def _tensor(values: NDArray[Any], device: Any) -> Any:
    return import_torch().from_numpy(values.astype(np.int64)).to(device)
