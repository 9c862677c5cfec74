"""Public functions that train, run, export and evaluate students; `maskmill` exports them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..checks import check_choice, refuse_without
from ..engine.arguments import Location, class_names_of, counter_if, image_of
from ..errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..engine.calibration.calibration import Calibration
    from ..engine.inputs.labels import LabelSource
    from ..engine.model.bundle import Bundle
    from ..engine.report.evaluate import Quality
    from ..engine.runtimes.open import Provider
    from ..engine.store.label_store import LabelStore
    from .recipes import RecipeName
    from .train import TrainingProgress


def export_model(
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
    image_ending: str | None = None,
    bit_depth: int | None = None,
    allow_code: bool = False,
    license: str = "",
) -> Bundle:
    """Export a model of the Hugging Face hub, a local checkpoint or a training run, and compare it with its original.

    Parameters
    ----------
    model, output
        Hub id, folder of a checkpoint, or folder of a training run; the folder of the bundle, which must not exist.
    family, revision
        Family of the model, if ``config.json`` does not name it; branch, tag or commit on the hub.
    classes, background
        New class names, or the prompts of a model that takes text; the background class. Not for a training run.
    size
        (height, width) of the input in pixels; if None, the model's own.
    gate_images, num_images
        Source of real images to compare on, and how many of them to use; if None, generated images are used.
    image_ending, bit_depth
        Ending of the files of ``gate_images`` to use; if None, every image ending. Number of bits in use in images of
        more than 8 bits; if None, those of the training run, or all bits of their type.
    allow_code
        Import and call a function that a run names as its model, which can execute any code.
    license
        License of the weights, if the model card does not state it.

    Raises :class:`ExportError`, :class:`GateError` if the exported graph does not reproduce the model's masks,
    :class:`UsageError`.
    """
    from ..export.gate.judge import GateImages
    from ..export.pretrained.families import Choices, bundle_from_pretrained
    from .bundle import bundle_from_run, is_run
    from .run import Run

    run = Run.load(model) if is_run(model) else None
    images = None
    if gate_images is not None:
        images = GateImages.open(
            os.fspath(gate_images),
            limit=num_images,
            bands=None if run is None else run.input.bands,
            bit_depth=run.bit_depth if bit_depth is None and run is not None else bit_depth,
            image_ending=image_ending,
        )
    elif image_ending is not None or bit_depth is not None:
        raise UsageError("image_ending and bit_depth are those of gate_images; give them, or leave both out")
    if run is not None:
        if family is not None or revision is not None or classes is not None or background is not None:
            raise UsageError("family, revision, classes and background do not apply to a training run; leave them out")
        return bundle_from_run(model, output, size=size, license=license, allow_code=allow_code, images=images)
    choices = Choices(
        classes=None if classes is None else tuple(class_names_of(classes)), background=background, size=size
    )
    return bundle_from_pretrained(
        os.fspath(model), output, choices, family=family, revision=revision, license=license, images=images
    )


def evaluate(
    target: Location | LabelStore | Bundle | Sequence[Location],
    labels: Location | LabelSource,
    *,
    images: Location | None = None,
    ids: Sequence[str] | None = None,
    taxonomy: Location | None = None,
    calibration: Location | Calibration | None = None,
    tile: int | None = None,
    overlap: int = 0,
    windows: int | None = None,
    window_overlap: int = 0,
    image_ending: str | None = None,
    bit_depth: int | None = None,
    text: Sequence[str] = (),
    provider: Provider = "cpu",
    precision: str | None = None,
    device: str | None = None,
    allow_code: bool = False,
    workers: int | None = None,
    progress: bool = False,
) -> Quality:
    """Measure a label store, a training run or a model against true labels.

    Parameters
    ----------
    target
        A label store, or several that are read as one, the folder of a training run, or a bundle. A run labels
        ``images`` with its student, a bundle with its model; every pixel is kept, unless ``calibration`` selects.
    labels
        True labels: a folder of label maps, or a file or folder of another format.
    images
        Source of the images, needed for a run or a bundle.
    ids
        Names of the images to use; all if None.
    taxonomy
        Class mapping, whose ``[labels]`` table reads ``labels``.
    calibration
        For a bundle: the calibration whose prediction sets and labels are measured.
    tile, overlap
        Side and overlap of tiles in pixels, for a run or a bundle.
    windows, window_overlap
        Side and overlap, in pixels, of the windows by which larger GeoTIFF files are read, for a run or a bundle. A
        store has the windows that it was labeled with.
    image_ending
        Ending of the files of ``images`` to use; if None, every image ending.
    bit_depth
        For a bundle: number of bits in use in images of more than 8 bits, such as 12; if None, all bits of their type.
    text
        Class names, for a bundle such as SAM 3 that takes them at labeling time.
    provider, precision
        Runtime and precision of a bundle.
    device
        Device of a run: ``cpu``, ``cuda`` or ``cuda:N``.
    allow_code
        Import and call a function that a run names as its model, which can execute any code.
    workers
        Number of images processed in parallel; if None, one per core.
    progress
        Show a progress bar.

    Raises :class:`UsageError` if nothing matches, sizes differ, or an option does not apply to the target.
    """
    from ..trainer import measure

    with counter_if("measuring", progress) as observer:
        return measure.evaluate(
            target,
            labels,
            images=images,
            ids=ids,
            taxonomy=taxonomy,
            calibration=calibration,
            tile=tile,
            overlap=overlap,
            windows=windows,
            window_overlap=window_overlap,
            image_ending=image_ending,
            bit_depth=bit_depth,
            text=text,
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
    labeled_share: str | None = None,
    split_seed: int = 0,
    classes: Location | Sequence[str] | None = None,
    background: str | None = None,
    taxonomy: Location | None = None,
    init: Location | None = None,
    settings: Mapping[str, object] | None = None,
    allow_code: bool = False,
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
        Folders with ``images/`` and ``labels/`` of true labels; a source of images without labels; a labeled folder for
        validation, on which the best student is chosen.
    ids, validation_ids
        Names of the images to use from ``labeled`` and ``validation``; all if None.
    labeled_share, split_seed
        Use a random share of the labeled images, such as ``1/16``, drawn with this seed; all if None.
    classes, background
        Class names and the background class, needed if there is no store.
    taxonomy
        Class mapping whose ``[labels]`` table reads the labels of ``labeled`` and ``validation``.
    init
        Run with the same network and classes whose student is the starting point (warm start).
    settings
        Recipe settings by name, such as ``{"crop": 256, "model": "tiny", "method.cover": 0.5}``.
    allow_code
        Import and call the function that ``settings`` name as the model, which can execute any code.
    device
        ``cpu``, ``cuda`` or ``cuda:N``; if None, a GPU if there is one.
    workers
        Number of processes that load images.
    progress
        Show a progress bar.

    Returns the progress of the run at its end. Raises :class:`UsageError` for settings that do not fit,
    :class:`TrainingError`.
    """
    from .data.corpus import classes_taxonomy, open_corpus, refuse_unused
    from .recipes import RECIPES, with_settings
    from .train import train as train_run
    from .training_display import observing

    check_choice("recipe", recipe, RECIPES)
    refuse_without("classes", classes, background=background)
    refuse_without("labeled", labeled, labeled_share=labeled_share, ids=ids)
    refuse_without("labeled_share", labeled_share, split_seed=split_seed or None)
    refuse_without("validation", validation, validation_ids=validation_ids)
    refuse_without("labeled or validation", validation if labeled is None else labeled, taxonomy=taxonomy)
    texts = [f"{name}={value}" for name, value in (settings or {}).items()]
    settled_recipe = with_settings(RECIPES[recipe](), texts, allow_code=allow_code)
    refuse_unused(settled_recipe, unlabeled=unlabeled)
    corpus = open_corpus(
        stores=[stores] if isinstance(stores, str | os.PathLike) else stores,
        labeled=labeled,
        ids=ids,
        unlabeled=unlabeled,
        validation=validation,
        validation_ids=validation_ids,
        labeled_share=labeled_share,
        split_seed=split_seed,
        taxonomy=None if classes is None else classes_taxonomy(class_names_of(classes), background),
        labels_of=taxonomy,
        run=output,
    )
    if not progress:
        return train_run(output, settled_recipe, corpus, init=init, device=device, workers=workers)
    with observing(as_json=False) as observer:
        return train_run(output, settled_recipe, corpus, init=init, device=device, workers=workers, observer=observer)


