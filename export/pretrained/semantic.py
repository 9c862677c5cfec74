"""Export models that give class logits for every cell of a map: SegFormer, UperNet, DPT."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from ...engine.model.bundle import OutputSpec
from .checkpoint import Checkpoint
from .folded import Choices, Folded, class_names, image_input, with_background
from .torch_module import as_module

if TYPE_CHECKING:
    from torch import Tensor


def segformer(checkpoint: Checkpoint, model: Any, choices: Choices) -> Folded:
    """Fold SegFormer (arXiv 2105.15203): any size, logits at stride 4."""
    return _folded(checkpoint, model, choices, _logits, dynamic=True, multiple=32)


def upernet(checkpoint: Checkpoint, model: Any, choices: Choices) -> Folded:
    """Fold UperNet (arXiv 1807.10221) at a fixed size, logits at stride 4: its upsampling to the image is left out."""
    return _folded(checkpoint, model, choices, _logits_of_head)


def dpt(checkpoint: Checkpoint, model: Any, choices: Choices) -> Folded:
    """Fold DPT (arXiv 2103.13413) with its segmentation head, at a fixed size."""
    return _folded(checkpoint, model, choices, _logits)


def _logits(model: Any, image: Tensor) -> Tensor:
    return model(pixel_values=image).logits


def _logits_of_head(model: Any, image: Tensor) -> Tensor:
    return model.decode_head(model.backbone(image).feature_maps)


def _two_channels(logits: Callable[[Any, Tensor], Tensor], model: Any, image: Tensor) -> Tensor:
    """Put a background at logit 0 before the one class: their softmax is 1 minus the sigmoid, and the sigmoid."""
    import torch

    foreground = logits(model, image)
    return torch.cat([torch.zeros_like(foreground), foreground], dim=1)


def _folded(
    checkpoint: Checkpoint, model: Any, choices: Choices, logits: Callable[[Any, Tensor], Tensor], **size: Any
) -> Folded:
    classes, background = class_names(checkpoint, choices), choices.background
    if len(classes) == 1:
        classes, background, _ = with_background(classes, choices)
        logits = partial(_two_channels, logits)
    return Folded(
        module=as_module(logits, model),
        task="semantic",
        input=image_input(checkpoint, choices, **size),
        outputs=(OutputSpec(name="scores", activation="softmax"),),
        classes=classes,
        background=background,
    )
