"""Small checkpoints of the true architectures with random weights, saved as transformers saves them."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.models.clip.tokenization_clip import CLIPTokenizer

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def save(
    model: Any,
    folder: Path,
    *,
    size: dict[str, int],
    gain: float = 1.5,
    biases: dict[str, float] | None = None,
    **preprocessor: Any,
) -> Path:
    """The model in ``folder``, its weights such that outputs differ from place to place and image to image.

    ``biases`` are values of parameters that would be 0, by name.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, gain / parameter[0].numel() ** 0.5, generator=generator)
            elif name.endswith("weight"):
                parameter.fill_(1)
            elif name.endswith("bias"):
                parameter.zero_()
            else:
                parameter.normal_(0, 0.02, generator=generator)
        for name, value in (biases or {}).items():
            model.get_parameter(name).fill_(value)
    model.save_pretrained(folder)
    steps = {
        "do_resize": True, "size": size, "resample": 2, "do_rescale": True, "rescale_factor": 1 / 255,
        "do_normalize": True, "image_mean": MEAN, "image_std": STD,
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(steps | preprocessor))
    return folder


def seeded(build: Callable[[Path], Path]) -> Callable[[Path], Path]:
    """The builder with every random number of its model, buffers included, from one seed."""

    @wraps(build)
    def run(folder: Path) -> Path:
        torch.manual_seed(0)
        return build(folder)

    return run


def square(side: int) -> dict[str, int]:
    return {"height": side, "width": side}


def tokenizer(folder: Path) -> None:
    """CLIP's tokenizer with a vocabulary of single letters."""
    letters = [chr(code) for code in range(33, 127)]
    names = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    CLIPTokenizer(vocab={name: index for index, name in enumerate(names)}, merges=[]).save_pretrained(folder)


@seeded
def segformer(folder: Path) -> Path:
    config = transformers.SegformerConfig(
        num_labels=5, hidden_sizes=[8, 16, 16, 32], depths=[1, 1, 1, 1], num_attention_heads=[1, 2, 2, 4],
        decoder_hidden_size=16,
    )  # fmt: skip
    return save(transformers.SegformerForSemanticSegmentation(config), folder, size={"height": 64, "width": 96})


@seeded
def upernet(folder: Path) -> Path:
    backbone = transformers.ConvNextConfig(
        hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], out_features=["stage1", "stage2", "stage3", "stage4"]
    )
    config = transformers.UperNetConfig(
        backbone_config=backbone, num_labels=5, hidden_size=16, auxiliary_in_channels=16, auxiliary_channels=8
    )
    return save(transformers.UperNetForSemanticSegmentation(config), folder, size=square(96))


@seeded
def dpt(folder: Path) -> Path:
    config = transformers.DPTConfig(
        num_labels=5, hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=64, image_size=64,
        patch_size=16, backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[8, 8, 16, 16], fusion_hidden_size=16,
        is_hybrid=False,
    )  # fmt: skip
    return save(transformers.DPTForSemanticSegmentation(config), folder, size=square(96))


def swin() -> transformers.SwinConfig:
    return transformers.SwinConfig(
        image_size=64, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 2, 2, 2], window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip


@seeded
def mask2former(folder: Path) -> Path:
    config = transformers.Mask2FormerConfig(
        backbone_config=swin(), num_labels=5, num_queries=7, hidden_dim=32, feature_size=32, mask_feature_size=32,
        encoder_layers=1, decoder_layers=2, num_attention_heads=2, dim_feedforward=32, encoder_feedforward_dim=32,
    )  # fmt: skip
    return save(transformers.Mask2FormerForUniversalSegmentation(config), folder, size=square(96), gain=1.0)


@seeded
def oneformer(folder: Path) -> Path:
    config = transformers.OneFormerConfig(
        backbone_config=swin(), num_labels=5, num_queries=7, hidden_dim=32, mask_dim=32, conv_dim=32,
        encoder_layers=1, decoder_layers=2, num_attention_heads=2, dim_feedforward=32, encoder_feedforward_dim=32,
        is_training=False, query_dec_layers=1, text_encoder_vocab_size=200,
    )  # fmt: skip
    tokenizer(folder)
    # with larger weights mask logits reach 50: masks are 0 or 1 to the last bit, and classes tie
    return save(transformers.OneFormerForUniversalSegmentation(config), folder, size=square(96), gain=1.0)


