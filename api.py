"""The public Python functions: from a model to labels to a student, with paths and plain values.

::

    import maskmill

    model = maskmill.adopt("deeplab.onnx", "deeplab", classes="voc.txt", background="background", scale=1 / 255)
    calibration = maskmill.calibrate(model, images="labeled/images", labels="labeled/labels", alpha=0.05)
    maskmill.label(model, "photos", "labels", calibration=calibration, weight="pcos", progress=True)
    print(maskmill.evaluate("labels", labels="held-out/labels").miou_kept)
    maskmill.train("labels", output="run", labeled="labeled")
    label = maskmill.predict("run", "photos/0001.jpg")

Each function is a thin layer over the package that does the work; :mod:`maskmill.engine`, :mod:`maskmill.export` and
:mod:`maskmill.trainer` offer the parts. Paths may be strings or :class:`os.PathLike`; image sources may be folders,
lists, globs, WebDataset tars or URLs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from .errors import UsageError
from .kernels.processors import usable_processors

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from .engine.calibration.calibration import Calibration, Control, RuleChoice
    from .engine.calibration.sharing import Group, Unseen
    from .engine.calibration.thresholds import SmallSample, Unit
    from .engine.labeling.progress import Progress
    from .engine.labeling.selection import Weight
    from .engine.model.bundle import Activation, Bundle, Channels, Layout, Resize, ResizeFilter
    from .engine.model.taxonomy import Taxonomy
    from .engine.predictors.base import Predictor
    from .engine.report.evaluate import Quality
    from .engine.report.overlay import Overlay
    from .engine.runtimes.open import Provider
    from .engine.store.label_store import LabelStore
    from .trainer.recipes import RecipeName
    from .trainer.train import TrainingProgress

Location = str | os.PathLike[str]
"""A path, or a URL as a string."""

__all__ = [
    "Location",
    "adopt",
    "calibrate",
    "draft_taxonomy",
    "evaluate",
    "export",
    "label",
    "overlay",
    "predict",
    "train",
]


def adopt(
    model: Location,
    output: Location,
    *,
    classes: Location | Sequence[str],
    task: Literal["semantic", "cam"] = "semantic",
    background: str | None = None,
    layout: Layout = "NCHW",
    size: tuple[int, int] | None = None,
    activation: Activation = "softmax",
    output_name: str | None = None,
    resize: Resize = "stretch",
    resize_filter: ResizeFilter = "bilinear",
    antialias: bool = True,
    channels: Channels = "RGB",
    scale: float = 1 / 255,
    mean: float | tuple[float, float, float] = 0.0,
    std: float | tuple[float, float, float] = 1.0,
    pad_value: float = 0.0,
    license: str = "",
) -> Bundle:
    """Make a model bundle from an ONNX file: check the graph, run it, record hashes, classes and preprocessing.

    Parameters
    ----------
    model, output
        The ONNX file, and the folder of the bundle, which must not exist yet.
    classes, background
        Class names in the order of the class axis, or a file with one name per line; the name of the background class.
    task
        ``semantic`` for class scores per pixel, ``cam`` for a classifier with class activation maps.
    layout, size, activation, output_name
        Order of the input's axes; (height, width) in pixels if the graph leaves them open; the function that turns
        the output into scores; the score output's name if there are several.
    resize, resize_filter, antialias, channels, scale, mean, std, pad_value
        How an image (HWC uint8 RGB, [0, 255]) becomes the input: x = (pixel * scale - mean) / std.
    license
        License of the weights, for the record.

    Raises :class:`BundleError` for a graph that cannot be used, :class:`UsageError` for options that contradict it.
    """
    from .export.adopt.classifier import cam_from_onnx
    from .export.adopt.semantic import bundle_from_onnx

    names = _class_names(classes)
    three_mean = (mean, mean, mean) if isinstance(mean, int | float) else mean
    three_std = (std, std, std) if isinstance(std, int | float) else std
    if task == "cam":
        return cam_from_onnx(
            model, output, classes=names, background=background, layout=layout, size=size, activation=activation,
            license=license, resize=resize, resize_filter=resize_filter, antialias=antialias, channels=channels,
            scale=scale, mean=three_mean, std=three_std, pad_value=pad_value,
        )  # fmt: skip
    return bundle_from_onnx(
        model, output, classes=names, background=background, layout=layout, size=size, activation=activation,
        output_name=output_name, license=license, resize=resize, resize_filter=resize_filter, antialias=antialias,
        channels=channels, scale=scale, mean=three_mean, std=three_std, pad_value=pad_value,
    )  # fmt: skip


def export(
    model: Location,
    output: Location,
    *,
    family: str | None = None,
    revision: str | None = None,
    classes: Location | Sequence[str] | None = None,
    background: str | None = None,
    size: tuple[int, int] | None = None,
    gate_images: Location | None = None,
    num_images: int = 100,
    allow_code: bool = False,
    license: str = "",
) -> Bundle:
    """Export a model of the Hugging Face hub, a local checkpoint or a training run, and prove the export right.

    Parameters
    ----------
    model, output
        Hub id, folder of a checkpoint, or folder of a training run; the folder of the bundle, which must not exist.
    family, revision
        Family of models if ``config.json`` does not tell; branch, tag or commit at the hub.
    classes, background
        New class names, or the prompts of a model that takes text; the background class. Not for a run.
    size
        (height, width) of the input in pixels; the model's own if None.
    gate_images, num_images
        Source of real images to compare on, and how many; generated images if None.
    allow_code
        Import and call a function that a run names as its model, which can run any code.
    license
        License of the weights, if the model card does not say it.

    Raises :class:`ExportError`, :class:`GateError` if the graph does not give the model's masks, :class:`UsageError`.
    """
    from .export.gate.judge import GateImages
    from .export.pretrained.families import Choices, bundle_from_pretrained
    from .trainer.bundle import bundle_from_run, is_run

    images = None if gate_images is None else GateImages.open(os.fspath(gate_images), limit=num_images)
    if is_run(model):
        if family is not None or revision is not None or classes is not None or background is not None:
            raise UsageError("family, revision, classes and background do not apply to a training run; leave them out")
        return bundle_from_run(model, output, size=size, license=license, allow_code=allow_code, images=images)
    choices = Choices(
        classes=None if classes is None else tuple(_class_names(classes)), background=background, size=size
    )
    return bundle_from_pretrained(
        os.fspath(model), output, choices, family=family, revision=revision, license=license, images=images
    )


def draft_taxonomy(model: Location | Bundle, label_names: Location | Mapping[int, str] | None = None) -> str:
    """Draft a class mapping (TOML) from matching names; review every line, then save it.

    ``label_names`` are the names of a dataset's label values, or a file of them; None maps the model's own classes.
    """
    from .engine.model.taxonomy_draft import draft, read_label_names
    from .engine.predictors.prompted.activation_maps import scored_bundle

    names = label_names if label_names is None or isinstance(label_names, Mapping) else read_label_names(label_names)
    return draft(scored_bundle(_bundle(model)), names)[0]


def calibrate(
    model: Location | Bundle | Predictor,
    images: Location,
    labels: Location,
    *,
    alpha: str | float,
    taxonomy: Location | Taxonomy | None = None,
    group: Group | None = None,
    unit: Unit = "pixel",
    rule: RuleChoice | None = None,
    control: Control = "miscoverage",
    delta: str | float | None = None,
    ids: Sequence[str] | None = None,
    min_images: int | None = None,
    unseen: Unseen = "never",
    on_small_n: SmallSample = "refuse",
    provider: Provider = "cpu",
    tile: int | None = None,
    overlap: int = 0,
    workers: int | None = None,
    progress: bool = False,
) -> Calibration:
    """Compute conformal thresholds from labeled images, and measure how well they hold on held-out ones.

    Parameters
    ----------
    model
        A bundle, its folder, or a predictor.
    images, labels
        Source of the labeled images, and the folder of their label maps, under the same names.
    alpha
        Error rate to aim for, above 0 and below 1: with 0.05, the true class is ruled out on up to 5 % of the pixels.
    taxonomy
        Class mapping or its file; the model's own classes if None.
    group, unit, rule
        Classes that share a threshold (``class`` if None, or ``pooled`` for the unit ``image``); the exchangeable
        unit; how the prediction set decides the label (``agree`` if None).
    control, delta
        The error whose rate ``alpha`` bounds; with ``delta`` the false-label rate holds except with that probability.
    ids
        Names of the images to use; all if None.
    min_images, unseen, on_small_n
        Fewest images for a threshold of a class's own (ceil(1 / alpha) - 1 if None); whether classes that calibration
        never saw are emitted; treatment of an alpha that the number of images does not allow.
    provider, tile, overlap, workers
        Runtime; side and overlap of tiles in pixels; images in progress at the same time (one per core if None).
    progress
        Show a progress bar.

    Raises :class:`CalibrationError`, :class:`UsageError`, :class:`TaxonomyError`.
    """
    from .engine.calibration import calibrate as calibration_module
    from .engine.inputs.labels import open_labels
    from .engine.inputs.sources import open_source

    predictor, classes = _predictor(model, taxonomy, provider, tile, overlap)
    with _counter("calibrating", progress) as observer:
        return calibration_module.calibrate(
            predictor,
            open_source(images),
            open_labels(labels),
            classes,
            alpha=alpha,
            group=group,
            unit=unit,
            rule=rule,
            control=control,
            delta=delta,
            ids=None if ids is None else frozenset(ids),
            min_images=min_images,
            unseen=unseen,
            on_small_n=on_small_n,
            workers=workers or usable_processors(),
            progress=observer,
        )


def label(
    model: Location | Bundle | Predictor,
    images: Location,
    store: Location,
    *,
    calibration: Location | Calibration | None = None,
    threshold: float | None = None,
    taxonomy: Location | Taxonomy | None = None,
    weight: Weight = "none",
    weight_levels: int = 256,
    limit: int | None = None,
    retry_rejects: bool = False,
    provider: Provider = "cpu",
    tile: int | None = None,
    overlap: int = 0,
    workers: int | None = None,
    progress: bool = False,
) -> Progress:
    """Label every image of a source that the store does not hold yet; calling it again continues the run.

    Parameters
    ----------
    model, images, store
        A bundle, its folder or a predictor; the source; the folder of the label store.
    calibration, threshold
        Keep the pixels that a calibration supports, or those with at least this confidence; every pixel if both are
        None.
    taxonomy
        Class mapping or its file; the model's own classes if None.
    weight, weight_levels
        Weight of each kept pixel, and the number of distinct weights.
    limit, retry_rejects
        Stop after this many inputs; try inputs again that were rejected before.
    provider, tile, overlap, workers
        Runtime; side and overlap of tiles in pixels; images in progress at the same time (one per core if None).
    progress
        Show a progress bar.

    Returns the counts of this run. Raises :class:`StoreMismatch` if the store holds labels made with other options,
    :class:`StoreError`, :class:`CalibrationMismatch`, :class:`SessionError`, :class:`SourceError`.
    """
    from .engine.calibration.calibration import Calibration
    from .engine.inputs.sources import open_source
    from .engine.labeling import label_run
    from .engine.labeling.selection import Selection

    if calibration is not None and threshold is not None:
        raise UsageError("give calibration or threshold, not both")
    if calibration is not None:
        loaded = calibration if isinstance(calibration, Calibration) else Calibration.load(calibration)
        selection = Selection.conformal(loaded, weight=weight, weight_levels=weight_levels)
    elif threshold is not None:
        selection = Selection.threshold(threshold, weight=weight, weight_levels=weight_levels)
    else:
        selection = Selection.argmax(weight=weight, weight_levels=weight_levels)
    predictor, classes = _predictor(model, taxonomy, provider, tile, overlap)
    with _run_display(progress) as observer:
        return label_run.label(
            predictor,
            open_source(images),
            store,
            classes,
            selection,
            limit=limit,
            retry_rejects=retry_rejects,
            workers=workers,
            observer=observer,
        )


def evaluate(
    target: Location | LabelStore | Bundle,
    labels: Location,
    *,
    images: Location | None = None,
    ids: Sequence[str] | None = None,
    taxonomy: Location | None = None,
    calibration: Location | Calibration | None = None,
    tile: int | None = None,
    overlap: int = 0,
    provider: Provider = "cpu",
    precision: str | None = None,
    device: str | None = None,
    allow_code: bool = False,
    workers: int | None = None,
    progress: bool = False,
) -> Quality:
    """Measure a label store, a training run or a model against true labels; ``progress`` shows a progress bar.

    The other parameters and the errors are those of :func:`maskmill.trainer.measure.evaluate`.
    """
    from .trainer import measure

    with _counter("measuring", progress) as observer:
        return measure.evaluate(
            target,
            labels,
            images=images,
            ids=ids,
            taxonomy=taxonomy,
            calibration=calibration,
            tile=tile,
            overlap=overlap,
            provider=provider,
            precision=precision,
            device=device,
            allow_code=allow_code,
            workers=workers,
            progress=observer,
        )


def train(
    stores: Location | Sequence[Location] = (),
    *,
    output: Location,
    recipe: RecipeName = "weighted",
    labeled: Location | None = None,
    unlabeled: Location | None = None,
    validation: Location | None = None,
    ids: Sequence[str] | None = None,
    validation_ids: Sequence[str] | None = None,
    init: Location | None = None,
    settings: Mapping[str, object] | None = None,
    device: str | None = None,
    workers: int = 2,
    progress: bool = False,
) -> TrainingProgress:
    """Train a student on label stores and labeled images; calling it again continues the run.

    Parameters
    ----------
    stores, output, recipe
        Label store or stores; the run's folder; the training recipe.
    labeled, unlabeled, validation
        Folders with ``images/`` and ``labels/`` of true labels; a source of images without labels; a folder to
        measure on, whose best student is kept.
    ids, validation_ids
        Names of the images to use from ``labeled`` and ``validation``; all if None.
    init
        Run with the same network and classes whose student is the start (warm start).
    settings
        Recipe settings by name, such as ``{"crop": 256, "model": "tiny", "method.cover": 0.5}``.
    device, workers
        ``cpu``, ``cuda`` or ``cuda:N`` (a GPU if there is one, if None); processes that load images.
    progress
        Show a progress bar.

    Raises :class:`UsageError` for settings that do not fit, :class:`TrainingError`.
    """
    from .trainer.data.corpus import open_corpus
    from .trainer.recipes import RECIPES, with_settings
    from .trainer.train import train as train_run
    from .trainer.training_display import observing

    if recipe not in RECIPES:
        raise UsageError(f"recipe must be one of {', '.join(RECIPES)}, got {recipe!r}")
    chosen = with_settings(RECIPES[recipe](), [f"{name}={value}" for name, value in (settings or {}).items()])
    corpus = open_corpus(
        stores=[stores] if isinstance(stores, str | os.PathLike) else stores,
        labeled=labeled,
        ids=ids,
        unlabeled=unlabeled,
        validation=validation,
        validation_ids=validation_ids,
        run=output,
    )
    if not progress:
        return train_run(output, chosen, corpus, init=init, device=device, workers=workers)
    with observing(as_json=False) as observer:
        return train_run(output, chosen, corpus, init=init, device=device, workers=workers, observer=observer)


def predict(
    run: Location,
    image: Location | NDArray[np.uint8],
    *,
    tile: int | None = None,
    overlap: int = 0,
    device: str | None = None,
    allow_code: bool = False,
) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Label one image with the student of a run.

    ``image`` is a path or an array (H, W, 3) uint8 RGB; ``tile`` and ``overlap`` are in pixels. ``allow_code`` imports
    and calls a function that the run names as its model, which can run any code. Returns the class of each pixel,
    (H, W) uint8 up to 255 classes, else uint16.
    """
    from .trainer.evaluate import label_image
    from .trainer.processes import resolve_device
    from .trainer.students.models import load_run

    student = load_run(run, allow_code=allow_code)
    chosen = resolve_device(device)
    pixels = _image(image)
    return label_image(student.module.to(chosen), pixels, student.run, device=chosen, tile=tile, overlap=overlap)


