"""S2C ("From SAM to CAMs"): a classifier whose activation maps learn from a promptable model.

::

    maskmill train labels/ --recipe s2c --segments segments/ --image-labels labels.csv -o run/

``labels/`` holds the prompted predictor's labels, ``segments/`` maps of segments without classes. The authors prompt
the model in the training step; here its labels are cached like any other teacher's, and the trained classifier makes
the next ones. The loss is L_cls + a L_SSC + b L_CPM, with the weights of :class:`~maskmill.trainer.recipes.S2c`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..recipes import S2c
from ..run import import_torch
from ..students.classifier import normalized_maps
from . import losses
from .base import Losses, Moment

if TYPE_CHECKING:
    from torch import Tensor


def s2c_losses(student: Any, batch: Mapping[str, Any], moment: Moment) -> Losses:
    """The losses of a batch of images with segments, the prompted predictor's labels and the classes that they show."""
    torch, method, samples = import_torch(), moment.recipe.method, batch["labeled"]
    assert isinstance(method, S2c), "the phase belongs to this method"
    features, maps = student.decoder.maps(student.encode(samples["image"]))
    background, present = student.decoder.background, samples["present"]
    if background is not None:
        present = torch.cat([present[:, :background], present[:, background + 1 :]], dim=1)
    contrast = segment_contrast(features, samples["segments"], temperature=method.temperature, compat=method.compat)
    terms = {
        # means over images, of which each part of a step has as many
        "classes": classification(maps.mean(dim=(2, 3)), present) / moment.recipe.accumulate,
        "segments": contrast / moment.recipe.accumulate,
    }
    total = terms["classes"] + method.segments * terms["segments"]
    if moment.step >= method.warmup * moment.recipe.steps:
        scores = map_scores(maps, present, tuple(samples["label"].shape[-2:]), background)
        terms["prompted"] = losses.cross_entropy(
            scores, samples["label"], ignore=moment.ignore, count=moment.counts["labeled"]
        )
        total = total + method.prompted * terms["prompted"]
    return Losses(total=total, terms=terms)


def classification(logits: Tensor, present: Tensor) -> Tensor:
    """L_cls = -1/(N K) sum_ik [t_ik log s(y_ik) + (1 - t_ik) log(1 - s(y_ik))], s the logistic function.

    ``logits`` y and ``present`` t are (N, K), t 1 where image i shows class k.
    """
    functional = import_torch().nn.functional
    return functional.binary_cross_entropy_with_logits(logits.float(), present.float())


def segment_contrast(features: Tensor, segments: Tensor, *, temperature: float = 1.0, compat: bool = False) -> Tensor:
    """L_SSC: the features of a pixel are most like the mean of its own segment.

    L = -1/N sum_i 1/P_i sum_n log softmax_j(f_n . p_j / T)[segment of n], over the P_i pixels of image i that are in a
    segment. f_n is the feature (N, D, h, w) enlarged bilinearly to the maps, of length 1; p_j the mean of f over
    segment j of the same image, of length 1 and without a gradient. ``segments`` (N, H, W) holds ids from 1, and 0
    where there is no segment. An image without a segment counts 0.

    With ``compat`` as in the authors' code: the softmax also has a column, of logit 0, for each id up to the largest of
    the batch that the image lacks, and for 0; T multiplies; the mean is over all pixels of the batch.
    """
    torch = import_torch()
    largest, sums, counts = int(segments.max()), [], []
    for feature, ids in zip(features.float(), segments.long(), strict=True):
        enlarged = torch.nn.functional.interpolate(feature[None], size=ids.shape, mode="bilinear", align_corners=False)
        inside = ids > 0
        unit = torch.nn.functional.normalize(enlarged[0, :, inside], dim=0)
        found, own = torch.unique(ids[inside], return_inverse=True)
        means = torch.zeros(len(found), len(unit), device=unit.device).index_add_(0, own, unit.detach().T)
        prototypes = torch.nn.functional.normalize(means, dim=1)
        if compat:
            every = torch.zeros(largest + 1, len(unit), device=unit.device)
            prototypes, own = every.index_copy_(0, found, prototypes), ids[inside]
        logits = unit.T @ prototypes.T * (temperature if compat else 1 / temperature)
        sums.append(torch.nn.functional.cross_entropy(logits, own, reduction="sum"))
        counts.append(max(own.numel(), 1))
    if compat:
        return torch.stack(sums).sum() / sum(counts)
    return torch.stack([total / count for total, count in zip(sums, counts, strict=True)]).mean()


def map_scores(maps: Tensor, present: Tensor, size: tuple[int, int], background: int | None) -> Tensor:
    """What L_CPM takes for logits: L_CPM = 1/N sum_n -log softmax(c_n)[y_n], y the prompted predictor's label.

    c_k = t_k relu(A_k) / (max relu(A_k) + 1e-5), enlarged bilinearly to ``size``, is 0 for classes that the image does
    not show (t = 0); the background's channel is 1 - max_k c_k, inserted at its index where there is one. ``maps`` A
    (N, K, h, w) and ``present`` t (N, K), both without the background → (N, K or K + 1, H, W) in [0, 1].
    """
    torch = import_torch()
    scores = normalized_maps(maps.float()) * present.float()[:, :, None, None]
    scores = torch.nn.functional.interpolate(scores, size=size, mode="bilinear", align_corners=False)
    if background is None:
        return scores
    outside = 1 - scores.amax(dim=1, keepdim=True)
    return torch.cat([scores[:, :background], outside, scores[:, background:]], dim=1)
