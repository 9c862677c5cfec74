"""maskmill: calibrated, weighted pseudo-labels from foundation segmentation models.

The public names are imported when they are first used, so ``import maskmill`` touches no device, no network and no
optional package::

    import maskmill

    store = maskmill.LabelStore.open("labels")
    label, weight = store.read("photos/0001.jpg")
"""

from __future__ import annotations

import importlib
from importlib.metadata import version as _version
from typing import Any

_EXPORTS = {
    "Bundle": "engine.model.bundle",
    "LabelStore": "engine.store.label_store",
    "MaskmillError": "errors",
    "OnnxSession": "engine.runtimes.onnx_runtime",
    "ScoreMap": "engine.predictors.base",
    "SemanticPredictor": "engine.predictors.semantic",
    "Taxonomy": "engine.model.taxonomy",
    "calibrate": "engine.calibration.calibrate",
    "evaluate": "engine.report.evaluate",
    "label": "engine.labeling.label_run",
}

__all__ = ["__version__", *_EXPORTS]

__version__ = _version("maskmill")


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'maskmill' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_EXPORTS[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
