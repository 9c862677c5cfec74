"""Export models of mask queries, Mask2Former, OneFormer and EoMT, with the queries folded into class scores.

A query gives a probability for each class and for none (void), and for each pixel of its mask. The score of a class at
a pixel is the sum of their products over the queries, as SEEM and Mask2Former infer semantic maps (arXiv 2112.01527
§3.4). It is not normalized over classes and may exceed 1, so the output's activation is ``none``.

Objects are pairs of query and class, as Mask2Former infers instances: the score is the probability of the class times
the mean probability of the mask's own pixels.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from ...engine.model.bundle import OutputSpec
from ...errors import ExportError
from .checkpoint import Checkpoint
from .folded import (
    OBJECTS,
    BackgroundScore,
    Choices,
    Folded,
    best_objects,
    class_names,
    image_input,
    with_background,
)
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
    class_maps = (probabilities.transpose(1, 2) @ masks.flatten(2)).unflatten(2, masks.shape[2:])
    scores, void = class_maps[:, :-1], class_maps[:, -1:]
    if background is None:
        return scores
    first = void if background == "void" else (1 - scores.amax(1, keepdim=True)).clamp(min=0)
    return torch.cat([first, scores], dim=1)


def objects(class_logits: Tensor, mask_logits: Tensor, limit: int, first: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Choose objects from queries (N, Q, C + 1) and (N, Q, h, w); ``first`` is the channel of the first class.

    Returns scores (N, K), classes (N, K) and masks (N, K, h, w), best classes first.
    """
    import torch

    probabilities = class_logits.softmax(-1)[..., :-1]
    num, num_classes = probabilities.shape[1:]
    classes = torch.arange(num_classes).repeat(num)[None] + first
    queries = torch.arange(num).repeat_interleave(num_classes)
    scores, classes, masks = best_objects(probabilities.flatten(1), classes, queries, mask_logits, limit)
    inside = (masks > 0).float()
    quality = (masks.sigmoid() * inside).sum((2, 3)) / (inside.sum((2, 3)) + 1e-6)
    return scores * quality, classes, masks


def mask2former(checkpoint: Checkpoint, model: Any, choices: Choices) -> Folded:
    """Fold Mask2Former (arXiv 2112.01527), at a fixed size."""
    return _folded(checkpoint, model, choices)


def oneformer(checkpoint: Checkpoint, model: Any, choices: Choices) -> Folded:
    """Fold OneFormer (arXiv 2211.06220) in its semantic task, at a fixed size."""
    tokens = checkpoint.tokenizer()(
        "the task is semantic", padding="max_length", truncation=True, max_length=model.config.task_seq_len,
        return_tensors="pt",
    )  # fmt: skip
    return _folded(checkpoint, model, choices, task=tokens["input_ids"])


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
    return _folded(checkpoint, model, choices, fixed=(side, side))


eomt_dinov3 = eomt
"""EoMT on DINOv3's transformer has the same interface."""


def _outputs(
    model: Any, image: Tensor, *, background: BackgroundScore | None, instances: int, task: Tensor | None = None
) -> Tensor | tuple[Tensor, ...]:
    further = {} if task is None else {"task_inputs": task.expand(image.shape[0], -1)}
    output = model(pixel_values=image, **further)
    classes, masks = output.class_queries_logits, output.masks_queries_logits
    scores = class_scores(classes, masks, background)
    return (scores, *objects(classes, masks, instances, int(background is not None))) if instances else scores


def _folded(
    checkpoint: Checkpoint,
    model: Any,
    choices: Choices,
    *,
    fixed: tuple[int, int] | None = None,
    **constants: Any,
) -> Folded:
    classes, background, score = with_background(class_names(checkpoint, choices), choices)
    return Folded(
        module=as_module(partial(_outputs, background=score, instances=choices.instances, **constants), model),
        task="semantic",
        input=image_input(checkpoint, choices, fixed=fixed),
        outputs=(OutputSpec(name="scores", activation="none"), *(OBJECTS if choices.instances else ())),
        classes=classes,
        background=background,
    )
