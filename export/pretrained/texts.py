"""Export models that take text, CLIPSeg: class names are encoded at export and become constants of the graph."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from ...engine.model.bundle import OutputSpec, check_class_names
from ...errors import UsageError
from .checkpoint import Checkpoint
from .folded import Choices, Folded, image_input, with_background
from .torch_module import as_module

if TYPE_CHECKING:
    from torch import Tensor


def clipseg(checkpoint: Checkpoint, model: Any, choices: Choices) -> Folded:
    """Fold CLIPSeg (arXiv 2112.10003) at a fixed square size: one sigmoid channel per class.

    A background that is not among the class names gets a channel with the logit of 1 minus the best class.
    """
    if choices.classes is None:
        raise UsageError("CLIPSeg segments the classes that you name: give the class names with --classes FILE")
    check_class_names(choices.classes)
    classes, background, score = with_background(choices.classes, choices)
    if score == "void":
        raise UsageError("CLIPSeg has no class for nothing at all; the background's score can only be 'rest'")
    spec = image_input(checkpoint, choices)
    if spec.height != spec.width:
        raise UsageError(f"CLIPSeg takes square images only, not {spec.height}x{spec.width}")
    texts = encode_texts(checkpoint, model, [choices.template.format(name) for name in choices.classes])
    return Folded(
        module=as_module(
            partial(class_logits, texts=texts, layers=model.extract_layers, background=score is not None),
            model.clip.vision_model,
            model.decoder,
        ),
        task="semantic",
        input=spec,
        outputs=(OutputSpec(name="scores", activation="sigmoid"),),
        classes=classes,
        background=background,
    )


def encode_texts(checkpoint: Checkpoint, model: Any, texts: list[str]) -> Tensor:
    """Encode sentences to (C, D) float32 with the tokenizer beside the weights.

    Raises :class:`UsageError` if two sentences have the same tokens: their classes would be one.
    """
    import torch

    tokens = checkpoint.tokenizer()(texts, padding=True, truncation=True, return_tensors="pt")
    rows = [tuple(row) for row in tokens["input_ids"].tolist()]
    for index, row in enumerate(rows):
        if row in rows[:index]:
            raise UsageError(
                f"the prompts {texts[rows.index(row)]!r} and {texts[index]!r} have the same tokens, so their classes "
                "would be the same; use other names, and check that the tokenizer's files are the model's own"
            )
    with torch.no_grad():
        features = model.clip.get_text_features(tokens["input_ids"], attention_mask=tokens["attention_mask"])
    return features.pooler_output


def class_logits(
    vision: Any, decoder: Any, image: Tensor, *, texts: Tensor, layers: Sequence[int], background: bool
) -> Tensor:
    """Turn images (N, 3, S, S) and encoded classes (C, D) into logits (N, C, h, w), with ``background`` in front.

    The image is encoded once; the decoder runs for every pair of image and class.
    """
    import torch

    hidden = vision.pre_layrnorm(vision.embeddings(image, interpolate_pos_encoding=True))
    states = []
    for layer in vision.encoder.layers[: max(layers) + 1]:
        hidden = layer(hidden, None)
        states.append(hidden)
    num, classes = image.shape[0], len(texts)
    activations = tuple(states[index].repeat_interleave(classes, dim=0) for index in layers)
    pairs = decoder(activations, texts.repeat(num, 1)).logits
    logits = pairs.reshape(num, classes, *pairs.shape[1:])
    if not background:
        return logits
    # the sigmoid of -x is 1 - the sigmoid of x
    return torch.cat([-logits.amax(1, keepdim=True), logits], dim=1)
