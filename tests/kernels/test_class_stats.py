"""class_stats: worked vectors on every form, torch's upsampling, and the CPU form against the reference."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from dataclasses import fields

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maskmill import kernels
from maskmill.errors import UsageError
from maskmill.kernels.plans.class_stats import OUTPUTS, DecodeOptions, decode_plan
from maskmill.kernels.reference.class_stats import class_scores, upsample
from maskmill.kernels.types import UNREACHED, ClassStats

from .forms import cpu, reference

IGNORE = 255
RULES = ("argmax", "foreground", "single", "agree")


@pytest.fixture(params=[reference, cpu], ids=["reference", "cpu"])
def class_stats(request):
    return request.param.class_stats


def row_of_pixels(*pixels) -> np.ndarray:
    """(C, 1, n) scores of n pixels side by side."""
    return np.array(pixels, np.float32).T[:, None]


def labels_of(class_stats, scores, **options):
    return class_stats(scores, scores.shape[-2:], outputs=("label",), **options).label[0].tolist()


def output_of(program: str, **environment: str) -> str:
    """What a fresh Python prints; it must end well and complain of nothing."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()


# ---- worked vectors


class TestRules:
    """Two targets, background and object, the object made of two model classes, and a dropped model class."""

    # background, object, dropped; thresholds .6, .8, .6 hold them from a score of .4, .2 and .4 on.
    pixels = (
        ((0.70, 0.15, 0.15), {"argmax": 0, "foreground": 0, "single": 0, "agree": 0}, 1),
        ((0.45, 0.50, 0.05), {"argmax": 1, "foreground": 1, "single": 255, "agree": 255}, 2),
        ((0.50, 0.45, 0.05), {"argmax": 0, "foreground": 1, "single": 255, "agree": 255}, 2),
        ((0.10, 0.15, 0.75), {"argmax": 255, "foreground": 255, "single": 255, "agree": 255}, 1),
        ((0.10, 0.42, 0.48), {"argmax": 255, "foreground": 255, "single": 255, "agree": 255}, 2),
        ((0.10, 0.48, 0.42), {"argmax": 1, "foreground": 1, "single": 255, "agree": 255}, 2),
        ((0.45, 0.10, 0.44), {"argmax": 0, "foreground": 255, "single": 255, "agree": 255}, 2),
        ((0.39, 0.25, 0.36), {"argmax": 255, "foreground": 1, "single": 1, "agree": 255}, 1),
        ((0.39, 0.15, 0.39), {"argmax": 255, "foreground": 255, "single": 255, "agree": 255}, 0),
    )

    def decode(self, class_stats, rule, outputs, background=0):
        split = [(b, o / 3, d, o * 2 / 3) for (b, o, d), _, _ in self.pixels]
        return class_stats(
            row_of_pixels(*split),
            (1, len(split)),
            activation="none",
            groups=[0, 1, -1, 1],
            thresholds=np.array([0.6, 0.8, 0.6], np.float32),
            rule=rule,
            background=background,
            outputs=outputs,
        )

    @pytest.mark.parametrize("rule", RULES)
    def test_label(self, class_stats, rule):
        expected = [labels[rule] for _, labels, _ in self.pixels]
        assert self.decode(class_stats, rule, "label").label[0].tolist() == expected

    @pytest.mark.parametrize("rule", RULES)
    def test_set_size_counts_the_dropped_class(self, class_stats, rule):
        sizes = self.decode(class_stats, rule, ("set_size",)).set_size
        assert sizes[0].tolist() == [size for _, _, size in self.pixels]

    def test_foreground_without_background_takes_the_best_member(self, class_stats):
        labels = self.decode(class_stats, "foreground", "label", background=None).label
        assert labels[0].tolist() == [0, 1, 0, 255, 255, 1, 0, 1, 255]

    def test_without_thresholds_the_label_is_the_top_class(self, class_stats):
        scores = row_of_pixels((0.7, 0.2, 0.1), (0.2, 0.7, 0.1), (0.1, 0.2, 0.7))
        assert labels_of(class_stats, scores, activation="none", groups=[0, 1, -1]) == [0, 1, 255]


