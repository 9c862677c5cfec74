"""What a step minimizes: from the student and a batch to the loss and its terms.

An objective is a function ``(student, batch, moment) -> Losses``. A batch maps the roles ``labeled`` and
``unlabeled`` to samples as :class:`~maskmill.trainer.data.datasets.TrainingImages` makes them, stacked, images
normalized.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ... import kernels
from ..recipes import ConformalSam, Csl, Supervised
from ..run import import_torch
from ..students.models import keep_batchnorm
from . import losses
from .base import Losses, Moment
from .s2c import s2c_losses

if TYPE_CHECKING:
    from torch import Tensor


def labels(student: Any, batch: Mapping[str, Any], moment: Moment) -> Losses:
    """Cross-entropy on the labels, with their weights where the recipe says so."""
    samples, method = batch["labeled"], moment.recipe.method
    weight = samples["weight"].float() / 255 if isinstance(method, Supervised) and method.weighted else None
    logits = _upsample(student(samples["image"]), samples["label"])
    count = moment.counts["labeled"]
    return Losses(total=losses.cross_entropy(logits, samples["label"], weight, ignore=moment.ignore, count=count))


def self_reliance(student: Any, batch: Mapping[str, Any], moment: Moment) -> Losses:
    """ConformalSAM's phase II: true labels, and the student's own ones from the same view in eval mode."""
    torch, method = import_torch(), moment.recipe.method
    assert isinstance(method, ConformalSam), "the phase belongs to this method"
    labeled, unlabeled = batch["labeled"], batch["unlabeled"]
    own = losses.argmax_labels(_predict(student, unlabeled["image"]), unlabeled["real"], ignore=moment.ignore)
    num = len(labeled["image"])
    logits = _upsample(student(torch.cat([labeled["image"], unlabeled["image"]])), own)
    supervised = losses.cross_entropy(
        logits[:num], labeled["label"], ignore=moment.ignore, count=moment.counts["labeled"]
    )
    consistent = losses.cross_entropy(logits[num:], own, ignore=moment.ignore, count=moment.counts["unlabeled"])
    phase = moment.phase
    weight = losses.self_reliance_weight(
        moment.step - phase.start, phase.stop - phase.start, initial=method.initial, decay=method.decay
    )
    return Losses(
        total=losses.self_reliance(supervised, consistent, weight),
        terms={"labeled": supervised, "unlabeled": consistent},
        figures={"lambda": torch.tensor(weight, device=supervised.device)},
    )


def consistency(student: Any, batch: Mapping[str, Any], moment: Moment) -> Losses:
    """CSL: L = a L_x + b L_s + c L_m + d L_fp, with the weights of :class:`~maskmill.trainer.recipes.Csl`.

    L_x on labeled images; on unlabeled ones, with the labels and weights that the weak view gives: L_s on the strong
    view with CutMix, L_m on the covered view, L_fp on the weak view with dropped feature channels. Weak views of both
    kinds go through the student together, and so do the two strong ones, whose statistics leave no trace in batch
    normalization. CutMix takes its part from the next image of the same batch, which saves the authors' second pass
    over other images.
    """
    torch, method = import_torch(), moment.recipe.method
    assert isinstance(method, Csl), "the phase belongs to this method"
    labeled, unlabeled = batch["labeled"], batch["unlabeled"]
    real, num = unlabeled["real"], len(labeled["image"])
    features = student.encode(torch.cat([labeled["image"], unlabeled["image"]]))
    dropped = [torch.nn.functional.dropout2d(feature[num:], method.dropout) for feature in features]
    weak = student.decode([torch.cat(pair) for pair in zip(features, dropped, strict=True)])
    both = num + len(real)
    if method.selection == "pcos":
        own = losses.pcos_labels(weak[num:both], real, denominator=method.denominator, ignore=moment.ignore)
    else:
        own = losses.threshold_labels(weak[num:both], real, threshold=method.threshold, ignore=moment.ignore)
    mixed = losses.PseudoLabels(*(mix(values, unlabeled["box"]) for values in own))
    covered = kernels.perturbation_cover(unlabeled["cells"], tuple(real.shape[-2:]), own.reliable)
    images = [mix(unlabeled["strong"], unlabeled["box"]), unlabeled["masked"].masked_fill(covered[:, None], 0)]
    with keep_batchnorm(student):
        strong = _upsample(student(torch.cat(images)), real)

    def loss(logits: Tensor, pseudo: losses.PseudoLabels) -> Tensor:
        count = moment.counts["unlabeled"]
        return losses.cross_entropy(logits, pseudo.label, pseudo.weight, ignore=moment.ignore, count=count)

    terms = {
        "labeled": losses.cross_entropy(
            _upsample(weak[:num], real), labeled["label"], ignore=moment.ignore, count=moment.counts["labeled"]
        ),
        "strong": loss(strong[: len(real)], mixed),
        "masked": loss(strong[len(real) :], own),
        "features": loss(_upsample(weak[both:], real), own),
    }
    num_real, ramped = real.sum().clamp(min=1), method.ramp * moment.recipe.steps
    ramp = min(1.0, moment.step / ramped) if ramped else 1.0
    return Losses(
        total=torch.stack(
            [getattr(method, name) * (1 if name == "labeled" else ramp) * term for name, term in terms.items()]
        ).sum(),
        terms=terms,
        figures={"weight": own.weight.sum() / num_real, "reliable": own.reliable.sum() / num_real},
    )


OBJECTIVES: Mapping[str, Callable[[Any, Mapping[str, Any], Moment], Losses]] = {
    "labels": labels,
    "self_reliance": self_reliance,
    "consistency": consistency,
    "segments": s2c_losses,
}


def mix(values: Tensor, boxes: Tensor) -> Tensor:
    """CutMix: (N, ..., H, W) with each image's box (N, 4) of (top, left, bottom, right) taken from the next image."""
    torch = import_torch()
    rows, columns = (torch.arange(length, device=values.device) for length in values.shape[-2:])
    top, left, bottom, right = boxes[:, :, None].unbind(1)
    inside_rows, inside_columns = (rows >= top) & (rows < bottom), (columns >= left) & (columns < right)
    inside = inside_rows[:, :, None] & inside_columns[:, None, :]
    inside = inside.view(len(values), *[1] * (values.dim() - 3), *values.shape[-2:])
    return torch.where(inside, values.roll(-1, 0), values)


def _predict(student: Any, images: Tensor) -> Tensor:
    """Logits in eval mode, without a gradient."""
    student.eval()
    try:
        with import_torch().no_grad():
            return student(images)
    finally:
        student.train()


def _upsample(logits: Tensor, like: Tensor) -> Tensor:
    """Logits (N, K, h, w) → float32 at the size of maps (..., H, W), bilinear with half-pixel centers."""
    size = tuple(like.shape[-2:])
    if tuple(logits.shape[-2:]) == size:
        return logits.float()
    return import_torch().nn.functional.interpolate(logits.float(), size=size, mode="bilinear", align_corners=False)
