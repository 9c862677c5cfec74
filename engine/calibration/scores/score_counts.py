"""Count the scores of calibration images in bins, per image and class, so that thresholds can be recomputed later.

A row counts one class of one image in :data:`UPPER`'s bins, three times: the pixels of the class by the nonconformity
score of the class (``true``), those of them whose top class is right (``hits``), and pixels of other classes that the
model calls this class, by the score of the top class (``wrong``). From these follow thresholds and coverage at any
alpha, and accuracy, IoU and kept share of the top class under any threshold per class, without the model. Counts of
several image sets merge.

Windows of one file resemble each other, so a file that was read by windows is one draw, however many windows it has:
:meth:`ScoreCounts.by_scene` adds them up for all computations that count images.

The bins are 1/16 wide in the logit of the score. A threshold read from them is an upper edge: at most 6 % of the odds
above the exact one, never below.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .... import kernels
from ....kernels.types import BackendArray
from ...model.files import inflate
from ...model.taxonomy import Taxonomy
from ...predictors.base import ScoreMap
from ..drift.statistics import STATISTICS

_LOGITS = np.arange(-20 * 16, 14 * 16 + 1) / 16
UPPER: NDArray[np.float32] = np.append(1 / (1 + np.exp(-_LOGITS)), [1.0, np.inf]).astype(np.float32)
"""(B,) float32: largest score in each bin; the last bin holds scores that are not finite."""
NUM_BINS = len(UPPER)


@dataclass(frozen=True, kw_only=True)
class PackedTable:
    """Form of the non-zero counts of a table: distances between their places, and values."""

    steps: str
    counts: str


@dataclass(frozen=True, kw_only=True)
class PackedCounts:
    """Form of :meth:`ScoreCounts.to_json`; texts are arrays, compressed."""

    ids: tuple[str, ...]
    bins: int
    statistics: tuple[tuple[float, ...], ...]
    image: str
    target: str
    true: PackedTable
    hits: PackedTable
    wrong: PackedTable
    scenes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class ScoreCounts:
    """Binned scores of n images; the rows are sorted by image."""

    ids: tuple[str, ...]
    """(n,): content hash of each image's file."""
    statistics: NDArray[np.float64]
    """(n, J): statistics of each image that drift is watched in; see
    :data:`~maskmill.engine.calibration.drift.statistics.STATISTICS`."""
    image: NDArray[np.int64]
    """(R,): index of the row's image."""
    target: NDArray[np.int64]
    """(R,): index of the row's target class."""
    true: NDArray[np.uint32]
    """(R, B): pixels of the class, by the class's nonconformity score."""
    hits: NDArray[np.uint32]
    """(R, B): those of them whose top class is right."""
    wrong: NDArray[np.uint32]
    """(R, B): pixels of other classes whose top class is this one, by its score."""
    scenes: tuple[str, ...] = ()
    """(n,): name of the file of which an image is a window, by content, empty for a whole image; () without windows."""

    @property
    def num_images(self) -> int:
        """Number of images, n."""
        return len(self.ids)

    @property
    def num_draws(self) -> int:
        """Number of images, windows of one file counted once."""
        return int(self.scene_of().max(initial=-1)) + 1

    @classmethod
    def empty(cls) -> ScoreCounts:
        """Return counts of no image."""
        rows, bins = np.empty(0, np.int64), np.empty((0, NUM_BINS), np.uint32)
        return cls((), np.empty((0, len(STATISTICS))), rows, rows, bins, bins, bins)

    def pixels(self, num_targets: int) -> NDArray[np.int64]:
        """Return the number of pixels (n, K) of each class in each image."""
        return self.table(self.true.sum(axis=1, dtype=np.int64), num_targets)

    def table(self, values: NDArray[Any], num_targets: int) -> NDArray[Any]:
        """Arrange one value per row as (n, K); 0 for classes without a row."""
        table = np.zeros((self.num_images, num_targets), values.dtype)
        table[self.image, self.target] = values
        return table

    def scene_of(self) -> NDArray[np.int64]:
        """(n,): index of the scene of each image; windows of one file share a scene, other images have their own."""
        names = self.scenes or ("",) * self.num_images
        first: dict[str, int] = {}
        keys = [first.setdefault(name, index) if name else index for index, name in enumerate(names)]
        return np.unique(np.array(keys, np.int64), return_inverse=True)[1]

    def scene_means(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Average values (n,) or (n, J) over the windows of each file, in the order of :meth:`by_scene`."""
        scene_of = self.scene_of()
        sums = np.zeros((self.num_draws, *values.shape[1:]))
        np.add.at(sums, scene_of, values)
        counts = np.bincount(scene_of, minlength=self.num_draws)
        return sums / counts.reshape(-1, *[1] * (values.ndim - 1))

    def by_scene(self) -> ScoreCounts:
        """Add up the windows of each file, so that every row of (n,) is a draw of its own; statistics are means."""
        if not any(self.scenes):
            return self
        scene_of = self.scene_of()
        rows, place = np.unique(np.column_stack([scene_of[self.image], self.target]), axis=0, return_inverse=True)
        tables = []
        for counts in (self.true, self.hits, self.wrong):
            table = np.zeros((len(rows), NUM_BINS), np.int64)
            np.add.at(table, place.ravel(), counts)
            tables.append(table)
        _, first = np.unique(scene_of, return_index=True)
        ids = tuple(self.scenes[index] or self.ids[index] for index in first)
        return ScoreCounts(ids, self.scene_means(self.statistics), rows[:, 0], rows[:, 1], *tables)

    def subset(self, indices: Sequence[int] | NDArray[np.int64]) -> ScoreCounts:
        """Select images by index, in the order given; an index may occur only once."""
        indices = np.asarray(indices, np.int64)
        position = np.full(self.num_images, -1)
        position[indices] = np.arange(len(indices))
        rows = np.flatnonzero(position[self.image] >= 0)
        rows = rows[np.argsort(position[self.image[rows]], kind="stable")]
        return ScoreCounts(
            tuple(self.ids[index] for index in indices),
            self.statistics[indices],
            position[self.image[rows]],
            self.target[rows],
            self.true[rows],
            self.hits[rows],
            self.wrong[rows],
            tuple(self.scenes[index] for index in indices) if self.scenes else (),
        )

    @classmethod
    def merge(cls, parts: Sequence[ScoreCounts]) -> ScoreCounts:
        """Join the counts of several sets of images."""
        ids = tuple(name for part in parts for name in part.ids)
        starts = np.cumsum([0, *(part.num_images for part in parts)])
        scenes = tuple(name for part in parts for name in part.scenes or ("",) * part.num_images)
        return cls(
            ids,
            np.concatenate([part.statistics for part in parts]),
            np.concatenate([part.image + start for part, start in zip(parts, starts[:-1], strict=True)]),
            *(np.concatenate([getattr(part, name) for part in parts]) for name in ("target", "true", "hits", "wrong")),
            scenes=scenes if any(scenes) else (),
        )

    def to_json(self) -> dict[str, Any]:
        """Pack the counts as plain data: the non-zero ones, compressed."""
        packed: dict[str, Any] = {"ids": list(self.ids), "bins": NUM_BINS}
        packed["statistics"] = self.statistics.tolist()
        packed["image"], packed["target"] = _pack(self.image, "<u4"), _pack(self.target, "<u2")
        for name in ("true", "hits", "wrong"):
            counts = getattr(self, name).ravel()
            cells = np.flatnonzero(counts)
            packed[name] = {"steps": _pack(np.diff(cells, prepend=0), "<u4"), "counts": _pack(counts[cells], "<u4")}
        return {**packed, "scenes": list(self.scenes)} if any(self.scenes) else packed

    @classmethod
    def from_json(cls, packed: PackedCounts) -> ScoreCounts:
        """Unpack :meth:`to_json`; raises ValueError or IndexError if it is damaged."""
        if packed.bins != NUM_BINS:
            raise ValueError(f"its scores are counted in {packed.bins} bins, {NUM_BINS} are expected")
        statistics = np.array(packed.statistics, np.float64).reshape(-1, len(STATISTICS))
        if len(statistics) != len(packed.ids):
            raise ValueError(f"it has statistics of {len(statistics)} images, {len(packed.ids)} are expected")
        if packed.scenes and len(packed.scenes) != len(packed.ids):
            raise ValueError(f"it names the files of {len(packed.scenes)} windows, {len(packed.ids)} are expected")
        image, target = _unpack(packed.image, "<u4"), _unpack(packed.target, "<u2")
        if len(image) != len(target) or len(image) * NUM_BINS > MAX_CELLS or image.max(initial=-1) >= len(packed.ids):
            raise ValueError("its counts do not fit its images")
        tables = []
        for table in (packed.true, packed.hits, packed.wrong):
            counts = np.zeros(len(image) * NUM_BINS, np.uint32)
            counts[np.cumsum(_unpack(table.steps, "<u4"))] = _unpack(table.counts, "<u4")
            tables.append(counts.reshape(len(image), NUM_BINS))
        return cls(packed.ids, statistics, image, target, *tables, scenes=packed.scenes)


def queue_counts(score_map: ScoreMap, truth: Any, scores: Any, taxonomy: Taxonomy) -> BackendArray:
    """Count the scores of one image on the backend of its map; call it inside the backend's ``queue()``.

    ``truth`` (H, W) holds target indices or the ignore index, ``scores`` (H, W) float32 the nonconformity score of each
    pixel's true class, both on the backend. Returns the tables (3, K, B) of :func:`maskmill.kernels.binned_counts`.
    """
    top = score_map.decode(taxonomy, size=truth.shape, outputs=("top",)).top
    best = score_map.decode(taxonomy, size=truth.shape, truth=top, outputs=("true_score",)).true_score
    edges = score_map.backend.constant(UPPER)
    return kernels.binned_counts(
        scores, truth, top, best, edges, num_classes=max(taxonomy.num_targets, 1), ignore=taxonomy.ignore_index
    )


def counts_of(
    name: str, tables: NDArray[np.uint32], statistics: NDArray[np.float64], *, scene: str = ""
) -> ScoreCounts:
    """Return the counts of the image with the content hash ``name``, from the tables of :func:`queue_counts`.

    ``statistics`` (J,) are those of the image that drift is watched in; ``scene`` names the file of a window.
    """
    targets = np.flatnonzero(tables[0].any(axis=1) | tables[2].any(axis=1))
    true, hits, wrong = tables[:, targets]
    image, scenes = np.zeros(len(targets), np.int64), (scene,) if scene else ()
    return ScoreCounts((name,), statistics[None], image, targets, true, hits, wrong, scenes=scenes)


MAX_PACKED = 1 << 28
"""Largest packed array, in bytes."""
MAX_CELLS = 1 << 29
"""Most counts of a table."""


def _pack(values: NDArray[Any], dtype: str) -> str:
    return base64.b64encode(zlib.compress(np.ascontiguousarray(values, dtype).tobytes())).decode()


def _unpack(text: str, dtype: str) -> NDArray[np.int64]:
    return np.frombuffer(inflate(base64.b64decode(text), MAX_PACKED), dtype).astype(np.int64)
