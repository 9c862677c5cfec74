"""Rescale a model's scores on labeled images: one scale for all logits, and an offset per class.

If a teacher predicts some classes too often or too rarely, a few labeled images suffice to correct it. The logits z
of its classes become s z + b, with s and b that minimize the cross-entropy of the true classes (vector scaling with one
scale, Guo et al. 2017), before thresholds are computed::

    maskmill rescale deeplab --images labeled/images --labels labeled/labels -o rescaled

The change is part of the new bundle's graph, or of the record of a bundle of score files.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..engine.calibration.scores.observe import Observations
from ..engine.calibration.scores.pixel_samples import SampledScores
from ..engine.inputs.labeled_source import pair_images
from ..engine.inputs.labels import LabelSource
from ..engine.inputs.sources import Source
from ..engine.inputs.summary import SourceSummary
from ..engine.model.bundle import OBJECT_KINDS, Bundle
from ..engine.model.taxonomy import Taxonomy
from ..engine.predictors.base import Predictor
from ..engine.predictors.score_files import SMALLEST, ScoreFiles
from ..engine.runtimes.onnx_runtime import OnnxSession
from ..errors import CalibrationError, UsageError
from .adopt.adoption import Adoption
from .adopt.rewrite import add_rescaling
from .staging import staged

SPREAD = 1e-3
"""Weight of the squared distances between the foreground's offsets and their mean."""
FOLDS = 5


@dataclass(frozen=True, kw_only=True)
class Rescaling:
    """Scale and offsets of a model's logits, and their effect on held-out images."""

    scale: float
    """s of s z + b; 1 if several classes of the model are one target class."""
    offsets: tuple[float, ...]
    """b of each class of the model."""
    num_images: int
    """Images that they were fitted to."""
    miou_before: float
    """mIoU of the best class of every pixel, from a sample of the pixels, before rescaling."""
    miou: float
    """The same after rescaling: each fifth of the images is rescaled by a fit to the others."""
    source: SourceSummary | None = None
    """Files that were used and skipped."""


def rescale_bundle(
    predictor: Predictor,
    source: Source,
    labels: LabelSource,
    taxonomy: Taxonomy,
    output: str | os.PathLike[str],
    *,
    ids: frozenset[str] | None = None,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Bundle, Rescaling]:
    """Fit scale and offsets to labeled images, and write a bundle with them; its folder must not exist.

    Classes of the model that are one target class share an offset, and so do dropped ones. Raises
    :class:`UsageError` for a model without semantic class scores of a softmax, :class:`CalibrationError` if no image
    shows a class.
    """
    bundle, folder = predictor.bundle, Path(output)
    scores = bundle.outputs[0] if bundle.outputs else None
    if bundle.task != "semantic" or scores is None or scores.activation == "sigmoid":
        raise UsageError("rescale needs a semantic model whose scores are a softmax of logits, or probabilities")
    if any(spec.kind in OBJECT_KINDS for spec in bundle.outputs):
        raise UsageError("rescale changes class scores, and the objects of this bundle would not follow them")
    if folder.exists():
        raise UsageError(f"{folder} exists already; remove it or choose another name for the bundle")
    labeled_source = pair_images(source, labels, taxonomy, ids=ids)
    with (
        tempfile.TemporaryDirectory(prefix="maskmill-rescale-") as work,
        Observations(Path(work), taxonomy) as observations,
    ):
        observations.collect(predictor, source, labeled_source, workers=workers, progress=progress)
        rescaling = _fit(observations.samples.read(range(len(observations.samples))), taxonomy, scores.activation)
        rescaling = dataclasses.replace(rescaling, source=labeled_source.summary)
    if isinstance(predictor, ScoreFiles):
        return predictor.rescaled(folder, scale=rescaling.scale, offsets=rescaling.offsets), rescaling
    return _write(bundle, folder, rescaling), rescaling


def _fit(samples: SampledScores, taxonomy: Taxonomy, activation: str) -> Rescaling:
    """Fit to sampled pixels, and measure on each fifth of the images with a fit to the others."""
    num = taxonomy.num_targets
    groups = np.asarray(taxonomy.model)
    groups = np.where(groups < 0, num, groups)
    has_channels = np.isin(np.arange(taxonomy.num_scored), groups)
    has_scores = has_channels[samples.classes]
    if not has_scores.any():
        raise CalibrationError("no labeled pixel shows a class of the model; check --taxonomy and the labels")
    smallest = float(SMALLEST) if activation == "none" else np.finfo(np.float64).tiny
    logits = np.log(np.maximum(samples.rank[has_channels].T[has_scores], smallest))
    column = np.cumsum(has_channels) - 1
    truth, weights, images = column[samples.classes[has_scores]], samples.weights[has_scores], samples.image[has_scores]
    background = taxonomy.background
    background_column = None if background is None or not has_channels[background] else int(column[background])
    is_bijective = len(np.unique(groups)) == len(groups)

    def fit(subset: NDArray[np.bool_]) -> tuple[float, NDArray[np.float64]]:
        return fit_rescaling(
            logits[subset], truth[subset], weights[subset], background=background_column, scaled=is_bijective
        )

    new_labels = logits.argmax(axis=1)
    old_labels = new_labels.copy()
    if samples.num_images >= FOLDS:
        for fold in range(FOLDS):
            left_out = images % FOLDS == fold
            if left_out.any() and not left_out.all():
                scale, offsets = fit(~left_out)
                new_labels[left_out] = (scale * logits[left_out] + offsets).argmax(axis=1)
    scale, offsets = fit(np.ones(len(truth), bool))
    return Rescaling(
        scale=scale,
        offsets=tuple(offsets[column[groups]].tolist()),
        num_images=samples.num_images,
        miou_before=_mean_iou(old_labels, truth, weights),
        miou=_mean_iou(new_labels, truth, weights),
    )


