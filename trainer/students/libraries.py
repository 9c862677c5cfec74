"""Students from other libraries: transformers, segmentation-models-pytorch, and any function by import path.

::

    segformer(21, size="b5")                       # downloads the authors' nvidia/mit-b5
    segformer(21, weights="folder")                # any SegFormer, by hub id or from a folder
    dpt_dinov2(21, size="small"), dpt_dinov3(21, size="base"), linear_dinov3(21, frozen=True)
    smp("DeepLabV3Plus", 21, encoder_name="resnet101")
    by_path("package.module:function", 21)

The networks of transformers take ``pretrained`` weights from ``weights``, a hub id or a folder. Nothing is downloaded
without ``pretrained``, or with a ``config`` (a configuration as plain data) and no ``weights``.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

from ...checks import check_choice
from ...errors import MissingPackageError, UsageError
from .networks import encoder_decoder

if TYPE_CHECKING:
    from torch import Tensor, nn

Config = Mapping[str, Any]
T = TypeVar("T")

_WIDE = {"hidden_sizes": (64, 128, 320, 512), "decoder_hidden_size": 768}
_MIX_TRANSFORMERS: Mapping[str, Config] = {
    "b0": {"depths": (2, 2, 2, 2), "hidden_sizes": (32, 64, 160, 256), "decoder_hidden_size": 256},
    "b1": {"depths": (2, 2, 2, 2), "hidden_sizes": (64, 128, 320, 512), "decoder_hidden_size": 256},
    "b2": {"depths": (3, 4, 6, 3), **_WIDE},
    "b3": {"depths": (3, 4, 18, 3), **_WIDE},
    "b4": {"depths": (3, 8, 27, 3), **_WIDE},
    "b5": {"depths": (3, 6, 40, 3), **_WIDE},
}
_DINOV2: Mapping[str, Config] = {
    "small": {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6},
    "base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
    "large": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16},
    "giant": {"hidden_size": 1536, "num_hidden_layers": 40, "num_attention_heads": 24, "use_swiglu_ffn": True},
}
_DENSE_WIDTHS: Mapping[int, tuple[int, list[int]]] = {
    384: (64, [48, 96, 192, 384]),
    768: (128, [96, 192, 384, 768]),
    1024: (256, [256, 512, 1024, 1024]),
    1536: (384, [1536, 1536, 1536, 1536]),
}
"""Channels of DPT's fusion and of its four maps, by the width of the transformer. Source: UniMatch V2's code."""
_DINOV3: Mapping[str, Config] = {
    "small": {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 12, "num_attention_heads": 6},
    "base": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
    "large": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16},
}


def segformer(
    num_classes: int,
    *,
    pretrained: bool = True,
    size: str = "b0",
    weights: str | None = None,
    config: Config | None = None,
) -> nn.Module:
    """Build SegFormer: the mix transformer of ``size`` b0 to b5 with the all-MLP head; logits at stride 4.

    The default weights are the authors' ImageNet encoder, ``nvidia/mit-SIZE``. Features are the four maps at strides 4
    to 32; the transformer is the backbone.
    """
    transformers = _transformers("SegFormer")
    family = transformers.SegformerForSemanticSegmentation
    source = weights or (None if config else f"nvidia/mit-{size}")
    config = config or _choice(size, _MIX_TRANSFORMERS)
    network = _network(family, transformers.SegformerConfig, num_classes, source if pretrained else None, config)
    return encoder_decoder(
        _calling(lambda body, images: body(images, output_hidden_states=True).hidden_states, network.segformer),
        network.decode_head,
        multiple=32,
        options={"config": _plain(network.config)},
    )


def deeplabv3plus_mobilenetv2(
    num_classes: int,
    *,
    pretrained: bool = True,
    weights: str | None = None,
    config: Config | None = None,
) -> nn.Module:
    """Build MobileNetV2 with the DeepLab head of transformers; logits at the backbone's stride, 8 by default.

    The default weights are ``google/deeplabv3_mobilenet_v2_1.0_513``, with the head if its number of classes is the
    same. The only feature map is the last one of the backbone. Pixels are scaled to [-1, 1], as these weights expect.
    """
    transformers = _transformers("MobileNetV2")
    family = transformers.MobileNetV2ForSemanticSegmentation
    source = weights or (None if config else "google/deeplabv3_mobilenet_v2_1.0_513")
    config = config or {"output_stride": 8}
    network = _network(family, transformers.MobileNetV2Config, num_classes, source if pretrained else None, config)
    body = network.mobilenet_v2
    body.conv_1x1 = _nothing()
    return encoder_decoder(
        _calling(lambda body, images: body(images, output_hidden_states=True).hidden_states[-1:], body),
        _calling(lambda head, features: head(features[0]), network.segmentation_head),
        # at other sizes its padding depends on the size, which an exported graph cannot express
        multiple=32,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        options={"config": _plain(network.config)},
    )


def dpt_dinov2(
    num_classes: int,
    *,
    pretrained: bool = True,
    size: str = "small",
    weights: str | None = None,
    config: Config | None = None,
) -> nn.Module:
    """Build DINOv2 of ``size`` small to giant with the dense prediction head (DPT), as UniMatch V2 trains it.

    The default weights are the authors', ``facebook/dinov2-SIZE``; a ``config``, a DPT configuration with its
    ``backbone_config``, starts at random weights. Features are the patch tokens after four layers, as
    maps at stride 14 without the class token; logits have stride 7/4.
    """
    transformers = _transformers("DINOv2")
    settings = {**_choice(size, _DINOV2), "image_size": 518}
    source = (weights or f"facebook/dinov2-{size}") if pretrained and config is None else None
    return _dense(
        num_classes, transformers.Dinov2Backbone, transformers.Dinov2Config, settings, source=source, config=config
    )


def dpt_dinov3(
    num_classes: int,
    *,
    pretrained: bool = True,
    size: str = "small",
    weights: str | None = None,
    config: Config | None = None,
) -> nn.Module:
    """Build DINOv3 of ``size`` small to large with the dense prediction head (DPT), as :func:`dpt_dinov2`.

    The default weights are the authors', ``facebook/dinov3-vitS16-pretrain-lvd1689m``, which need their permission.
    Features have stride 16, logits stride 2.
    """
    transformers = _transformers("DINOv3")
    source = (weights or _dinov3_weights(size)) if pretrained and config is None else None
    return _dense(
        num_classes,
        transformers.DINOv3ViTBackbone,
        transformers.DINOv3ViTConfig,
        {**_choice(size, _DINOV3), "num_register_tokens": 4},
        source=source,
        config=config,
    )


def linear_dinov3(
    num_classes: int,
    *,
    pretrained: bool = True,
    size: str = "small",
    weights: str | None = None,
    frozen: bool = False,
    config: Config | None = None,
) -> nn.Module:
    """Build DINOv3 with a linear head, as its authors probe it: batch normalization and one linear layer per patch.

    Weights are those of :func:`dpt_dinov3`; a ``config`` is a DINOv3 configuration. ``frozen`` trains the head alone.
    The only feature map is the last one, at stride 16, as are the logits.
    """
    from torch import nn

    transformers = _transformers("DINOv3")
    settings = {**_choice(size, _DINOV3), "num_register_tokens": 4} if config is None else dict(config)
    last = [f"stage{transformers.DINOv3ViTConfig(**settings).num_hidden_layers}"]
    source = (weights or _dinov3_weights(size)) if pretrained and config is None else None
    backbone = _backbone(transformers.DINOv3ViTBackbone, transformers.DINOv3ViTConfig, settings, last, source)
    if frozen:
        backbone.requires_grad_(False)
    width = backbone.config.hidden_size
    head = nn.Sequential(nn.BatchNorm2d(width), nn.Conv2d(width, num_classes, 1))
    return encoder_decoder(
        _calling(lambda body, images: body(images).feature_maps, backbone),
        _calling(lambda layers, features: layers(features[0]), head),
        multiple=backbone.config.patch_size,
        # position embeddings are computed from the size
        dynamic=False,
        options={"config": _plain(backbone.config), "frozen": frozen},
    )


def _dinov3_weights(size: str) -> str:
    return f"facebook/dinov3-vit{size[0]}16-pretrain-lvd1689m"


def _backbone(family: Any, config_class: Any, settings: Config, stages: list[str], source: str | None) -> Any:
    """Build a vision transformer that returns ``stages``, with the weights of a source or random ones."""
    if source is None:
        backbone = family(config_class(**{**settings, "out_features": stages}))
    else:
        backbone = _from_hub(
            lambda: family.from_pretrained(source, out_features=stages, trust_remote_code=False), source
        )
    for name, parameter in backbone.named_parameters():
        # used in pretraining only
        parameter.requires_grad_(not name.endswith("mask_token"))
    return backbone


def _dense(
    num_classes: int,
    family: Any,
    config_class: Any,
    settings: Config,
    *,
    source: str | None,
    config: Config | None,
) -> nn.Module:
    """Build a vision transformer with DPT's head on the maps after four of its layers.

    ``settings`` are the transformer's; a ``config``, a DPT configuration with its ``backbone_config``, replaces them.
    """
    transformers = _transformers("DPT")
    if config is None:
        layers = settings["num_hidden_layers"]
        depths = (5, 12, 18, 24) if layers == 24 else [layers * quarter // 4 for quarter in (1, 2, 3, 4)]
        backbone = _backbone(family, config_class, settings, [f"stage{depth}" for depth in depths], source)
        fusion, widths = _DENSE_WIDTHS[backbone.config.hidden_size]
        dense = transformers.DPTConfig(
            backbone_config=backbone.config,
            readout_type="ignore",
            neck_hidden_sizes=widths,
            fusion_hidden_size=fusion,
            num_labels=num_classes,
        )
    else:
        dense = transformers.DPTConfig(**{**config, "num_labels": num_classes})
        body = dense.backbone_config
        backbone = _backbone(family, config_class, body.to_dict(), list(body.out_features), None)
    return encoder_decoder(
        _calling(lambda body, images: body(images).feature_maps, backbone),
        _dense_head(dense),
        multiple=dense.backbone_config.patch_size,
        # the sizes of its interpolations are those of the traced image
        dynamic=False,
        options={"config": _plain(dense)},
    )


def smp(architecture: str, num_classes: int, *, pretrained: bool = True, **options: Any) -> nn.Module:
    """Build a network of segmentation-models-pytorch; ``options`` are those of its ``create_model``.

    Features are the maps of the encoder; the image itself, which the library lists first, is left out.
    """
    try:
        import segmentation_models_pytorch as library
    except ImportError as error:
        raise MissingPackageError("segmentation-models-pytorch", "smp", f"the model smp:{architecture}") from error
    name = options.setdefault("encoder_name", "resnet34")
    arguments = {"encoder_weights": "imagenet" if pretrained else None, **options}
    network = library.create_model(architecture, classes=num_classes, **arguments)
    scaling = library.encoders.get_preprocessing_params(name)

    def decode(decoder: Any, head: Any, features: list[Tensor]) -> Tensor:
        # the first element stands in for the image, which no decoder uses
        return head(decoder([features[0], *features]))

    return encoder_decoder(
        _calling(lambda encoder, images: encoder(images)[1:], network.encoder),
        _calling(decode, network.decoder, network.segmentation_head),
        mean=tuple(scaling["mean"]),
        std=tuple(scaling["std"]),
        multiple=32,
        options={key: value for key, value in options.items() if key != "encoder_weights"},
    )


def by_path(path: str, num_classes: int, *, pretrained: bool = True, **options: Any) -> nn.Module:
    """Build a network with a function of your own, ``package.module:function``, called like the functions here.

    It may return a complete model as :mod:`.models` describes it, or any module from images (N, 3, H, W), normalized
    with ImageNet's mean and deviation, to logits (N, K, h, w). Such a module counts as backbone and has no features.
    """
    name, _, function = path.partition(":")
    try:
        factory = getattr(importlib.import_module(name), function)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"cannot find the model {path}: {error}; write it as package.module:function") from error
    model = factory(num_classes, pretrained=pretrained, **options)
    if all(hasattr(model, method) for method in ("encode", "decode", "input_spec", "backbone_parameters", "options")):
        return model
    encoder = _calling(lambda body, images: [body(images)], model)
    return encoder_decoder(encoder, _calling(lambda logits: logits[0]), options=options, has_features=False)


def _transformers(purpose: str) -> ModuleType:
    try:
        import transformers
    except ImportError as error:
        raise MissingPackageError("transformers", "train", purpose) from error
    return transformers


def _choice(size: str, table: Mapping[str, Config]) -> Config:
    check_choice("size", size, table)
    return table[size]


def _from_hub(load: Callable[[], T], source: str) -> T:
    try:
        return load()
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"cannot load {source}: {reason}; name a hub id or a folder with model.weights=…") from error


def _network(family: Any, config_class: Any, num_classes: int, weights: str | None, config: Config) -> Any:
    """Build a network of transformers with a head for ``num_classes``, with the weights of a source or random ones."""
    if weights is None:
        return family(config_class(**{**config, "num_labels": num_classes}))
    return _from_hub(
        lambda: family.from_pretrained(
            weights, num_labels=num_classes, ignore_mismatched_sizes=True, trust_remote_code=False
        ),
        weights,
    )


def _plain(config: Any) -> dict[str, Any]:
    """Return a configuration as plain data, without the class list, which a run records itself."""
    values = json.loads(config.to_json_string())
    return {key: value for key, value in values.items() if key not in ("id2label", "label2id", "architectures")}


def _calling(function: Callable[..., Any], *modules: nn.Module) -> nn.Module:
    """Return a module that computes ``function(*modules, argument)``."""
    from torch import nn

    class Calling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleList(modules)

        def forward(self, argument: Any) -> Tensor | list[Tensor]:
            return function(*self.parts, argument)

    return Calling()


def _dense_head(config: Any) -> nn.Module:
    """Return DPT's head for maps of patch tokens, in the form of UniMatch V2.

    Each fusion step enlarges its map to the size of the next larger one, as in UniMatch V2's code; transformers doubles
    it and resizes the next one, which differs for an odd number of patches.
    """
    from torch import nn
    from torch.nn.functional import interpolate
    from transformers.models.dpt.modeling_dpt import DPTNeck

    def decode(neck: Any, head: Any, features: list[Tensor]) -> Tensor:
        maps = []
        for feature, layer, convolution in zip(features, neck.reassemble_stage.layers, neck.convs, strict=True):
            maps.append(convolution(layer(feature)))
        fused = None
        for layer, level in zip(neck.fusion_stage.layers, reversed(range(len(maps))), strict=True):
            fused = maps[level] if fused is None else fused + layer.residual_layer1(maps[level])
            size = maps[level - 1].shape[-2:] if level else [2 * length for length in maps[0].shape[-2:]]
            enlarged = interpolate(layer.residual_layer2(fused), size=size, mode="bilinear", align_corners=True)
            fused = layer.projection(enlarged)
        return head(fused)

    neck, width = DPTNeck(config), config.fusion_hidden_size
    neck.fusion_stage.layers[0].residual_layer1 = _nothing()
    head = nn.Sequential(
        nn.Conv2d(width, width, kernel_size=3, padding=1), nn.ReLU(), nn.Conv2d(width, config.num_labels, kernel_size=1)
    )
    return _calling(decode, neck, head)


def _nothing() -> nn.Module:
    """Replace unused layers, since distributed training waits for the gradient of every parameter."""
    from torch import nn

    return nn.Identity()