PROBABILITIES = row_of_pixels(
    (0.70, 0.25, 0.05),
    (0.48, 0.47, 0.05),
    (0.34, 0.33, 0.33),
    (0.20, 0.20, 0.60),
    (0.05, 0.90, 0.05),
    (0.46, 0.08, 0.46),
    (0.395, 0.21, 0.395),
)


@pytest.mark.parametrize(
    ("rule", "thresholds", "expected"),
    [
        ("foreground", 0.65, [0, 1, 255, 2, 1, 2, 2]),
        ("argmax", 0.65, [0, 0, 255, 2, 1, 0, 0]),
        ("foreground", 0.5, [0, 255, 255, 2, 1, 255, 255]),
        ("foreground", [0.4, 0.65, np.inf], [2, 1, 2, 2, 1, 2, 2]),
    ],
)
def test_conformal_worked_vector(class_stats, rule, thresholds, expected):
    thresholds = np.float32(thresholds) if np.isscalar(thresholds) else np.array(thresholds, np.float32)
    found = labels_of(class_stats, PROBABILITIES, activation="none", thresholds=thresholds, rule=rule, background=0)
    assert found == expected


def test_true_scores_of_the_worked_vector(class_stats):
    truth = np.array([[0, 1, 2, 0, 1, 255, 2]], np.uint8)
    scores = class_stats(PROBABILITIES, (1, 7), activation="none", truth=truth, outputs=("true_score",)).true_score
    np.testing.assert_allclose(scores[0], [0.3, 0.53, 0.67, 0.8, 0.1, np.nan, 0.605], atol=1e-6)


def test_softmax_of_known_logits(class_stats):
    scores = row_of_pixels(np.log([0.7, 0.2, 0.1]), np.log([0.1, 0.3, 0.6]) + 50)
    found = class_stats(scores, (1, 2), outputs=("top", "confidence", "share", "second", "second_confidence"))
    assert found.top[0].tolist() == [0, 2]
    assert found.second[0].tolist() == [1, 1]
    np.testing.assert_allclose(found.confidence[0], [0.7, 0.6], rtol=1e-5)
    np.testing.assert_array_equal(found.share, found.confidence)
    np.testing.assert_allclose(found.second_confidence[0], [0.2, 0.3], rtol=1e-5)


def test_softmax_sums_the_classes_of_a_group(class_stats):
    scores = row_of_pixels(np.log([0.4, 0.3, 0.2, 0.1]))
    found = class_stats(scores, (1, 1), groups=[1, 0, 0, -1], outputs=("top", "confidence", "second_confidence"))
    assert found.top[0, 0] == 0
    np.testing.assert_allclose([found.confidence[0, 0], found.second_confidence[0, 0]], [0.5, 0.4], rtol=1e-5)


def test_sigmoid_takes_the_highest_of_a_group(class_stats):
    odds = np.log([0.8 / 0.2, 0.3 / 0.7, 0.9 / 0.1])
    found = class_stats(
        row_of_pixels(odds), (1, 1), activation="sigmoid", groups=[0, 1, 1], outputs=("top", "confidence", "share")
    )
    assert found.top[0, 0] == 1
    np.testing.assert_allclose(found.confidence[0, 0], 0.9, rtol=1e-5)
    np.testing.assert_allclose(found.share[0, 0], 0.9 / 1.7, rtol=1e-5)


def test_score_near_zero_is_the_mass_of_the_others(class_stats):
    # 1 - p is 0 in float32 here; the true score is e^-30 + e^-40.
    scores = row_of_pixels((30.0, 0.0, -10.0))
    found = class_stats(scores, (1, 1), truth=np.array([[0]]), outputs=("true_score",)).true_score
    np.testing.assert_allclose(found, np.exp(-30) + np.exp(-40), rtol=1e-5)
    found = class_stats(
        row_of_pixels((30.0, -1.0)), (1, 1), activation="sigmoid", truth=np.array([[0]]), outputs=("true_score",)
    )
    np.testing.assert_allclose(found.true_score, np.exp(-30), rtol=1e-5)


