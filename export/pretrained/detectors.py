"""Export detectors that take text: class names are encoded at export and become constants of the graph.

Grounding DINO and MM-Grounding-DINO read one sentence of all class names, ``cat. sofa.``; the score of a class is the
largest over the tokens of its name. OWL-ViT and OWLv2 encode each name in a sentence of its own. Boxes become corners,
as fractions of the input; no box is dropped, since thresholds and suppression belong to labeling
(:mod:`maskmill.engine.predictors.prompted.boxes`).
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from ...errors import UsageError
from ..adopt.boxes import OUTPUTS
from .checkpoint import Checkpoint
from .folded import Choices, Folded, image_input
from .texts import named_classes, texts_of, tokenize
from .torch_module import as_module

if TYPE_CHECKING:
    from torch import Tensor

_SEPARATORS = ".?"


def grounding_dino(checkpoint: Checkpoint, model: Any, choices: Choices) -> Folded:
    """Fold Grounding DINO (arXiv 2303.05499) at a fixed size; one box per query."""
    import torch

    names = named_classes(choices, "Grounding DINO")
    if choices.template is not None:
        raise UsageError("Grounding DINO reads all class names in one sentence; leave --template out")
    tokens, spans = sentence_of(checkpoint, names, model.config.max_text_len)
    module = sys.modules[type(model).__module__]
    masks, positions = module.generate_masks_with_special_tokens_and_transfer_map(
        tokens["input_ids"], model.model.special_tokens
    )
    with torch.no_grad():
        features = model.model.text_backbone(
            tokens["input_ids"], masks[:, None], tokens["token_type_ids"], positions
        ).last_hidden_state
    text = _Constant(features)
    model.model.text_backbone = text.module
    return _folded(
        checkpoint,
        choices,
        names,
        as_module(partial(score_queries, tokens=tokens, spans=spans, masks=(masks, positions)), model),
    )


mm_grounding_dino = grounding_dino
"""MM-Grounding-DINO (arXiv 2401.02361) has the same interface."""


def owlv2(checkpoint: Checkpoint, model: Any, choices: Choices) -> Folded:
    """Fold OWLv2 (arXiv 2306.09683) or OWL-ViT (arXiv 2205.06230) at its fixed size; one box per patch."""
    import torch

    body = model.owlv2 if hasattr(model, "owlv2") else model.owlvit
    names = named_classes(choices, "OWL-ViT")
    longest = model.config.text_config.max_position_embeddings
    tokens = tokenize(
        checkpoint, texts_of(names, choices, default="a photo of a {}"), padding="max_length", max_length=longest
    )
    with torch.no_grad():
        texts = body.get_text_features(tokens["input_ids"], attention_mask=tokens["attention_mask"]).pooler_output
        texts = texts / texts.norm(dim=-1, keepdim=True)
    side = model.config.vision_config.image_size
    detector = _folded(
        checkpoint, choices, names, as_module(partial(score_patches, texts=texts), model), fixed=(side, side)
    )
    if not hasattr(model, "owlv2"):
        return detector
    # padded to a square before normalizing, with zeros
    return dataclasses.replace(
        detector, input=dataclasses.replace(detector.input, resize="longest-side", pad_value=0.0)
    )


owlvit = owlv2
"""OWL-ViT stretches the image where OWLv2 pads it."""


def sentence_of(checkpoint: Checkpoint, names: tuple[str, ...], longest: int) -> tuple[Any, list[tuple[int, int]]]:
    """Tokenize the class names as one sentence; returns tokens, and the (first, end) token of each name.

    Raises :class:`UsageError` for a name that holds a separator, and for more tokens than ``longest``.
    """
    for name in names:
        if set(name) & set(_SEPARATORS):
            raise UsageError(f"Grounding DINO separates class names by '.' and '?'; rename the class {name!r}")
    parts = [f"{name.strip().lower()}." for name in names]
    text = " ".join(parts)
    tokens = checkpoint.tokenizer()(text, return_tensors="pt", return_offsets_mapping=True, return_token_type_ids=True)
    offsets = tokens.pop("offset_mapping")[0].tolist()
    if len(offsets) > longest:
        raise UsageError(
            f"the class names have {len(offsets)} tokens in all, the model reads {longest}; give fewer classes, and "
            "make several bundles"
        )
    spans, start = [], 0
    for part, name in zip(parts, names, strict=True):
        end = start + len(part) - 1
        inside = [index for index, (low, high) in enumerate(offsets) if low >= start and high <= end and low < high]
        if not inside:
            raise UsageError(f"the tokenizer knows no part of the class name {name!r}; use another name")
        spans.append((inside[0], inside[-1] + 1))
        start += len(part) + 1
    return tokens, spans


def score_queries(
    model: Any, image: Tensor, *, tokens: Any, spans: list[tuple[int, int]], masks: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Return the boxes (N, Q, 4) and class scores (N, Q, C) of images (N, 3, H, W), one sentence for all."""
    import torch

    num = image.shape[0]
    joint, positions = masks
    fixed = joint.expand(num, -1, -1), positions.expand(num, -1)
    with _replaced(
        sys.modules[type(model).__module__],
        "generate_masks_with_special_tokens_and_transfer_map",
        lambda *_, **__: fixed,
    ):
        output = model(
            pixel_values=image,
            input_ids=tokens["input_ids"].expand(num, -1),
            attention_mask=tokens["attention_mask"].expand(num, -1),
            token_type_ids=tokens["token_type_ids"].expand(num, -1),
        )
    scores = torch.stack([output.logits[..., first:end].amax(-1) for first, end in spans], dim=-1).sigmoid()
    return corners_of(output.pred_boxes), scores


def score_patches(model: Any, image: Tensor, *, texts: Tensor) -> tuple[Tensor, Tensor]:
    """Return the boxes (N, P, 4) and class scores (N, P, C) of images (N, 3, S, S), encoded names (C, D)."""
    features, _ = model.image_embedder(image)
    flat = features.flatten(1, 2)
    logits, _ = model.class_predictor(flat, texts[None].expand(image.shape[0], -1, -1))
    return corners_of(model.box_predictor(flat, features)), logits.sigmoid()


def corners_of(boxes: Tensor) -> Tensor:
    """Convert boxes (…, 4) from center and size to corners x0, y0, x1, y1."""
    import torch

    centers, sizes = boxes[..., :2], boxes[..., 2:]
    return torch.cat([centers - sizes / 2, centers + sizes / 2], dim=-1)


class _Constant:
    """Text encoder that returns a precomputed result."""

    def __init__(self, features: Tensor) -> None:
        from torch import nn
        from transformers.modeling_outputs import BaseModelOutput

        class Encoded(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.register_buffer("features", features)

            def forward(self, input_ids: Tensor, *_: Any, **__: Any) -> BaseModelOutput:
                return BaseModelOutput(last_hidden_state=self.features.expand(input_ids.shape[0], -1, -1))

        self.module = Encoded()


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Replace a function of a transformers module while its model is called, since the exporter cannot trace it."""
    original = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)


def _folded(
    checkpoint: Checkpoint,
    choices: Choices,
    names: tuple[str, ...],
    module: Any,
    fixed: tuple[int, int] | None = None,
) -> Folded:
    if choices.background is not None:
        raise UsageError("a detector has no background: it is what no box covers; leave --background out")
    return Folded(
        module=module,
        task="detector",
        input=image_input(checkpoint, choices, fixed=fixed),
        outputs=OUTPUTS,
        classes=names,
    )
