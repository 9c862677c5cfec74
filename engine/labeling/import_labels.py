"""Import labels that were corrected in other tools into a store, as reviews.

::

    summary = import_labels(store, "coco.json", reviewer="ana")
    withdraw_reviews(store, reviewer="ana")                    # as if never reviewed

The store's labels are never edited: a review is a row of its own, and wins wherever labels are read.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ...checks import name_list
from ...errors import UsageError
from ..formats.base import IGNORE, LabelReader, ShapeOptions
from ..formats.open import InputFormat, open_reader
from ..inputs.ordered_map import ordered_map
from ..inputs.pairing import PairingIndex
from ..model.png import encode_png
from ..model.taxonomy import Taxonomy
from ..store.label_store import LabelStore, ReviewRow
from .export_names import export_names

Unchanged = Literal["skip", "accept"]
"""Images whose labels were not changed: no review, or an acceptance, if a person looked at every image."""

_COMMIT_ROWS = 256


@dataclass(frozen=True)
class ImportSummary:
    """Result of :func:`import_labels`."""

    corrected: int
    """Number of images whose labels were changed."""
    accepted: int
    """Number of images that a person accepted without a change."""
    unchanged: int
    """Number of images without a change and without a review."""
    pixels: int
    """Number of pixels whose label was changed, added or removed."""
    unknown: tuple[str, ...]
    """Images of the file that the store does not hold."""
    stores: Mapping[str, int]
    """Reviews that each store received, by its path; an image that several stores hold counts in each."""


def import_labels(
    store: LabelStore,
    reviewed: str | os.PathLike[str],
    *,
    format: InputFormat | None = None,
    reviewer: str,
    unchanged: Unchanged = "skip",
    note: str | None = None,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> ImportSummary:
    """Read corrected labels of any input format into the reviews of a store.

    Parameters
    ----------
    store
        The label store; of several that are read as one, each receives the reviews of the images that it holds.
    reviewed
        File, folder or URL with the corrected labels. Images are matched by the names that an export gives them, else
        by path and file name; classes by name.
    format
        The format; None: it is detected.
    reviewer
        Name of the person, kept with every review.
    unchanged
        Treatment of images without a change. Label Studio's annotations are always accepted, since a person submitted
        them.
    note
        Remark to keep with every review.
    workers
        Number of images processed in parallel.
    progress
        Called with (images done, images in all).

    Raises :class:`UsageError` if nothing matches, a size differs, or a class is not one of the store's; commits before
    the error stay, and the same call may be repeated.
    """
    classes = Taxonomy.from_json(store.classes)
    background = None if classes.background is None else classes.targets[classes.background]
    options = ShapeOptions(
        background=background or "background",
        uncovered="auto" if background is not None else "ignore",
        predictions=False,
        option="--format",
    )
    reader = open_reader(reviewed, format, options)
    ids, unknown = _matches(store, reader)
    if not ids:
        raise UsageError(
            f"{reader.path} holds no labeled image of {store.path}; its images are named like "
            f"{next(iter(reader.names()), '(none: nothing was annotated)')}"
        )
    table = _target_table(reader, classes)
    looked_at = unchanged == "accept" or reader.format == "label-studio"
    stamp = time.time_ns() // 1000

    def review(name: str) -> tuple[ReviewRow | None, int]:
        (row,) = store.take([ids[name]])
        raw = reader.read_labels(name, (row.height, row.width))
        label = _to_targets(raw, table, classes, reader, name)
        current, _ = store.maps(row)
        if label.shape != current.shape:
            raise UsageError(
                f"{reader.path}: the labels of {name} are {label.shape[1]}x{label.shape[0]} px, the image is "
                f"{row.width}x{row.height} px; export it at its own size"
            )
        num_changed = int(np.count_nonzero(label != current))
        if not num_changed and not looked_at:
            return None, 0
        verdict = "corrected" if num_changed else "accepted"
        map_ = encode_png(label) if num_changed else None
        return (
            ReviewRow(
                id=row.id, reviewer=reviewer, time=stamp, verdict=verdict, label=map_, origin=reader.path, note=note
            ),
            num_changed,
        )

    counts = {"corrected": 0, "accepted": 0, "unchanged": 0}
    stores: Counter[str] = Counter()
    pixels = num_done = 0
    results = ordered_map(review, list(ids), workers)
    while chunk := list(islice(results, _COMMIT_ROWS)):
        rows = [row for row, _ in chunk if row is not None]
        for row, num_changed in chunk:
            counts["unchanged" if row is None else row.verdict] += 1
            pixels += num_changed
        # all maps of the chunk are compared before the commit, which changes the current reviews
        store.commit_reviews(rows)
        stores.update(str(holder.path) for row in rows for holder in store.stores_with(row.id))
        num_done += len(chunk)
        if progress is not None:
            progress(num_done, len(ids))
    return ImportSummary(**counts, pixels=pixels, unknown=tuple(unknown), stores=dict(sorted(stores.items())))


def withdraw_reviews(
    store: LabelStore, *, reviewer: str, of: str | None = None, names: Collection[str] | None = None
) -> int:
    """Withdraw reviews, so that the images have their own labels again; returns the number of images.

    ``of`` limits it to images whose latest review is by this person, ``names`` to images found as
    :meth:`LabelStore.find` finds them. ``reviewer`` is the person who withdraws.
    """
    ids = None if names is None else {store.find(name).id for name in names}
    stamp = time.time_ns() // 1000
    rows = [
        ReviewRow(id=id, reviewer=reviewer, time=max(stamp, review.time + 1), verdict="withdrawn")
        for id, review in store.current_reviews().items()
        if (ids is None or id in ids) and (of is None or review.reviewer == of)
    ]
    store.commit_reviews(rows)
    return len(rows)


def _matches(store: LabelStore, reader: LabelReader) -> tuple[dict[str, str], list[str]]:
    """Return the id of the labels of each image in the file, and the images that the store does not hold."""
    inputs = sorted((row.uri, row.id) for row in store.inputs() if row.id is not None)
    exported: dict[str, str] = {}
    for (_, id), (name, stem) in zip(inputs, export_names([uri for uri, _ in inputs]), strict=True):
        exported.setdefault(stem, id)
        exported[name] = id
    ids = {name: exported[name] for name in reader.names() if name in exported}
    other_names = [name for name in reader.names() if name not in exported]
    index = PairingIndex([(name, name) for name in other_names], image_names=True)
    matched_ids = set(ids.values())
    by_uri = dict(inputs)
    for uri, name in index.pair([uri for uri, id in inputs if id not in matched_ids]).labels.items():
        ids[name] = by_uri[uri]
    return ids, [name for name in other_names if name not in ids]


def _target_table(reader: LabelReader, classes: Taxonomy) -> NDArray[np.int64]:
    """Return the target index of every label value: -1 for names that are not targets, -2 for ignored values."""
    table = np.full(65536, -2, dtype=np.int64)
    for value, name in reader.class_names.items():
        if name in classes.targets:
            table[value] = classes.targets.index(name)
        elif name != IGNORE:
            table[value] = -1
    return table


def _to_targets(
    raw: NDArray[Any], table: NDArray[np.int64], classes: Taxonomy, reader: LabelReader, name: str
) -> NDArray[Any]:
    targets = table[raw]
    if (targets == -1).any():
        value = int(raw[targets == -1][0])
        raise UsageError(
            f"{reader.path}: {name} has pixels of the class {reader.class_names[value]!r}, which the store does not "
            f"have; its classes are {name_list(classes.targets)}"
        )
    return np.where(targets < 0, classes.ignore_index, targets).astype(classes.dtype)