def test_top_of_saturated_sigmoids_is_the_highest_logit(class_stats):
    found = class_stats(row_of_pixels((30.0, 31.0, 29.0)), (1, 1), activation="sigmoid", outputs=("top", "second"))
    assert (found.top[0, 0], found.second[0, 0]) == (1, 0)


@pytest.mark.parametrize(
    ("dispersion", "expected"),
    [
        ("official", [3.33333333e-5, 1.33333333e-4, 1.459259259e-3, 3.333333333e-3, 3.876666667e-2, 1.981481481e-2]),
        ("exact", [0, 0, 1.088888889e-3, 0, 3.126666667e-2, 1.055555556e-2]),
    ],
)
def test_dispersion_of_the_pcos_vector(class_stats, dispersion, expected):
    columns = ".97 .94 .90 .70 .55 .50|.01 .02 .08 .10 .40 .30|.01 .02 .01 .10 .03 .15|.01 .02 .01 .10 .02 .05"
    scores = np.array([row.split() for row in columns.split("|")], np.float32)[:, None]
    found = class_stats(scores, (1, 6), activation="none", dispersion=dispersion, outputs=("share", "dispersion"))
    np.testing.assert_allclose(found.share[0], scores[0, 0], atol=1e-6)
    np.testing.assert_allclose(found.dispersion[0], expected, atol=1e-7)


@pytest.mark.parametrize("dispersion", ["official", "exact"])
def test_two_classes_use_the_official_dispersion(class_stats, dispersion):
    scores = row_of_pixels((0.9, 0.1), (0.4, 0.6), (0.5, 0.5))
    found = class_stats(scores, (1, 3), activation="none", dispersion=dispersion, outputs=("dispersion",)).dispersion
    np.testing.assert_allclose(found[0], [0.01, 0.16, 0.25], rtol=1e-5)


def test_dispersion_divides_scores_that_do_not_sum_to_one(class_stats):
    scores = row_of_pixels((0.5, 0.3, 0.2))
    plain = class_stats(scores, (1, 1), activation="none", outputs=("share", "dispersion"))
    scaled = class_stats(scores * 3, (1, 1), activation="none", outputs=("share", "dispersion"))
    np.testing.assert_allclose(scaled.share, plain.share, rtol=1e-5)
    np.testing.assert_allclose(scaled.dispersion, plain.dispersion, rtol=1e-5)


def test_pixel_without_any_score(class_stats):
    found = class_stats(
        row_of_pixels((0.0, 0.0, 0.0)), (1, 1), activation="none", outputs=("top", "confidence", "share", "dispersion")
    )
    assert [array[0, 0] for array in (found.top, found.confidence, found.share, found.dispersion)] == [0, 0, 0, 0]


def test_equal_scores_take_the_lowest_class(class_stats):
    scores = row_of_pixels((1.0, 2.0, 2.0, 2.0), (3.0, 3.0, 3.0, 3.0))
    found = class_stats(scores, (1, 2), outputs=("top", "second"))
    assert found.top[0].tolist() == [1, 0]
    assert found.second[0].tolist() == [2, 1]