@seeded
def eomt(folder: Path) -> Path:
    config = transformers.EomtConfig(
        num_labels=5, hidden_size=32, num_hidden_layers=3, num_attention_heads=2, mlp_ratio=2, image_size=64,
        patch_size=8, num_blocks=2, num_queries=7, num_register_tokens=1,
    )  # fmt: skip
    model = transformers.EomtForUniversalSegmentation(config)
    model.attn_mask_probs.zero_()
    return save(model, folder, size=square(64))


@seeded
def eomt_dinov3(folder: Path) -> Path:
    config = transformers.EomtDinov3Config(
        num_labels=5, hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64, image_size=64,
        patch_size=8, num_blocks=2, num_queries=7, num_register_tokens=1,
    )  # fmt: skip
    model = transformers.EomtDinov3ForUniversalSegmentation(config)
    model.attn_mask_probs.zero_()
    return save(model, folder, size=square(64), gain=1.0)


@seeded
def clipseg(folder: Path) -> Path:
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 2}
    config = transformers.CLIPSegConfig(
        text_config={**tower, "vocab_size": 200, "eos_token_id": 189, "max_position_embeddings": 77},
        vision_config={**tower, "image_size": 64, "patch_size": 16},
        projection_dim=16, reduce_dim=8, extract_layers=[0, 1, 2], decoder_num_attention_heads=2,
        decoder_intermediate_size=16,
    )  # fmt: skip
    tokenizer(folder)
    return save(transformers.CLIPSegForImageSegmentation(config), folder, size=square(96), gain=1.0)


@seeded
def sam(folder: Path) -> Path:
    config = transformers.SamConfig(
        vision_config={
            "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 96, "patch_size": 16,
            "output_channels": 16, "window_size": 4, "global_attn_indexes": [1], "mlp_dim": 32, "num_pos_feats": 8,
        },
        prompt_encoder_config={"hidden_size": 16, "image_size": 96, "patch_size": 16, "mask_input_channels": 4},
        mask_decoder_config={
            "hidden_size": 16, "num_attention_heads": 2, "mlp_dim": 16, "num_hidden_layers": 2, "iou_head_hidden_dim": 8
        },
    )  # fmt: skip
    return save(transformers.SamModel(config), folder, size={"longest_edge": 96}, pad_size=square(96), do_pad=True)


@seeded
def sam_hq(folder: Path) -> Path:
    config = transformers.SamHQConfig(
        vision_config={
            "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 96, "patch_size": 16,
            "output_channels": 16, "window_size": 4, "global_attn_indexes": [1], "mlp_dim": 32, "num_pos_feats": 8,
        },
        prompt_encoder_config={"hidden_size": 16, "image_size": 96, "patch_size": 16, "mask_input_channels": 4},
        mask_decoder_config={
            "hidden_size": 16, "num_attention_heads": 2, "mlp_dim": 16, "num_hidden_layers": 2,
            "iou_head_hidden_dim": 8, "vit_dim": 16,
        },
    )  # fmt: skip
    return save(transformers.SamHQModel(config), folder, size={"longest_edge": 96}, pad_size=square(96), do_pad=True)


@seeded
def sam3_tracker(folder: Path) -> Path:
    config = transformers.Sam3TrackerConfig(
        vision_config={
            "backbone_config": {
                "model_type": "sam3_vit_model", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
                "num_attention_heads": 2, "image_size": 112, "patch_size": 14, "window_size": 4,
                "global_attn_indexes": [1], "pretrain_image_size": 56,
            },
            "fpn_hidden_size": 16, "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]],
            "scale_factors": [4.0, 2.0, 1.0],
        },
        prompt_encoder_config={"hidden_size": 16, "image_size": 112, "patch_size": 14, "mask_input_channels": 4},
        mask_decoder_config={
            "hidden_size": 16, "num_attention_heads": 2, "mlp_dim": 16, "num_hidden_layers": 2, "iou_head_hidden_dim": 8
        },
    )  # fmt: skip
    return save(transformers.Sam3TrackerModel(config), folder, size=square(112))


