"""Export image classifiers with class activation maps: ResNet, ConvNeXt, EfficientNet, ViT.

The head of a convolutional network reads the mean of the last map, and a class's activation map is that map weighted by
the class's row of the head (arXiv 1512.04150): the map's mean plus the bias is the class's logit. ``features`` is the
head's input at each place, so that another head can be fitted on it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ...engine.model.bundle import OutputSpec
from ...errors import ExportError
from .checkpoint import Checkpoint
from .folded import Choices, Folded, class_names, image_input
from .torch_module import as_module

if TYPE_CHECKING:
    from torch import Tensor, nn


def resnet(checkpoint: Checkpoint, model: Any, choices: Choices) -> Folded:
    """Fold ResNet (arXiv 1512.03385)."""
    return _folded(checkpoint, model, choices, _pooled(_resnet_map), dynamic=True, multiple=32)


def convnext(checkpoint: Checkpoint, model: Any, choices: Choices) -> Folded:
    """Fold ConvNeXt (arXiv 2201.03545)."""
    return _folded(checkpoint, model, choices, _pooled(_convnext_map), dynamic=True, multiple=32)


def efficientnet(checkpoint: Checkpoint, model: Any, choices: Choices) -> Folded:
    """Fold EfficientNet (arXiv 1905.11946)."""
    if model.config.pooling_type != "mean":
        raise ExportError(
            f"{checkpoint.folder} pools by {model.config.pooling_type}; class activation maps need the mean"
        )
    return _folded(checkpoint, model, choices, _pooled(_efficientnet_map), dynamic=True, multiple=32)


def vit(checkpoint: Checkpoint, model: Any, choices: Choices) -> Folded:
    """Fold ViT (arXiv 2010.11929) at a fixed size, through its last block.

    The class token gathers from patches by attention, so the head's input is no mean of patches. A patch's feature is
    the head's input if the class token attended, in the last block, to that patch alone: the value path of MaskCLIP
    (arXiv 2112.01071) with the class token's residual.
    """
    return _folded(checkpoint, model, choices, _vit)


def _pooled(last_map: Callable[[Any, Tensor], Tensor]) -> Callable[[Any, Tensor], tuple[Tensor, Tensor, Tensor]]:
    """Return the function that computes the outputs of a model whose head is linear on the mean of ``last_map``."""

    def outputs(model: Any, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        features = last_map(model, image)
        maps, head = _class_maps(model, features)
        return maps, maps.mean((2, 3)) + head.bias, features

    return outputs


def _class_maps(model: Any, features: Tensor) -> tuple[Tensor, nn.Linear]:
    """Weight features (N, D, h, w) by the rows of the head to (N, C, h, w), and return the head, too."""
    from torch import nn

    head = next(layer for layer in model.classifier.modules() if isinstance(layer, nn.Linear))
    return nn.functional.conv2d(features, head.weight[:, :, None, None]), head


def _resnet_map(model: Any, image: Tensor) -> Tensor:
    return model.resnet(image).last_hidden_state


def _efficientnet_map(model: Any, image: Tensor) -> Tensor:
    body = model.efficientnet
    return body.encoder(body.embeddings(image)).last_hidden_state


def _convnext_map(model: Any, image: Tensor) -> Tensor:
    """Normalize the last map with the statistics of its mean, so that the result is linear in the map."""
    hidden, norm = model.convnext(image).last_hidden_state, model.convnext.layernorm
    variance = hidden.mean((2, 3), keepdim=True).var(1, keepdim=True, correction=0)
    scaled = (hidden - hidden.mean(1, keepdim=True)) / (variance + norm.eps).sqrt()
    return scaled * norm.weight[:, None, None] + norm.bias[:, None, None]


def _vit(model: Any, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    body = model.vit
    states = body.embeddings(image, interpolate_pos_encoding=True)
    *layers, last = body.layers
    for layer in layers:
        states = layer(states, None)
    values = last.attention.o_proj(last.attention.v_proj(last.layernorm_before(states)))
    tokens = states[:, :1] + values[:, 1:]
    tokens = body.layernorm(tokens + last.mlp(last.layernorm_after(tokens)))
    side = body.embeddings.patch_embeddings.patch_size
    rows, columns = (image.shape[2 + axis] // side[axis] for axis in (0, 1))
    features = tokens.transpose(1, 2).unflatten(2, (rows, columns))
    maps, head = _class_maps(model, features)
    return maps, head(body.layernorm(last(states, None))[:, 0]), features


def _folded(
    checkpoint: Checkpoint, model: Any, choices: Choices, outputs: Callable[[Any, Tensor], Any], **size: Any
) -> Folded:
    multi_label = model.config.problem_type == "multi_label_classification"
    return Folded(
        module=as_module(outputs, model),
        task="cam",
        input=image_input(checkpoint, choices, **size),
        outputs=(
            OutputSpec(name="cam", kind="cam", activation="none"),
            OutputSpec(name="logits", kind="logits", activation="sigmoid" if multi_label else "softmax"),
            OutputSpec(name="features", kind="features", activation="none"),
        ),
        classes=class_names(checkpoint, choices),
        background=choices.background,
    )
