"""A label store that others may write to while it is shown: snapshots, renewed when the store changes."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ....checks import check_choice
from ....errors import UsageError
from ...calibration.calibration import Calibration
from ...model.taxonomy import Taxonomy
from ...store.label_store import LabelStore
from ...store.several.joined import open_stores
from ..page.gallery import Reader
from ..page.overview import Overview, read_overview

PAUSE = 2.0
"""Shortest time between two checks of the store, in seconds …"""
SHARE = 0.2
"""… but checks of a large store that is being written to use at most this share of the time."""

Order = Literal["doubt", "least", "most", "unlike", "stored"]
"""Order of images: most doubtful, least labeled, most labeled, least like the calibration images, as stored."""


@dataclass(frozen=True, eq=False)
class Snapshot:
    """The store at one moment."""

    version: str
    """Name of the moment; another one if the store was written to."""
    store: LabelStore
    """The store at that moment."""
    overview: Overview
    """Its figures."""
    reader: Reader
    """Its labels and photos."""


@dataclass(frozen=True, kw_only=True)
class Query:
    """Selection and order of images that a page requests."""

    order: Order = "doubt"
    """Order of the images."""
    target: int | None = None
    """Class that the images show; None: any."""
    low: float = 0.0
    """Smallest share of labeled pixels."""
    high: float = 1.0
    """Largest share of labeled pixels."""
    score: float = 1.0
    """Largest mean score of the top class."""
    review: str = ""
    """``any``: reviewed ones, ``none``: others, "": both."""
    name: str = ""
    """Text that their uri contains."""


class LiveStore:
    """Provides the newest snapshot of a store; it is thread-safe."""

    def __init__(
        self,
        stores: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        calibration: Calibration | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Show a store, or several that were made with the same options."""
        self._stores: list[Any] = list(stores) if isinstance(stores, list | tuple) else [stores]
        self.calibration = calibration
        """Calibration of its labels, if it is known."""
        store = self.open()
        self.path = store.path
        """Folder of the store."""
        self.classes: Taxonomy = Taxonomy.from_json(store.classes)
        """Its classes."""
        self._clock = clock
        self._lock = threading.Lock()
        self._next_look = float("-inf")
        self._snapshot: Snapshot | None = None

    def open(self) -> LabelStore:
        """Open the store, or the stores as one, at their newest moment."""
        return open_stores(self._stores)

    def snapshot(self, *, fresh: bool = False) -> Snapshot:
        """Return a snapshot that is at most seconds old; with ``fresh``, the current one."""
        with self._lock:
            now = self._clock()
            if self._snapshot is not None and not fresh and now < self._next_look:
                return self._snapshot
            store = self.open()
            moment = store.moment
            version = f"{moment.labels}.{moment.inputs}.{moment.reviews}"
            if self._snapshot is None or self._snapshot.version != version:
                overview = read_overview(store)
                self._snapshot = Snapshot(version, store, overview, Reader(store, overview))
            ended = self._clock()
            self._next_look = ended + max(PAUSE, (ended - now) / SHARE)
            return self._snapshot

    def find(self, snapshot: Snapshot, query: Query) -> NDArray[np.int64]:
        """Return the numbers of the images of a query, in order. Raises :class:`UsageError` for an unknown order."""
        overview = snapshot.overview
        mask = (overview.kept >= query.low) & (overview.kept <= query.high) & (overview.top_score <= query.score)
        if query.target is not None:
            if not 0 <= query.target < self.classes.num_targets:
                raise UsageError(f"there is no class {query.target}; the last one is {self.classes.num_targets - 1}")
            mask &= overview.counts[:, query.target] > 0
        if query.review:
            is_reviewed = np.array([id in overview.reviews for id in overview.ids], bool)
            mask &= is_reviewed == (query.review == "any")
        if query.name:
            mask &= np.array([query.name.lower() in uri.lower() for uri in overview.uris], bool)
        numbers = np.flatnonzero(mask)
        if query.order == "stored":
            return numbers
        return numbers[np.argsort(self._keys(overview, query.order)[numbers], kind="stable")]

    def _keys(self, overview: Overview, order: str) -> NDArray[np.float64]:
        keys = {"doubt": overview.top_score, "least": overview.kept, "most": -overview.kept}
        if not np.isnan(overview.distance).all():
            keys["unlike"] = -overview.distance
        if order not in keys:
            check_choice("order", order, [order for order in get_args(Order) if order == "stored" or order in keys])
        return keys[order]
