"""Pseudo-labels of a student: a class and a weight per pixel of an unlabeled image, by the rule of a method.

Logits are (N, K, h, w) of any float type and may be smaller than the maps: they are upsampled bilinearly and computed
in float32, without a gradient. ``real`` is (N, H, W) bool, False on padding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ... import kernels
from ...kernels.types import ClassStats, Dispersion
from ..methods import Consistency, PcosForm, PcosMetrics
from ..run import import_torch

if TYPE_CHECKING:
    from torch import Tensor

_DENOMINATOR: dict[PcosForm, float] = {"code": 8.0, "supplement": 64.0}
_EPSILON: dict[PcosForm, float] = {"code": 1e-8, "supplement": 0.0}
_DISPERSION: dict[PcosForm, Dispersion] = {"code": "official", "supplement": "exact"}
_FEATURES: dict[PcosMetrics, tuple[str, ...]] = {
    "dispersion": ("dispersion",),
    "dispersion+entropy": ("dispersion", "entropy"),
    "dispersion+residual-entropy": ("dispersion", "residual-entropy"),
    "dispersion+margin": ("dispersion", "margin"),
    "all": ("dispersion", "entropy", "residual-entropy", "margin"),
}
_HIGHER_IS_BETTER = {"dispersion": False, "entropy": False, "residual-entropy": True, "margin": True}
"""True if higher values are better. The supplement states no signs for its table 13; these follow its text (section
E.1). The kernels return the residual variance, which is minus the dispersion of the text."""


class PseudoLabels(NamedTuple):
    """Labels that the student gives to a batch."""

    label: Tensor
    """(N, H, W) int64: the class with the highest score, or the ignore index on padding."""
    weight: Tensor
    """(N, H, W) float32 in [0, 1]; 0 on padding."""
    reliable: Tensor
    """(N, H, W) bool: pixels that trusted mask perturbation may mask; False on padding."""


def select(
    logits: Tensor, real: Tensor, method: Consistency, *, ignore: int, thresholds: Tensor | None = None
) -> PseudoLabels:
    """Compute the pseudo-labels of a batch by the selection rule of a method.

    ``thresholds`` (K,) are the largest nonconformity scores in a prediction set; without them the conformal rules
    select nothing.
    """
    if method.selection == "threshold":
        return threshold_labels(logits, real, threshold=method.threshold, ignore=ignore)
    if method.selection == "conformal":
        return conformal_labels(logits, real, thresholds, ignore=ignore)
    labels = pcos_labels(logits, real, form=method.pcos, metrics=method.metrics, groups=method.groups, ignore=ignore)
    if method.selection == "matched":
        return most_confident(logits, real, labels)
    if method.selection == "conformal-pcos":
        mask = conformal_labels(logits, real, thresholds, ignore=ignore).reliable
        return labels._replace(weight=labels.weight * mask, reliable=labels.reliable & mask)
    return labels


def pcos_labels(
    logits: Tensor,
    real: Tensor,
    *,
    form: PcosForm = "code",
    metrics: PcosMetrics = "dispersion",
    groups: str = "image",
    ignore: int,
) -> PseudoLabels:
    """Label each pixel with its best class, and weight it by PCOS over the real pixels of its image.

    ``form``, ``metrics`` and ``groups`` are those of :class:`~maskmill.trainer.methods.Consistency`. Source: CSL,
    Algorithm 1 and tables 8 and 13 of the supplement, and the authors' code.
    """
    torch = import_torch()
    stats = _stats(logits, real, ("label", "share", "dispersion"), _DISPERSION[form])
    label = _on_real(stats.label, real, ignore)
    if groups == "image" and metrics == "dispersion":
        weights = kernels.pcos(
            stats.share, stats.dispersion, mask=real, denominator=_DENOMINATOR[form], epsilon=_EPSILON[form]
        )
        return PseudoLabels(label, weights.weight, weights.reliable & real)
    features = torch.stack([stats.share, *_metrics(logits, real, stats, _FEATURES[metrics])])
    signs = torch.tensor([1.0] + [1.0 if _HIGHER_IS_BETTER[name] else -1.0 for name in _FEATURES[metrics]])
    weight, reliable = torch.zeros_like(stats.share), torch.zeros_like(real)
    for image in range(len(real)):
        numbers = label[image].unique().tolist() if groups == "class" else [None]
        for number in numbers:
            members = real[image] if number is None else real[image] & (label[image] == number)
            if members.any():
                pixels = features[:, image, members]
                weight[image, members], reliable[image, members] = pcos_weights(pixels, signs.to(pixels), form)
    return PseudoLabels(label, weight, reliable)


def pcos_weights(features: Tensor, signs: Tensor, form: PcosForm = "code") -> tuple[Tensor, Tensor]:
    """Weight pixels by their features: PCOS with any number of features, in float64.

    ``features`` (D, n): the confidence first; ``signs`` (D,): 1 if a higher value is better, otherwise -1. Returns
    weights (n,) of the type of ``features`` and (n,) bool, pixels that are better than the mean of the reliable cluster
    in at least one feature. A pixel belongs to the cluster whose right singular vector has the larger entry.
    """
    torch = import_torch()
    values = features.double()
    gram = values @ values.T
    eigenvalues, vectors = torch.linalg.eigh(gram)
    first, second = eigenvalues[-1].clamp(min=0), eigenvalues[-2].clamp(min=0)
    projections = (vectors[:, -1] @ values).abs(), (vectors[:, -2] @ values).abs()
    cluster = projections[1] * first.sqrt() > projections[0] * second.sqrt()
    if second <= 1e-13 * first:
        cluster = torch.zeros_like(cluster)
    members = [values[:, cluster == bool(number)] for number in (0, 1)]
    means = [group.mean(dim=1) if group.shape[1] else torch.zeros_like(values[:, 0]) for group in members]
    best = int(means[1][0] > means[0][0])
    spread = members[best].var(dim=1) if members[best].shape[1] > 1 else torch.zeros_like(means[best])
    scores = signs.double()[:, None] * (values - means[best][:, None]) / (spread + _EPSILON[form]).sqrt()[:, None]
    better = (scores > 0).any(dim=0)
    weight = (-(scores.nan_to_num(0.0) ** 2).sum(dim=0) / _DENOMINATOR[form]).exp()
    weight = torch.where(better, torch.ones_like(weight), weight).to(features.dtype)
    return weight, better | (weight == 1)


def threshold_labels(logits: Tensor, real: Tensor, *, threshold: float, ignore: int) -> PseudoLabels:
    """Label each pixel with its best class; weight 1 if the confidence is at least ``threshold``, otherwise 0.

    Source: FixMatch.
    """
    stats = _stats(logits, real, ("label", "confidence"))
    confident = (stats.confidence >= threshold) & real
    return PseudoLabels(_on_real(stats.label, real, ignore), confident.float(), confident)


def conformal_labels(logits: Tensor, real: Tensor, thresholds: Tensor | None, *, ignore: int) -> PseudoLabels:
    """Label each pixel with its best class; weight 1 if that is the only member of the prediction set, otherwise 0.

    The set of a pixel holds the classes with 1 - p_k <= ``thresholds[k]``. The scores are computed in float64, since
    thresholds of a student that has learned the labeled images are tiny.
    """
    torch = import_torch()
    label = _on_real(_stats(logits, real, ("label",)).label, real, ignore)
    if thresholds is None:
        mask = torch.zeros_like(real)
        return PseudoLabels(label, mask.float(), mask)
    size = tuple(real.shape[-2:])
    upsampled = torch.nn.functional.interpolate(logits.detach().double(), size=size, mode="bilinear")
    limits = thresholds.to(upsampled)[None, :, None, None]
    members = 1 - upsampled.softmax(dim=1) <= limits
    best = members.gather(1, upsampled.argmax(dim=1, keepdim=True))[:, 0]
    mask = best & (members.sum(dim=1) == 1) & real
    return PseudoLabels(label, mask.float(), mask)


def most_confident(logits: Tensor, real: Tensor, labels: PseudoLabels) -> PseudoLabels:
    """Keep the most confident pixels of each image with weight 1, as many as the weights of ``labels`` sum to."""
    torch = import_torch()
    confidence = _stats(logits, real, ("confidence",)).confidence.masked_fill(~real, -1.0)
    mask = torch.zeros_like(real)
    for image in range(len(real)):
        number = int(labels.weight[image].sum().round())
        mask[image].view(-1)[confidence[image].flatten().topk(number).indices] = True
    return PseudoLabels(labels.label, mask.float(), mask)


def argmax_labels(logits: Tensor, real: Tensor, *, ignore: int) -> Tensor:
    """Label each pixel with its best class, without a filter: (N, H, W) int64. Source: ConformalSAM, phase II."""
    return _on_real(_stats(logits, real, ("label",)).label, real, ignore)


def confidence_and_label(logits: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return the highest probability (N, H, W) float32 and its class (N, H, W) int64, at the size of ``like``."""
    stats = _stats(logits, like, ("label", "confidence"))
    return stats.confidence, stats.label.long()


def _metrics(logits: Tensor, real: Tensor, stats: ClassStats, names: tuple[str, ...]) -> list[Tensor]:
    """Compute features (N, H, W) of each pixel by name."""
    torch = import_torch()
    size = tuple(real.shape[-2:])
    upsampled = torch.nn.functional.interpolate(logits.detach().float(), size=size, mode="bilinear")
    shares = upsampled.softmax(dim=1)
    terms = -torch.special.xlogy(shares, shares)
    top = shares.topk(2, dim=1)
    features = {
        "dispersion": stats.dispersion,
        "entropy": terms.sum(dim=1),
        "residual-entropy": terms.sum(dim=1) - terms.gather(1, top.indices[:, :1])[:, 0],
        "margin": top.values[:, 0] - top.values[:, 1],
    }
    return [features[name] for name in names]


def _stats(logits: Tensor, real: Tensor, outputs: tuple[str, ...], dispersion: Dispersion = "official") -> ClassStats:
    size = (real.shape[-2], real.shape[-1])
    return kernels.class_stats(logits.detach().float(), size, outputs=outputs, dispersion=dispersion)


def _on_real(label: Tensor, real: Tensor, ignore: int) -> Tensor:
    return label.long().masked_fill(~real, ignore)