def overlay(
    image: Location | NDArray[np.uint8],
    label: NDArray[np.uint8] | NDArray[np.uint16],
    classes: Sequence[str],
    *,
    background: int | None = None,
    opacity: float = 0.6,
) -> Overlay:
    """Draw labels over a photo, with a legend of the classes present; a notebook shows the result.

    ``image`` is a path or an array (H, W, 3) uint8 RGB, ``label`` (H, W) class indices; ignored pixels are hatched in
    white, the background class shows the photo. ``opacity`` is in [0, 1].
    """
    from .engine.report.overlay import Overlay
    from .engine.report.overlay import overlay as draw

    return Overlay(draw(_image(image), label, classes, background=background, opacity=opacity))


def _bundle(model: Location | Bundle) -> Bundle:
    from .engine.model.bundle import Bundle

    return model if isinstance(model, Bundle) else Bundle.load(model)


def _class_names(classes: Location | Sequence[str]) -> list[str]:
    """Class names in order, from a sequence or a file."""
    from .engine.model.files import read_class_names

    if not isinstance(classes, str | os.PathLike):
        return list(classes)
    names = read_class_names(classes)
    if sorted(names) != list(range(len(names))):
        raise UsageError(f"{classes} must name every class from 0 to {max(names)}, with none left out")
    return [names[index] for index in range(len(names))]