@pytest.mark.parametrize("activation", ["softmax", "sigmoid", "none"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_pixels_that_are_not_finite(class_stats, activation, bad):
    scores = np.zeros((3, 1, 6), np.float32)
    scores[0] = 1
    scores[2, 0, 3] = bad
    found = class_stats(
        scores,
        (1, 6),
        activation=activation,
        thresholds=np.inf,
        truth=np.array([[0, 0, 255, 0, 0, 0]]),
        outputs=OUTPUTS,
    )
    # A tap of weight 0 counts as well, as it does in floating point.
    assert found.label[0].tolist() == [0, 0, 255, 255, 0, 0]
    assert found.top[0].tolist() == [0, 0, UNREACHED, UNREACHED, 0, 0]
    assert found.second[0].tolist() == [1, 1, UNREACHED, UNREACHED, 1, 1]
    assert found.set_size[0].tolist() == [3, 3, 0, 0, 3, 3]
    assert np.isnan(found.true_score[0, 2])
    assert found.true_score[0, 3] == np.inf
    for name in ("confidence", "share", "dispersion", "second_confidence"):
        assert getattr(found, name)[0, 2:4].tolist() == [0, 0]
        assert (getattr(found, name)[0, :2] == getattr(found, name)[0, 4:]).all()


def test_target_without_model_class_is_never_chosen(class_stats):
    # Every mapped score is negative, below the 0 of targets 0 and 3.
    found = class_stats(
        row_of_pixels((-3.0, -2.0)),
        (1, 1),
        activation="none",
        groups=[1, 2],
        num_targets=4,
        thresholds=np.inf,
        truth=np.array([[3]]),
        outputs=("label", "top", "second", "set_size", "true_score"),
    )
    assert (found.label[0, 0], found.top[0, 0], found.second[0, 0], found.set_size[0, 0]) == (2, 2, 1, 2)
    assert found.true_score[0, 0] == np.inf


def test_one_class(class_stats):
    found = class_stats(
        np.ones((1, 2, 2), np.float32), (3, 3), thresholds=0.0, outputs=("label", "confidence", "second", "set_size")
    )
    assert (found.label == 0).all()
    assert (found.confidence == 1).all()
    assert (found.second == UNREACHED).all()
    assert (found.set_size == 1).all()


def test_position_map_thresholds_each_pixel(class_stats):
    scores = np.repeat(row_of_pixels((0.7, 0.2, 0.1)), 4, axis=2)
    thresholds = np.array([[0.2, 0.4, 0.85, np.inf]], np.float32)
    found = class_stats(
        scores, (1, 4), activation="none", thresholds=thresholds, rule="single", outputs=("label", "set_size")
    )
    assert found.set_size[0].tolist() == [0, 1, 2, 3]
    assert found.label[0].tolist() == [255, 0, 255, 255]


def test_threshold_equal_to_a_score_holds_it(class_stats):
    scores = np.random.default_rng(0).normal(0, 4, (6, 9, 9)).astype(np.float32)
    truth = np.random.default_rng(1).integers(0, 6, (17, 17))
    own = class_stats(scores, (17, 17), truth=truth, outputs=("true_score",)).true_score
    tops = class_stats(scores, (17, 17), outputs=("top",)).top == truth
    at = class_stats(scores, (17, 17), thresholds=own, outputs=("label",)).label
    below = class_stats(scores, (17, 17), thresholds=np.nextafter(own, np.float32(-1)), outputs=("label",)).label
    assert (at[tops] == truth[tops]).all()
    assert (below[tops] == IGNORE).all()
    assert tops.sum() > 20


def test_more_than_255_targets_have_wide_labels(class_stats):
    scores = np.zeros((256, 1, 2), np.float32)
    scores[255, 0, 0] = 9
    found = class_stats(scores, (1, 2), thresholds=0.5)
    assert found.label.dtype == np.uint16
    assert found.label[0].tolist() == [255, 65535]


def test_region_is_the_part_that_covers_the_output(class_stats):
    scores = np.random.default_rng(0).normal(size=(3, 8, 12)).astype(np.float32)
    whole = class_stats(scores, (16, 24), outputs=("confidence",)).confidence
    part = class_stats(scores, (8, 10), region=(2, 4, 6, 9), outputs=("confidence",)).confidence
    np.testing.assert_allclose(part, whole[4:12, 8:18], atol=1e-6)


def test_batch_equals_one_by_one(class_stats):
    scores = np.random.default_rng(0).normal(size=(3, 4, 5, 6)).astype(np.float32)
    truth = np.random.default_rng(1).integers(0, 4, (3, 9, 9))
    batch = class_stats(scores, (9, 9), truth=truth, thresholds=0.5, outputs=OUTPUTS)
    for n in range(3):
        one = class_stats(scores[n], (9, 9), truth=truth[n], thresholds=0.5, outputs=OUTPUTS)
        for name in OUTPUTS:
            np.testing.assert_array_equal(getattr(batch, name)[n], getattr(one, name))


def test_empty_batch(class_stats):
    found = class_stats(np.empty((0, 4, 5, 6), np.float32), (9, 9))
    assert found.label.shape == found.confidence.shape == (0, 9, 9)


def test_out_is_filled_and_returned(class_stats):
    scores = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
    out = ClassStats(label=np.empty((8, 9), np.uint8), share=np.empty((8, 9), np.float32))
    new = class_stats(scores, (8, 9), outputs=("label", "share", "top"))
    found = class_stats(scores, (8, 9), outputs=("label", "share", "top"), out=out)
    assert found.label is out.label
    assert found.share is out.share
    for name in ("label", "share", "top"):
        np.testing.assert_array_equal(getattr(found, name), getattr(new, name))
    assert found.confidence is None


# ---- torch


@pytest.mark.parametrize("sizes", [((7, 9), (21, 40)), ((33, 33), (213, 320)), ((65, 65), (53, 40)), ((5, 5), (5, 5))])
def test_upsampling_equals_torch(class_stats, sizes):
    source, size = sizes
    logits = np.random.default_rng(0).normal(0, 3, (5, *source)).astype(np.float32)
    upsampled = torch.nn.functional.interpolate(
        torch.from_numpy(logits)[None].double(), size=size, mode="bilinear", align_corners=False
    )[0]
    confidence, top = torch.softmax(upsampled, 0).max(0)
    found = class_stats(logits, size, outputs=("top", "confidence"))
    np.testing.assert_allclose(found.confidence, confidence.numpy(), atol=1e-5)
    two = upsampled.topk(2, 0).values
    clear = (two[0] - two[1]).numpy() > 1e-5
    assert clear.mean() > 0.99
    assert (found.top == top.numpy())[clear].all()


# ---- the CPU form against the reference


@st.composite
def cases(draw):
    """Scores and options of one call."""
    integer = lambda low, high: draw(st.integers(low, high))  # noqa: E731
    channels = draw(st.one_of(st.integers(2, 24), st.sampled_from([31, 32, 33, 150, 300])))
    source = integer(1, 12), integer(1, 12)
    size = (integer(1, 9), integer(1, 12)) if channels > 99 else (integer(1, 40), integer(1, 40))
    if draw(st.booleans()) and channels < 99:
        size = size[0], integer(100, 300)
    rng = np.random.default_rng(integer(0, 2**32 - 1))
    activation = draw(st.sampled_from(["softmax", "sigmoid", "none"]))
    batch = draw(st.sampled_from([(), (), (2,)]))
    shape = (*batch, *source, channels)
    if activation == "none":
        scores = rng.dirichlet(np.ones(channels), shape[:-1]) * rng.uniform(0.5, 1.5)
    else:
        scores = rng.normal(0, draw(st.sampled_from([0.3, 1, 4])), shape)
    scores = scores.astype(draw(st.sampled_from([np.float32, np.float16, ml_dtypes.bfloat16])))
    if draw(st.integers(0, 4)) == 0:
        scores[(*(0 for _ in batch), integer(0, source[0] - 1), integer(0, source[1] - 1), 0)] = np.nan
    layout = draw(st.sampled_from(["CHW", "HWC"]))
    if layout == "CHW":
        scores = np.moveaxis(scores, -1, -3)
    scores = rearranged(scores, draw(st.sampled_from(["contiguous", "as is", "strided", "reversed", "read-only"])))

    options = {"layout": layout, "activation": activation}
    scored = channels
    if draw(st.booleans()):
        targets = integer(2, channels)
        groups = rng.integers(draw(st.sampled_from([-1, 0])), targets, channels)
        options |= {"groups": groups, "num_targets": targets}
        scored = targets + bool((groups < 0).any())
    if draw(st.booleans()):
        top, left = rng.uniform(-1, source[0] / 2), rng.uniform(-1, source[1] / 2)
        options["region"] = (top, left, top + rng.uniform(0.1, source[0]), left + rng.uniform(0.1, source[1]))
    thresholds = draw(st.sampled_from(["none", "scalar", "class", "map"]))
    if thresholds != "none":
        counts = {"scalar": (), "class": (scored,), "map": size}[thresholds]
        values = rng.beta(3, 1, counts).astype(np.float32)
        values = np.where(rng.random(counts) < 0.1, np.inf, values).astype(np.float32)
        options["thresholds"] = float(values) if thresholds == "scalar" else values
        options["rule"] = draw(st.sampled_from(RULES))
        if draw(st.booleans()):
            options["background"] = integer(0, options.get("num_targets", channels) - 1)
    truth = rng.integers(-1, scored + 2, (*batch, *size)).astype(draw(st.sampled_from([np.int16, np.int32, np.int64])))
    options |= {"truth": truth, "dispersion": draw(st.sampled_from(["official", "exact"]))}
    options["outputs"] = tuple(name for name in OUTPUTS if name != "set_size" or thresholds != "none")
    return scores, size, options


def rearranged(scores, how):
    if how == "contiguous":
        return np.ascontiguousarray(scores)
    if how == "strided":
        wide = np.zeros(tuple(2 * length for length in scores.shape), scores.dtype)
        wide[tuple(slice(None, None, 2) for _ in scores.shape)] = scores
        return wide[tuple(slice(None, None, 2) for _ in scores.shape)]
    if how == "reversed":
        backwards = tuple(slice(None, None, -1) for _ in scores.shape)
        return np.ascontiguousarray(scores[backwards])[backwards]
    if how == "read-only":
        scores = scores.copy()
        scores.flags.writeable = False
    return scores


def undecided(scores, size, options):
    """Pixels where two scores, or a score and its threshold, lie so close that float32 may decide otherwise."""
    settings = {key: value for key, value in options.items() if key not in ("truth", "thresholds", "outputs")}
    plan = decode_plan(scores.shape, size, DecodeOptions(**settings, outputs=("top",)))
    close = []
    for one in scores if plan.batch else [scores]:
        values = upsample(one, plan)
        values = np.where(np.isfinite(values), values, 0)
        _, score, nonconformity = class_scores(values, plan)
        score, nonconformity = score[..., plan.reached], nonconformity[..., plan.reached]
        ordered = np.sort(score, -1)
        ties = (np.diff(ordered, axis=-1) <= 1e-5 * ordered[..., 1:] + 1e-37).any(-1)
        limit = np.asarray(options.get("thresholds", -1.0))
        limit = limit[..., None] if limit.ndim == 2 else np.broadcast_to(limit, plan.num_scored)[plan.reached]
        at_limit = (np.abs(nonconformity - limit) <= 1e-5 * np.abs(nonconformity) + 1e-7).any(-1)
        close.append(ties | at_limit)
    return np.array(close) if plan.batch else close[0]


@settings(max_examples=120, deadline=None)
@given(cases())
def test_cpu_equals_reference(case):
    scores, size, options = case
    expected = reference.class_stats(scores, size, **options)
    found = cpu.class_stats(scores, size, **options)
    clear = ~undecided(scores, size, options)
    for name in options["outputs"]:
        left, right = getattr(found, name), getattr(expected, name)
        assert left.dtype == right.dtype
        if right.dtype == np.float32:
            np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-5, err_msg=name)
        else:
            np.testing.assert_array_equal(left[clear], right[clear], err_msg=name)


@pytest.mark.parametrize("limits", ["class", "map"])
@pytest.mark.parametrize("channels", [3, 21, 40])
def test_sets_of_confident_pixels_equal_the_reference(channels, limits):
    rng = np.random.default_rng(channels)
    scores = rng.normal(0, 12, (channels, 9, 9)).astype(np.float32)
    size = (30, 50)
    thresholds = rng.uniform(0.001, 0.4, channels if limits == "class" else size).astype(np.float32)
    for rule in ("agree", "single"):
        options = {"thresholds": thresholds, "rule": rule, "outputs": ("label", "top", "set_size")}
        expected = reference.class_stats(scores, size, **options)
        found = cpu.class_stats(scores, size, **options)
        given = {"layout": "CHW", "activation": "softmax", "dispersion": "official", **options}
        clear = ~undecided(scores, size, given)
        assert clear.mean() > 0.95
        assert set(np.unique(expected.set_size)) >= {0, 1}
        for name in options["outputs"]:
            np.testing.assert_array_equal(getattr(found, name)[clear], getattr(expected, name)[clear], err_msg=name)


@settings(max_examples=40, deadline=None)
@given(cases(), st.sets(st.sampled_from(OUTPUTS), min_size=1), st.integers(2, 5))
def test_bits_do_not_depend_on_the_outputs_threads_or_buffers(case, outputs, threads):
    scores, size, options = case
    whole = cpu.class_stats(scores, size, **options, threads=1)
    outputs = [name for name in options["outputs"] if name in outputs] or ["label"]
    out = ClassStats(**{name: np.empty_like(getattr(whole, name)) for name in outputs})
    some = cpu.class_stats(scores, size, **options | {"outputs": outputs}, threads=threads, out=out)
    for name in outputs:
        assert getattr(some, name).tobytes() == getattr(whole, name).tobytes(), name
    assert {field.name for field in fields(some) if getattr(some, field.name) is not None} == set(outputs)


@settings(max_examples=30, deadline=None)
@given(cases())
def test_own_true_score_as_threshold_holds_every_class(case):
    scores, size, options = case
    if "groups" in options:
        options |= {"groups": np.arange(scores.shape[-3 if options["layout"] == "CHW" else -1])}
        options.pop("num_targets")
    plain = {key: value for key, value in options.items() if key not in ("thresholds", "rule", "background")}
    if scores.ndim == 4:
        scores, plain = scores[0], plain | {"truth": plain["truth"][0]}
    own = cpu.class_stats(scores, size, **plain | {"outputs": ("true_score",)}).true_score
    seen = np.isfinite(own)
    at = np.where(seen, own, -np.inf).astype(np.float32)
    below = np.where(seen, np.nextafter(own, np.float32(-np.inf)), -np.inf).astype(np.float32)
    sizes = [
        cpu.class_stats(scores, size, **plain | {"outputs": ("set_size",)}, thresholds=t).set_size for t in (at, below)
    ]
    assert (sizes[0] > sizes[1])[seen].all()
    assert (sizes[0] == 0)[~seen].all()


def test_half_precision_inputs_are_widened_exactly():
    bits = np.arange(1 << 16, dtype=np.uint16)
    for dtype in (np.float16, ml_dtypes.bfloat16):
        values = bits.view(dtype)
        values = values[np.isfinite(values.astype(np.float32))]
        scores = values.reshape(1, 1, -1)
        found = cpu.class_stats(scores, scores.shape[1:], activation="none", outputs=("confidence",)).confidence
        np.testing.assert_array_equal(found[0], values.astype(np.float32))


def test_memory_stays_far_below_the_upsampled_scores():
    program = """
        import resource
        import numpy as np
        from maskmill import kernels

        scores = np.zeros((512, 32, 32), np.float32)
        kernels.class_stats(scores, (8, 8))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        kernels.class_stats(scores, (512, 512))
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """
    # The upsampled scores would take 512 MiB.
    assert int(output_of(program)) < 16 * 1024


# ---- misuse


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layout": "WHC"}, "layout must be one of CHW, HWC"),
        ({"activation": "tanh"}, "activation must be one of"),
        ({"rule": "best"}, "rule must be one of"),
        ({"outputs": ("labels",)}, "outputs must be one of"),
        ({"groups": [0, 1]}, "one integer for each of the 3 model classes"),
        ({"groups": [0, 1, -2]}, "-1 for a dropped class"),
        ({"groups": [0, 1, 2], "num_targets": 2}, "name target 2, but there are 2 targets"),
        ({"groups": [-1, -1, -1]}, "0 targets"),
        ({"num_targets": 5}, "pass groups as well"),
        ({"region": (0, 0, 0, 4)}, "region must be"),
        ({"region": (0, 0, np.nan, 4)}, "region must be"),
        ({"thresholds": np.zeros(4, np.float32)}, "thresholds must be"),
        ({"truth": np.zeros((3, 3), int)}, "truth must have the shape of the outputs"),
        ({"background": 3}, "background must be a target class"),
        ({"ignore": 2}, "ignore must be an index from 3 to 255"),
        ({"ignore": 256}, "ignore must be an index from 3 to 255"),
        ({"outputs": ("set_size",)}, "set_size needs thresholds"),
        ({"outputs": ("true_score",)}, "true_score needs truth"),
    ],
)
def test_misuse_is_refused(class_stats, options, message):
    with pytest.raises(UsageError, match=message):
        class_stats(np.zeros((3, 4, 4), np.float32), (8, 8), **options)


