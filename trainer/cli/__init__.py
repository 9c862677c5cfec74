"""Commands that export models and runs, train and use students, measure, and run the demonstration."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from .demo import demo
from .evaluate import evaluate_target
from .export import export_model
from .student import predict_image
from .train import train_student

COMMANDS: Mapping[str, Mapping[str, Callable[..., None]]] = {
    "Models": {"export": export_model},
    "Looking": {"evaluate": evaluate_target},
    "Students": {"train": train_student, "predict": predict_image},
    "Setup": {"demo": demo},
}
"""Commands by the panel of the root help that lists them: panel → name → function."""
