"""Commands that adopt, convert, prove, build and time models."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from .build import build
from .gate import compare_installed, convert_bundle, prove, tune_bundle
from .import_model import cam_head, doctor, import_model
from .rescale import rescale_scores

COMMANDS: Mapping[str, Mapping[str, Callable[..., None]]] = {
    "Models": {
        "import": import_model,
        "cam-head": cam_head,
        "rescale": rescale_scores,
        "convert": convert_bundle,
        "gate": prove,
        "build": build,
        "bench": compare_installed,
        "tune": tune_bundle,
    },
    "Setup": {"doctor": doctor},
}
"""Commands by the panel of the root help that lists them: panel → name → function."""