def test_dispersion_of_one_class_is_refused(class_stats):
    with pytest.raises(ValueError, match="at least two classes"):
        class_stats(np.zeros((1, 4, 4), np.float32), (8, 8), outputs=("dispersion",))


def test_scores_of_another_type_are_refused():
    with pytest.raises(UsageError, match="float16, bfloat16 or float32"):
        kernels.class_stats(np.zeros((3, 4, 4)), (8, 8))


def test_truth_that_is_not_integer_is_refused():
    with pytest.raises(UsageError, match="truth must hold integers, got float32"):
        kernels.class_stats(
            np.zeros((3, 4, 4), np.float32), (8, 8), truth=np.zeros((8, 8), np.float32), outputs=("true_score",)
        )


def test_out_of_another_shape_is_refused():
    with pytest.raises(UsageError, match=r"out\.label must be C-contiguous uint8 of shape \(8, 8\)"):
        kernels.class_stats(np.zeros((3, 4, 4), np.float32), (8, 8), out=ClassStats(label=np.empty((4, 4), np.uint8)))


# ---- threads


def test_eight_threads_at_once_under_workqueue():
    program = """
        import threading
        import numpy as np
        from maskmill import kernels

        scores = np.random.default_rng(0).normal(size=(21, 65, 65)).astype(np.float32)
        expected = kernels.class_stats(scores, (213, 320), thresholds=0.3, rule="agree")
        failures = []

        def work():
            for _ in range(20):
                found = kernels.class_stats(scores, (213, 320), thresholds=0.3, rule="agree")
                if not ((found.label == expected.label).all() and (found.confidence == expected.confidence).all()):
                    failures.append("differs")

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print("failures:", len(failures))
    """
    workqueue = {"NUMBA_THREADING_LAYER": "workqueue", "NUMBA_NUM_THREADS": "4"}
    assert output_of(program, **workqueue) == "failures: 0"


