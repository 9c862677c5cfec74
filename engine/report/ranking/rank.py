"""Rank the images of a store for people: the ones to label next, without near-duplicates.

::

    queue = rank_store(store, 100, calibration=calibration)
    save_queue(queue, Path("queue.json"))
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ....checks import check_count
from ....errors import UsageError
from ...calibration.calibration import Calibration
from ...calibration.thresholds import fewest_images, parse_alpha
from ...inputs.images import unless_without_data
from ...inputs.ordered_map import ordered_map
from ...inputs.sources import Item, Source
from ...model.publishing import write_atomically
from ...model.taxonomy import Taxonomy
from ...predictors.semantic import SemanticPredictor
from ...store.label_store import LabelStore
from ..page.gallery import Reader
from ..page.model_view import read_scores
from ..page.overview import Overview, read_overview
from .label_errors import LabelDoubt
from .near_duplicates import Print, Prints, pairs_between, pairs_within, photo_print
from .queue import SHOWS, Candidates, Pick, Weights, plan_queue

Basis = Literal["model", "scores", "random"]
"""Source of the classes and the doubt that determine a queue."""

FORMAT_VERSION = 1
POOL = 20
"""Number of candidates per image of the budget; photos of other images are not read."""
SMALLEST_POOL = 400
"""Fewest candidates."""
ENOUGH = 10
"""Sufficient number of calibration images per class, if no calibration defines it."""


@dataclass(frozen=True, kw_only=True)
class QueuedImage:
    """An image to label."""

    uri: str
    """The image."""
    id: str
    """Id of its labels in the store."""
    doubt: float
    """Share of its pixels whose prediction set does not hold one class alone. Of a model without a calibration, 1 minus
    the mean top score; without a model, the share of pixels without a label."""
    doubt_rank: float
    """Share of the candidates with less doubt, in [0, 1], which the order is made from; drawn in a random queue."""
    need: float
    """Need for the classes that it seems to show, in [0, 1]."""
    novelty: float
    """Difference from the images before it, in [0, 1]."""
    classes: tuple[str, ...]
    """Classes that it seems to show and calibration lacks."""
    kept: float
    """Share of its pixels with a label."""


@dataclass(frozen=True, kw_only=True)
class Queue:
    """Images to label, in order, with near-duplicates and likely label errors."""

    images: tuple[QueuedImage, ...]
    """The images to label."""
    num_candidates: int
    """Number of images whose photos were compared."""
    basis: Basis = "random"
    """Origin of classes and doubt: the ``model``, run again; kept ``scores``; or none, and the images are random."""
    twins: tuple[tuple[str, str], ...] = ()
    """Near-duplicates among the candidates."""
    calibration_twins: tuple[tuple[str, str], ...] = ()
    """(calibration image, image of the store) pairs of near-duplicates, which violate exchangeability."""
    label_errors: tuple[LabelDoubt, ...] = ()
    """Doubt about given labels, the most doubtful first."""

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "format_version": FORMAT_VERSION,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "images": [asdict(image) for image in self.images],
            "candidates": self.num_candidates,
            "basis": self.basis,
            "near_duplicates": [list(pair) for pair in self.twins],
            "near_duplicates_of_calibration": [list(pair) for pair in self.calibration_twins],
            "label_errors": [asdict(doubt) for doubt in self.label_errors],
        }


def rank_store(
    store: LabelStore,
    budget: int,
    *,
    calibration: Calibration | None = None,
    calibration_images: Source | None = None,
    predictor: SemanticPredictor | None = None,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Queue:
    """Choose up to ``budget`` images of a store that people should label next.

    Parameters
    ----------
    store
        The label store. Images that people reviewed, and those of the calibration, are left out.
    budget
        Number of images to choose.
    calibration
        The calibration of the labels: classes that few of its images show are preferred.
    calibration_images
        Its photos: near-duplicates of them are left out of the queue, and reported for the whole store.
    predictor
        The model of the labels, run again on the candidates: classes are counted before selection, and doubt is the
        share of pixels whose prediction set does not hold one class alone. Without it, a store that keeps scores
        gives the classes, and doubt is the share of pixels without a label. Without both, the images are drawn at
        random: labels never show classes that the calibration lacks, and images ordered by them were measured to be
        worth less than random ones (``benchmarks/ranking.py``).
    workers, progress
        Images in progress at the same time; observer of (photos read, all of them).

    Raises :class:`StoreError`, and :class:`UsageError` if no image is left to choose from.
    """
    check_count("budget", budget, least=1)
    check_count("workers", workers, least=1)
    classes, overview = Taxonomy.from_json(store.classes), read_overview(store)
    reader, need = Reader(store, overview), _need(calibration, classes.num_targets)
    candidates = [number for number, id in enumerate(overview.ids) if id not in need.ids and id not in overview.reviews]
    if not candidates:
        raise UsageError(f"{store.path} holds no image that is neither reviewed nor in the calibration")
    keeps_scores = reader.raw(overview.ids[0]) is not None
    basis: Basis = "model" if predictor is not None else "scores" if keeps_scores else "random"
    pool = _pool(overview, np.array(candidates, np.int64), need, max(SMALLEST_POOL, POOL * budget), basis)
    examples = [] if calibration_images is None else _source_prints(calibration_images, reader.picture, workers)
    numbers = pool if calibration_images is None else list(range(overview.num_images))
    prints = _prints(reader, overview, numbers, workers, progress)
    copies = _copies(examples, prints)
    calibration_copies = {number for _, number in copies}
    pool = [number for number in pool if number in prints and number not in calibration_copies]
    if not pool:
        raise UsageError(f"no photo of {store.path} can be read that is not one of the calibration; nothing to queue")
    ids = [overview.ids[number] for number in pool]
    weights, shares = Weights(), np.zeros((len(pool), classes.num_targets))
    order = doubt = 1 - overview.kept[pool]
    if predictor is not None:
        shares, doubt = read_scores(predictor, reader, ids, classes, calibration, workers=workers)
        order = doubt
    elif basis == "scores":
        shares = _raw_shares(reader, ids, classes, workers)
    else:
        weights, order = Weights(doubt=1.0, need=0.0, novelty=0.0), _random(overview)[pool]
    twins = pairs_within(Prints.gather([prints[number] for number in pool]))
    descriptors = _descriptors(store, ids, shares, [prints[number] for number in pool])
    picks = plan_queue(
        Candidates(doubt=order, shares=shares, descriptors=descriptors),
        budget,
        calibrated=need.calibrated,
        enough=need.enough,
        weights=weights,
        twins=twins,
    )
    return Queue(
        images=tuple(_queued(overview, classes, pool[pick.image], pick, doubt) for pick in picks),
        num_candidates=len(pool),
        basis=basis,
        twins=tuple((overview.uris[pool[first]], overview.uris[pool[second]]) for first, second in twins),
        calibration_twins=tuple((uri, overview.uris[number]) for uri, number in copies),
    )


def save_queue(queue: Queue, path: Path) -> None:
    """Write a queue as JSON; ``--ids`` of other commands reads it. Raises :class:`UsageError`."""
    try:
        write_atomically(path, (json.dumps(queue.to_json(), indent=2, ensure_ascii=False) + "\n").encode())
    except OSError as error:
        raise UsageError(f"cannot write the queue {path}: {error}") from error


@dataclass(frozen=True, eq=False)
class _Need:
    """Number of images per class that a calibration has, and that it needs."""

    calibrated: NDArray[np.int64]
    """(K,): number of calibration images that show each class."""
    enough: int
    """Sufficient number of calibration images per class."""
    ids: frozenset[str]
    """Content hashes of the calibration images."""

    def missing(self) -> NDArray[np.float64]:
        """(K,): share of the needed images that each class lacks."""
        return np.clip(1 - self.calibrated / self.enough, 0, 1)


def _need(calibration: Calibration | None, num_targets: int) -> _Need:
    if calibration is None:
        return _Need(np.zeros(num_targets, np.int64), ENOUGH, frozenset())
    calibrated = (calibration.counts.by_scene().pixels(num_targets) > 0).sum(axis=0)
    enough = max(ENOUGH, fewest_images(parse_alpha(calibration.alpha)))
    return _Need(calibrated, enough, frozenset(calibration.counts.ids))


def _pool(overview: Overview, candidates: NDArray[np.int64], need: _Need, size: int, basis: Basis) -> list[int]:
    """Choose the images whose photos are read: half by the labels of the store, half at random.

    The labels alone are a poor guide, and running the model on every image would take as long as labeling them.
    """
    by_chance = candidates[np.argsort(-_random(overview)[candidates], kind="stable")]
    if basis == "random":
        return by_chance[:size].tolist()
    shows = overview.counts >= SHOWS * overview.pixels[:, None]
    urgency = _ranks(-overview.kept) + _ranks(-overview.top_score) + (shows * need.missing()).max(axis=1, initial=0)
    by_labels = candidates[np.argsort(-urgency[candidates], kind="stable")]
    both = np.stack([by_labels, by_chance], axis=1).ravel().tolist()
    return list(dict.fromkeys(both))[:size]


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.argsort(np.argsort(values, kind="stable"), kind="stable") / max(len(values) - 1, 1)


def _random(overview: Overview) -> NDArray[np.float64]:
    """Return a pseudo-random number in [0, 1) per image that depends only on its content."""
    return np.array([int(id[:12], 16) / 16**12 for id in overview.ids])


def _source_prints(
    source: Source, picture: Callable[[bytes], NDArray[np.uint8]], workers: int
) -> list[tuple[str, Print]]:
    """Return the prints of a source's images; images without data have none."""

    def look(item: Item) -> tuple[str, Print] | None:
        photo = unless_without_data(partial(picture, source.read(item)), item.uri)
        return None if photo is None else (item.uri, photo_print(photo))

    return [entry for entry in ordered_map(look, list(source), workers) if entry is not None]


