"""Figures of every image of a store as arrays, from which the report computes totals and chooses pictures."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ...model.taxonomy import Taxonomy
from ...store.label_store import LabelStore
from ...store.rows import count_matrix, read_statistics

REJECT_EXAMPLES = 5
"""Number of inputs that are named per kind of reject."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Overview:
    """Figures of n images with K classes; the images are in the order of the store."""

    ids: list[str]
    """(n,): ids of the labels."""
    uris: list[str]
    """(n,): an input of each image; "" if its row is missing."""
    pixels: NDArray[np.int64]
    """(n,): pixels of each image."""
    counts: NDArray[np.int64]
    """(n, K): pixels labeled with each class."""
    kept: NDArray[np.float64]
    """(n,): share of pixels with a label."""
    top_score: NDArray[np.float64]
    """(n,): mean score of the top class over all pixels; over the labeled ones if the store has no other."""
    distance: NDArray[np.float64]
    """(n,): distance of each image from the calibration images; NaN without calibration."""
    num_inputs: int
    """Number of inputs, rejects and duplicates included."""
    rejects: Counter[str] = field(default_factory=Counter)
    """Number of rejected inputs by kind."""
    reject_examples: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    """Some (uri, message) per kind of reject."""
    reviews: dict[str, str] = field(default_factory=dict)
    """Verdict of the review in force of each reviewed id."""

    @cached_property
    def _common(self) -> str:
        """Folder of all inputs, with its last slash; "" if they have none in common."""
        uris = [*filter(None, self.uris), *(uri for examples in self.reject_examples.values() for uri, _ in examples)]
        return os.path.commonprefix([uri.rpartition("/")[0] + "/" for uri in uris]).rpartition("/")[0] + "/"

    def short(self, uri: str) -> str:
        """Return an input's name without the folder that all inputs of the store have in common."""
        return uri.removeprefix(self._common) if len(self._common) > 1 else uri

    @property
    def num_images(self) -> int:
        """Number of labeled images."""
        return len(self.ids)

    @property
    def num_duplicates(self) -> int:
        """Number of inputs with the content of another input."""
        return self.num_inputs - sum(self.rejects.values()) - self.num_images

    @property
    def kept_share(self) -> float:
        """Share of all pixels with a label."""
        return float(self.counts.sum() / max(int(self.pixels.sum()), 1))


def read_overview(store: LabelStore) -> Overview:
    """Read the figures of a store in one pass over its small columns; maps are not read. Raises StoreError."""
    table = store.table(
        ["id", "width", "height", "counts", "kept", "confidence", "drift", "statistics"]
    ).combine_chunks()
    ids = table["id"].to_pylist()
    num_targets = Taxonomy.from_json(store.classes).num_targets
    width, height, kept_shares, confidence = (
        table[name].to_numpy() for name in ("width", "height", "kept", "confidence")
    )
    texts = table["statistics"].to_pylist()
    statistics = [None if text is None else read_statistics(text).get("top score") for text in texts]
    top_score = np.array(statistics, np.float64)
    inputs = store.table(["uri", "id", "error", "message"], "inputs")
    uri_of: dict[str, str] = {}
    rejects: Counter[str] = Counter()
    examples: dict[str, list[tuple[str, str]]] = {}
    for uri, id, error, message in zip(*(column.to_pylist() for column in inputs.columns), strict=True):
        if error is None:
            uri_of.setdefault(id, uri)
            continue
        rejects[error] += 1
        if rejects[error] <= REJECT_EXAMPLES:
            examples.setdefault(error, []).append((uri, message or ""))
    return Overview(
        ids=ids,
        uris=[uri_of.get(id, "") for id in ids],
        pixels=width.astype(np.int64) * height,
        counts=count_matrix(table["counts"])[:, :num_targets] if ids else np.zeros((0, num_targets), np.int64),
        kept=kept_shares,
        top_score=np.where(np.isnan(top_score), confidence, top_score),
        distance=table["drift"].to_numpy().astype(np.float64),
        num_inputs=len(inputs),
        rejects=rejects,
        reject_examples=examples,
        reviews={id: review.verdict for id, review in store.current_reviews().items()},
    )
