"""An image classifier with class activation maps, as S2C trains it.

::

    network = classifier(lite0(256), 256, num_classes=21, background=0)
    features, maps = network.decoder.maps(network.encode(images))
    logits = maps.mean(dim=(2, 3))               # (N, 20), of the image
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...errors import UsageError
from ..run import import_torch

if TYPE_CHECKING:
    from torch import Tensor, nn

BACKGROUND_SCORE = 0.3
"""Initial score of the background when a classifier labels by its own maps: normalized activations lie in [0, 1]."""

_EPSILON = 1e-5


def classifier(body: nn.Module, width: int, num_classes: int, background: int | None) -> nn.Module:
    """Turn a student with ``width`` output channels into a classifier; changes ``body`` in place.

    The head computes F = relu(body(images)), (N, width, h, w), and A = conv(F), one map (N, K, h, w) per class other
    than the background, in class order; the logits of an image are the means of its maps.

    As a student it labels by these maps: the score of a class is its map after :func:`normalized_maps`, or 0 if the
    logit of the image is not positive. The background has a constant score.
    """
    torch = import_torch()
    if not hasattr(body, "decoder"):
        raise UsageError(
            "a classifier needs a model with an encoder and a decoder; choose lite0, segformer or another such model"
        )
    num_maps = num_classes - (background is not None)

    class ActivationHead(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.background = background
            # a buffer, so that a checkpoint holds the score that validation found
            self.register_buffer("background_score", torch.tensor(BACKGROUND_SCORE))
            self.body = body.decoder
            self.activate = torch.nn.Conv2d(width, num_maps, 1, bias=False)

        def maps(self, features: list[Tensor]) -> tuple[Tensor, Tensor]:
            embedded = torch.relu(self.body(features))
            return embedded, self.activate(embedded)

        def forward(self, features: list[Tensor]) -> Tensor:
            _, maps = self.maps(features)
            is_present = maps.mean(dim=(2, 3), keepdim=True) > 0
            scores = normalized_maps(maps) * is_present
            if background is None:
                return scores
            outside = torch.ones_like(scores[:, :1]) * self.background_score
            return torch.cat([scores[:, :background], outside, scores[:, background:]], dim=1)

    body.decoder = ActivationHead()
    body.options["features"] = width
    return body


def as_cam_model(network: nn.Module) -> nn.Module:
    """Return the classifier with the outputs of a ``cam`` bundle: maps (N, K, h, w), logits (N, K), features (N, D, h,
    w).
    """
    torch = import_torch()

    class CamModel(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            features, maps = self.network.decoder.maps(self.network.encode(images))
            return maps, maps.mean(dim=(2, 3)), features

    return CamModel()


def normalized_maps(maps: Tensor) -> Tensor:
    """Divide each map by its largest value: relu(A_k) / (max relu(A_k) + 1e-5), (N, K, h, w) in [0, 1]."""
    positive = maps.relu()
    return positive / (positive.amax(dim=(2, 3), keepdim=True) + _EPSILON)