def predict(
    run: Location,
    image: Location | NDArray[Any],
    *,
    tile: int | None = None,
    overlap: int = 0,
    device: str | None = None,
    allow_code: bool = False,
) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Label one image with the student of a training run.

    Parameters
    ----------
    run
        Folder of the run.
    image
        A path, or an array: (H, W, 3) uint8 RGB or, for a student of multi-band images, (H, W, C) in their sample type.
    tile, overlap
        Side and overlap of tiles, in pixels; if ``tile`` is None, the image is not cut.
    device
        ``cpu``, ``cuda`` or ``cuda:N``; if None, a GPU if there is one.
    allow_code
        Import and call a function that the run names as its model, which can execute any code.

    Returns the class index of each pixel, (H, W): uint8 for up to 255 classes, else uint16. Pixels without data in one
    of the bands have the ignore index. Raises :class:`UsageError`, :class:`ImageError`, :class:`TrainingError`.
    """
    from .processes import resolve_device
    from .students.models import load_run
    from .students.prediction import label_image

    student = load_run(run, allow_code=allow_code)
    torch_device = resolve_device(device)
    pixels = image_of(image, student.input.bands, student.run.bit_depth)
    return label_image(
        student.module.to(torch_device), pixels, student.run, device=torch_device, tile=tile, overlap=overlap
    )
