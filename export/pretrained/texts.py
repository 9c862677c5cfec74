"""Models that are asked in words: CLIPSeg. The class names are encoded at export and are constants of the graph."""

from __future__ import annotations

from functools import partial
from typing import Any

from ...engine.model.bundle import OutputSpec
from ...errors import UsageError
from .checkpoint import Checkpoint
from .folded import Choices, Folded, image_input, with_background
from .torch_module import as_module


def clipseg(checkpoint: Checkpoint, model: Any, choices: Choices) -> Folded:
    """CLIPSeg (arXiv 2112.10003) at a fixed square size: one sigmoid channel a class.

    A background that is not among the class names gets a channel with the logit of what the best class leaves of 1.
    """
    if choices.classes is None:
        raise UsageError("CLIPSeg finds what it is asked for in words: give the class names with --classes")
    classes, background = with_background(choices.classes, choices)
    if background == "void":
        raise UsageError("CLIPSeg has no class for nothing at all; the background's score can only be 'rest'")
    spec = image_input(checkpoint, choices)
    if spec.height != spec.width:
        raise UsageError(f"CLIPSeg takes square images only, not {spec.height}x{spec.width}")
    texts = encode_texts(checkpoint, model, [choices.template.format(name) for name in choices.classes])
    return Folded(
        module=as_module(
            partial(class_logits, texts=texts, layers=model.extract_layers, background=background is not None),
            model.clip.vision_model,
            model.decoder,
        ),
        task="semantic",
        input=spec,
        outputs=(OutputSpec(name="scores", activation="sigmoid"),),
        classes=classes,
        background=choices.background,
    )


def encode_texts(checkpoint: Checkpoint, model: Any, texts: list[str]) -> Any:
    """Sentences → (C, D) float32, with the tokenizer that lies beside the weights."""
    import torch

    tokens = checkpoint.tokenizer()(texts, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        features = model.clip.get_text_features(tokens["input_ids"], attention_mask=tokens["attention_mask"])
    return features.pooler_output


def class_logits(vision: Any, decoder: Any, image: Any, *, texts: Any, layers: Any, background: bool) -> Any:
    """Images (N, 3, S, S) and encoded classes (C, D) → logits (N, C, h, w); the background's first, where asked for.

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
    found = decoder(activations, texts.repeat(num, 1)).logits
    logits = found.reshape(num, classes, *found.shape[1:])
    if not background:
        return logits
    # the sigmoid of -x is 1 - the sigmoid of x
    return torch.cat([-logits.amax(1, keepdim=True), logits], dim=1)