def _prints(
    reader: Reader,
    overview: Overview,
    numbers: Sequence[int],
    workers: int,
    progress: Callable[[int, int], None] | None,
) -> dict[int, Print]:
    """Return the prints of photos by number; those that cannot be read are left out."""

    def look(number: int) -> tuple[int, Print | None]:
        photo = reader.photo(overview.ids[number])
        return number, None if photo is None else photo_print(photo)

    prints = {}
    for count, (number, values) in enumerate(ordered_map(look, numbers, workers), 1):
        if values is not None:
            prints[number] = values
        if progress is not None:
            progress(count, len(numbers))
    return prints


def _copies(examples: Sequence[tuple[str, Print]], prints: dict[int, Print]) -> list[tuple[str, int]]:
    """Return (calibration image, number) of near-duplicates."""
    numbers = sorted(prints)
    originals = Prints.gather([values for _, values in examples])
    pairs = pairs_between(originals, Prints.gather([prints[number] for number in numbers]))
    return [(examples[first][0], numbers[second]) for first, second in pairs]


def _raw_shares(reader: Reader, ids: Sequence[str], classes: Taxonomy, workers: int) -> NDArray[np.float64]:
    """Return the share of each class before selection, (n, K), from kept scores."""

    def count(id: str) -> NDArray[np.float64]:
        raw = reader.raw(id)
        if raw is None:
            return np.zeros(classes.num_targets)
        return np.bincount(raw.ravel(), minlength=classes.num_targets)[: classes.num_targets] / raw.size

    return np.array(list(ordered_map(count, ids, workers)))


def _descriptors(
    store: LabelStore, ids: Sequence[str], shares: NDArray[np.float64], prints: Sequence[Print]
) -> NDArray[np.float32]:
    """Return the model's features if the store holds them, else class shares and colors of a thumbnail."""
    rows = store.table(["id", "features"])
    features = dict(zip(rows["id"].to_pylist(), rows["features"].to_pylist(), strict=True))
    if all(features.get(id) is not None for id in ids):
        vectors = np.array([features[id] for id in ids], np.float32)
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    colors = np.array([color for _, color in prints], np.float32) / 255
    scaled = colors / max(np.sqrt(colors.shape[1]) * float(colors.std()), 1e-9)
    return np.hstack([np.sqrt(shares).astype(np.float32), 0.5 * scaled])


def _queued(overview: Overview, classes: Taxonomy, number: int, pick: Pick, doubt: NDArray[np.float64]) -> QueuedImage:
    return QueuedImage(
        uri=overview.uris[number],
        id=overview.ids[number],
        doubt=float(doubt[pick.image]),
        doubt_rank=pick.doubt_rank,
        need=pick.need,
        novelty=pick.novelty,
        classes=tuple(classes.targets[target] for target in pick.classes),
        kept=float(overview.kept[number]),
    )
