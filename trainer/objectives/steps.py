"""Objectives by name: from the student and a batch to the loss that a step minimizes.

An objective is a function ``(student, batch, moment) -> Losses``. A batch maps the roles ``labeled`` and ``unlabeled``
to stacked samples of :class:`~maskmill.trainer.data.datasets.TrainingImages`, with normalized images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ..methods import AllSpark, ConformalSam, Supervised
from ..phases import ObjectiveName
from ..run import import_torch
from . import losses
from .base import Losses, Moment, predict, upsample
from .consistency import consistency, labeled_loss
from .pseudo_labels import argmax_labels
from .s2c import s2c_losses

if TYPE_CHECKING:
    from torch import Tensor


def labels(student: Any, batch: Mapping[str, Any], moment: Moment) -> Losses:
    """Compute the cross-entropy of given labels, with their weights if the recipe says so."""
    samples, method = batch["labeled"], moment.recipe.method
    logits = student(samples["image"])
    if not (isinstance(method, Supervised) and method.weighted):
        return Losses(total=labeled_loss(logits, samples["label"], moment))
    weight = samples["weight"].float() / 255
    logits, count = upsample(logits, samples["label"]), moment.counts["labeled"]
    return Losses(total=losses.cross_entropy(logits, samples["label"], weight, ignore=moment.ignore, count=count))


def self_reliance(student: Any, batch: Mapping[str, Any], moment: Moment) -> Losses:
    """Compute ConformalSAM's losses, phase II: true labels, and the student's eval-mode labels of the same view."""
    method = moment.recipe.method
    assert isinstance(method, ConformalSam), "the phase belongs to this method"
    supervised, consistent = _labeled_and_own(student, batch, moment, memory=True)
    phase = moment.phase
    weight = losses.self_reliance_weight(
        moment.step - phase.start, phase.stop - phase.start, initial=method.initial, decay=method.decay
    )
    return Losses(
        total=losses.self_reliance(supervised, consistent, weight),
        terms={"labeled": supervised, "unlabeled": consistent},
        figures={"lambda": supervised.new_full((), weight)},
    )


def allspark(student: Any, batch: Mapping[str, Any], moment: Moment) -> Losses:
    """Compute AllSpark's losses: true labels on features rebuilt from unlabeled channels, and the student's labels."""
    method = moment.recipe.method
    assert isinstance(method, AllSpark), "the phase belongs to this method"
    memory = moment.step >= method.memory_start * moment.recipe.steps
    supervised, consistent = _labeled_and_own(student, batch, moment, memory=memory)
    return Losses(
        total=method.labeled * supervised + method.unlabeled * consistent,
        terms={"labeled": supervised, "unlabeled": consistent},
    )


def _labeled_and_own(student: Any, batch: Mapping[str, Any], moment: Moment, *, memory: bool) -> tuple[Tensor, Tensor]:
    """Compute the losses of true labels and of the student's own labels in a single forward pass."""
    torch = import_torch()
    labeled_batch, unlabeled_batch = batch["labeled"], batch["unlabeled"]
    own_logits = predict(student, unlabeled_batch["image"])
    pseudo_labels = argmax_labels(own_logits, unlabeled_batch["real"], ignore=moment.ignore)
    images, num = torch.cat([labeled_batch["image"], unlabeled_batch["image"]]), len(labeled_batch["image"])
    if hasattr(student.decoder, "spark"):
        logits = student.decoder.spark(student.encode(images), own_logits, memory=memory)
    else:
        logits = student(images)
    consistent = losses.cross_entropy(
        upsample(logits[num:], pseudo_labels), pseudo_labels, ignore=moment.ignore, count=moment.counts["unlabeled"]
    )
    return labeled_loss(logits[:num], labeled_batch["label"], moment), consistent


OBJECTIVES: Mapping[ObjectiveName, Callable[[Any, Mapping[str, Any], Moment], Losses]] = {
    "labels": labels,
    "self_reliance": self_reliance,
    "allspark": allspark,
    "consistency": consistency,
    "segments": s2c_losses,
}
