"""Export models that take text: class names are encoded at export and become constants of the graph.

CLIPSeg gives one channel per class. SAM 3 is in :mod:`.concepts`, which shares the functions here.
"""

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
    import torch

    names = named_classes(choices, "CLIPSeg")
    classes, background, score = with_background(names, choices)
    spec = image_input(checkpoint, choices)
    if spec.height != spec.width:
        raise UsageError(f"CLIPSeg takes square images only, not {spec.height}x{spec.width}")
    tokens = tokenize(checkpoint, texts_of(names, choices, default="a photo of a {}."))
    with torch.no_grad():
        features = model.clip.get_text_features(tokens["input_ids"], attention_mask=tokens["attention_mask"])
    texts = features.pooler_output
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


def named_classes(choices: Choices, model: str) -> tuple[str, ...]:
    """Return the class names that ``model`` is prompted with; raises :class:`UsageError` if there are none."""
    if choices.classes is None:
        raise UsageError(f"{model} segments the classes that you name: give the class names with --classes FILE")
    check_class_names(choices.classes)
    if choices.background_score == "void":
        raise UsageError(f"{model} has no void class, so the background's score can only be 'rest'")
    return choices.classes


def texts_of(classes: tuple[str, ...], choices: Choices, *, default: str) -> list[str]:
    """Return the sentence of each class, made with the caller's template or the family's ``default``."""
    return [(choices.template or default).format(name) for name in classes]


def tokenize(checkpoint: Checkpoint, texts: list[str], **settings: Any) -> Any:
    """Tokenize sentences with the tokenizer beside the weights; ``settings`` are its own, such as ``padding``.

    Raises :class:`UsageError` if two sentences have the same tokens: their classes would be one.
    """
    tokens = checkpoint.tokenizer()(texts, **{"padding": True, "truncation": True, "return_tensors": "pt", **settings})
    rows = [tuple(row) for row in tokens["input_ids"].tolist()]
    for index, row in enumerate(rows):
        if row in rows[:index]:
            raise UsageError(
                f"the prompts {texts[rows.index(row)]!r} and {texts[index]!r} have the same tokens, so their classes "
                "would be the same; use other names, and check that the tokenizer's files are the model's own"
            )
    return tokens


def class_logits(
    vision: Any, decoder: Any, image: Tensor, *, texts: Tensor, layers: Sequence[int], background: bool
) -> Tensor:
    """Turn images (N, 3, S, S) and encoded classes (C, D) into logits (N, C, h, w), with ``background`` in front.

    The image is encoded once; the decoder runs for every pair of image and class.
    """
    import torch

    tokens = vision.pre_layrnorm(vision.embeddings(image, interpolate_pos_encoding=True))
    states = []
    for layer in vision.encoder.layers[: max(layers) + 1]:
        tokens = layer(tokens, None)
        states.append(tokens)
    num, classes = image.shape[0], len(texts)
    activations = tuple(states[index].repeat_interleave(classes, dim=0) for index in layers)
    pairs = decoder(activations, texts.repeat(num, 1)).logits
    logits = pairs.reshape(num, classes, *pairs.shape[1:])
    if not background:
        return logits
    # the sigmoid of -x is 1 - the sigmoid of x
    return torch.cat([-logits.amax(1, keepdim=True), logits], dim=1)
