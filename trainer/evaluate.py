"""Measure a student on labeled images, and label one image with it.

::

    student = load_run("run")
    images = LabeledImages.open("photos", run_taxonomy(student.run))
    scores = score_images(student.module, images, student.run, tile=320, overlap=107)
    scores.miou, scores.iou

A student labels as its exported bundle does, by :class:`maskmill.engine.predictors.semantic.SemanticPredictor`: the
whole image at
its own resolution, at the nearest size that the network takes, or in overlapping tiles of the size it was trained on.
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
    """How a student's labels agree with the truth, over a set of images; NaN where undefined."""

    confusion: NDArray[np.int64]
    """(K, K): pixels of true class (row) and label (column); pixels without a true class are left out."""
    classes: tuple[str, ...]
    """Names of the K classes."""
    num_images: int
    """Images measured."""

    @property
    def iou(self) -> NDArray[np.float64]:
        """(K,) in [0, 1]: intersection over union of each class; NaN where the truth has none of it."""
        hit, true = np.diagonal(self.confusion), self.confusion.sum(axis=1)
        union = true + self.confusion.sum(axis=0) - hit
        return np.where(true > 0, hit / np.maximum(union, 1), np.nan)

    @property
    def miou(self) -> float:
        """Mean of :attr:`iou` over the classes in the truth."""
        return float(np.nanmean(self.iou)) if self.confusion.any() else float("nan")

    @property
    def accuracy(self) -> float:
        """Share of the pixels whose label is the truth."""
        return float(np.trace(self.confusion) / self.confusion.sum()) if self.confusion.any() else float("nan")

    def to_json(self) -> dict[str, Any]:
        """Plain data; None where a figure is undefined."""
        shown = {"miou": self.miou, "accuracy": self.accuracy, **dict(zip(self.classes, self.iou, strict=True))}
        plain = {name: None if np.isnan(value) else float(value) for name, value in shown.items()}
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
    """Label images with a student and compare with the truth.

    Parameters
    ----------
    module, device
        The student in eval mode, and where it lies.
    images, run
        What is measured, in the classes of the run.
    tile, overlap
        Side of overlapping square tiles, in image pixels; whole images where None.
    share
        (rank, processes) of a process group: each process labels its part, and all get the scores of the whole.
    progress
        Called with the images done and the images in all.

    Raises :class:`TrainingError` where a student gives numbers that are not finite.
    """
    rank, world = share
    chosen = range(rank, len(images.uris), world)
    matrix = _confusion_matrix(len(run.classes), run.ignore, device, shared=world > 1)
    for done, index in enumerate(chosen, start=1):
        photo = images.read(index)
        label = label_image(module, photo.image, run, device=device, tile=tile, overlap=overlap)
        if label.max(initial=0) >= len(run.classes):
            raise TrainingError(
                f"the student's logits of {images.uris[index]} are not finite; train it with a lower lr"
            )
        matrix.update(*(_tensor(values, device) for values in (label, photo.label)))
        if progress is not None:
            progress(done, len(chosen))
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
    """The classes (H, W) uint8 or uint16 that a student in eval mode sees in an image (H, W, 3) uint8 RGB."""
    height, width = image.shape[:2] if tile is None else (min(tile, length) for length in image.shape[:2])
    predictor = SemanticPredictor(
        _bundle(run, height, width), StudentSession(module, device), tile=tile, overlap=overlap
    )
    found = predictor.predict(image)
    stats = kernels.class_stats(
        found.scores, found.size, layout=found.layout, activation=found.activation, region=found.region,
        outputs=("label",),
    )  # fmt: skip
    return np.asarray(stats.label)


def run_taxonomy(run: Run) -> Taxonomy:
    """The classes of a run, and what the labels of its labeled folder mean."""
    return Taxonomy(
        targets=run.classes, background=run.background, model=tuple(range(len(run.classes))), labels=run.labels
    )


class StudentSession:
    """A student behind the engine's session protocol."""

    artifact = ""
    max_batch = None

    def __init__(self, module: nn.Module, device: Any = "cpu") -> None:
        self._module = module
        self._device = import_torch().device(device)

    @property
    def kind(self) -> str:
        """Runtime, device and precision."""
        return f"torch/{self._device.type}/fp32"

    @property
    def threads(self) -> int:
        """Threads that one call uses on the host."""
        return import_torch().get_num_threads()

    def run(self, inputs: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """Images (N, 3, H, W) float32, normalized → logits (N, K, h, w)."""
        torch = import_torch()
        with torch.no_grad():
            return [self._module(torch.from_numpy(inputs).to(self._device)).float().cpu().numpy()]


def _bundle(run: Run, height: int, width: int) -> Bundle:
    """What the student exported with the nearest size that it takes will say of itself; there are no files yet."""
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
    # not synchronized where one process measures alone: it would wait for the others forever
    matrix = MulticlassConfusionMatrix(num_classes, ignore_index=ignore, validate_args=False, sync_on_compute=shared)
    return matrix.to(device)


def _tensor(values: NDArray[Any], device: Any) -> Any:
    return import_torch().from_numpy(values.astype(np.int64)).to(device)