def _predictor(
    model: Location | Bundle | Predictor,
    taxonomy: Location | Taxonomy | None,
    provider: Provider,
    tile: int | None,
    overlap: int,
    precision: str | None = None,
) -> tuple[Predictor, Taxonomy]:
    """Open a semantic bundle, or accept a predictor, with its class mapping."""
    from .engine.model.bundle import Bundle
    from .engine.model.taxonomy import Taxonomy
    from .engine.predictors.open import ModelOptions, load_taxonomy, open_predictor

    if isinstance(model, str | os.PathLike | Bundle):
        folder = model.path if isinstance(model, Bundle) else Path(model)
        options = ModelOptions(provider=provider, precision=precision, tile=tile, overlap=overlap)
        predictor, classes = open_predictor(
            folder, None if isinstance(taxonomy, Taxonomy | None) else Path(taxonomy), options=options
        )
        return predictor, taxonomy if isinstance(taxonomy, Taxonomy) else classes
    if isinstance(taxonomy, Taxonomy):
        return model, taxonomy
    return model, load_taxonomy(model.bundle.path, None if taxonomy is None else Path(taxonomy))


def _image(image: Location | NDArray[np.uint8]) -> NDArray[np.uint8]:
    from .engine.inputs.images import decode_image

    if not isinstance(image, str | os.PathLike):
        return image
    try:
        return decode_image(Path(image).read_bytes())
    except OSError as error:
        raise UsageError(f"cannot read {image}: {error}") from error


@contextmanager
def _counter(name: str, shown: bool) -> Iterator[Callable[[int, int], None] | None]:
    if not shown:
        yield None
        return
    from .engine.report.display import counter

    with counter(name, quiet=False) as observer:
        yield observer


@contextmanager
def _run_display(shown: bool) -> Iterator[Callable[[Progress], None] | None]:
    if not shown:
        yield None
        return
    from .engine.report.display import run_display

    with run_display(as_json=False) as observer:
        yield observer
