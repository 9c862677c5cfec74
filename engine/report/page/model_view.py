"""The store's model, run again on a sample of its images: raw labels, prediction sets, and PCOS' plane.

A store holds the kept labels only. With the model, the report also shows the labels before selection, and counts set
sizes and confidences over a sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .... import kernels
from ....errors import UsageError
from ...calibration.calibration import Calibration
from ...inputs.ordered_map import ordered_map
from ...model.taxonomy import Taxonomy
from ...predictors.base import ScoreMap
from ...predictors.open import ModelOptions, open_predictor
from ...predictors.resampling import resample_nearest
from ...predictors.semantic import SemanticPredictor
from ...runtimes.open import Provider
from ...store.label_store import LabelStore
from .gallery import Reader

COLUMNS, ROWS = 40, 24
"""Bins of PCOS' plane."""
LARGEST_SET = 6
"""Sets of this size or larger are counted together."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelView:
    """Results of the model on m images, and counts of their labels."""

    num_images: int
    """Number of images, m."""
    raw: NDArray[np.int64]
    """(K,): pixels whose top class is each target."""
    kept: NDArray[np.int64]
    """(K,): pixels of the same images labeled with each target."""
    set_sizes: NDArray[np.int64] | None
    """(LARGEST_SET + 1,): pixels by the number of classes in their prediction set; None without thresholds."""
    plane: NDArray[np.int64]
    """(2, COLUMNS, ROWS): pixels by confidence and dispersion, in the reliable cluster and in the other one."""
    dispersion: float
    """Dispersion at the upper edge of the plane."""
    maps: dict[str, NDArray[Any]]
    """Raw label map (H, W) of each image by id, the ignore index for pixels without a target."""


def open_model(store: LabelStore, bundle: Path, provider: Provider = "cpu") -> SemanticPredictor:
    """Open the model that a store was labeled with, under the settings of its run.

    Raises :class:`UsageError` if the labels were made with another model, or not by one semantic model.
    """
    run = store.run
    if "promptable" in run or "scores" in run:
        raise UsageError(
            "--model applies to stores of `maskmill label` with one semantic model; leave it out for this store"
        )
    options = ModelOptions(
        provider=provider, tile=run.get("tile"), overlap=run.get("overlap", 0), bit_depth=run.get("bit_depth")
    )
    predictor, _ = open_predictor(bundle, options=options)
    if not isinstance(predictor, SemanticPredictor) or predictor.bundle.fingerprint != run.get("bundle"):
        raise UsageError(f"{store.path} was labeled with another model than {bundle}; give that model's bundle")
    return predictor


def view_kept_scores(
    reader: Reader, sample: Sequence[str], taxonomy: Taxonomy, *, workers: int = 1
) -> ModelView | None:
    """Count the labels before selection of a ``sample`` of images by id; None if the store keeps no scores."""
    raw, kept_pixels = (np.zeros(taxonomy.num_targets, np.int64) for _ in range(2))
    for id, map in zip(sample, ordered_map(reader.raw, sample, workers), strict=True):
        if map is None:
            return None
        raw += np.bincount(map.ravel(), minlength=taxonomy.num_targets)[: taxonomy.num_targets]
        kept_pixels += reader.counts(id)
    plane = np.zeros((2, COLUMNS, ROWS), np.int64)
    return ModelView(
        num_images=len(sample), raw=raw, kept=kept_pixels, set_sizes=None, plane=plane, dispersion=1.0, maps={}
    )


def read_scores(
    predictor: SemanticPredictor,
    reader: Reader,
    ids: Sequence[str],
    taxonomy: Taxonomy,
    calibration: Calibration | None,
    *,
    workers: int = 1,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the share of each class before selection, (n, K), and a doubt (n,) of the images ``ids``.

    The doubt is the share of pixels whose prediction set does not hold exactly one class; without a calibration, it is
    1 minus the mean top score. Images whose photos cannot be read have shares and doubt 0.
    """
    thresholds = None if calibration is None else calibration.thresholds
    grid = None if thresholds is None or thresholds.ndim != 2 else (thresholds.shape[0], thresholds.shape[1])
    outputs = ("top", "confidence") if thresholds is None else ("top", "set_size")

    def observe(id: str) -> tuple[NDArray[np.float64], float]:
        image = reader.model_image(id)
        if image is None:
            return np.zeros(taxonomy.num_targets), 0.0
        (score_map,) = predictor.run([predictor.prepare(image, reader.uri(id))])
        backend = predictor.backend
        with backend.queue():
            stats = score_map.decode(taxonomy, size=grid, thresholds=thresholds, outputs=outputs)
            top, values = backend.download(stats.top, stats.confidence if thresholds is None else stats.set_size)
        with_data = _with_data(score_map, top.shape)
        top, values = top[with_data], values[with_data]
        shares = np.bincount(top.ravel(), minlength=taxonomy.num_targets)[: taxonomy.num_targets] / top.size
        if thresholds is None:
            return shares, 1 - float(values.mean(dtype=np.float64))
        return shares, float((values != 1).mean())

    rows = list(ordered_map(observe, ids, workers))
    return np.array([row[0] for row in rows]), np.array([row[1] for row in rows])


