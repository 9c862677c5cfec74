"""Public functions that run a model or use its scores: class mapping, calibration, labeling.

Paths may be strings or :class:`os.PathLike`; image sources may be folders, lists, globs, WebDataset tars or URLs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ..errors import UsageError
from ..kernels.processors import count_workers
from .arguments import (
    Location,
    bundle_of,
    calibration_of,
    counter_if,
    labels_of,
    predictor_of,
    run_display_if,
    store_of,
)

if TYPE_CHECKING:
    from ..kernels.types import Rule
    from .calibration.calibration import Calibration, Control, RuleChoice
    from .calibration.candidates import Choice
    from .calibration.sharing import Group, Unseen
    from .calibration.thresholds import SmallSample, Unit
    from .inputs.labels import LabelSource
    from .labeling.drift import OnDrift
    from .labeling.progress import Progress
    from .labeling.selection import Method, Weight
    from .model.bundle import Bundle
    from .model.taxonomy import Taxonomy
    from .model.taxonomy_draft import Unmatched
    from .predictors.base import Predictor
    from .runtimes.open import ProviderChoice
    from .store.label_store import LabelStore


def draft_taxonomy(
    model: Location | Bundle,
    labels: Location | LabelSource | None = None,
    label_names: Location | Mapping[int, str] | None = None,
    *,
    unmatched: Unmatched = "ignore",
) -> str:
    """Draft a class mapping from matching names; review every line of the result, then save it as a file.

    Parameters
    ----------
    model
        A bundle or its folder.
    labels
        True labels of a data set, in any format; if None, only ``label_names`` are matched.
    label_names
        Names of the label values: a mapping, a class list, or the name of a data set such as ``voc``. If both this and
        ``labels`` are None, the model's own classes are mapped.
    unmatched
        Target of names that no model class has: ``ignore`` or ``background``.

    Returns the mapping as TOML text. Raises :class:`UsageError`, :class:`TaxonomyError`.
    """
    from .inputs.labeled_source import value_names
    from .model.taxonomy_draft import draft, read_label_names
    from .predictors.prompted.activation_maps import scored_bundle

    names = label_names if label_names is None or isinstance(label_names, Mapping) else read_label_names(label_names)
    source = None if labels is None else labels_of(labels)
    if source is not None:
        names = value_names(source, names)
    by_name = source is not None and bool(source.format)
    return draft(scored_bundle(bundle_of(model)), names, unmatched=unmatched, by_name=by_name)[0]


def calibrate(
    model: Location | Bundle | Predictor,
    images: Location,
    labels: Location | LabelSource,
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
    like: Location | LabelStore | Sequence[Location] | None = None,
    provider: ProviderChoice = "cpu",
    tile: int | None = None,
    overlap: int = 0,
    windows: int | None = None,
    window_overlap: int = 0,
    image_ending: str | None = None,
    bit_depth: int | None = None,
    text: Sequence[str] = (),
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
        Class mapping or its file; if None, the model's own classes.
    group
        Classes that share a threshold; if None, ``class``, or ``pooled`` for the unit ``image``.
    unit
        Unit that the guarantee is about: ``pixel`` (a heuristic) or ``image`` (holds on average over new images).
    rule
        Rule by which the prediction set decides the label; if None, ``agree``.
    control, delta
        The error whose rate ``alpha`` bounds; with ``delta``, the false-label rate, with probability 1 - delta.
    ids
        Names of the images to use; all if None.
    min_images
        Fewest images for a class to get its own threshold; if None, ceil(1 / alpha) - 1.
    unseen
        Threshold of classes that no calibration image shows: ``never`` emits no such label.
    on_small_n
        Behavior if there are too few images for ``alpha``: ``refuse`` raises an error.
    like
        Label store of the corpus, labeled with a calibration of the same model: weight the calibration images so that
        they resemble its images.
    provider
        Runtime, or ``auto`` for the one that ``maskmill tune`` chose for this machine.
    tile, overlap
        Side and overlap of tiles, in pixels.
    windows, window_overlap
        Side and overlap, in pixels, of the windows by which larger GeoTIFF files are read, each with its part of the
        file's label map. Statistics count all windows of a file as one image.
    image_ending, bit_depth
        Ending of the files of folders and archives to use, such as ``jpg``; if None, every image ending. Number of bits
        in use in images of more than 8 bits, such as 12; if None, all bits of their type.
    text
        Class names, for a bundle such as SAM 3 that takes them at labeling time.
    workers
        Number of images processed in parallel; if None, one per core.
    progress
        Show a progress bar.

    Raises :class:`CalibrationError`, :class:`UsageError`, :class:`TaxonomyError`.
    """
    from .calibration import calibrate as calibration_module
    from .inputs.sources import open_source
    from .labeling.drift import weigh_like
    from .reading.geotiff import cut_of

    predictor, classes = predictor_of(model, taxonomy, provider, tile, overlap, bit_depth=bit_depth, text=text)
    with counter_if("calibrating", progress) as observer:
        calibration = calibration_module.calibrate(
            predictor,
            open_source(images, image_ending=image_ending, windows=cut_of(windows, window_overlap)),
            labels_of(labels),
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
            workers=count_workers(workers),
            progress=observer,
        )
    return calibration if like is None else weigh_like(calibration, store_of(like))


