"""Export Segment Anything and its kin: an encoder, and a decoder that takes prompts of several images in one call.

SAM, SAM-HQ, SAM 2, EdgeTAM, and the tracker of SAM 3, which takes points and boxes (SAM 3 itself takes texts, see
:mod:`.concepts`). Models of video are exported for single images, as their own image predictors run them.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import TYPE_CHECKING, Any

from ...engine.model.bundle import OutputSpec, PromptSpec
from .checkpoint import Checkpoint
from .folded import Choices, Folded, Masks, image_input
from .torch_module import as_module

if TYPE_CHECKING:
    from torch import Tensor


def sam(checkpoint: Checkpoint, model: Any, choices: Choices) -> Folded:
    """Fold SAM (arXiv 2304.02643) at its fixed size."""
    return _folded(checkpoint, model, choices, encode, ["embedding"], model.config.vision_config.image_size)


def sam_hq(checkpoint: Checkpoint, model: Any, choices: Choices) -> Folded:
    """Fold SAM-HQ (arXiv 2306.01567) at its fixed size: masks are the sum of SAM's and of the high-quality token's."""
    names = ["early_features", "embedding"]
    return _folded(checkpoint, model, choices, encode_hq, names, model.config.vision_config.image_size)


def sam2(checkpoint: Checkpoint, model: Any, choices: Choices) -> Folded:
    """Fold SAM 2 (arXiv 2408.00714) on single images, at its fixed size; three embeddings, the finest first."""
    names = [f"embedding_{level}" for level in range(len(model.backbone_feature_sizes))]
    side = model.config.prompt_encoder_config.image_size
    return _folded(checkpoint, model, choices, encode2, names, side, pad_boxes=True)


edgetam = sam2
"""EdgeTAM (arXiv 2501.07256) has SAM 2's interface."""

sam3_tracker = sam2
"""The tracker of SAM 3 has SAM 2's interface."""


def encode(model: Any, image: Tensor) -> Tensor:
    """Return SAM's image embedding (N, D, h, w)."""
    return model.vision_encoder(image).last_hidden_state


def encode_hq(model: Any, image: Tensor) -> tuple[Tensor, Tensor]:
    """Return SAM-HQ's features of the first global attention, (N, h, w, D'), and its image embedding (N, D, h, w)."""
    output = model.vision_encoder(image)
    return output.intermediate_embeddings[0], output.last_hidden_state


def encode2(model: Any, image: Tensor) -> tuple[Tensor, ...]:
    """Return SAM 2's image embeddings as its own ``get_image_embeddings`` computes them for a single image."""
    levels = list(model.vision_encoder(image).fpn_hidden_states)
    levels[0] = model.mask_decoder.conv_s0(levels[0])
    levels[1] = model.mask_decoder.conv_s1(levels[1])
    levels[-1] = levels[-1] + model.no_memory_embedding.reshape(1, -1, 1, 1)
    return tuple(levels[: len(model.backbone_feature_sizes)])


def embed_prompts(encoder: Any, points: Tensor, labels: Tensor) -> Tensor:
    """Embed points (N, P, 2) in input pixels and labels (N, P) as tokens (N, 1, P, D); padding has its own token."""
    import torch

    learned = encoder.point_embed
    kinds = learned.weight if hasattr(learned, "weight") else torch.cat([kind.weight for kind in learned])
    places = encoder.shared_embedding(((points + 0.5) / encoder.input_image_size)[:, None])
    labels = labels[:, None, :, None]
    tokens = torch.where(labels < 0, encoder.not_a_point_embed.weight, places)
    for kind in range(len(kinds)):
        tokens = torch.where(labels == kind, tokens + kinds[kind], tokens)
    return tokens


def decode(model: Any, *inputs: Tensor, masks: Masks) -> tuple[Tensor, Tensor]:
    """Decode embeddings, points, labels and masks into mask logits (N, M, h, w) and predicted IoUs (N, M).

    ``mask`` (N, 1, h, w) are logits that count for prompts with ``has_mask`` (N,) above 0.

    ``all`` returns the masks of an ambiguous prompt, from part to whole; ``best`` the one with the best predicted IoU.
    """
    import torch

    *finer, embedding, points, labels, mask, has_mask = inputs
    further: dict[str, Any] = {}
    if hasattr(model.mask_decoder, "hq_token"):
        further = {"intermediate_embeddings": finer, "hq_token_only": False}
    elif finer:
        further = {"high_resolution_features": finer}
    outputs = model.mask_decoder(
        image_embeddings=embedding,
        image_positional_embeddings=model.get_image_wide_positional_embeddings().expand(points.shape[0], -1, -1, -1),
        sparse_prompt_embeddings=embed_prompts(model.prompt_encoder, points, labels),
        dense_prompt_embeddings=torch.where(
            has_mask[:, None, None, None] > 0,
            model.prompt_encoder.mask_embed(mask),
            model.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1),
        ),
        multimask_output=True,
        **further,
    )
    logits, ious = outputs[0].squeeze(1), outputs[1].squeeze(1)
    if masks == "all":
        return logits, ious
    best = ious.argmax(1, keepdim=True)
    index = best[:, :, None, None].expand(-1, -1, *logits.shape[2:])
    return torch.gather(logits, 1, index), torch.gather(ious, 1, best)


def _folded(
    checkpoint: Checkpoint,
    model: Any,
    choices: Choices,
    encoder: Any,
    embeddings: list[str],
    side: int,
    *,
    pad_boxes: bool = False,
) -> Folded:
    spec = image_input(checkpoint, choices, fixed=(side, side))
    # padded after normalizing, with zeros
    spec = dataclasses.replace(spec, pad_value=tuple(mean / spec.scale for mean in spec.mean))
    config = model.config.mask_decoder_config
    grid = 4 * model.get_image_wide_positional_embeddings().shape[-1]
    return Folded(
        module=as_module(encoder, model),
        decoder=as_module(partial(decode, masks=choices.masks), model),
        task="promptable",
        input=spec,
        outputs=(
            *(OutputSpec(name=name, kind="embedding", activation="none") for name in embeddings),
            OutputSpec(name="masks", kind="masks", activation="sigmoid"),
            OutputSpec(name="ious", kind="mask_scores", activation="none"),
        ),
        prompt=PromptSpec(
            num_masks=1 if choices.masks == "best" else config.num_multimask_outputs,
            mask_height=grid,
            mask_width=grid,
            pad_boxes=pad_boxes,
            masks=True,
        ),
    )
