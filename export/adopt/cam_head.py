"""Fit a classification head on frozen features: from image-level labels to class activation maps in seconds.

::

    bundle, report = fit_cam_head(bundle, open_source("photos"), ImageLabels.load("labels.csv"), "my-classes")

The bundle's graph returns the feature map that its own head reads. A logistic regression on their mean, with one
output per class and any number of classes per image, becomes the new head; the graph up to the features is not changed.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...checks import check_number
from ...engine.inputs.image_labels import ImageLabels
from ...engine.inputs.images import decode_image, preprocess
from ...engine.inputs.sources import Source
from ...engine.model.bundle import Bundle, OutputSpec
from ...engine.runtimes.base import Session
from ...engine.runtimes.onnx_runtime import OnnxSession
from ...errors import MissingPackageError, UsageError
from ...kernels.processors import usable_processors
from ..staging import model_file, staged
from .head import Head, with_head

FOLDS = 5
"""Number of folds for the held-out precision."""
REGULARIZATION = 1e-2
"""Weight of half the squared norm of the head; its features are scaled to a mean standard deviation of 1."""

WORTH_THREADS = 1 << 28
"""Multiplications per evaluation of the loss above which the fit uses all processors.

A smaller evaluation is faster than waking threads on busy processors, whose pool would spin instead of compute.
"""


@dataclass(frozen=True, kw_only=True)
class HeadReport:
    """Data that a head was fitted to, and its precision on held-out images."""

    num_images: int
    """Number of images that the head was fitted on."""
    skipped: int
    """Number of images of the source that the labels do not list."""
    counts: dict[str, int]
    """Number of images that show each class."""
    precision: dict[str, float | None]
    """Average precision of each class on held-out images; None if a fold lacks images with or without the class."""

    @property
    def mean_precision(self) -> float:
        """Return the mean of :attr:`precision` over the classes that have one."""
        known = [value for value in self.precision.values() if value is not None]
        return float(np.mean(known)) if known else float("nan")


def fit_cam_head(
    bundle: Bundle,
    source: Source,
    labels: ImageLabels,
    output: str | os.PathLike[str],
    *,
    regularization: float = REGULARIZATION,
    session: Session | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[Bundle, HeadReport]:
    """Fit a head for the classes of ``labels`` and write the classifier with it as a new ``cam`` bundle.

    Parameters
    ----------
    bundle
        A cam bundle whose graph gives ``features``.
    source, labels
        Images and the classes that they show. Images that ``labels`` does not list are left out.
    output
        Folder of the new bundle, which must not exist yet.
    regularization
        See :data:`REGULARIZATION`.
    session
        Session that runs the bundle; ONNX Runtime on the processor if None.
    progress
        Called with the number of images done.

    Raises :class:`UsageError` if nothing can be fitted, :class:`ImageError` for an image that cannot be decoded.
    """
    kinds = [out.kind for out in bundle.outputs]
    if bundle.task != "cam" or "features" not in kinds:
        raise UsageError(f"{bundle.location} gives {', '.join(kinds)}; fitting a head needs a cam bundle with features")
    check_number("regularization", regularization, above=0)
    if Path(output).exists():
        raise UsageError(f"{output} exists already; remove it or choose another name for the bundle")
    _require_torch()
    classes = sorted(labels.names)
    runner = session or OnnxSession(bundle)
    rows, flags, num_skipped = [], [], 0
    for item in source:
        names = labels.find(item.uri)
        if names is None:
            num_skipped += 1
            continue
        rows.append(_mean_features(bundle, runner, decode_image(source.read(item))))
        flags.append([name in names for name in classes])
        progress(len(rows))
    if not rows or not classes:
        raise UsageError(f"{labels.origin} names no class of an image of {source.spec}; names must match")
    features, truth = np.stack(rows), np.array(flags)
    weight, bias = fit_logistic(features, truth, regularization)
    report = HeadReport(
        num_images=len(rows),
        skipped=num_skipped,
        counts=dict(zip(classes, truth.sum(axis=0).tolist(), strict=True)),
        precision=dict(zip(classes, held_out_precision(features, truth, regularization), strict=True)),
    )
    return head_bundle(bundle, Path(output), classes, weight, bias), report


def fit_logistic(
    features: NDArray[Any], truth: NDArray[np.bool_], regularization: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Fit a logistic regression on features (N, D) for each column of ``truth`` (N, C): weights (C, D), biases (C,)."""
    import torch
    from torch.nn.functional import binary_cross_entropy_with_logits

    scale = max(float(features.std(axis=0).mean()), 1e-12)
    inputs = torch.from_numpy(np.asarray(features, np.float64) / scale)
    targets = torch.from_numpy(truth.astype(np.float64))
    weight = torch.zeros(truth.shape[1], inputs.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(truth.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=300, tolerance_grad=1e-7, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        logits = inputs @ weight.T + bias
        value = binary_cross_entropy_with_logits(logits, targets) * truth.shape[1]
        value = value + regularization / 2 * weight.square().sum()
        value.backward()
        return value

    with _torch_threads(1 if inputs.numel() * truth.shape[1] < WORTH_THREADS else usable_processors()):
        optimizer.step(loss)
    return weight.detach().numpy() / scale, bias.detach().numpy()


@contextmanager
def _torch_threads(number: int) -> Iterator[None]:
    """Limit torch to ``number`` threads per operation inside the block."""
    import torch

    old_count = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(old_count)


def held_out_precision(features: NDArray[Any], truth: NDArray[np.bool_], regularization: float) -> list[float | None]:
    """Return the average precision of each class, with each image scored by a head fitted on the other folds."""
    num = len(features)
    if num < 2 * FOLDS:
        return [None] * truth.shape[1]
    fold_of = np.random.default_rng(0).permutation(num) % FOLDS
    scores = np.empty(truth.shape)
    for fold in range(FOLDS):
        held_out = fold_of == fold
        weight, bias = fit_logistic(features[~held_out], truth[~held_out], regularization)
        scores[held_out] = features[held_out] @ weight.T + bias
    return list(_average_precisions(scores, truth))


def _average_precisions(scores: NDArray[np.float64], truth: NDArray[np.bool_]) -> Iterator[float | None]:
    for values, positive in zip(scores.T, truth.T, strict=True):
        hits = positive[np.argsort(-values, kind="stable")]
        precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
        yield float(precision[hits].mean()) if hits.any() else None


def _mean_features(bundle: Bundle, session: Session, image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Average the features (D,) of an image and its mirror image, over the part of the input that they cover."""
    number = [output.kind for output in bundle.outputs].index("features")
    means = []
    for view in (image, np.ascontiguousarray(image[:, ::-1])):
        tensor, covers = preprocess(view, bundle.input)
        batch = np.repeat(tensor[None], session.max_batch or 1, axis=0)
        features = np.asarray(session.run(batch)[number])[0]
        rows, columns = (max(1, round(cells * share)) for cells, share in zip(features.shape[1:], covers, strict=True))
        means.append(features[:, :rows, :columns].mean(axis=(1, 2), dtype=np.float64))
    return np.mean(means, axis=0).astype(np.float32)


def head_bundle(
    bundle: Bundle, folder: Path, classes: Sequence[str], weight: NDArray[Any], bias: NDArray[Any]
) -> Bundle:
    """Write a bundle in ``folder`` with another head, (C, D) and (C,), on the features of a cam bundle."""
    import onnx

    graph = onnx.load_model(str(bundle.model_path()))
    features = next(output.name for output in bundle.outputs if output.kind == "features")
    head = Head(features=features, weight=weight.astype(np.float32), bias=bias.astype(np.float32))
    with staged(folder) as staging:
        model = with_head(graph, bundle.input.name, head)
        onnx.save_model(model, str(staging / "model.onnx"))
        file = model_file(staging / "model.onnx")
        bundle_with_head = Bundle(
            path=staging,
            task="cam",
            files=(file,),
            input=bundle.input,
            outputs=(
                OutputSpec(name="cam", kind="cam", activation="none"),
                OutputSpec(name="logits", kind="logits", activation="sigmoid"),
                OutputSpec(name="features", kind="features", activation="none"),
            ),
            classes=tuple(classes),
            source=dataclasses.replace(
                bundle.source, id=f"{bundle.source.id} with a fitted head".strip(), weights_sha256=file.sha256
            ),
        )
        OnnxSession(bundle_with_head)
        bundle_with_head.save()
    return Bundle.load(folder)


def _require_torch() -> None:
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise MissingPackageError("torch", "export", "fitting a head") from error
