"""Export foundation models of transformers, each with its post-processing folded into the graph.

::

    bundle = bundle_from_pretrained("nvidia/segformer-b0-finetuned-ade-512-512", "segformer-b0")
    clipseg = "CIDAS/clipseg-rd64-refined"
    bundle = bundle_from_pretrained(clipseg, "clipseg", Choices(classes=("cat", "sofa"), background="other"))

A family is a function from a checkpoint and its model to a :class:`Folded`: a module of pure functions over the model,
its input as the checkpoint's image processor prepares it, and its classes. To add one, write that function and name it
in :data:`FAMILIES`.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from ...checks import check_choice
from ...engine.model.bundle import Bundle, Provenance
from ...errors import UsageError
from ..pictures import GateImage
from . import classifier, concepts, detectors, queries, sam, semantic, texts
from .checkpoint import Checkpoint, fetch
from .folded import Choices, Folded, class_names, preprocessing
from .torch_module import bundle_from_module

__all__ = ["FAMILIES", "Choices", "Folded", "bundle_from_folded", "bundle_from_pretrained", "family_of", "fold"]

FAMILIES: Mapping[str, tuple[ModuleType, str]] = {
    "segformer": (semantic, "SegformerForSemanticSegmentation"),
    "upernet": (semantic, "UperNetForSemanticSegmentation"),
    "dpt": (semantic, "DPTForSemanticSegmentation"),
    "mask2former": (queries, "Mask2FormerForUniversalSegmentation"),
    "oneformer": (queries, "OneFormerForUniversalSegmentation"),
    "eomt": (queries, "EomtForUniversalSegmentation"),
    "eomt_dinov3": (queries, "EomtDinov3ForUniversalSegmentation"),
    "clipseg": (texts, "CLIPSegForImageSegmentation"),
    "sam3": (concepts, "Sam3Model"),
    "sam3_lite_text": (concepts, "Sam3LiteTextModel"),
    "sam": (sam, "SamModel"),
    "sam_hq": (sam, "SamHQModel"),
    "sam2": (sam, "Sam2Model"),
    "edgetam": (sam, "EdgeTamModel"),
    "sam3_tracker": (sam, "Sam3TrackerModel"),
    "grounding_dino": (detectors, "GroundingDinoForObjectDetection"),
    "mm_grounding_dino": (detectors, "MMGroundingDinoForObjectDetection"),
    "owlvit": (detectors, "OwlViTForObjectDetection"),
    "owlv2": (detectors, "Owlv2ForObjectDetection"),
    "resnet": (classifier, "ResNetForImageClassification"),
    "convnext": (classifier, "ConvNextForImageClassification"),
    "efficientnet": (classifier, "EfficientNetForImageClassification"),
    "vit": (classifier, "ViTForImageClassification"),
}
"""Family → module with its function, and class of transformers that loads it."""

_WITH_OBJECTS = (queries, concepts)
_WITH_TEXTS = (texts, concepts, detectors)
_OF_VIDEO = {"Sam2VideoModel": "sam2", "EdgeTamVideoModel": "edgetam", "Sam3VideoModel": "sam3"}
"""Architecture of a published video checkpoint → the family that loads its part for single images."""


def bundle_from_pretrained(
    model: str,
    folder: str | os.PathLike[str],
    choices: Choices | None = None,
    *,
    family: str | None = None,
    revision: str | None = None,
    allow_pickle: bool = False,
    license: str = "",
    images: Iterable[GateImage] | None = None,
) -> Bundle:
    """Export a model from a local folder or the hub to a new bundle in ``folder``.

    ``family`` is one of :data:`FAMILIES`; by default it follows from the checkpoint's configuration. The export is
    compared with the model on ``images`` (see :func:`.torch_module.bundle_from_module`).

    Raises :class:`UsageError` for choices that the model does not have, :class:`ExportError` if it cannot be
    downloaded, read or exported, :class:`GateError` if the graph differs from the model.
    """
    if Path(folder).exists():
        raise UsageError(f"{folder} exists already; remove it or choose another name for the bundle")
    checkpoint = fetch(model, revision=revision, allow_pickle=allow_pickle, license=license)
    folded = fold(checkpoint, choices or Choices(), family=family)
    return bundle_from_folded(folded, folder, source=checkpoint.source, images=images)


def fold(checkpoint: Checkpoint, choices: Choices, *, family: str | None = None) -> Folded:
    """Load a checkpoint's model and fold its post-processing in, as :func:`bundle_from_pretrained` exports it.

    Its preprocessing and class names are checked before the weights are read.
    """
    family = family or family_of(checkpoint)
    check_choice("family", family, FAMILIES)
    module, architecture = FAMILIES[family]
    if choices.instances and module not in _WITH_OBJECTS:
        with_objects = [name for name, (where, _) in FAMILIES.items() if where in _WITH_OBJECTS]
        raise UsageError(
            f"{family} gives no single objects; leave --instances out, or export one of {', '.join(with_objects)}"
        )
    if choices.template is not None and module not in _WITH_TEXTS:
        raise UsageError(f"{family} takes no text, so it has no --template; leave it out")
    if module is not sam and choices.masks != "all":
        raise UsageError(f"{family} takes no prompts, so it has no --masks; leave it out")
    if module is sam and (choices.classes or choices.background):
        raise UsageError(f"{family} gives masks without classes; leave --classes and --background out")
    steps = preprocessing(checkpoint, choices)
    if module not in (*_WITH_TEXTS, sam):
        class_names(checkpoint, choices)
    function = getattr(module, family)
    model = function(checkpoint, checkpoint.load(architecture), choices)
    return dataclasses.replace(model, reduced_labels=steps.reduced_labels)


def bundle_from_folded(
    folded: Folded,
    folder: str | os.PathLike[str],
    *,
    source: Provenance,
    images: Iterable[GateImage] | None = None,
) -> Bundle:
    """Export the result of :func:`fold`; raises the errors of :func:`.torch_module.bundle_from_module`."""
    arguments: dict[str, Any] = {field.name: getattr(folded, field.name) for field in dataclasses.fields(folded)}
    return bundle_from_module(arguments.pop("module"), folder, **arguments, source=source, images=images)


def family_of(checkpoint: Checkpoint) -> str:
    """Return the family of a checkpoint from the architecture in its configuration."""
    value = checkpoint.config.get("architectures")
    names = [name for name in value if isinstance(name, str)] if isinstance(value, list) else []
    for family, (_, architecture) in FAMILIES.items():
        if architecture in names:
            return family
    for architecture in names:
        if architecture in _OF_VIDEO:
            return _OF_VIDEO[architecture]
    architectures = ", ".join(names) or "none"
    raise UsageError(
        f"{checkpoint.folder} is of no family that can be exported (its architecture: {architectures}; "
        f"families: {', '.join(FAMILIES)}); choose one with --family, or export it with bundle_from_module"
    )