def choose(
    model: Location | Bundle | Predictor,
    images: Location,
    labels: Location | LabelSource,
    *,
    goal: str = "kept 0.8",
    taxonomy: Location | Taxonomy | None = None,
    ids: Sequence[str] | None = None,
    provider: ProviderChoice = "cpu",
    tile: int | None = None,
    overlap: int = 0,
    windows: int | None = None,
    window_overlap: int = 0,
    image_ending: str | None = None,
    bit_depth: int | None = None,
    text: Sequence[str] = (),
    workers: int | None = None,
    progress: bool = False,
) -> tuple[Choice, Calibration | None]:
    """Measure every way to select pixels on labeled images, and recommend one for a goal.

    Parameters
    ----------
    model, images, labels, taxonomy, ids, provider, tile, overlap, text, workers
        As for :func:`calibrate`.
    windows, window_overlap, image_ending, bit_depth
        As for :func:`calibrate`.
    goal
        ``accuracy A`` keeps as many pixels as possible at that accuracy, ``kept S`` finds the best mIoU that keeps that
        share of the pixels, ``miou`` finds the best mIoU.
    progress
        Show a progress bar.

    Returns the measured candidates with the recommendation, and the calibration that the recommendation needs, or None
    if it needs none. Raises :class:`CalibrationError`, :class:`UsageError`, :class:`TaxonomyError`.
    """
    from .calibration import choose as choosing
    from .inputs.sources import open_source
    from .reading.geotiff import cut_of

    predictor, classes = predictor_of(model, taxonomy, provider, tile, overlap, bit_depth=bit_depth, text=text)
    with counter_if("measuring", progress) as observer:
        return choosing.choose(
            predictor,
            open_source(images, image_ending=image_ending, windows=cut_of(windows, window_overlap)),
            labels_of(labels),
            classes,
            goal=goal,
            ids=None if ids is None else frozenset(ids),
            workers=count_workers(workers),
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
    keep_scores: str | float | None = None,
    on_drift: OnDrift = "warn",
    instances: bool = False,
    min_score: float = 0.5,
    limit: int | None = None,
    retry_rejects: bool = False,
    provider: ProviderChoice = "cpu",
    tile: int | None = None,
    overlap: int = 0,
    windows: int | None = None,
    window_overlap: int = 0,
    image_ending: str | None = None,
    bit_depth: int | None = None,
    text: Sequence[str] = (),
    workers: int | None = None,
    progress: bool = False,
) -> Progress:
    """Label every image of a source that the store does not hold yet; calling it again continues the run.

    Parameters
    ----------
    model, images, store
        A bundle, its folder or a predictor; the source of the images; the folder of the label store.
    calibration, threshold
        Keep the pixels that a calibration supports, or those with at least this confidence in (0, 1]. If both are None,
        keep every pixel.
    taxonomy
        Class mapping or its file; if None, the model's own classes.
    weight, weight_levels
        How each kept pixel is weighted, and the number of distinct weights.
    keep_scores
        Store the scores that :func:`reselect` needs for this alpha and above.
    on_drift
        ``stop`` ends the run, with ``drifted`` set, as soon as the images stop resembling those of the calibration;
        ``warn`` reports it at the end.
    instances, min_score
        Also store single objects, from a model that finds them, and the lowest score of an object in [0, 1].
    limit, retry_rejects
        Stop after this many inputs; try again the inputs that an earlier run rejected.
    provider
        Runtime, or ``auto`` for the one that ``maskmill tune`` chose for this machine.
    tile, overlap
        Side and overlap of tiles, in pixels.
    windows, window_overlap
        Side and overlap, in pixels, of the windows by which larger GeoTIFF files are read, each an image of its own.
    image_ending, bit_depth
        Ending of the files of folders and archives to use, such as ``jpg``; if None, every image ending. Number of bits
        in use in images of more than 8 bits, such as 12; if None, all bits of their type.
    text
        Class names, for a bundle such as SAM 3 that takes them at labeling time.
    workers
        Number of images processed in parallel; if None, one per core.
    progress
        Show a progress bar.

    Returns the counts of this run. Raises :class:`UsageError` for options that exclude each other,
    :class:`StoreMismatch` if the store holds labels made with other options, :class:`StoreError`,
    :class:`CalibrationMismatch`, :class:`SessionError`, :class:`SourceError`.
    """
    from .inputs.sources import open_source
    from .labeling import label_run
    from .labeling.instances import InstanceSettings
    from .labeling.selection import Selection
    from .reading.geotiff import cut_of

    if calibration is not None and threshold is not None:
        raise UsageError("give calibration or threshold, not both")
    if instances and tile is not None:
        raise UsageError(
            "instances and tiles cannot be combined: an object in several tiles would be stored several times"
        )
    if min_score != InstanceSettings().min_score and not instances:
        raise UsageError("min_score applies to objects only; add instances=True, or leave it out")
    if on_drift == "stop" and calibration is None:
        raise UsageError('on_drift="stop" compares with the calibration images; add calibration, or leave it out')
    thresholds = calibration_of(calibration)
    objects = InstanceSettings(min_score=min_score) if instances else None
    if thresholds is not None:
        selection = Selection.conformal(
            thresholds, weight=weight, weight_levels=weight_levels, keep_scores=keep_scores, instances=objects
        )
    elif keep_scores is not None:
        raise UsageError("keep_scores needs a calibration, whose thresholds determine which scores to keep")
    elif threshold is not None:
        selection = Selection.threshold(threshold, weight=weight, weight_levels=weight_levels, instances=objects)
    else:
        selection = Selection.argmax(weight=weight, weight_levels=weight_levels, instances=objects)
    predictor, classes = predictor_of(model, taxonomy, provider, tile, overlap, bit_depth=bit_depth, text=text)
    with run_display_if(progress) as observer:
        return label_run.label(
            predictor,
            open_source(images, image_ending=image_ending, windows=cut_of(windows, window_overlap)),
            store,
            classes,
            selection,
            on_drift=on_drift,
            limit=limit,
            retry_rejects=retry_rejects,
            workers=workers,
            observer=observer,
        )