@seeded
def edgetam(folder: Path) -> Path:
    """Need timm and torchvision, which only ``make family-references`` installs."""
    config = transformers.EdgeTamConfig(
        vision_config={
            "backbone_config": {
                "model_type": "timm_wrapper", "architecture": "repvit_m0_9", "num_classes": 2,
                "model_args": {"in_chans": 3, "features_only": True, "out_indices": [0, 1, 2, 3],
                               "embed_dim": [8, 8, 16, 16], "depth": [1, 1, 1, 1]},
            },
            "backbone_channel_list": [16, 16, 8, 8], "fpn_hidden_size": 16,
            "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]],
        },
        prompt_encoder_config={"hidden_size": 16, "image_size": 128, "patch_size": 16, "mask_input_channels": 4},
        mask_decoder_config={
            "hidden_size": 16, "num_attention_heads": 2, "mlp_dim": 16, "num_hidden_layers": 2, "iou_head_hidden_dim": 8
        },
    )  # fmt: skip
    return save(transformers.EdgeTamModel(config), folder, size=square(128))


@seeded
def sam2(folder: Path) -> Path:
    hiera = {
        "hidden_size": 8, "num_attention_heads": 1, "blocks_per_stage": [1, 2, 2, 1], "image_size": [128, 128],
        "embed_dim_per_stage": [8, 16, 32, 64], "num_attention_heads_per_stage": [1, 2, 2, 4],
        "global_attention_blocks": [4], "window_positional_embedding_background_size": [2, 2],
        "window_size_per_stage": [4, 4, 4, 4],
    }  # fmt: skip
    config = transformers.Sam2Config(
        vision_config={
            "backbone_config": {"model_type": "sam2_hiera_det_model", **hiera}, "fpn_hidden_size": 16,
            "backbone_channel_list": [64, 32, 16, 8], "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]],
        },
        prompt_encoder_config={"hidden_size": 16, "image_size": 128, "patch_size": 16, "mask_input_channels": 4},
        mask_decoder_config={
            "hidden_size": 16, "num_attention_heads": 2, "mlp_dim": 16, "num_hidden_layers": 2, "iou_head_hidden_dim": 8
        },
    )  # fmt: skip
    return save(transformers.Sam2Model(config), folder, size=square(128))


# a class is present with a probability of about .9, so that it wins pixels against the background
PRESENT = {"detr_decoder.presence_head.layer3.bias": 3.5}


def sam3_config(kind: type, **text: Any) -> Any:
    """SAM 3's configuration with one small layer of each kind; ``text`` is its text encoder's."""
    small = {"hidden_size": 32, "num_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    return kind(
        vision_config={
            "backbone_config": {
                "model_type": "sam3_vit_model", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
                "num_attention_heads": 2, "image_size": 112, "patch_size": 14, "window_size": 4,
                "global_attn_indexes": [1], "pretrain_image_size": 56,
            },
            "fpn_hidden_size": 32, "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]],
        },
        text_config=text,
        geometry_encoder_config=small, detr_encoder_config=small, detr_decoder_config={**small, "num_queries": 6},
        mask_decoder_config={"hidden_size": 32, "num_attention_heads": 2},
    )  # fmt: skip


@seeded
def sam3(folder: Path) -> Path:
    config = sam3_config(
        transformers.Sam3Config, model_type="clip_text_model", vocab_size=200, hidden_size=32, intermediate_size=64,
        projection_dim=16, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=32, bos_token_id=188,
        eos_token_id=189,
    )  # fmt: skip
    tokenizer(folder)
    return save(transformers.Sam3Model(config), folder, size=square(112), gain=1.0, biases=PRESENT)


@seeded
def sam3_lite_text(folder: Path) -> Path:
    config = sam3_config(
        transformers.Sam3LiteTextConfig, vocab_size=200, hidden_size=32, intermediate_size=64, projection_dim=16,
        num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=32,
    )  # fmt: skip
    tokenizer(folder)
    return save(transformers.Sam3LiteTextModel(config), folder, size=square(112), gain=1.0, biases=PRESENT)


