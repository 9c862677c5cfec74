"""Commands of the engine: class mapping, calibration, labeling, and looking at a store."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from .calibration.calibrate import calibrate_thresholds
from .calibration.choose import choose_selection
from .calibration.objects import calibrate_object_scores
from .calibration.taxonomy import draft_taxonomy
from .exchange.export_labels import export_labels
from .exchange.import_labels import import_labels
from .labels.label import label_corpus, label_prompted, segment_corpus
from .labels.reselect import reselect_labels
from .labels.stores import manifest, merge, status
from .labels.verify import verify_store
from .looking.rank import rank
from .looking.report import report
from .looking.serve import serve
from .looking.store import show

COMMANDS: Mapping[str, Mapping[str, Callable[..., None]]] = {
    "Calibration": {
        "taxonomy": draft_taxonomy,
        "choose": choose_selection,
        "calibrate": calibrate_thresholds,
        "calibrate-objects": calibrate_object_scores,
    },
    "Labels": {
        "label": label_corpus,
        "label-prompted": label_prompted,
        "segment": segment_corpus,
        "reselect": reselect_labels,
        "merge": merge,
        "verify": verify_store,
        "status": status,
    },
    "Looking": {"show": show, "report": report, "serve": serve, "rank": rank},
    "Exchange": {"export-labels": export_labels, "import-labels": import_labels, "manifest": manifest},
}
"""Commands by panel of the root help: panel → name → function."""
