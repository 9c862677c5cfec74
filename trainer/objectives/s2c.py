"""S2C ("From SAM to CAMs"): a classifier whose activation maps learn from a promptable model.

::

    maskmill train labels/ --recipe s2c --segments segments/ --image-labels labels.csv -o run/

``labels/`` holds the labels of the prompted predictor, ``segments/`` maps of segments without classes. The authors
prompt the model in every training step; here its labels are stored like those of any teacher, and the trained
classifier makes the labels of the next round. The loss is L_cls + a L_SSC + b L_CPM, with the weights of
:class:`~maskmill.trainer.methods.S2c`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..methods import S2c
from ..run import import_torch
from ..students.classifier import normalized_maps
from . import losses
from .base import Losses, Moment

if TYPE_CHECKING:
    from torch import Tensor


def s2c_losses(student: Any, batch: Mapping[str, Any], moment: Moment) -> Losses:
    """Compute the losses of images with segments, labels of the prompted predictor, and image-level labels."""
    torch, method, samples = import_torch(), moment.recipe.method, batch["labeled"]
    assert isinstance(method, S2c), "the phase belongs to this method"
    features, maps = student.decoder.maps(student.encode(samples["image"]))
    background, class_flags = student.decoder.background, samples["present"]
    if background is not None:
        class_flags = torch.cat([class_flags[:, :background], class_flags[:, background + 1 :]], dim=1)
    contrast = segment_contrast(
        features, samples["segments"], samples["num_segments"], temperature=method.temperature, compat=method.compat
    )
    terms = {
        # means over images; every part of a step has the same number of images
        "classes": classification(maps.mean(dim=(2, 3)), class_flags) / moment.recipe.accumulate,
        "segments": contrast / moment.recipe.accumulate,
    }
    total = terms["classes"] + method.segments * terms["segments"]
    if moment.step >= method.warmup * moment.recipe.steps:
        size = (samples["label"].shape[-2], samples["label"].shape[-1])
        scores = map_scores(maps, class_flags, size, background)
        terms["prompted"] = losses.cross_entropy(
            scores, samples["label"], ignore=moment.ignore, count=moment.counts["labeled"]
        )
        total = total + method.prompted * terms["prompted"]
    return Losses(total=total, terms=terms)


def classification(logits: Tensor, present: Tensor) -> Tensor:
    """Compute L_cls = -1/(N K) sum_ik [t_ik log s(y_ik) + (1 - t_ik) log(1 - s(y_ik))], s the logistic function.

    ``logits`` y and ``present`` t are (N, K), t 1 where image i shows class k.
    """
    functional = import_torch().nn.functional
    return functional.binary_cross_entropy_with_logits(logits.float(), present.float())


def segment_contrast(
    features: Tensor, segments: Tensor, num_segments: int, *, temperature: float = 1.0, compat: bool = False
) -> Tensor:
    """Compute L_SSC: a pixel's features should be most similar to the mean features of its own segment.

    L = -1/N sum_i 1/P_i sum_n log softmax_j(f_n . p_j / T)[segment of n], over the P_i pixels of image i that are in a
    segment. f_n is the feature (N, D, h, w), upsampled bilinearly to the maps and normalized to length 1; p_j is the
    mean of f over segment j of the same image, normalized to length 1 and without a gradient. ``segments`` (N, H, W)
    holds ids from 1 to at most ``num_segments``, and 0 for pixels without a segment. An image without a segment counts
    as 0.

    ``compat`` follows the authors' code: the softmax has a column per id from 0 to the largest id of the batch; the
    prototype of id 0 is the mean of the pixels without a segment; ids that an image lacks have logit 0; T multiplies;
    the mean is over all pixels of the batch.
    """
    torch = import_torch()
    columns, sums, counts = num_segments + 1, [], []
    for feature, ids in zip(features.float(), segments.long(), strict=True):
        size = (ids.shape[-2], ids.shape[-1])
        upsampled = torch.nn.functional.interpolate(feature[None], size=size, mode="bilinear", align_corners=False)
        unit = torch.nn.functional.normalize(upsampled[0], dim=0)
        pixels, segment_ids = unit.flatten(1), ids.flatten()
        sizes = torch.zeros(columns, device=pixels.device).index_add_(0, segment_ids, torch.ones_like(pixels[0]))
        means = torch.zeros(columns, len(pixels), device=pixels.device).index_add_(0, segment_ids, pixels.detach().T)
        prototypes = torch.nn.functional.normalize(means / sizes.clamp(min=1)[:, None], dim=1)
        scores = pixels.T @ prototypes.T * (temperature if compat else 1 / temperature)
        if not compat:
            is_absent = (sizes == 0) | (torch.arange(columns, device=pixels.device) == 0)
            scores = scores.masked_fill(is_absent, -1e30)
        sums.append(torch.nn.functional.cross_entropy(scores, segment_ids, reduction="sum", ignore_index=0))
        counts.append((ids > 0).sum().clamp(min=1))
    totals, divisors = torch.stack(sums), torch.stack(counts)
    return totals.sum() / divisors.sum() if compat else (totals / divisors).mean()


def map_scores(maps: Tensor, class_flags: Tensor, size: tuple[int, int], background: int | None) -> Tensor:
    """Compute the logits of L_CPM = 1/N sum_n -log softmax(c_n)[y_n], y the labels of the prompted predictor.

    c_k = t_k relu(A_k) / (max relu(A_k) + 1e-5), upsampled bilinearly to ``size``, is 0 for classes that are not in the
    image (t = 0); the channel of the background, if there is one, is 1 - max_k c_k at its index. ``maps`` A
    (N, K, h, w) and ``class_flags`` t (N, K), both without the background → (N, K or K + 1, H, W) in [0, 1].
    """
    torch = import_torch()
    scores = normalized_maps(maps.float()) * class_flags.float()[:, :, None, None]
    scores = torch.nn.functional.interpolate(scores, size=size, mode="bilinear", align_corners=False)
    if background is None:
        return scores
    outside = 1 - scores.amax(dim=1, keepdim=True)
    return torch.cat([scores[:, :background], outside, scores[:, background:]], dim=1)
