"""The student at the start of a run: built from the recipe, with ImageNet's weights or those of another run."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ...checks import name_list
from ...engine.model.files import sha256
from ...engine.model.taxonomy import Taxonomy
from ...errors import UsageError
from ..recipes import Recipe
from ..run import Run, best_checkpoint, read_checkpoint, student_state
from .models import build_model

if TYPE_CHECKING:
    from torch import nn


def build_student(recipe: Recipe, classes: Taxonomy, channels: int = 3) -> nn.Module:
    """Build the network of a recipe for the classes of a run and the number of its images' channels."""
    options = dict(recipe.model_options)
    if channels != 3:
        options["channels"] = channels
    if recipe.model.startswith("allspark:"):
        # its memory holds feature maps of the size that the training crop gives
        options.setdefault("crop", recipe.crop)
    return build_model(recipe.model, classes.num_targets, background=classes.background, **options)


def load_student(student: nn.Module, init: str | os.PathLike[str], classes: Taxonomy) -> str:
    """Load the weights of another run into a student; returns the SHA-256 of their checkpoint."""
    run, path = Run.load(init), best_checkpoint(init)
    if run.classes != classes.targets:
        raise UsageError(
            f"--init {init} has the classes {name_list(run.classes)}, this run {name_list(classes.targets)}; "
            "choose a run with the same classes"
        )
    try:
        student.load_state_dict(dict(student_state(read_checkpoint(path))))
    except RuntimeError as error:
        raise UsageError(
            f"--init {init} holds the weights of {run.recipe.model}, which do not fit this network; use the same model "
            "and options"
        ) from error
    return sha256(path)