def test_a_forked_child_goes_on_after_its_parent_shared_a_map():
    program = """
        import os
        import numpy as np
        from maskmill.kernels import cpu

        scores = np.random.default_rng(0).normal(size=(21, 33, 33)).astype(np.float32)
        expected = cpu.class_stats(scores, (213, 320), threads=2)
        child = os.fork()
        if child == 0:
            found = cpu.class_stats(scores, (213, 320), threads=2)
            os._exit(0 if (found.label == expected.label).all() else 1)
        print("status:", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    assert output_of(program, PYTHONWARNINGS="ignore") == "status: 0"


@pytest.mark.parametrize("layer", ["default", "workqueue"])
def test_bits_do_not_depend_on_whose_threads_share_the_rows(layer):
    program = """
        import numpy as np
        from maskmill.kernels import cpu

        scores = np.random.default_rng(0).normal(size=(3, 21, 9, 11)).astype(np.float32)
        for threads in (2, 3, 100):
            one, several = (cpu.class_stats(scores, (40, 37), threads=number) for number in (1, threads))
            assert (one.label == several.label).all() and (one.confidence == several.confidence).all()
        print("equal")
    """
    assert output_of(program, NUMBA_THREADING_LAYER=layer) == "equal"


@pytest.mark.parametrize("number", [1, 3])
def test_the_number_of_torchs_threads_stays(number):
    pytest.importorskip("torch")
    program = f"""
        import torch
        torch.set_num_threads({number})
        torch.randn(300, 300).softmax(0)
        import numpy as np
        from maskmill.kernels import cpu

        scores = np.random.default_rng(0).normal(size=(21, 33, 33)).astype(np.float32)
        for _ in range(2):
            cpu.class_stats(scores, (213, 320), threads=2)
        print(torch.get_num_threads())
    """
    assert output_of(program) == str(number)
