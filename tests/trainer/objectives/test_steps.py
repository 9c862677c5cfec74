"""Losses that a step minimizes, with a student whose features and logits are in view."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from maskmill.trainer.methods import ConformalSam, Consistency  # noqa: E402
from maskmill.trainer.objectives import losses, pseudo_labels  # noqa: E402
from maskmill.trainer.objectives.base import Moment  # noqa: E402
from maskmill.trainer.objectives.consistency import complementary_dropout, mix  # noqa: E402
from maskmill.trainer.objectives.steps import OBJECTIVES  # noqa: E402
from maskmill.trainer.phases import phases  # noqa: E402
from maskmill.trainer.recipes import (  # noqa: E402
    allspark,
    conformalsam,
    csl,
    supervised,
    unimatch,
    unimatch_v2,
    weighted,
)
from maskmill.trainer.students.models import build_model  # noqa: E402

CROP, IGNORE = 16, 255


def batch(num: int = 2, seed: int = 0) -> dict:
    draw = torch.Generator().manual_seed(seed)

    def images() -> torch.Tensor:
        return torch.randn(num, 3, CROP, CROP, generator=draw)

    label = torch.randint(0, 3, (num, CROP, CROP), generator=draw, dtype=torch.uint8)
    label[:, :2] = IGNORE
    real = torch.ones(num, CROP, CROP, dtype=torch.bool)
    real[0, :, 12:] = False
    return {
        "labeled": {
            "image": images(),
            "label": label,
            "weight": torch.randint(0, 256, label.shape, generator=draw, dtype=torch.uint8),
        },
        "unlabeled": {
            "image": images(),
            "strong": images(),
            "second": images(),
            "real": real,
            "second_box": torch.tensor([[0, 0, 4, 4], [5, 5, 16, 16]])[:num],
            "box": torch.tensor([[2, 3, 9, 12], [0, 0, 0, 0]])[:num],
            "cells": torch.tensor([[[True, False], [False, True]], [[False, False], [False, False]]])[:num],
        },
    }


def moment(recipe, step: int = 0, samples: dict | None = None) -> Moment:
    samples = samples or batch()
    return Moment(
        recipe=recipe,
        phase=next(phase for phase in phases(recipe) if step < phase.stop),
        step=step,
        ignore=IGNORE,
        counts={
            "labeled": float((samples["labeled"]["label"] != IGNORE).sum()),
            "unlabeled": float(samples["unlabeled"]["real"].sum()),
        },
    )


@pytest.fixture
def student():
    torch.manual_seed(0)
    return build_model("tiny", 3, width=4).train()


def upsample(logits: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.interpolate(logits, size=(CROP, CROP), mode="bilinear", align_corners=False)


def test_supervised_uses_labels_and_no_weights(student) -> None:
    samples = batch()
    found = OBJECTIVES["labels"](student, samples, moment(supervised()))
    expected = losses.cross_entropy(
        upsample(student(samples["labeled"]["image"])), samples["labeled"]["label"], ignore=IGNORE
    )
    assert float(found.total.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)


def test_weighted_multiplies_by_the_cached_weights(student) -> None:
    samples = batch()
    found = OBJECTIVES["labels"](student, samples, moment(weighted()))
    weight = samples["labeled"]["weight"].float() / 255
    expected = losses.cross_entropy(
        upsample(student(samples["labeled"]["image"])), samples["labeled"]["label"], weight, ignore=IGNORE
    )
    assert float(found.total.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)


def test_self_reliance_learns_from_what_the_student_sees_in_eval_mode(student) -> None:
    samples, recipe = batch(), conformalsam(steps=100, method=ConformalSam(initial=0.25))
    own = pseudo_labels.argmax_labels(
        student.eval()(samples["unlabeled"]["image"]), samples["unlabeled"]["real"], ignore=IGNORE
    )
    student.train()
    found = OBJECTIVES["self_reliance"](student, samples, moment(recipe, step=100))
    both = torch.cat([samples["labeled"]["image"], samples["unlabeled"]["image"]])
    logits = upsample(student(both))
    supervised_loss = losses.cross_entropy(logits[:2], samples["labeled"]["label"], ignore=IGNORE)
    consistent = losses.cross_entropy(logits[2:], own, ignore=IGNORE)
    assert float(found.total.detach()) == pytest.approx(
        0.75 * float(supervised_loss.detach()) + 0.25 * float(consistent.detach()), rel=1e-5
    )
    assert student.training


@pytest.mark.parametrize("selection", ["pcos", "threshold"])
def test_csl_is_the_sum_of_its_four_losses(student, selection: str) -> None:
    samples = batch()
    method = Consistency(selection=selection, threshold=0.35, dropout=0.0)
    found = OBJECTIVES["consistency"](student, samples, moment(csl(method=method)))
    labeled, unlabeled = samples["labeled"], samples["unlabeled"]
    real = unlabeled["real"]

    features = student.encode(torch.cat([labeled["image"], unlabeled["image"]]))
    # the authors' code drops channels of both halves, and decodes all of it in a single pass
    weak = student.decode([torch.cat([feature, feature]) for feature in features])
    if selection == "pcos":
        own = pseudo_labels.pcos_labels(weak[2:4], real, ignore=IGNORE)
    else:
        own = pseudo_labels.threshold_labels(weak[2:4], real, threshold=0.35, ignore=IGNORE)
    mixed_image, mixed_label, mixed_weight = unlabeled["strong"].clone(), own.label.clone(), own.weight.clone()
    for array, source in ((mixed_image, unlabeled["strong"]), (mixed_label, own.label), (mixed_weight, own.weight)):
        array[0][..., 2:9, 3:12] = source[1][..., 2:9, 3:12]
    masked = unlabeled["second"].clone()
    cells = torch.zeros(2, CROP, CROP, dtype=torch.bool)
    cells[0, :8, :8] = cells[0, 8:, 8:] = True
    masked.permute(0, 2, 3, 1)[cells & own.reliable] = 0
    strong = upsample(student(torch.cat([mixed_image, masked])))

    def loss(logits, label, weight):
        return losses.cross_entropy(logits, label, weight, ignore=IGNORE, count=float(real.sum()))

    expected = {
        "labeled": losses.cross_entropy(upsample(weak[:2]), labeled["label"], ignore=IGNORE),
        "strong": loss(strong[:2], mixed_label, mixed_weight),
        "second": loss(strong[2:], own.label, own.weight),
        "features": loss(upsample(weak[6:]), own.label, own.weight),
    }
    for name, value in expected.items():
        assert float(found.terms[name].detach()) == pytest.approx(float(value.detach()), rel=1e-5), name
    total = 0.5 * (expected["labeled"] + expected["strong"] / 4 + expected["second"] / 4 + expected["features"] / 2)
    assert float(found.total.detach()) == pytest.approx(float(total.detach()), rel=1e-5)


def test_the_strong_views_leave_no_trace_in_batch_statistics(student) -> None:
    samples = batch()
    OBJECTIVES["consistency"](student, samples, moment(csl()))
    after = [buffer.clone() for buffer in student.buffers()]
    torch.manual_seed(0)
    other = build_model("tiny", 3, width=4).train()
    samples["unlabeled"]["strong"] *= 100
    samples["unlabeled"]["second"] *= 100
    OBJECTIVES["consistency"](other, samples, moment(csl()))
    encoder_only = [name for name, _ in student.named_buffers() if name.startswith("encoder")]
    for name, first, second in zip(dict(student.named_buffers()), after, other.buffers(), strict=True):
        if name in encoder_only:
            np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(("step", "share"), [(0, 0.0), (5, 0.25), (20, 1.0), (39, 1.0)])
def test_the_unlabeled_losses_rise_over_the_ramp(student, step: int, share: float) -> None:
    recipe = csl(steps=40, method=Consistency(ramp=0.5, dropout=0.0))
    found = OBJECTIVES["consistency"](student, batch(), moment(recipe, step))
    terms = {name: float(term.detach()) for name, term in found.terms.items()}
    unlabeled = terms["strong"] / 8 + terms["second"] / 8 + terms["features"] / 4
    assert unlabeled > 0
    assert float(found.total.detach()) == pytest.approx(terms["labeled"] / 2 + share * unlabeled, rel=1e-5)


def test_pseudo_labels_carry_no_gradient(student) -> None:
    method = Consistency(labeled=0.0, strong=0.0, second=0.0, features=0.0)
    samples = batch()
    own = pseudo_labels.pcos_labels(student(samples["unlabeled"]["image"]), samples["unlabeled"]["real"], ignore=IGNORE)
    assert not own.weight.requires_grad
    found = OBJECTIVES["consistency"](student, samples, moment(csl(method=method)))
    found.total.backward()
    assert all(float(parameter.grad.abs().sum()) == 0 for parameter in student.parameters())


def test_cutmix_moves_images_labels_and_masks_alike() -> None:
    boxes = torch.tensor([[1, 0, 3, 2], [0, 0, 0, 0], [0, 0, 4, 4]])
    values = torch.arange(3).view(3, 1, 1).expand(3, 4, 4)
    mixed = mix(values, boxes)
    assert mixed[0].tolist() == [[0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]]
    assert (mixed[1] == 1).all()
    assert (mixed[2] == 0).all()
    image = values[:, None].expand(3, 3, 4, 4).float()
    assert (mix(image, boxes) == mixed[:, None]).all()


def unlabeled_loss(logits: torch.Tensor, own, real: torch.Tensor) -> torch.Tensor:
    return losses.cross_entropy(upsample(logits), own.label, own.weight, ignore=IGNORE, count=float(real.sum()))


def boxed(values: torch.Tensor, boxes: torch.Tensor, partners: torch.Tensor | None = None) -> torch.Tensor:
    mixed = values.clone()
    for image, (top, left, bottom, right) in enumerate(boxes.tolist()):
        source = values[(image + 1) % len(values)] if partners is None else partners[image]
        mixed[image][..., top:bottom, left:right] = source[..., top:bottom, left:right]
    return mixed


@pytest.mark.parametrize("partners", ["batch", "second"])
def test_unimatch_has_two_strong_views_with_boxes_of_their_own(student, partners: str) -> None:
    samples = batch()
    recipe = unimatch()
    recipe = unimatch(method=replace(recipe.method, threshold=0.35, dropout=0.0, partners=partners))
    second: dict = {}
    if partners == "second":
        samples["partners"] = second = batch(seed=1)["unlabeled"]
        logits = student.eval()(second["image"])
        others = pseudo_labels.threshold_labels(logits, second["real"], threshold=0.35, ignore=IGNORE)
        student.train()
    found = OBJECTIVES["consistency"](student, samples, moment(recipe))
    labeled, unlabeled = samples["labeled"], samples["unlabeled"]
    real = unlabeled["real"]
    features = student.encode(torch.cat([labeled["image"], unlabeled["image"]]))
    weak, dropped = student.decode([torch.cat([feature, feature]) for feature in features]).chunk(2)
    own = pseudo_labels.threshold_labels(weak[2:], real, threshold=0.35, ignore=IGNORE)
    images = [
        boxed(unlabeled[name], unlabeled[box], second.get(name))
        for name, box in (("strong", "box"), ("second", "second_box"))
    ]
    strong = student(torch.cat(images)).chunk(2)
    total = losses.cross_entropy(upsample(weak[:2]), labeled["label"], ignore=IGNORE)
    for logits, box in zip(strong, ("box", "second_box"), strict=True):
        sources = others if second else [None] * len(own)
        mixed = type(own)(*(boxed(values, unlabeled[box], other) for values, other in zip(own, sources, strict=True)))
        total = total + unlabeled_loss(logits, mixed, real) / 4
    total = total + unlabeled_loss(dropped[2:], own, real) / 2
    assert float(found.total.detach()) == pytest.approx(float(total.detach()) / 2, rel=1e-5)


def test_unimatch_v2_learns_from_the_labels_of_the_average(student) -> None:
    samples, teacher = batch(), build_model("tiny", 3, width=4).eval()
    recipe = unimatch_v2()
    recipe = unimatch_v2(method=replace(recipe.method, threshold=0.35, dropout=0.0))
    found = OBJECTIVES["consistency"](student, samples, replace(moment(recipe), teacher=teacher))
    labeled, unlabeled = samples["labeled"], samples["unlabeled"]
    own = pseudo_labels.threshold_labels(teacher(unlabeled["image"]), unlabeled["real"], threshold=0.35, ignore=IGNORE)
    total = losses.cross_entropy(upsample(student(labeled["image"])), labeled["label"], ignore=IGNORE)
    images = [boxed(unlabeled[name], unlabeled[box]) for name, box in (("strong", "box"), ("second", "second_box"))]
    for logits, box in zip(student(torch.cat(images)).chunk(2), ("box", "second_box"), strict=True):
        mixed = type(own)(*(boxed(values, unlabeled[box]) for values in own))
        total = total + unlabeled_loss(logits, mixed, unlabeled["real"]) / 2
    assert float(found.total.detach()) == pytest.approx(float(total.detach()) / 2, rel=1e-5)


def test_complementary_dropout_keeps_in_one_view_what_it_drops_in_the_other() -> None:
    torch.manual_seed(0)
    features = [torch.ones(8, 64, 2, 2), torch.ones(8, 64, 1, 1), torch.ones(8, 32, 1, 1)]
    first, same, other = complementary_dropout(features, 0.5)
    one, two = first[:, :, 0, 0].chunk(2)
    assert torch.equal(one + two, torch.full((4, 64), 2.0))
    untouched = (one == 1).all(dim=1)
    assert int(untouched.sum()) == 2
    assert set(one[~untouched].unique().tolist()) == {0.0, 2.0}
    assert torch.equal(first[:, :, :1, :1], same)
    assert other.shape == (8, 32, 1, 1)


def test_trusted_mask_perturbation_as_in_the_supplement_does_not_weigh_its_loss(student) -> None:
    samples = batch()
    method = Consistency(mask_form="supplement", pcos="supplement", strong=0.0, features=0.0, second=1.0, labeled=0.0)
    found = OBJECTIVES["consistency"](student, samples, moment(csl(method=method)))
    unlabeled = samples["unlabeled"]
    real = unlabeled["real"]
    weak = student(torch.cat([samples["labeled"]["image"], unlabeled["image"]]))[2:]
    own = pseudo_labels.pcos_labels(weak, real, form="supplement", ignore=IGNORE)
    cells = torch.zeros(2, CROP, CROP, dtype=torch.bool)
    cells[0, :8, :8] = cells[0, 8:, 8:] = True
    second = unlabeled["second"].clone()
    second.permute(0, 2, 3, 1)[cells & own.reliable] = 0
    # in one pass with the strong view, whose batch statistics it shares
    logits = upsample(student(torch.cat([boxed(unlabeled["strong"], unlabeled["box"]), second])))[2:]
    expected = losses.cross_entropy(logits, own.label, ignore=IGNORE, count=float(real.sum()))
    assert float(found.total.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)


@pytest.mark.parametrize("images", ["labeled", "both"])
def test_labeled_images_can_be_masked_on_all_their_labeled_pixels(student, images: str) -> None:
    samples = batch()
    samples["labeled"] |= {"second": samples["labeled"]["image"].clone(), "cells": samples["unlabeled"]["cells"]}
    method = Consistency(masked_images=images, dropout=0.0)
    found = OBJECTIVES["consistency"](student, samples, moment(csl(method=method), samples=samples))
    assert set(found.terms) == {"labeled", "strong", "second", "features"}
    assert float(found.terms["second"].detach()) > 0
    samples["labeled"]["label"] = torch.full_like(samples["labeled"]["label"], IGNORE)
    none = OBJECTIVES["consistency"](student, samples, moment(csl(method=method), samples=samples))
    assert (float(none.terms["second"].detach()) == 0) == (images == "labeled")


def test_confident_predictions_under_the_mask_replace_unreliable_labels(student) -> None:
    samples = batch()
    plain = OBJECTIVES["consistency"](student, samples, moment(csl(method=Consistency(dropout=0.0))))
    screened = OBJECTIVES["consistency"](student, samples, moment(csl(method=Consistency(dropout=0.0, screen=0.01))))
    assert float(plain.terms["second"].detach()) == pytest.approx(float(screened.terms["second"].detach()), rel=1e-5)
    assert float(plain.terms["features"].detach()) < float(screened.terms["features"].detach())


def test_unlabeled_losses_begin_at_their_start_step(student) -> None:
    method = Consistency(start=10, ramp=0.5, dropout=0.0)
    before = OBJECTIVES["consistency"](student, batch(), moment(csl(steps=40, method=method), 9))
    assert set(before.terms) == {"labeled"}
    assert float(before.total.detach()) == pytest.approx(float(before.terms["labeled"].detach()) / 2)
    after = OBJECTIVES["consistency"](student, batch(), moment(csl(steps=40, method=method), 15))
    terms = {name: float(term.detach()) for name, term in after.terms.items()}
    unlabeled = (terms["strong"] + terms["second"] + 2 * terms["features"]) / 8
    assert float(after.total.detach()) == pytest.approx(terms["labeled"] / 2 + 0.25 * unlabeled, rel=1e-5)


def test_allspark_shares_the_loss_between_true_and_own_labels() -> None:
    torch.manual_seed(0)
    student = build_model("allspark:tiny", 3, width=4, crop=CROP, dropout=0.0).train()
    samples = batch()
    recipe = allspark(steps=10, batch=4, labeled=2)
    found = OBJECTIVES["allspark"](student, samples, moment(recipe, 5))
    labeled, own = (float(found.terms[name].detach()) for name in ("labeled", "unlabeled"))
    assert float(found.total.detach()) == pytest.approx((labeled + own) / 2, rel=1e-6)
    assert student.decoder.block.position.any()


def test_hard_pixels_are_those_with_the_lowest_probabilities() -> None:
    probabilities = np.array([0.9, 0.2, 0.8, 0.6, 0.75])
    logits = torch.tensor(np.log(np.stack([probabilities, 1 - probabilities]))[None, :, None])
    label = torch.tensor([[[0, 0, 0, 0, IGNORE]]])
    for pixels, kept in ((1, [1, 3]), (3, [1, 3, 2]), (9, [0, 1, 2, 3])):
        found = losses.hard_cross_entropy(logits, label, ignore=IGNORE, threshold=0.7, pixels=pixels)
        assert float(found) == pytest.approx(-np.log(probabilities[kept]).mean(), rel=1e-5)
