"""Export models of mask queries, Mask2Former, OneFormer and EoMT, with the queries folded into class scores.

A query gives a probability for each class and for none (void), and for each pixel of its mask. The score of a class at
a pixel is the sum of their products over the queries, as SEEM and Mask2Former infer semantic maps (arXiv 2112.01527
§3.4). It is not normalized over classes and may exceed 1, so the output's activation is ``none``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from ...engine.model.bundle import OutputSpec
from ...errors import ExportError
from .checkpoint import Checkpoint
from .folded import BackgroundScore, Choices, Folded, class_names, image_input, with_background
from .torch_module import as_module

if TYPE_CHECKING:
    from torch import Tensor


def class_scores(class_logits: Tensor, mask_logits: Tensor, background: BackgroundScore | None = None) -> Tensor:
    """Fold queries into scores: (N, Q, C + 1) with void last, (N, Q, h, w) → (N, C, h, w), [0, Q].

    With ``background`` a channel is added in front: ``rest`` is max(0, 1 - the best class), ``void`` the sum over
    queries of void x mask.
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
    """Fold Mask2Former (arXiv 2112.01527), at a fixed size."""
    return _folded(checkpoint, model, choices, _scores)


def oneformer(checkpoint: Checkpoint, model: Any, choices: Choices) -> Folded:
    """Fold OneFormer (arXiv 2211.06220) in its semantic task, at a fixed size."""
    tokens = checkpoint.tokenizer()(
        "the task is semantic", padding="max_length", truncation=True, max_length=model.config.task_seq_len,
        return_tensors="pt",
    )  # fmt: skip
    return _folded(checkpoint, model, choices, _scores_of_task, task=tokens["input_ids"])


def eomt(checkpoint: Checkpoint, model: Any, choices: Choices) -> Folded:
    """Fold EoMT (arXiv 2503.19108) at its fixed size; it takes the whole image at once, not square windows of it."""
    chances = [float(chance) for chance in model.attn_mask_probs]
    if any(0 < chance < 1 for chance in chances):
        raise ExportError(
            f"{checkpoint.folder} was saved in the middle of training: it masks attention by chance ({chances}); "
            "export the final checkpoint, whose chances are 0 or 1"
        )
    # plain numbers: a graph cannot branch on a tensor
    del model.attn_mask_probs
    model.attn_mask_probs = chances
    side = model.config.image_size
    return _folded(checkpoint, model, choices, _scores, fixed=(side, side))


eomt_dinov3 = eomt
"""EoMT on DINOv3's transformer has the same interface."""


def _scores(model: Any, image: Tensor, *, background: BackgroundScore | None) -> Tensor:
    output = model(pixel_values=image)
    return class_scores(output.class_queries_logits, output.masks_queries_logits, background)


def _scores_of_task(model: Any, image: Tensor, *, background: BackgroundScore | None, task: Tensor) -> Tensor:
    output = model(pixel_values=image, task_inputs=task.expand(image.shape[0], -1))
    return class_scores(output.class_queries_logits, output.masks_queries_logits, background)


def _folded(
    checkpoint: Checkpoint,
    model: Any,
    choices: Choices,
    forward: Callable[..., Tensor],
    *,
    fixed: tuple[int, int] | None = None,
    **constants: Any,
) -> Folded:
    classes, background, score = with_background(class_names(checkpoint, choices), choices)
    return Folded(
        module=as_module(partial(forward, background=score, **constants), model),
        task="semantic",
        input=image_input(checkpoint, choices, fixed=fixed),
        outputs=(OutputSpec(name="scores", activation="none"),),
        classes=classes,
        background=background,
    )
