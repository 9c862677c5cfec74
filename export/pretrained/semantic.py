"""Export models that give class logits for every cell of a map: SegFormer, UperNet, DPT."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from ...engine.model.bundle import OutputSpec
from ...errors import ExportError, UsageError
from .checkpoint import Checkpoint
from .folded import Choices, Folded, class_names, image_input, with_background
from .torch_module import as_module

if TYPE_CHECKING:
    from torch import Tensor, nn


def segformer(checkpoint: Checkpoint, model: Any, choices: Choices) -> Folded:
    """Fold SegFormer (arXiv 2105.15203): any size, logits at stride 4, its head as :func:`merged_head` returns it."""
    if not model.config.reshape_last_stage:
        raise UsageError(
            f"{checkpoint.folder} has reshape_last_stage false in its config.json, with which transformers runs "
            "at one square size at most; set it to true, which changes no weight"
        )
    model.decode_head = merged_head(model.decode_head)
    return _folded(checkpoint, model, choices, _logits, dynamic=True, multiple=32)


def upernet(checkpoint: Checkpoint, model: Any, choices: Choices) -> Folded:
    """Fold UperNet (arXiv 1807.10221) at a fixed size, logits at stride 4: its upsampling to the image is left out."""
    return _folded(checkpoint, model, choices, _logits_of_head)


def dpt(checkpoint: Checkpoint, model: Any, choices: Choices) -> Folded:
    """Fold DPT (arXiv 2103.13413) with its segmentation head, at a fixed size."""
    return _folded(checkpoint, model, choices, _logits)


def merged_head(head: nn.Module) -> nn.Module:
    """Return a SegFormer head that computes the same logits with a fraction of the multiplications.

    The head projects the features of each stage, upsamples and concatenates them, and fuses them by a 1x1 convolution
    with batch normalization, at the largest resolution. All of this is linear, and an upsampling whose weights sum to 1
    commutes with a 1x1 convolution. So each stage's projection, its part of the fusion and the normalization become one
    convolution at the stage's own resolution, and the upsampled results are summed.

    Raises :class:`ExportError` if the logits differ from those of ``head``, that is, if transformers has changed it.
    """
    import torch
    from torch import nn

    head = head.eval()
    projections = [part.proj for part in next(part for part in head.children() if isinstance(part, nn.ModuleList))]
    fuse, norm = head.linear_fuse, head.batch_norm
    gain = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    # the fusion takes the stages in reverse order
    parts = (gain[:, None] * fuse.weight.double()[:, :, 0, 0]).chunk(len(projections), dim=1)[::-1]
    bias = norm.bias.double() - gain * norm.running_mean.double()
    for projection, part in zip(projections, parts, strict=True):
        bias = bias + part @ projection.bias.double()

    class MergedHead(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stages = nn.ModuleList(
                nn.Conv2d(projection.in_features, fuse.out_channels, 1, bias=index == 0)
                for index, projection in enumerate(projections)
            )
            self.activation, self.classifier = head.activation, head.classifier

        def forward(self, features: Sequence[Tensor]) -> Tensor:
            size = features[0].shape[2:]
            fused = self.stages[0](features[0])
            for stage, feature in zip(self.stages[1:], features[1:], strict=True):
                fused = fused + nn.functional.interpolate(stage(feature), size=size, mode="bilinear")
            return self.classifier(self.activation(fused))

    module = MergedHead().eval()
    with torch.no_grad():
        for stage, projection, part in zip(module.stages, projections, parts, strict=True):
            stage.weight.copy_((part @ projection.weight.double())[:, :, None, None])
        module.stages[0].bias.copy_(bias)
        generator = torch.Generator().manual_seed(0)
        features = [
            torch.randn(1, projection.in_features, 16 >> index, 24 >> index, generator=generator)
            for index, projection in enumerate(projections)
        ]
        original_logits, logits = head(features), module(features)
    error, magnitude = float((logits - original_logits).abs().max()), float(original_logits.abs().max())
    if error > 1e-4 * max(1.0, magnitude):
        raise ExportError(
            f"SegFormer's merged head differs by {error:.2g} (values up to {magnitude:.3g}) from the head of the "
            "installed transformers; install transformers 5.24"
        )
    return module


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
