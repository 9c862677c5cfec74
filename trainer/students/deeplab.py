"""DeepLabv3+ on a dilated ResNet, as UniMatch and CSL train it.

::

    network = deeplabv3plus(num_classes=21, pretrained=False, depth=50)  # or weights="resnet101.pth"
    low, high = network.encode(images)      # (N, 3, H, W) float32, normalized → maps at strides 4 and 16
    logits = network.decode([low, high])    # (N, 21, H / 4, W / 4)

Layers have the names of UniMatch's code, so that its files of weights load. Source: model/backbone/resnet.py and
model/semseg/deeplabv3plus.py of UniMatch; Chen et al., "Encoder-Decoder with Atrous Separable Convolution" (2018).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ...checks import check_choice
from ...errors import UsageError
from ..run import import_torch
from .networks import encoder_decoder

if TYPE_CHECKING:
    from torch import Tensor, nn

_BLOCKS: Mapping[int, tuple[int, ...]] = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
_EXPANSION = 4
"""Channels of a block's output as a multiple of its width."""


def deeplabv3plus(
    num_classes: int,
    *,
    pretrained: bool = True,
    weights: str | None = None,
    depth: int = 101,
    dilations: Sequence[int] = (6, 12, 18),
    blocks: Sequence[int] | None = None,
    width: int = 64,
) -> nn.Module:
    """Build a ResNet of ``depth`` 50 or 101 with the head of DeepLabv3+; the last stage is dilated, logits at stride 4.

    ``weights`` is a file with the ImageNet weights that UniMatch links to (three 3x3 convolutions in place of the
    first 7x7 one); it is needed if ``pretrained``. ``dilations`` are those of the head, ``blocks`` the number of blocks
    of the four stages if not those of ``depth``, ``width`` the channels of the stem. Features are the maps of the first
    and the last stage. Raises :class:`UsageError` if the weights are missing or do not fit.
    """
    check_choice("depth", depth, _BLOCKS)
    counts = tuple(blocks or _BLOCKS[depth])
    encoder = _resnet(counts, width)
    if pretrained:
        _load(encoder, weights)
    return encoder_decoder(
        encoder,
        _head(width * _EXPANSION, 8 * width * _EXPANSION, tuple(dilations), num_classes),
        options={"depth": depth, "dilations": list(dilations), "blocks": list(counts), "width": width},
    )


def _load(encoder: nn.Module, weights: str | None) -> None:
    """Load the weights of a ResNet without its classifier."""
    torch = import_torch()
    if weights is None:
        raise UsageError(
            "deeplabv3plus has no weights of its own: give a file with --set model.weights=resnet101.pth, or start at "
            "random ones with --set model.pretrained=false"
        )
    try:
        state = torch.load(weights, map_location="cpu", weights_only=True)
        encoder.load_state_dict({key: value for key, value in state.items() if not key.startswith("fc.")})
    except (OSError, RuntimeError, ValueError, AttributeError, EOFError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UsageError(f"{weights} does not hold the weights of this ResNet: {reason}") from error


def _resnet(blocks: Sequence[int], width: int) -> nn.Module:
    from torch import nn

    class Bottleneck(nn.Module):
        def __init__(self, inputs: int, width: int, stride: int, dilation: int) -> None:
            super().__init__()
            outputs = width * _EXPANSION
            self.conv1, self.bn1 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
            self.conv2 = nn.Conv2d(width, width, 3, stride, dilation, dilation, bias=False)
            self.bn2 = nn.BatchNorm2d(width)
            self.conv3, self.bn3 = nn.Conv2d(width, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
            self.relu = nn.ReLU(inplace=True)
            self.downsample: nn.Module | None = None
            if stride != 1 or inputs != outputs:
                projection = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
                self.downsample = nn.Sequential(projection, nn.BatchNorm2d(outputs))

        def forward(self, maps: Tensor) -> Tensor:
            inner = self.relu(self.bn1(self.conv1(maps)))
            inner = self.bn3(self.conv3(self.relu(self.bn2(self.conv2(inner)))))
            return self.relu(inner + (maps if self.downsample is None else self.downsample(maps)))

    def stage(inputs: int, factor: int, count: int, stride: int = 1, dilation: int = 1) -> nn.Sequential:
        inner = factor * width
        first = Bottleneck(inputs * width, inner, stride, 1)
        return nn.Sequential(first, *(Bottleneck(inner * _EXPANSION, inner, 1, dilation) for _ in range(count - 1)))

    class ResNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = nn.Sequential(
                *_layers(3, width, 3, stride=2, padding=1),
                *_layers(width, width, 3, padding=1),
                nn.Conv2d(width, 2 * width, 3, padding=1, bias=False),
            )
            self.bn1, self.relu = nn.BatchNorm2d(2 * width), nn.ReLU(inplace=True)
            self.maxpool = nn.MaxPool2d(3, 2, 1)
            self.layer1 = stage(2, 1, blocks[0])
            self.layer2 = stage(4, 2, blocks[1], stride=2)
            self.layer3 = stage(8, 4, blocks[2], stride=2)
            self.layer4 = stage(16, 8, blocks[3], dilation=2)

        def forward(self, images: Tensor) -> list[Tensor]:
            low = self.layer1(self.maxpool(self.relu(self.bn1(self.conv1(images)))))
            return [low, self.layer4(self.layer3(self.layer2(low)))]

    network = ResNet()
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network


def _head(low: int, high: int, dilations: Sequence[int], num_classes: int) -> nn.Module:
    """Return DeepLabv3+'s head: spatial pyramid of dilated convolutions, joined with the finer map."""
    from torch import nn
    from torch.nn.functional import interpolate

    torch, width = import_torch(), high // 8

    class Pooling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gap = nn.Sequential(nn.AdaptiveAvgPool2d(1), *_layers(high, width, 1))

        def forward(self, maps: Tensor) -> Tensor:
            return self.gap(maps).expand(-1, -1, *maps.shape[-2:])

    class Pyramid(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.b0 = nn.Sequential(*_layers(high, width, 1))
            self.b1, self.b2, self.b3 = (
                nn.Sequential(*_layers(high, width, 3, padding=rate, dilation=rate)) for rate in dilations
            )
            self.b4 = Pooling()
            self.project = nn.Sequential(*_layers(5 * width, width, 1))

        def forward(self, maps: Tensor) -> Tensor:
            return self.project(torch.cat([part(maps) for part in (self.b0, self.b1, self.b2, self.b3, self.b4)], 1))

    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = Pyramid()
            self.reduce = nn.Sequential(*_layers(low, 48, 1))
            self.fuse = nn.Sequential(*_layers(width + 48, 256, 3, padding=1), *_layers(256, 256, 3, padding=1))
            self.classifier = nn.Conv2d(256, num_classes, 1)

        def forward(self, features: list[Tensor]) -> Tensor:
            low, high = features
            enlarged = interpolate(self.head(high), size=low.shape[-2:], mode="bilinear", align_corners=True)
            return self.classifier(self.fuse(torch.cat([self.reduce(low), enlarged], dim=1)))

    return Head()


def _layers(inputs: int, outputs: int, kernel: int, **options: Any) -> list[nn.Module]:
    from torch import nn

    convolution = nn.Conv2d(inputs, outputs, kernel, bias=False, **options)
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
