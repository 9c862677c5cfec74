"""Weak-to-strong consistency on unlabeled images: CSL, FixMatch, UniMatch and UniMatch V2.

L = a L_x + b L_s + c L_m + d L_fp, with the weights of :class:`~maskmill.trainer.methods.Consistency`: L_x on labeled
images; on unlabeled images, with the labels and weights of the weak view, L_s on a strong view with CutMix, L_m on the
second view (masked, or strong with a CutMix box of its own), L_fp on the weak view with dropped feature channels.

CutMix takes its box from the next image of the same batch, as in UniMatch V2's code, or from a second batch, as in that
of UniMatch and CSL. The second batch is labeled in eval mode, as in UniMatch's code (CSL's labels in train mode).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from ... import kernels
from ..methods import Consistency
from ..run import import_torch
from ..students.models import keep_batchnorm
from . import losses
from .base import Losses, Moment, predict, upsample
from .pseudo_labels import PseudoLabels, confidence_and_label, select

if TYPE_CHECKING:
    from torch import Tensor


def consistency(student: Any, batch: Mapping[str, Any], moment: Moment) -> Losses:
    """Compute the losses of labeled and unlabeled images; see the module docstring.

    The weak views of labeled and unlabeled images are a single forward pass, and so are the strong views. If a moving
    average labels the weak views, the student does not process them.
    """
    torch, method = import_torch(), moment.recipe.method
    assert isinstance(method, Consistency), "the phase belongs to this method"
    labeled_batch, unlabeled_batch = batch["labeled"], batch["unlabeled"]
    real, num = unlabeled_batch["real"], len(labeled_batch["image"])
    if moment.step < method.start:
        loss = labeled_loss(student(labeled_batch["image"]), labeled_batch["label"], moment)
        return Losses(total=method.labeled * loss, terms={"labeled": loss})
    dropout_logits = None
    if method.teacher == "average":
        assert moment.teacher is not None, "the recipe keeps a moving average for this method"
        own_logits = predict(moment.teacher, unlabeled_batch["image"])
        logits = student(labeled_batch["image"])
    else:
        features = student.encode(torch.cat([labeled_batch["image"], unlabeled_batch["image"]]))
        if method.features:
            twice = [torch.cat([f, torch.nn.functional.dropout2d(f, method.dropout)]) for f in features]
            logits, dropout_logits = student.decode(twice).chunk(2)
        else:
            logits = student.decode(features)
        logits, own_logits = logits[:num], logits[num:]
    pseudo_labels = select(own_logits, real, method, ignore=moment.ignore, thresholds=moment.thresholds)
    partners, partner_labels = batch.get("partners"), None
    if partners is not None:
        other_logits = predict(moment.teacher if method.teacher == "average" else student, partners["image"])
        partner_labels = select(
            other_logits, partners["real"], method, ignore=moment.ignore, thresholds=moment.thresholds
        )
    first = mix(unlabeled_batch["strong"], unlabeled_batch["box"], None if partners is None else partners["strong"])
    second, second_labels = _second_view(unlabeled_batch, pseudo_labels, method, partners, partner_labels)
    views = [first, second] if method.second and method.masked_images != "labeled" else [first]
    masked_labeled = method.second_view == "masked" and method.masked_images != "unlabeled"
    if masked_labeled:
        has_label = labeled_batch["label"] != moment.ignore
        views.append(
            labeled_batch["second"].masked_fill(_masked(labeled_batch["cells"], has_label, method)[:, None], 0)
        )
    strong = _strong_logits(student, views, method)
    screened = pseudo_labels
    if method.screen and method.second_view == "masked" and len(views) > 1:
        screened = _screen(pseudo_labels, strong[1], real, method.screen)
    mixed = mix_labels(screened, unlabeled_batch["box"], partner_labels)
    count = moment.counts["unlabeled"]

    def unlabeled_loss(logits: Tensor, pseudo: PseudoLabels, weighted: bool = True) -> Tensor:
        weight = pseudo.weight if weighted else None
        return losses.cross_entropy(upsample(logits, real), pseudo.label, weight, ignore=moment.ignore, count=count)

    terms = {
        "labeled": labeled_loss(logits, labeled_batch["label"], moment),
        "strong": unlabeled_loss(strong[0], mixed),
    }
    if method.second:
        parts = []
        if method.masked_images != "labeled":
            parts.append((unlabeled_loss(strong[1], second_labels, method.mask_form == "code"), count))
        if masked_labeled:
            number = moment.counts["labeled"]
            loss = losses.cross_entropy(
                upsample(strong[-1], real), labeled_batch["label"], ignore=moment.ignore, count=number
            )
            parts.append((loss, number))
        total = sum(number for _, number in parts)
        terms["second"] = torch.stack([loss * (number / max(total, 1)) for loss, number in parts]).sum()
    if dropout_logits is not None:
        terms["features"] = unlabeled_loss(dropout_logits[num:], screened)
    num_real, ramp = real.sum().clamp(min=1), _ramp(method, moment)
    total = torch.stack(
        [getattr(method, name) * (1 if name == "labeled" else ramp) * term for name, term in terms.items()]
    ).sum()
    confidence, _ = confidence_and_label(own_logits, real)
    figures = {
        "weight": pseudo_labels.weight.sum() / num_real,
        "reliable": pseudo_labels.reliable.sum() / num_real,
        "unlabeled_confidence": (confidence * real).sum() / num_real,
    }
    return Losses(total=total, terms=terms, figures=figures)


def labeled_loss(logits: Tensor, label: Tensor, moment: Moment) -> Tensor:
    """Compute the loss of labeled images as the recipe says: cross-entropy, or online hard example mining."""
    recipe = moment.recipe
    logits = upsample(logits, label)
    if recipe.labeled_loss == "ohem":
        loss = losses.hard_cross_entropy(
            logits, label, ignore=moment.ignore, threshold=recipe.ohem_threshold, pixels=recipe.ohem_pixels
        )
        return loss / recipe.accumulate
    return losses.cross_entropy(logits, label, ignore=moment.ignore, count=moment.counts["labeled"])


def complementary_dropout(features: Sequence[Tensor], probability: float) -> list[Tensor]:
    """Drop channels of the first half of a batch, and in its second half the channels that the first half kept.

    ``features`` are maps (2N, C_i, h_i, w_i). Kept channels are doubled; half of the N pairs stay as they are. Maps
    with the same number of channels share their choice. Source: UniMatch V2's code, with a probability of 1/2.
    """
    torch = import_torch()
    num = len(features[0]) // 2
    pair_indices = torch.randperm(num)[: num // 2]
    masks: dict[int, Tensor] = {}
    for feature in features:
        channels = feature.shape[1]
        if channels not in masks:
            keep = torch.bernoulli(torch.full((num, channels), 1 - probability))
            pair = torch.stack([keep / (1 - probability), (1 - keep) / probability]) if probability else None
            pair = torch.ones(2, num, channels) if pair is None else pair
            pair[:, pair_indices] = 1.0
            masks[channels] = pair.flatten(0, 1)[:, :, None, None]
    return [feature * masks[feature.shape[1]].to(feature) for feature in features]


def mix(values: Tensor, boxes: Tensor, partners: Tensor | None = None) -> Tensor:
    """Apply CutMix: replace each image's box, (N, 4) of (top, left, bottom, right), in (N, ..., H, W) by its partner's.

    ``partners`` have the shape of ``values``; without them the partner is the next image.
    """
    torch = import_torch()
    rows, columns = (torch.arange(length, device=values.device) for length in values.shape[-2:])
    top, left, bottom, right = boxes[:, :, None].unbind(1)
    inside_rows, inside_columns = (rows >= top) & (rows < bottom), (columns >= left) & (columns < right)
    inside = inside_rows[:, :, None] & inside_columns[:, None, :]
    inside = inside.view(len(values), *[1] * (values.dim() - 3), *values.shape[-2:])
    return torch.where(inside, values.roll(-1, 0) if partners is None else partners, values)


def mix_labels(own: PseudoLabels, boxes: Tensor, others: PseudoLabels | None) -> PseudoLabels:
    """Apply :func:`mix` to labels, weights and reliability."""
    partners = [None] * len(own) if others is None else others
    return PseudoLabels(*(mix(values, boxes, other) for values, other in zip(own, partners, strict=True)))


def _second_view(
    unlabeled_batch: Mapping[str, Tensor],
    pseudo_labels: PseudoLabels,
    method: Consistency,
    partners: Mapping[str, Tensor] | None,
    partner_labels: PseudoLabels | None,
) -> tuple[Tensor, PseudoLabels]:
    """Return the images of the second view and their labels."""
    image = unlabeled_batch["second"]
    if method.second_view == "cutmix" or method.masked_cutmix:
        image = mix(image, unlabeled_batch["second_box"], None if partners is None else partners["second"])
        pseudo_labels = mix_labels(pseudo_labels, unlabeled_batch["second_box"], partner_labels)
    if method.second_view == "masked":
        image = image.masked_fill(_masked(unlabeled_batch["cells"], pseudo_labels.reliable, method)[:, None], 0)
    return image, pseudo_labels


def _masked(cells: Tensor, reliable: Tensor, method: Consistency) -> Tensor:
    """Spread the cells (N, g, g) over reliable pixels: (N, H, W) bool."""
    size = (reliable.shape[-2], reliable.shape[-1])
    nearest = "pil" if method.mask_form == "code" else "torch"
    return kernels.perturbation_cover(cells, size, reliable, nearest=nearest)


def _strong_logits(student: Any, views: Sequence[Tensor], method: Consistency) -> tuple[Tensor, ...]:
    """Compute the logits of the strong views in a single forward pass."""
    torch = import_torch()
    with nullcontext() if method.strong_statistics else keep_batchnorm(student):
        images = torch.cat(list(views))
        if method.feature_dropout == "complementary" and len(views) == 2:
            logits = student.decode(complementary_dropout(student.encode(images), method.dropout))
        else:
            logits = student(images)
    return logits.split([len(view) for view in views])


def _screen(pseudo_labels: PseudoLabels, logits: Tensor, real: Tensor, threshold: float) -> PseudoLabels:
    """Replace unreliable labels by confident predictions for the masked view (CSL, outlook in section F)."""
    torch = import_torch()
    confidence, label = confidence_and_label(logits, real)
    is_better = real & ~pseudo_labels.reliable & (confidence >= threshold)
    return pseudo_labels._replace(
        label=torch.where(is_better, label, pseudo_labels.label),
        weight=torch.where(is_better, torch.ones_like(pseudo_labels.weight), pseudo_labels.weight),
    )


def _ramp(method: Consistency, moment: Moment) -> float:
    length = method.ramp * moment.recipe.steps
    return min(1.0, (moment.step - method.start) / length) if length else 1.0