def reselect(
    store: Location | LabelStore | Sequence[Location],
    output: Location,
    *,
    calibration: Location | Calibration | None = None,
    alpha: str | float | None = None,
    select: Method | None = None,
    threshold: float | None = None,
    rule: Rule | None = None,
    weight: Weight | None = None,
    weight_levels: int | None = None,
    workers: int | None = None,
    progress: bool = False,
) -> Progress:
    """Select labels again from the scores of a store labeled with ``keep_scores``, without running the model.

    An option that is None keeps its value in ``store``.

    Parameters
    ----------
    store, output
        The store with kept scores, and the folder of the new label store; calling it again continues the run.
    calibration, alpha, rule
        Another calibration, another alpha of the same one, another rule.
    select, threshold
        Another selection method, and the lowest confidence to keep, for the method ``threshold``.
    weight, weight_levels
        Another way to weight kept pixels, and another number of distinct weights.
    workers
        Number of threads; if None, one per core.
    progress
        Show a progress bar.

    Returns the counts of this run. Raises :class:`UsageError` for a selection that needs scores that were not kept,
    :class:`CalibrationMismatch`, :class:`StoreMismatch`, :class:`StoreError`.
    """
    from .labeling.reselection import reselect as reselecting

    change = reselecting.Reselection(
        calibration=calibration_of(calibration),
        alpha=alpha,
        select=select,
        threshold=threshold,
        rule=rule,
        weight=weight,
        weight_levels=weight_levels,
    )
    with run_display_if(progress) as observer:
        return reselecting.reselect(store_of(store), output, change, workers=workers, observer=observer)