def bert_tokenizer(folder: Path) -> None:
    """BERT's tokenizer with a vocabulary of single letters; the tokens that Grounding DINO splits at have their ids."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    names = ["[PAD]", "[UNK]", *letters, *(f"##{letter}" for letter in letters)]
    names += [f"[unused{index}]" for index in range(1030 - len(names))]
    for index, name in ((101, "[CLS]"), (102, "[SEP]"), (103, "[MASK]"), (1012, "."), (1029, "?")):
        names[index] = name
    vocabulary = {name: index for index, name in enumerate(names)}
    transformers.BertTokenizer(vocab=vocabulary, do_lower_case=True).save_pretrained(folder)


def grounding_dino_config(kind: type) -> Any:
    bert = transformers.BertConfig(
        vocab_size=1030, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    return kind(
        backbone_config=swin(), text_config=bert, num_queries=20, encoder_layers=1, decoder_layers=2, d_model=32,
        encoder_ffn_dim=32, decoder_ffn_dim=32, encoder_attention_heads=2, decoder_attention_heads=2, max_text_len=64,
    )  # fmt: skip


@seeded
def grounding_dino(folder: Path) -> Path:
    bert_tokenizer(folder)
    model = transformers.GroundingDinoForObjectDetection(grounding_dino_config(transformers.GroundingDinoConfig))
    return save(model, folder, size={"shortest_edge": 96, "longest_edge": 160}, gain=0.7)


@seeded
def mm_grounding_dino(folder: Path) -> Path:
    bert_tokenizer(folder)
    model = transformers.MMGroundingDinoForObjectDetection(grounding_dino_config(transformers.MMGroundingDinoConfig))
    return save(model, folder, size={"shortest_edge": 96, "longest_edge": 160}, gain=1.0)


def owl_config(kind: type) -> Any:
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    return kind(
        text_config={**tower, "vocab_size": 200, "eos_token_id": 189, "bos_token_id": 188, "pad_token_id": 0,
                     "max_position_embeddings": 16},
        vision_config={**tower, "image_size": 96, "patch_size": 16},
        projection_dim=32,
    )  # fmt: skip


@seeded
def owlvit(folder: Path) -> Path:
    tokenizer(folder)
    model = transformers.OwlViTForObjectDetection(owl_config(transformers.OwlViTConfig))
    return save(model, folder, size=square(96))


@seeded
def owlv2(folder: Path) -> Path:
    tokenizer(folder)
    model = transformers.Owlv2ForObjectDetection(owl_config(transformers.Owlv2Config))
    return save(model, folder, size=square(96), do_pad=True)


@seeded
def resnet(folder: Path) -> Path:
    config = transformers.ResNetConfig(
        num_labels=5, embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], layer_type="basic"
    )
    return save(transformers.ResNetForImageClassification(config), folder, size={"shortest_edge": 96})


@seeded
def convnext(folder: Path) -> Path:
    config = transformers.ConvNextConfig(num_labels=5, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1])
    return save(transformers.ConvNextForImageClassification(config), folder, size={"shortest_edge": 96})


@seeded
def efficientnet(folder: Path) -> Path:
    config = transformers.EfficientNetConfig(
        num_labels=5, image_size=96, width_coefficient=0.25, depth_coefficient=0.3, hidden_dim=320
    )
    return save(transformers.EfficientNetForImageClassification(config), folder, size=square(96), gain=2.0)


@seeded
def vit(folder: Path) -> Path:
    config = transformers.ViTConfig(
        num_labels=5, hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64, image_size=64,
        patch_size=16,
    )  # fmt: skip
    return save(transformers.ViTForImageClassification(config), folder, size=square(96))


CHECKPOINTS: dict[str, Callable[[Path], Path]] = {
    builder.__name__: builder
    for builder in (
        segformer, upernet, dpt, mask2former, oneformer, eomt, eomt_dinov3, clipseg, sam3, sam3_lite_text, sam, sam_hq,
        sam2, edgetam, sam3_tracker, grounding_dino, mm_grounding_dino, owlvit, owlv2, resnet, convnext, efficientnet,
        vit,
    )
}  # fmt: skip
