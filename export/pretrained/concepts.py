"""Export SAM 3, which segments objects named by short texts; given class names are encoded as constants at export.

Without class names there are three graphs: image encoder, text encoder and detector, and classes are named when the
bundle labels (:mod:`maskmill.engine.predictors.texts`).

The image is encoded once; the detector runs for every pair of image and class, :data:`CHUNK` classes per call. For each
pair it gives queries, each with a score and a mask, and the presence of the class in the image. The score of a class in
a pixel is

    presence x maximum over queries of (score of the query x mask of the query),

all of them sigmoids, so that it is in [0, 1]. Mask2Former and SEEM sum over queries; here an object has one query, and
a sum over 200 queries with a score of 0.01 each would make an absent class certain.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import TYPE_CHECKING, Any

from ...engine.model.bundle import OutputSpec, TextSpec
from ...errors import UsageError
from ..adopt.semantic import BACKGROUND
from .checkpoint import Checkpoint
from .folded import OBJECTS, Choices, Folded, best_objects, image_input
from .texts import named_classes, texts_of, tokenize
from .torch_module import as_module

if TYPE_CHECKING:
    from torch import Tensor

MAX_TOKENS = 32
"""Tokens of a text."""
CHUNK = 8
"""Classes per call of the detector. A graph holds its nodes once per chunk and its weights once, and the memory for
masks does not grow with the number of classes."""


def sam3(checkpoint: Checkpoint, model: Any, choices: Choices) -> Folded:
    """Fold SAM 3 (arXiv 2511.16719) at a fixed square size, its own or another multiple of its patches.

    A background that is not among the class names is added in front: one minus the best class.
    """
    import torch

    background = choices.background or BACKGROUND
    model = _at_size(model, choices.size)
    side = model.config.image_size
    if choices.classes is None:
        return _in_parts(checkpoint, model, choices, background)
    names = named_classes(choices, "SAM 3")
    tokens = tokenize(checkpoint, texts_of(names, choices, default="{}"), padding="max_length", max_length=MAX_TOKENS)
    token_mask = tokens["attention_mask"]
    with torch.no_grad():
        texts = model.get_text_features(input_ids=tokens["input_ids"], attention_mask=token_mask).pooler_output
    # behind the longest text there is only padding, which the detector ignores
    longest = int(token_mask.sum(1).max())
    add_background = background not in names
    return Folded(
        module=as_module(
            partial(
                class_scores,
                texts=texts[:, :longest].detach(),
                present=token_mask[:, :longest],
                background=add_background,
                instances=choices.instances,
            ),
            model,
        ),
        task="semantic",
        input=image_input(checkpoint, choices, fixed=(side, side)),
        outputs=(OutputSpec(name="scores", activation="none"), *(OBJECTS if choices.instances else ())),
        classes=(background, *names) if add_background else names,
        background=background,
    )


def _in_parts(checkpoint: Checkpoint, model: Any, choices: Choices, background: str) -> Folded:
    """Fold SAM 3 into an image encoder, a text encoder and a detector."""
    import torch

    if choices.background_score == "void":
        raise UsageError("SAM 3 has no void class, so the background's score can only be 'rest'")
    side = model.config.image_size
    tokenizer = checkpoint.tokenizer()
    with torch.no_grad():
        vision = model.get_vision_features(torch.zeros(1, 3, side, side))
    names = [f"level_{index}" for index in range(len(vision.fpn_hidden_states) - 1)]
    limit = min(choices.instances, model.config.detr_decoder_config.num_queries)
    return Folded(
        module=as_module(encode, model),
        decoder=as_module(
            partial(decode, places=vision.fpn_position_encoding[-2].detach()[:1], instances=limit), model
        ),
        text_encoder=as_module(encode_texts, model),
        tokenizer=tokenizer.backend_tokenizer.to_str(),
        task="text",
        input=image_input(checkpoint, choices, fixed=(side, side)),
        outputs=(
            *(OutputSpec(name=name, kind="embedding", activation="none") for name in names),
            OutputSpec(name="text_features", kind="text_features", activation="none"),
            OutputSpec(name="scores", activation="none"),
            *(OBJECTS if choices.instances else ()),
        ),
        text=TextSpec(
            template=choices.template or "{}",
            max_tokens=MAX_TOKENS,
            padding=tokenizer.pad_token_id or 0,
            background=background,
        ),
    )


def encode(model: Any, image: Tensor) -> tuple[Tensor, ...]:
    """Return the levels of the feature pyramid that the detector reads, the finest first."""
    return tuple(model.get_vision_features(image).fpn_hidden_states[:-1])


def encode_texts(model: Any, ids: Tensor, present: Tensor) -> Tensor:
    """Encode tokens (C, T): features (C, T, D)."""
    return model.get_text_features(input_ids=ids, attention_mask=present).pooler_output


def decode(model: Any, *inputs: Tensor, places: Tensor, instances: int) -> Tensor | tuple[Tensor, ...]:
    """Score images, given by their levels, for encoded classes (C, T, D), tokens present (C, T): (N, C, h, w).

    ``places`` (1, D, h, w) is the position code of the coarsest level. With ``instances``, as of :func:`class_scores`.
    """
    from types import SimpleNamespace

    *levels, texts, token_mask = inputs
    # the model drops the last level
    vision = SimpleNamespace(
        fpn_hidden_states=(*levels, levels[-1]),
        fpn_position_encoding=(places, places),
        hidden_states=None,
        attentions=None,
    )
    parts = _fold(model, vision, texts, token_mask, 0, instances)
    return parts if instances else parts[0]


sam3_lite_text = sam3
"""SAM 3 with a smaller text encoder (LiteText) has the same detector."""


def class_scores(
    model: Any, image: Tensor, *, texts: Tensor, present: Tensor, background: bool, instances: int = 0
) -> Tensor | tuple[Tensor, ...]:
    """Score images (N, 3, S, S) for encoded classes (C, T, D), tokens ``present`` (C, T): (N, C, h, w) in [0, 1].

    With ``background`` a channel is added in front: 1 minus the best class. With ``instances`` scores (N, K), classes
    (N, K) and masks (N, K, h, w) of that many queries follow, best first; a query's score contains the presence.
    """
    import torch

    vision = model.get_vision_features(image)
    parts = [
        _fold(
            model, vision, texts[start : start + CHUNK], present[start : start + CHUNK], start + background, instances
        )
        for start in range(0, len(texts), CHUNK)
    ]
    scores = torch.cat([part[0] for part in parts], dim=1)
    if background:
        scores = torch.cat([1 - scores.amax(1, keepdim=True), scores], dim=1)
    if not instances:
        return scores
    values, classes, masks = (torch.cat([part[index] for part in parts], dim=1) for index in (1, 2, 3))
    return scores, *best_objects(values, classes, torch.arange(values.shape[1]), masks, instances)


def _fold(model: Any, vision: Any, texts: Tensor, token_mask: Tensor, first: int, instances: int) -> tuple[Tensor, ...]:
    """Run the detector for pairs of N images and C classes: scores (N, C, h, w), and the best queries of all classes.

    ``first`` is the channel of the first class.
    """
    import torch

    images, num = vision.fpn_hidden_states[0].shape[0], texts.shape[0]
    output = detect(model, vision, texts, token_mask)
    queries = output.pred_logits.sigmoid() * output.presence_logits.sigmoid()
    scores = (queries[:, :, None, None] * output.pred_masks.sigmoid()).amax(1)
    scores = scores.reshape(images, num, *scores.shape[1:])
    if not instances:
        return (scores,)
    per_class = queries.shape[1]
    masks = output.pred_masks.reshape(images, num * per_class, *output.pred_masks.shape[2:])
    classes = torch.arange(num)[:, None].expand(-1, per_class).flatten()[None] + first
    candidates = torch.arange(num * per_class)
    return scores, *best_objects(queries.reshape(images, num * per_class), classes, candidates, masks, instances)


def detect(model: Any, vision: Any, texts: Tensor, token_mask: Tensor) -> Any:
    """Run the detector for all pairs of images and classes, images first, on image features computed once."""
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    num, classes = vision.fpn_hidden_states[0].shape[0], texts.shape[0]
    pairs = copy.copy(vision)

    def paired(level: Tensor) -> Tensor:
        return level[:, None].expand(num, classes, -1, -1, -1).flatten(0, 1)

    pairs.fpn_hidden_states = tuple(map(paired, vision.fpn_hidden_states))
    pairs.fpn_position_encoding = tuple(map(paired, vision.fpn_position_encoding))
    return model(
        vision_embeds=pairs,
        text_embeds=BaseModelOutputWithPooling(pooler_output=texts[None].expand(num, -1, -1, -1).flatten(0, 1)),
        attention_mask=token_mask[None].expand(num, -1, -1).flatten(0, 1),
    )


def _at_size(model: Any, size: tuple[int, int] | None) -> Any:
    """Return the model for square images of ``size``; its position codes are computed, so its weights fit any."""
    side = model.config.image_size
    if size is None or size == (side, side):
        return model
    patch = model.config.vision_config.backbone_config.patch_size
    if size[0] != size[1] or size[0] % patch:
        raise UsageError(
            f"SAM 3 takes square images whose side is a multiple of {patch} pixels, not {size[0]}x{size[1]}"
        )
    config = copy.deepcopy(model.config)
    config.image_size = size[0]
    sized_model = type(model)(config)
    sized_model.load_state_dict(model.state_dict())
    return sized_model.eval()
