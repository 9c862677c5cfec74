"""Export the student of a training run as a bundle::

bundle = bundle_from_run("run", "bundle", size=(512, 512))
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable
from pathlib import Path

from ..engine.model.bundle import Bundle, OutputSpec, Provenance
from ..export.pictures import GateImage
from ..export.pretrained.torch_module import bundle_from_module

_CAM_OUTPUTS = (
    OutputSpec(name="cam", kind="cam", activation="none"),
    OutputSpec(name="logits", kind="logits", activation="sigmoid"),
    OutputSpec(name="features", kind="features", activation="none"),
)


def is_run(folder: str | os.PathLike[str]) -> bool:
    """Return True if a folder holds a training run."""
    from .run import RUN_FILE

    return (Path(folder) / RUN_FILE).is_file()


def bundle_from_run(
    run: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    size: tuple[int, int] | None = None,
    license: str = "",
    allow_code: bool = False,
    images: Iterable[GateImage] | None = None,
) -> Bundle:
    """Export the student of a run with inputs of ``size`` (height, width), by default the training crop.

    A classifier (``cam:`` models, recipe ``s2c``) becomes a ``cam`` bundle with the classes other than the background.
    The exported graph is compared with the student on ``images``, pairs of a name and (H, W, 3) uint8 RGB (see
    :func:`maskmill.export.pretrained.torch_module.bundle_from_module`). Raises :class:`TrainingError` if the folder
    holds no student, and the errors of ``bundle_from_module``.
    """
    from .students.models import load_run

    student = load_run(run, allow_code=allow_code)
    spec = student.input
    if size is not None:
        spec = dataclasses.replace(spec, height=size[0], width=size[1])
    background = None if student.background is None else student.classes[student.background]
    if student.run.recipe.model.startswith("cam:"):
        from .students.classifier import as_cam_model

        module, task, outputs = as_cam_model(student.module), "cam", _CAM_OUTPUTS
        classes, background = [name for name in student.classes if name != background], None
    else:
        module, task, outputs = student.module, "semantic", (OutputSpec(name="scores"),)
        classes = student.classes
    return bundle_from_module(
        module,
        folder,
        task=task,
        input=spec,
        outputs=outputs,
        classes=classes,
        background=background,
        source=Provenance(id=Path(run).resolve().name, license=license),
        images=images,
    )
