"""Models that give class logits for every cell of a map: SegFormer, UperNet, DPT."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...engine.model.bundle import OutputSpec
from .checkpoint import Checkpoint
from .folded import Choices, Folded, class_names, image_input
from .torch_module import as_module


def segformer(checkpoint: Checkpoint, model: Any, choices: Choices) -> Folded:
    """SegFormer (arXiv 2105.15203): any size, logits at stride 4."""
    return _folded(checkpoint, model, choices, _logits, dynamic=True, multiple=32)


def upernet(checkpoint: Checkpoint, model: Any, choices: Choices) -> Folded:
    """UperNet (arXiv 1807.10221) at a fixed size, logits at stride 4: its upsampling to the image is left out."""
    return _folded(checkpoint, model, choices, _logits_of_head)


def dpt(checkpoint: Checkpoint, model: Any, choices: Choices) -> Folded:
    """DPT (arXiv 2103.13413) with its segmentation head, at a fixed size."""
    return _folded(checkpoint, model, choices, _logits)


def _logits(model: Any, image: Any) -> Any:
    return model(pixel_values=image).logits


def _logits_of_head(model: Any, image: Any) -> Any:
    return model.decode_head(model.backbone(image).feature_maps)


def _folded(
    checkpoint: Checkpoint, model: Any, choices: Choices, logits: Callable[[Any, Any], Any], **size: Any
) -> Folded:
    return Folded(
        module=as_module(logits, model),
        task="semantic",
        input=image_input(checkpoint, choices, **size),
        outputs=(OutputSpec(name="scores", activation="softmax"),),
        classes=class_names(checkpoint, choices),
        background=choices.background,
    )
