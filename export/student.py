"""Make a bundle from a trained student's run folder::

bundle = bundle_from_run("run", "bundle", size=(512, 512))
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable
from pathlib import Path

from .bundle import Bundle, OutputSpec, Provenance
from .compare import Photo
from .torch import bundle_from_module


def is_run(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder is a trainer's run."""
    from ..trainer.run import RUN_FILE

    return (Path(folder) / RUN_FILE).is_file()


def bundle_from_run(
    run: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    size: tuple[int, int] | None = None,
    licence: str = "",
    images: Iterable[Photo] | None = None,
) -> Bundle:
    """Export the student of a run, at ``size`` (height, width) or the size that it was trained at.

    ``images`` are what the export is compared on (see :func:`.torch.bundle_from_module`). Raises
    :class:`TrainingError` where the folder holds no student, and what ``bundle_from_module`` raises.
    """
    from ..trainer.models import load_run

    student = load_run(run)
    spec = student.input
    if size is not None:
        spec = dataclasses.replace(spec, height=size[0], width=size[1])
    # a classifier's activation maps are normalised already
    activation = "none" if student.run.recipe.model.startswith("cam:") else "softmax"
    return bundle_from_module(
        student.module,
        folder,
        task="semantic",
        input=spec,
        outputs=(OutputSpec(name="scores", activation=activation),),
        classes=student.classes,
        background=None if student.background is None else student.classes[student.background],
        source=Provenance(id=Path(run).resolve().name, licence=licence),
        images=images,
    )