def view_model(
    predictor: SemanticPredictor,
    reader: Reader,
    sample: Sequence[str],
    shown: Sequence[str],
    taxonomy: Taxonomy,
    calibration: Calibration | None,
    *,
    workers: int = 1,
) -> ModelView | None:
    """Run the model on images by id; None if no photo of the sample can be read.

    Figures are those of ``sample``; raw maps are those of ``shown`` as well.
    """
    thresholds = None if calibration is None else calibration.thresholds
    grid = None if thresholds is None or thresholds.ndim != 2 else (thresholds.shape[0], thresholds.shape[1])
    outputs = ("top", "share", "dispersion", *(("set_size",) if thresholds is not None else ()))

    def observe(id: str) -> tuple[Any, ...] | None:
        image = reader.model_image(id)
        if image is None:
            return None
        backend = predictor.backend
        (score_map,) = predictor.run([predictor.prepare(image, reader.uri(id))])
        with backend.queue():
            stats = score_map.decode(taxonomy, size=grid, thresholds=thresholds, outputs=outputs)
            pcos = kernels.pcos(stats.share, stats.dispersion, want_cluster=True)
            arrays = [stats.top, stats.share, stats.dispersion, pcos.cluster, pcos.statistics]
            if thresholds is not None:
                arrays.append(stats.set_size)
            top, share, dispersion, cluster, statistics, *sets = backend.download(*arrays)
        with_data = _with_data(score_map, top.shape)
        raw = np.where((top < taxonomy.num_targets) & with_data, top, taxonomy.ignore_index)
        raw = raw.astype(np.uint8 if taxonomy.ignore_index < 256 else np.uint16)
        raw = raw if grid is None else np.asarray(resample_nearest(raw, score_map.size))
        share, dispersion, cluster, *sets = (values[with_data] for values in (share, dispersion, cluster, *sets))
        sizes = np.bincount(np.minimum(sets[0], LARGEST_SET), minlength=LARGEST_SET + 1) if sets else None
        step = max(1, share.size // 20_000)  # a sample of pixels suffices for the plane
        return id, raw, sizes, share[::step], dispersion[::step], cluster[::step] == int(statistics.ravel()[7])

    sample_ids, visible = set(sample), set(shown)
    maps: dict[str, NDArray[Any]] = {}
    raw_counts, kept_counts = (np.zeros(taxonomy.num_targets, np.int64) for _ in range(2))
    figures: list[tuple[Any, ...]] = []
    for values in ordered_map(observe, list(dict.fromkeys([*sample, *shown])), workers):
        if values is None:
            continue
        id, raw, *sums = values
        if id in visible:
            maps[id] = raw
        if id in sample_ids:
            raw_counts += np.bincount(raw.ravel(), minlength=taxonomy.num_targets)[: taxonomy.num_targets]
            kept_counts += reader.counts(id)
            figures.append(tuple(sums))
    if not figures:
        return None
    sizes, shares, dispersions, reliable = zip(*figures, strict=True)
    share, dispersion, is_reliable = (np.concatenate(parts) for parts in (shares, dispersions, reliable))
    top = max(float(np.quantile(dispersion, 0.995)), 1e-9)
    extent = ((0.0, 1.0), (0.0, top))
    plane = [
        np.histogram2d(share[mask], np.minimum(dispersion[mask], top), bins=(COLUMNS, ROWS), range=extent)[0]
        for mask in (is_reliable, ~is_reliable)
    ]
    return ModelView(
        num_images=len(figures),
        raw=raw_counts,
        kept=kept_counts,
        set_sizes=None if thresholds is None else np.sum(sizes, axis=0),
        plane=np.array(plane).astype(np.int64),
        dispersion=top,
        maps=maps,
    )


def _with_data(score_map: ScoreMap, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Return (H, W), True for pixels with data in all bands of the model, resampled to ``shape``."""
    if score_map.with_data is None:
        return np.ones(shape, np.bool_)
    return np.asarray(resample_nearest(score_map.with_data, (shape[0], shape[1])))
