"""What a step minimises: from the student and a batch to the loss and its terms.

An objective is a function ``(student, batch, moment) -> Losses``. A batch maps the roles ``labelled`` and
``unlabelled`` to samples as :class:`~maskmill.trainer.data.datasets.TrainingImages` makes them, stacked, images normalised.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ... import kernels
from . import losses
from ..students.models import keep_batchnorm
from ..recipes import ConformalSam, Csl, Recipe, Stage, Supervised
from ..run import import_torch

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Losses:
    """The losses of a batch, float32 scalars."""

    total: Tensor
    """What is minimised; it carries the gradient."""
    terms: Mapping[str, Tensor] = field(default_factory=dict)
    """What the total is made of; like it, the parts of a step add up to the step's."""
    figures: Mapping[str, Tensor] = field(default_factory=dict)
    """Other numbers worth a look, whose mean over the parts of a step is the step's."""


@dataclass(frozen=True, kw_only=True)
class Moment:
    """Where in a run a batch stands."""

    recipe: Recipe
    """The whole recipe."""
    stage: Stage
    """The stage of the step."""
    step: int
    """Number of the step, from 0."""
    ignore: int
    """Index of pixels without a label."""
    counts: Mapping[str, float]
    """What the loss of a role is divided by: its pixels in the whole step, a process."""


def labels(student: Any, batch: Mapping[str, Any], moment: Moment) -> Losses:
    """Cross-entropy on the labels, with their weights where the recipe says so."""
    samples, method = batch["labelled"], moment.recipe.method
    weight = samples["weight"].float() / 255 if isinstance(method, Supervised) and method.weighted else None
    logits = _upsample(student(samples["image"]), samples["label"])
    count = moment.counts["labelled"]
    return Losses(total=losses.cross_entropy(logits, samples["label"], weight, ignore=moment.ignore, count=count))


def self_reliance(student: Any, batch: Mapping[str, Any], moment: Moment) -> Losses:
    """ConformalSAM's stage II: true labels, and the student's own ones from the same view in eval mode."""
    torch, method = import_torch(), moment.recipe.method
    assert isinstance(method, ConformalSam), "the stage belongs to this method"
    labelled, unlabelled = batch["labelled"], batch["unlabelled"]
    own = losses.argmax_labels(_predict(student, unlabelled["image"]), unlabelled["real"], ignore=moment.ignore)
    num = len(labelled["image"])
    logits = _upsample(student(torch.cat([labelled["image"], unlabelled["image"]])), own)
    supervised = losses.cross_entropy(
        logits[:num], labelled["label"], ignore=moment.ignore, count=moment.counts["labelled"]
    )
    consistent = losses.cross_entropy(logits[num:], own, ignore=moment.ignore, count=moment.counts["unlabelled"])
    stage = moment.stage
    weight = losses.self_reliance_weight(
        moment.step - stage.start, stage.stop - stage.start, initial=method.initial, decay=method.decay
    )
    return Losses(
        total=losses.self_reliance(supervised, consistent, weight),
        terms={"labelled": supervised, "unlabelled": consistent},
        figures={"lambda": torch.tensor(weight, device=supervised.device)},
    )


def consistency(student: Any, batch: Mapping[str, Any], moment: Moment) -> Losses:
    """CSL: L = a L_x + b L_s + c L_m + d L_fp, with the weights of :class:`~maskmill.trainer.recipes.Csl`.

    L_x on labelled images; on unlabelled ones, with the labels and weights that the weak view gives: L_s on the strong
    view with CutMix, L_m on the covered view, L_fp on the weak view with dropped feature channels. Weak views of both
    kinds go through the student together, and so do the two strong ones, whose statistics leave no trace in batch
    normalisation. CutMix takes its part from the next image of the same batch, which saves the authors' second pass
    over other images.
    """
    torch, method = import_torch(), moment.recipe.method
    assert isinstance(method, Csl), "the stage belongs to this method"
    labelled, unlabelled = batch["labelled"], batch["unlabelled"]
    real, num = unlabelled["real"], len(labelled["image"])
    features = student.encode(torch.cat([labelled["image"], unlabelled["image"]]))
    dropped = [torch.nn.functional.dropout2d(feature[num:], method.dropout) for feature in features]
    weak = student.decode([torch.cat(pair) for pair in zip(features, dropped, strict=True)])
    both = num + len(real)
    if method.selection == "pcos":
        own = losses.pcos_labels(weak[num:both], real, denominator=method.denominator, ignore=moment.ignore)
    else:
        own = losses.threshold_labels(weak[num:both], real, threshold=method.threshold, ignore=moment.ignore)
    mixed = losses.PseudoLabels(*(mix(values, unlabelled["box"]) for values in own))
    covered = kernels.perturbation_cover(unlabelled["cells"], tuple(real.shape[-2:]), own.reliable)
    images = [mix(unlabelled["strong"], unlabelled["box"]), unlabelled["masked"].masked_fill(covered[:, None], 0)]
    with keep_batchnorm(student):
        strong = _upsample(student(torch.cat(images)), real)

    def loss(logits: Tensor, pseudo: losses.PseudoLabels) -> Tensor:
        count = moment.counts["unlabelled"]
        return losses.cross_entropy(logits, pseudo.label, pseudo.weight, ignore=moment.ignore, count=count)

    terms = {
        "labelled": losses.cross_entropy(
            _upsample(weak[:num], real), labelled["label"], ignore=moment.ignore, count=moment.counts["labelled"]
        ),
        "strong": loss(strong[: len(real)], mixed),
        "masked": loss(strong[len(real) :], own),
        "features": loss(_upsample(weak[both:], real), own),
    }
    num_real, ramped = real.sum().clamp(min=1), method.ramp * moment.recipe.steps
    ramp = min(1.0, moment.step / ramped) if ramped else 1.0
    return Losses(
        total=torch.stack(
            [getattr(method, name) * (1 if name == "labelled" else ramp) * term for name, term in terms.items()]
        ).sum(),
        terms=terms,
        figures={"weight": own.weight.sum() / num_real, "reliable": own.reliable.sum() / num_real},
    )


def segments(student: Any, batch: Mapping[str, Any], moment: Moment) -> Losses:
    """S2C's losses; see :mod:`maskmill.trainer.objectives.s2c`."""
    from .s2c import s2c_losses

    return s2c_losses(student, batch, moment)


OBJECTIVES: Mapping[str, Callable[[Any, Mapping[str, Any], Moment], Losses]] = {
    "labels": labels,
    "self_reliance": self_reliance,
    "consistency": consistency,
    "segments": segments,
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
