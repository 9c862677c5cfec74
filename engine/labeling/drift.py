"""Report whether the images of a store look like those of its calibration."""

from __future__ import annotations

import os

from ..calibration.calibration import Calibration
from ..calibration.drift import DriftReport, watch_images
from ..store.label_store import LabelStore


def watch_store(store: LabelStore | str | os.PathLike[str], calibration: Calibration) -> DriftReport | None:
    """Watch the distinct images of a store for drift from the calibration images; None without their numbers."""
    store = store if isinstance(store, LabelStore) else LabelStore.open(store)
    table = store.table(["id", "drift"])
    images = zip(table["id"].to_pylist(), table["drift"].to_pylist(), strict=True)
    return watch_images(calibration.counts.confidence, [(id, drift) for id, drift in images if drift is not None])
