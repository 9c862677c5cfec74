"""Models that answer with masks and a class for each: Mask2Former, OneFormer, EoMT. Queries are folded to class scores.

A query says how likely each class is, or none (void), and how likely each pixel is in its mask. The score of a class at
a pixel is the sum over queries of the product, as SEEM and Mask2Former infer semantic maps (arXiv 2112.01527 §3.4). It
is not normalized over classes and may exceed 1, so the output's activation is ``none``.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from ...engine.model.bundle import OutputSpec
from ...errors import ExportError
from .checkpoint import Checkpoint
from .folded import BackgroundScore, Choices, Folded, class_names, image_input, with_background
from .torch_module import as_module


def class_scores(class_logits: Any, mask_logits: Any, background: BackgroundScore | None = None) -> Any:
    """Queries to scores: (N, Q, C + 1) with void last, (N, Q, h, w) → (N, C, h, w), [0, Q].

    With ``background`` a channel comes first: ``rest`` is max(0, 1 - the best class), ``void`` the sum over queries of
    void x mask.
    """
    import torch

    probabilities = class_logits.softmax(-1)
    masks = mask_logits.sigmoid()
    folded = (probabilities.transpose(1, 2) @ masks.flatten(2)).unflatten(2, masks.shape[2:])
    scores, void = folded[:, :-1], folded[:, -1:]
    if background is None:
        return scores
    first = void if background == "void" else (1 - scores.amax(1, keepdim=True)).clamp(min=0)
    return torch.cat([first, scores], dim=1)


def mask2former(checkpoint: Checkpoint, model: Any, choices: Choices) -> Folded:
    """Mask2Former (arXiv 2112.01527), at a fixed size."""
    return _folded(checkpoint, model, choices, _scores)


def oneformer(checkpoint: Checkpoint, model: Any, choices: Choices) -> Folded:
    """OneFormer (arXiv 2211.06220), asked for its semantic task, at a fixed size."""
    tokens = checkpoint.tokenizer()(
        "the task is semantic", padding="max_length", truncation=True, max_length=model.config.task_seq_len,
        return_tensors="pt",
    )  # fmt: skip
    return _folded(checkpoint, model, choices, _scores_of_task, task=tokens["input_ids"])


def eomt(checkpoint: Checkpoint, model: Any, choices: Choices) -> Folded:
    """EoMT (arXiv 2503.19108) at its fixed size, the whole image at once rather than in square windows."""
    chances = [float(chance) for chance in model.attn_mask_probs]
    if any(0 < chance < 1 for chance in chances):
        raise ExportError(
            f"{checkpoint.folder} was saved in the middle of training: it masks attention by chance ({chances}); "
            "export the final checkpoint, whose chances are 0 or 1"
        )
    # plain numbers, since a graph cannot branch on a tensor
    del model.attn_mask_probs
    model.attn_mask_probs = chances
    side = model.config.image_size
    return _folded(checkpoint, model, choices, _scores, fixed=(side, side))


def _scores(model: Any, image: Any, *, background: BackgroundScore | None) -> Any:
    output = model(pixel_values=image)
    return class_scores(output.class_queries_logits, output.masks_queries_logits, background)


def _scores_of_task(model: Any, image: Any, *, background: BackgroundScore | None, task: Any) -> Any:
    output = model(pixel_values=image, task_inputs=task.expand(image.shape[0], -1))
    return class_scores(output.class_queries_logits, output.masks_queries_logits, background)


def _folded(
    checkpoint: Checkpoint,
    model: Any,
    choices: Choices,
    forward: Any,
    *,
    fixed: tuple[int, int] | None = None,
    **constants: Any,
) -> Folded:
    classes, background = with_background(class_names(checkpoint, choices), choices)
    return Folded(
        module=as_module(partial(forward, background=background, **constants), model),
        task="semantic",
        input=image_input(checkpoint, choices, fixed=fixed),
        outputs=(OutputSpec(name="scores", activation="none"),),
        classes=classes,
        background=choices.background,
    )
