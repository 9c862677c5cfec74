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
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ....errors import UsageError
from ...calibration.calibration import Calibration, fewest_images, parse_alpha
from ...inputs.identity import content_id
from ...inputs.images import decode_image
from ...inputs.ordered_map import ordered_map
from ...inputs.sources import Source
from ...model.publishing import write_atomically
from ...model.taxonomy import Taxonomy
from ...predictors.semantic import SemanticPredictor
from ...store.label_store import LabelStore
from ..page.gallery import Reader
from ..page.model_view import read_scores
from ..page.overview import Overview, read_overview
from .label_errors import LabelDoubt
from .near_duplicates import Prints, pairs_between, pairs_within, photo_print
from .queue import SHOWS, Candidates, Pick, Weights, plan_queue

Basis = Literal["model", "scores", "random"]
"""Origin of the classes and the doubt that a queue is made from."""

FORMAT_VERSION = 1
POOL = 20
"""Candidates per image of the budget: photos of the others are not read."""
SMALLEST_POOL = 400
"""Candidates at least."""
ENOUGH = 10
"""Calibration images per class that are enough if no calibration says how many it needs."""


@dataclass(frozen=True, kw_only=True)
class QueuedImage:
    """An image to label."""

    uri: str
    """The image."""
    id: str
    """Id of its labels in the store."""
    doubt: float
    """Share of the candidates with less doubtful labels, in [0, 1]."""
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
    """Images to label, in order, and what was noticed on the way."""

    images: tuple[QueuedImage, ...]
    """The images to label."""
    num_candidates: int
    """Images whose photos were compared."""
    basis: Basis = "random"
    """Origin of classes and doubt: the ``model``, run again; kept ``scores``; or none, and the images are random."""
    twins: tuple[tuple[str, str], ...] = ()
    """Near-duplicates among the candidates."""
    calibration_twins: tuple[tuple[str, str], ...] = ()
    """(calibration image, image of the store) that are the same or nearly so: they break exchangeability."""
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
        The calibration of the labels: classes that few of its images show are needed more.
    calibration_images
        Its photos: near-duplicates of them are left out of the queue, and named for the whole store.
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
    classes = Taxonomy.from_json(store.classes)
    overview = read_overview(store)
    reader = Reader(store, overview)
    calibrated = np.zeros(classes.num_targets, np.int64)
    enough, known = ENOUGH, set[str]()
    if calibration is not None:
        calibrated = (calibration.counts.pixels(classes.num_targets) > 0).sum(axis=0)
        enough, known = max(ENOUGH, fewest_images(parse_alpha(calibration.alpha))), set(calibration.counts.ids)
    examples = _calibration_prints(calibration_images, workers)
    open_numbers = np.array(
        [number for number, id in enumerate(overview.ids) if id not in known and id not in overview.reviews], np.int64
    )
    if not len(open_numbers):
        raise UsageError(f"{store.path} holds no image that is neither reviewed nor in the calibration")
    doubt = _doubt(overview)
    missing = np.clip(1 - calibrated / enough, 0, 1)
    shows = overview.counts >= SHOWS * overview.pixels[:, None]
    urgency = _ranks(doubt) + (shows * missing).max(axis=1, initial=0)
    keeps_scores = reader.raw(overview.ids[0]) is not None
    basis: Basis = "model" if predictor is not None else "scores" if keeps_scores else "random"
    if basis == "random":
        urgency = _ranks(np.array([int(id[:12], 16) for id in overview.ids], np.float64))
    size = max(SMALLEST_POOL, POOL * budget)
    pool = open_numbers[np.argsort(-urgency[open_numbers], kind="stable")[:size]]
    compared = np.arange(overview.num_images) if calibration_images is not None else pool
    prints: dict[int, tuple[NDArray[np.uint64], NDArray[np.float32]]] = {}

    def look(number: int) -> tuple[int, Any]:
        photo = reader.photo(overview.ids[number])
        return number, None if photo is None else photo_print(photo)

    for count, (number, values) in enumerate(ordered_map(look, compared.tolist(), workers), 1):
        if values is not None:
            prints[number] = values
        if progress is not None:
            progress(count, len(compared))
    readable = sorted(prints)
    copies = pairs_between(Prints.gather(examples[1]), Prints.gather([prints[number] for number in readable]))
    calibration_twins = [(examples[0][first], overview.uris[readable[second]]) for first, second in copies]
    exact = [(uri, overview.uris[number]) for uri, number in _exact(examples, overview)]
    close = {readable[second] for _, second in copies}
    pool = np.array([number for number in pool.tolist() if number in prints and number not in close], np.int64)
    if not len(pool):
        raise UsageError(f"no photo of {store.path} can be read that is not one of the calibration; nothing to queue")
    within = pairs_within(Prints.gather([prints[number] for number in pool.tolist()]))
    ids = [overview.ids[number] for number in pool.tolist()]
    weights, shares, pool_doubt = Weights(), np.zeros((len(pool), classes.num_targets)), urgency[pool]
    if predictor is not None:
        shares, pool_doubt = read_scores(predictor, reader, ids, classes, calibration, workers=workers)
    elif basis == "scores":
        shares, pool_doubt = _kept_shares(reader, ids, classes, workers), 1 - overview.kept[pool]
    else:
        weights = Weights(doubt=1.0, need=0.0, novelty=0.0)
    picks = plan_queue(
        Candidates(
            doubt=pool_doubt,
            shares=shares,
            descriptors=_descriptors(store, ids, shares, prints, pool),
        ),
        budget,
        calibrated=calibrated,
        enough=enough,
        weights=weights,
        twins=within,
    )
    return Queue(
        images=tuple(_queued(overview, classes, int(pool[pick.image]), pick) for pick in picks),
        num_candidates=len(pool),
        basis=basis,
        twins=tuple((overview.uris[pool[first]], overview.uris[pool[second]]) for first, second in within),
        calibration_twins=tuple(dict.fromkeys([*exact, *calibration_twins])),
    )