def _mean_iou(label: NDArray[np.int64], truth: NDArray[np.int64], weights: NDArray[np.float64]) -> float:
    """Compute the mean IoU over the classes in the truth, of weighted pixels."""
    num = int(max(label.max(), truth.max())) + 1
    hit = np.bincount(truth[label == truth], weights[label == truth], minlength=num)
    true, labeled = (np.bincount(values, weights, minlength=num) for values in (truth, label))
    union = true + labeled - hit
    return float((hit[true > 0] / union[true > 0]).mean())


def fit_rescaling(
    logits: NDArray[np.floating],
    truth: NDArray[np.integer],
    weights: NDArray[np.floating] | None = None,
    *,
    background: int | None = 0,
    scaled: bool = True,
) -> tuple[float, NDArray[np.float64]]:
    """Return s and b (K,) that minimize the mean of -log softmax(s z + b)[y], a convex problem, by Newton's method.

    ``logits`` z (n, K), ``truth`` y (n,) in [0, K), ``weights`` (n,) of the pixels; with ``scaled`` False s is 1.
    :data:`SPREAD` times the squared distances between the foreground's offsets and their mean is added, so that a class
    without pixels is lowered, but not without bound. Offsets have the mean 0.
    """
    num, classes = logits.shape
    values, rows = np.asarray(logits, np.float64), np.arange(num)
    shares = np.ones(num) if weights is None else np.asarray(weights, np.float64)
    shares = shares / shares.sum()
    foreground = np.array([k for k in range(classes) if k != background])
    penalty = np.zeros((classes + 1, classes + 1))
    penalty[np.ix_(foreground + 1, foreground + 1)] = 2 * SPREAD * (np.eye(len(foreground)) - 1 / len(foreground))
    counts = np.bincount(truth, shares, minlength=classes)
    true_values = values[rows, truth]

    def evaluate(parameters: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        scores = parameters[0] * values + parameters[1:]
        scores -= scores.max(axis=1, keepdims=True)
        log_sum = np.log(np.exp(scores).sum(axis=1))
        loss = shares @ (log_sum - scores[rows, truth]) + parameters @ penalty @ parameters / 2
        return float(loss), np.exp(scores - log_sum[:, None])

    parameters = np.zeros(classes + 1)
    parameters[0] = 1.0
    loss, chances = evaluate(parameters)
    for _ in range(100):
        mean_values = (chances * values).sum(axis=1)
        weighted = chances * shares[:, None]
        gradient = (
            np.concatenate([[shares @ (mean_values - true_values)], weighted.sum(axis=0) - counts])
            + penalty @ parameters
        )
        mixed = (weighted * (values - mean_values[:, None])).sum(axis=0)
        curvature = np.diag(np.concatenate([[0.0], weighted.sum(axis=0)]))
        curvature[0, 0] = (weighted * values**2).sum() - shares @ mean_values**2
        curvature[0, 1:] = curvature[1:, 0] = mixed
        curvature[1:, 1:] -= weighted.T @ chances
        curvature += penalty + 1e-9 * np.eye(classes + 1)
        if not scaled:
            gradient[0], curvature[0], curvature[:, 0] = 0.0, 0.0, 0.0
            curvature[0, 0] = 1.0
        step = np.linalg.solve(curvature, gradient)
        length = 1.0
        while length > 1e-6:
            new_loss, new_chances = evaluate(parameters - length * step)
            if new_loss <= loss:
                break
            length /= 2
        else:
            break
        parameters, chances, decrease, loss = parameters - length * step, new_chances, loss - new_loss, new_loss
        if decrease < 1e-10 or loss < 1e-6:
            break
    return float(parameters[0]), parameters[1:] - parameters[1:].mean()


def _write(bundle: Bundle, folder: Path, rescaling: Rescaling) -> Bundle:
    """Write a bundle whose graph rescales its scores."""
    adoption, spec = Adoption.open(bundle.model_path()), bundle.outputs[0]
    name, sentence = add_rescaling(
        adoption.model, spec.name, spec.class_axis, rescaling.scale, rescaling.offsets,
        smallest=float(SMALLEST) if spec.activation == "none" else None,
    )  # fmt: skip
    adoption.note(sentence)
    with staged(folder) as staging:
        files = adoption.entries(adoption.place(staging))
        outputs: Sequence[Any] = (dataclasses.replace(spec, name=name, activation="softmax"), *bundle.outputs[1:])
        origin = dataclasses.replace(
            bundle.source,
            id=f"{bundle.source.id}, rescaled".removeprefix(", "),
            weights_sha256=files[0].sha256,
            changes=(*bundle.source.changes, sentence),
        )
        rescaled = dataclasses.replace(
            bundle, path=staging, files=files, outputs=tuple(outputs), source=origin, verdicts=(), engines=()
        )
        OnnxSession(rescaled)
        rescaled.save()
    return Bundle.load(folder)
