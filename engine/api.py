"""Public functions of the engine that use a model or its scores: class mapping, calibration, labeling.

Paths may be strings or :class:`os.PathLike`; image sources may be folders, lists, globs, WebDataset tars or URLs. The
functions are thin layers over the modules of this package; `maskmill` exports them.
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
    labels: Location | None = None,
    label_names: Location | Mapping[int, str] | None = None,
    *,
    unmatched: Unmatched = "ignore",
) -> str:
    """Draft a class mapping (TOML) from matching names; review every line, then save it.

    ``labels`` are true labels of a data set in any format, ``label_names`` the names of its label values (a mapping, a
    class list, or a data set's name such as ``voc``); without both, the model's own classes are mapped. Names without a
    match become ``unmatched``. Raises :class:`UsageError`, :class:`TaxonomyError`.
    """
    from .inputs.labeled_source import value_names
    from .inputs.labels import open_labels
    from .model.taxonomy_draft import draft, read_label_names
    from .predictors.prompted.activation_maps import scored_bundle

    names = label_names if label_names is None or isinstance(label_names, Mapping) else read_label_names(label_names)
    source = None if labels is None else open_labels(labels)
    if source is not None:
        names = value_names(source, names)
    by_name = source is not None and bool(source.format)
    return draft(scored_bundle(bundle_of(model)), names, unmatched=unmatched, by_name=by_name)[0]


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
    like: Location | LabelStore | Sequence[Location] | None = None,
    provider: ProviderChoice = "cpu",
    tile: int | None = None,
    overlap: int = 0,
    windows: int | None = None,
    window_overlap: int = 0,
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
    like
        Label store of the corpus, labeled with a calibration of the same model: weigh the calibration images so that
        they resemble its images.
    provider, tile, overlap, workers
        Runtime, or ``auto`` for what ``maskmill tune`` chose for this machine; side and overlap of tiles in pixels;
        images in progress at the same time (one per core if None).
    windows, window_overlap
        Side and overlap in pixels of the windows by which larger GeoTIFF files are read, each with its part of the
        file's label map. Statistics count all windows of a file as one image.
    bit_depth
        Bits that images of more than 8 bits fill, such as 12; all bits of their type if None.
    text
        Class names, for a bundle that takes them when it labels, such as SAM 3.
    progress
        Show a progress bar.

    Raises :class:`CalibrationError`, :class:`UsageError`, :class:`TaxonomyError`.
    """
    from .calibration import calibrate as calibration_module
    from .inputs.labels import open_labels
    from .inputs.sources import open_source
    from .labeling.drift import weigh_like
    from .reading.geotiff import cut_of

    predictor, classes = predictor_of(model, taxonomy, provider, tile, overlap, bit_depth=bit_depth, text=text)
    with counter_if("calibrating", progress) as observer:
        calibration = calibration_module.calibrate(
            predictor,
            open_source(images, windows=cut_of(windows, window_overlap)),
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
            workers=count_workers(workers),
            progress=observer,
        )
    return calibration if like is None else weigh_like(calibration, store_of(like))


def choose(
    model: Location | Bundle | Predictor,
    images: Location,
    labels: Location,
    *,
    goal: str = "kept 0.8",
    taxonomy: Location | Taxonomy | None = None,
    ids: Sequence[str] | None = None,
    provider: ProviderChoice = "cpu",
    tile: int | None = None,
    overlap: int = 0,
    windows: int | None = None,
    window_overlap: int = 0,
    bit_depth: int | None = None,
    text: Sequence[str] = (),
    workers: int | None = None,
    progress: bool = False,
) -> tuple[Choice, Calibration | None]:
    """Measure every way to select pixels on labeled images, and recommend one for a goal.

    Parameters
    ----------
    model, images, labels, taxonomy, ids, windows, window_overlap, bit_depth
        As for :func:`calibrate`.
    goal
        ``accuracy A`` keeps as much as possible at that accuracy, ``kept S`` is the best mIoU that keeps that share,
        ``miou`` the best mIoU.
    provider, tile, overlap, workers
        Runtime, or ``auto`` for what ``maskmill tune`` chose for this machine; side and overlap of tiles in pixels;
        images in progress at the same time (one per core if None).
    text
        Class names, for a bundle that takes them when it labels, such as SAM 3.
    progress
        Show a progress bar.

    Returns the measured candidates with the recommendation, and its calibration if it needs one. Raises
    :class:`CalibrationError`, :class:`UsageError`, :class:`TaxonomyError`.
    """
    from .calibration import choose as choosing
    from .inputs.labels import open_labels
    from .inputs.sources import open_source
    from .reading.geotiff import cut_of

    predictor, classes = predictor_of(model, taxonomy, provider, tile, overlap, bit_depth=bit_depth, text=text)
    with counter_if("measuring", progress) as observer:
        return choosing.choose(
            predictor,
            open_source(images, windows=cut_of(windows, window_overlap)),
            open_labels(labels),
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
    bit_depth: int | None = None,
    text: Sequence[str] = (),
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
    keep_scores
        Keep the scores that :func:`reselect` needs for this alpha and above.
    on_drift
        ``stop`` ends the run, with ``drifted`` set, as soon as the images do not look like those of the calibration.
    instances, min_score
        Store single objects as well, from a model that gives them; the lowest score of an object.
    limit, retry_rejects
        Stop after this many inputs; try inputs again that were rejected before.
    windows, window_overlap
        Side and overlap in pixels of the windows by which larger GeoTIFF files are read, each an image of its own.
    bit_depth
        Bits that images of more than 8 bits fill, such as 12; all bits of their type if None.
    provider, tile, overlap, workers
        Runtime, or ``auto`` for what ``maskmill tune`` chose for this machine; side and overlap of tiles in pixels;
        images in progress at the same time (one per core if None).
    text
        Class names, for a bundle that takes them when it labels, such as SAM 3.
    progress
        Show a progress bar.

    Returns the counts of this run. Raises :class:`StoreMismatch` if the store holds labels made with other options,
    :class:`StoreError`, :class:`CalibrationMismatch`, :class:`SessionError`, :class:`SourceError`.
    """
    from .inputs.sources import open_source
    from .labeling import label_run
    from .labeling.instances import InstanceSettings
    from .labeling.selection import Selection
    from .reading.geotiff import cut_of

    if calibration is not None and threshold is not None:
        raise UsageError("give calibration or threshold, not both")
    if instances and tile is not None:
        raise UsageError("instances do not go with tiles: an object that several tiles show would be several")
    thresholds = calibration_of(calibration)
    objects = InstanceSettings(min_score=min_score) if instances else None
    if thresholds is not None:
        selection = Selection.conformal(
            thresholds, weight=weight, weight_levels=weight_levels, keep_scores=keep_scores, instances=objects
        )
    elif keep_scores is not None:
        raise UsageError("keep_scores needs a calibration, whose thresholds say which scores to keep")
    elif threshold is not None:
        selection = Selection.threshold(threshold, weight=weight, weight_levels=weight_levels, instances=objects)
    else:
        selection = Selection.argmax(weight=weight, weight_levels=weight_levels, instances=objects)
    predictor, classes = predictor_of(model, taxonomy, provider, tile, overlap, bit_depth=bit_depth, text=text)
    with run_display_if(progress) as observer:
        return label_run.label(
            predictor,
            open_source(images, windows=cut_of(windows, window_overlap)),
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
    """Make the labels of another selection, without the model, from a store labeled with ``keep_scores``.

    Parameters
    ----------
    store, output
        The store with kept scores, and the folder of the new label store; calling it again continues the run.
    calibration, alpha, rule
        Other thresholds, another alpha of the calibration, another rule.
    select, threshold
        Another selection method, and the lowest confidence to keep (``threshold``).
    weight, weight_levels
        Another weight of each kept pixel, and another number of distinct weights.
    workers
        Number of threads (one per core if None).
    progress
        Show a progress bar.

    What is None stays as in ``store``. Returns the counts of this run. Raises :class:`UsageError` for a selection that
    needs scores that were not kept, :class:`CalibrationMismatch`, :class:`StoreMismatch`, :class:`StoreError`.
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