def _kept_shares(reader: Reader, ids: Sequence[str], classes: Taxonomy, workers: int) -> NDArray[np.float64]:
    """Return the share of each class before selection, (n, K), from kept scores."""

    def count(id: str) -> NDArray[np.float64]:
        raw = reader.raw(id)
        if raw is None:
            return np.zeros(classes.num_targets)
        return np.bincount(raw.ravel(), minlength=classes.num_targets)[: classes.num_targets] / raw.size

    return np.array(list(ordered_map(count, ids, workers)))


def save_queue(queue: Queue, path: Path) -> None:
    """Write a queue as JSON; ``--ids`` of other commands reads it. Raises :class:`UsageError`."""
    try:
        write_atomically(path, (json.dumps(queue.to_json(), indent=2, ensure_ascii=False) + "\n").encode())
    except OSError as error:
        raise UsageError(f"cannot write the queue {path}: {error}") from error


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.argsort(np.argsort(values, kind="stable"), kind="stable") / max(len(values) - 1, 1)


def _doubt(overview: Overview) -> NDArray[np.float64]:
    """Order images by unlabeled pixels and by low scores, with equal weight."""
    return _ranks(-overview.kept) + _ranks(-overview.top_score)


def _calibration_prints(source: Source | None, workers: int) -> tuple[list[str], list[Any], list[str]]:
    """Read the calibration images: their uris, prints and content hashes."""
    if source is None:
        return [], [], []

    def look(item: Any) -> tuple[str, Any, str]:
        data = source.read(item)
        return item.uri, photo_print(decode_image(data)), content_id(data)

    rows = list(ordered_map(look, list(source), workers))
    return [row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows]


def _exact(examples: tuple[list[str], list[Any], list[str]], overview: Overview) -> list[tuple[str, int]]:
    number_of = {id: number for number, id in enumerate(overview.ids)}
    return [(uri, number_of[id]) for uri, id in zip(examples[0], examples[2], strict=True) if id in number_of]


def _descriptors(
    store: LabelStore,
    ids: Sequence[str],
    shares: NDArray[np.float64],
    prints: dict[int, Any],
    pool: NDArray[np.int64],
) -> NDArray[np.float32]:
    """Return the model's features if the store holds them, else class shares and colors of a thumbnail."""
    rows = store.table(["id", "features"])
    features = dict(zip(rows["id"].to_pylist(), rows["features"].to_pylist(), strict=True))
    if all(features.get(id) is not None for id in ids):
        vectors = np.array([features[id] for id in ids], np.float32)
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    colors = np.array([prints[number][1] for number in pool.tolist()], np.float32) / 255
    scaled = colors / max(np.sqrt(colors.shape[1]) * float(colors.std()), 1e-9)
    return np.hstack([np.sqrt(shares).astype(np.float32), 0.5 * scaled])


def _queued(overview: Overview, classes: Taxonomy, number: int, pick: Pick) -> QueuedImage:
    return QueuedImage(
        uri=overview.uris[number],
        id=overview.ids[number],
        doubt=pick.doubt,
        need=pick.need,
        novelty=pick.novelty,
        classes=tuple(classes.targets[target] for target in pick.classes),
        kept=float(overview.kept[number]),
    )
