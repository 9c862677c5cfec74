"""Models that give class logits for every cell of a map: SegFormer, UperNet, DPT, BEiT and their like."""

from __future__ import annotations

from typing import Any

from ..bundle import OutputSpec
from ..hub import Checkpoint
from ..torch import as_module
from .folded import Choices, Folded, class_names, image_input


def logits(model: Any, image: Any) -> Any:
    """Images (N, 3, H, W) → logits (N, C, h, w), not yet upsampled."""
    return model(pixel_values=image).logits


def segformer(checkpoint: Checkpoint, model: Any, choices: Choices) -> Folded:
    """SegFormer (arXiv 2105.15203): any size, logits at stride 4."""
    return _folded(checkpoint, model, choices, dynamic=True, multiple=32)


def _folded(checkpoint: Checkpoint, model: Any, choices: Choices, **size: Any) -> Folded:
    return Folded(
        module=as_module(logits, model),
        task="semantic",
        input=image_input(checkpoint, choices, **size),
        outputs=(OutputSpec(name="scores", activation="softmax"),),
        classes=class_names(checkpoint, choices),
        background=choices.background,
    )
