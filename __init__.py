"""maskmill: label images with a foundation segmentation model, and keep the pixels that calibration supports.

The public names are imported when they are first used, so that ``import maskmill`` needs no device, no network and no
optional package::

    import maskmill

    model = maskmill.adopt("deeplab.onnx", "deeplab", classes="voc.txt", background="background", scale=1 / 255)
    calibration = maskmill.calibrate(model, images="labeled/images", labels="labeled/labels", alpha=0.05)
    maskmill.label(model, "photos", "labels", calibration=calibration, weight="pcos")
    store = maskmill.LabelStore.open("labels")
    label, weight = store.read("0001.jpg")  # (H, W) uint8 each; 255 in `label` is ignored
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

# both send usage data unless told otherwise, ONNX Runtime (1.31) as soon as it is imported
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

if TYPE_CHECKING:
    from .engine.api import calibrate, choose, draft_taxonomy, label, reselect
    from .engine.calibration.calibration import Calibration
    from .engine.calibration.candidates import Choice
    from .engine.calibration.objects import ObjectThresholds
    from .engine.cluster.status import Status, WorkerStatus
    from .engine.inputs.labels import LabelSource, open_labels
    from .engine.inputs.sources import Item, Source
    from .engine.labeling.export_labels import ExportSummary
    from .engine.labeling.import_labels import ImportSummary
    from .engine.labeling.progress import Progress
    from .engine.labeling.selection import Selection
    from .engine.labels_api import (
        calibrate_objects,
        export_labels,
        import_labels,
        merge_stores,
        overlay,
        rank,
        report,
        status,
        write_manifest,
    )
    from .engine.model.bundle import Bundle, ModelFile, OutputSpec, PromptSpec, Provenance, TextSpec
    from .engine.model.input_spec import BandSpec, InputSpec
    from .engine.model.taxonomy import Taxonomy
    from .engine.predictors.base import Predictor, ScoreMap
    from .engine.predictors.semantic import SemanticPredictor
    from .engine.reading.access import limit_reads
    from .engine.reading.storage_options import use_storage
    from .engine.report.evaluate import Quality
    from .engine.report.overlay import Overlay
    from .engine.report.ranking.rank import Queue
    from .engine.runtimes.base import Session
    from .engine.runtimes.open import open_session
    from .engine.store.label_store import LabelStore
    from .engine.store.rows import InputRow
    from .engine.store.several.joined import open_stores
    from .engine.store.several.merge import MergeCounts
    from .errors import MaskmillError
    from .export.api import adopt, rescale
    from .export.rescaling import Rescaling
    from .trainer.api import evaluate, export_model, predict, train
    from .trainer.train import TrainingProgress

    __version__: str

_MODULES = {
    "engine.api": ("calibrate", "choose", "draft_taxonomy", "label", "reselect"),
    "engine.calibration.calibration": ("Calibration",),
    "engine.calibration.candidates": ("Choice",),
    "engine.calibration.objects": ("ObjectThresholds",),
    "engine.cluster.status": ("Status", "WorkerStatus"),
    "engine.inputs.labels": ("LabelSource", "open_labels"),
    "engine.inputs.sources": ("Item", "Source"),
    "engine.labeling.export_labels": ("ExportSummary",),
    "engine.labeling.import_labels": ("ImportSummary",),
    "engine.labeling.progress": ("Progress",),
    "engine.labeling.selection": ("Selection",),
    "engine.labels_api": (
        "calibrate_objects",
        "export_labels",
        "import_labels",
        "merge_stores",
        "overlay",
        "rank",
        "report",
        "status",
        "write_manifest",
    ),
    "engine.model.bundle": ("Bundle", "ModelFile", "OutputSpec", "PromptSpec", "Provenance", "TextSpec"),
    "engine.model.input_spec": ("BandSpec", "InputSpec"),
    "engine.model.taxonomy": ("Taxonomy",),
    "engine.predictors.base": ("Predictor", "ScoreMap"),
    "engine.predictors.semantic": ("SemanticPredictor",),
    "engine.reading.access": ("limit_reads",),
    "engine.reading.storage_options": ("use_storage",),
    "engine.report.evaluate": ("Quality",),
    "engine.report.overlay": ("Overlay",),
    "engine.report.ranking.rank": ("Queue",),
    "engine.runtimes.base": ("Session",),
    "engine.runtimes.open": ("open_session",),
    "engine.store.label_store": ("LabelStore",),
    "engine.store.rows": ("InputRow",),
    "engine.store.several.joined": ("open_stores",),
    "engine.store.several.merge": ("MergeCounts",),
    "errors": ("MaskmillError",),
    "export.api": ("adopt", "rescale"),
    "export.rescaling": ("Rescaling",),
    "trainer.api": ("evaluate", "export_model", "predict", "train"),
    "trainer.train": ("TrainingProgress",),
}
_EXPORTS = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "BandSpec", "Bundle", "Calibration", "Choice", "ExportSummary", "ImportSummary", "InputRow", "InputSpec",
    "Item", "LabelSource", "LabelStore", "MaskmillError", "MergeCounts", "ModelFile", "ObjectThresholds",
    "OutputSpec", "Overlay", "Predictor", "Progress", "PromptSpec", "Provenance", "Quality", "Queue",
    "Rescaling", "ScoreMap", "Selection", "SemanticPredictor", "Session", "Source", "Status", "Taxonomy", "TextSpec",
    "TrainingProgress", "WorkerStatus",
    "__version__", "adopt", "calibrate", "calibrate_objects", "choose", "draft_taxonomy", "evaluate",
    "export_labels", "export_model", "import_labels", "label", "limit_reads", "merge_stores", "open_labels",
    "open_session", "open_stores", "overlay", "predict", "rank", "report", "rescale", "reselect", "status", "train",
    "use_storage", "write_manifest",
]  # fmt: skip


if any(Path(entry or ".").resolve() == Path(__file__).resolve().parent for entry in sys.path):
    # Python was started in the checkout: transformers looks for a package named `kernels` and would import this one's
    sys.modules.setdefault("kernels", None)  # type: ignore[arg-type]


def __getattr__(name: str) -> object:
    if name == "__version__":
        # reading it takes longer than everything else here
        from importlib.metadata import version

        return version("maskmill")
    if name not in _EXPORTS:
        raise AttributeError(f"module 'maskmill' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_EXPORTS[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
