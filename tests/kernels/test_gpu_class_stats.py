"""The CUDA form of class_stats, run on a CPU: every instantiation against the specification."""

import re

import ml_dtypes
import numpy as np
import pytest

from maskmill.errors import UsageError
from maskmill.kernels.gpu.device import ACTIVATIONS, ELEMENTS, INSTANTIATIONS
from maskmill.kernels.plans.class_stats import OUTPUTS, DecodeOptions, decode_plan
from maskmill.kernels.reference.class_stats import class_scores, upsample
from maskmill.kernels.types import ClassStats

from ..simt.harness import cuda, launched
from .forms import reference

DTYPES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float32": np.float32}
RULES = ("argmax", "foreground", "single", "agree")


def scores_of(rng, activation, shape, dtype, spread):
    """(N, h, w, C) scores in the range of the activation."""
    if activation == "none":
        return (rng.dirichlet(np.ones(shape[-1]), shape[:-1]) * rng.uniform(0.5, 1.5)).astype(dtype)
    return rng.normal(0, spread, shape).astype(dtype)


NOT_IN_MODE = {
    "TOP": {"second", "second_confidence", "set_size", "share", "dispersion"},
    "SUMS": {"second", "second_confidence", "set_size"},
    "SECONDS": set(),
}
"""Outputs that would take more than the pass over the classes finds."""


def random_case(rng, dtype, activation, walk, mode, shape):
    """Scores, size and options of one call that runs the instantiation."""
    channels = int(rng.choice([3, 8, 19, 32, 40]))
    if walk == "VECTOR":
        channels = int(rng.choice([8, 22, 40])) if dtype == "float32" else int(rng.choice([8, 24, 40]))
    source = rng.integers(1, 9, 2)
    if shape == (1, 1):
        size = tuple(int(rng.integers(max(length // 2, 1), length + 2)) for length in source)
    else:
        size = tuple(int(length * rng.uniform(3.5, 6) + 1) for length in source)
    batch = rng.choice([None, 1, 2])
    scores = scores_of(rng, activation, (batch or 1, *source, channels), DTYPES[dtype], rng.choice([0.5, 2, 5]))
    if rng.random() < 0.25:
        scores[0, rng.integers(source[0]), rng.integers(source[1]), rng.integers(channels)] = rng.choice(
            [np.nan, np.inf, -np.inf]
        )
    layout = "HWC" if walk == "VECTOR" else str(rng.choice(["CHW", "HWC"]))
    if layout == "CHW":
        scores = np.ascontiguousarray(np.moveaxis(scores, -1, 1))
    if walk != "VECTOR" and rng.random() < 0.5 or layout == "HWC" and walk == "STRIDED":
        # Every other element of a wider array, backwards.
        wide = np.zeros((*scores.shape[:-1], 2 * scores.shape[-1]), scores.dtype)
        wide[..., ::-2] = scores
        scores = wide[..., ::-2]
    scores = scores if batch else scores[0]

    options = {"layout": layout, "activation": activation}
    targets = scored = channels
    if walk == "GROUPED":
        targets = int(rng.integers(1, channels + 1))
        groups = rng.integers(-1, targets, channels)
        scored = targets + bool((groups < 0).any())
        options |= {"groups": groups, "num_targets": targets}
    if rng.random() < 0.3:
        options["region"] = (0.3, -0.2, source[0] * 0.8 + 0.3, source[1] * 0.9)
    thresholds = rng.choice(["none", "scalar", "class", "map"])
    if mode == "TOP" and activation == "softmax":
        thresholds = "none"
    if thresholds != "none":
        shape = {"scalar": (), "class": (scored,), "map": size}[thresholds]
        values = np.where(rng.random(shape) < 0.1, np.inf, rng.random(shape)).astype(np.float32)
        options["thresholds"] = float(values) if thresholds == "scalar" else values
        rules = RULES if mode == "SECONDS" else ("argmax",)
        options |= {"rule": str(rng.choice(rules)), "background": rng.choice([None, 0, targets - 1])}
    truth = rng.integers(-1, scored + 2, (*((batch,) if batch else ()), *size))
    options["truth"] = truth.astype(rng.choice([np.int8, np.int16, np.int32, np.int64]))
    options["dispersion"] = str(rng.choice(["official", "exact"]))
    left_out = NOT_IN_MODE[mode] | ({"set_size"} if thresholds == "none" else set())
    if mode == "TOP" and activation == "softmax":
        left_out |= {"confidence", "true_score"}
    left_out |= {"dispersion"} if scored == 1 else set()
    options["outputs"] = tuple(name for name in OUTPUTS if name not in left_out)
    return scores, size, options


def undecided(scores, size, options):
    """Pixels where two scores, or a score and its threshold, differ by less than 1e-5, relatively."""
    settings = {key: value for key, value in options.items() if key not in ("truth", "thresholds", "outputs")}
    plan = decode_plan(scores.shape, size, DecodeOptions(**settings, outputs=("top",)))
    close = []
    for one in scores if plan.batch else [scores]:
        values = upsample(one, plan)
        _, score, nonconformity = class_scores(np.where(np.isfinite(values), values, 0), plan)
        score, nonconformity = score[..., plan.reached], nonconformity[..., plan.reached]
        ordered = np.sort(score, -1)
        ties = (np.diff(ordered, axis=-1) <= 1e-5 * np.abs(ordered[..., 1:]) + 1e-37).any(-1)
        limit = np.asarray(options.get("thresholds", -1.0))
        limit = limit[..., None] if limit.ndim == 2 else np.broadcast_to(limit, plan.num_scored)[plan.reached]
        close.append(ties | (np.abs(nonconformity - limit) <= 1e-5 * np.abs(nonconformity) + 1e-7).any(-1))
    return np.array(close) if plan.batch else close[0]


def assert_equals_reference(scores, size, options):
    found, expected = cuda.class_stats(scores, size, **options), reference.class_stats(scores, size, **options)
    clear = ~undecided(scores, size, options)
    for name in options["outputs"]:
        left, right = getattr(found, name), getattr(expected, name)
        assert (left.dtype, left.shape) == (right.dtype, right.shape)
        if right.dtype == np.float32:
            np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-7, err_msg=name)
        else:
            np.testing.assert_array_equal(left[clear], right[clear], err_msg=name)
    return clear.mean()


INSTANTIATION = re.compile(r"class_stats<(\w+), (\w+), (\w+), (\w+), (\d), (\d)>")


@pytest.mark.parametrize("name", INSTANTIATIONS["class_stats"])
def test_every_instantiation_equals_the_reference(name):
    element, activation, walk, mode, *shape = INSTANTIATION.fullmatch(name).groups()
    dtype = next(key for key, value in ELEMENTS.items() if value == element)
    activation = next(key for key, value in ACTIVATIONS.items() if value == activation)
    rng = np.random.default_rng(INSTANTIATIONS["class_stats"].index(name))
    launched.clear()
    decided = []
    while len(decided) < 3:
        case = random_case(rng, dtype, activation, walk, mode, tuple(map(int, shape)))
        share = assert_equals_reference(*case)
        # Other cases are drawn too: a single row, groups of one class.
        decided += [share] * (launched[-1] == name)
    assert np.mean(decided) > 0.7


@pytest.mark.parametrize("walk", ["STRIDED", "GROUPED"])
def test_1024_classes(walk):
    rng = np.random.default_rng(0)
    scores = rng.normal(0, 2, (1024, 2, 3)).astype(np.float16)
    options = {"layout": "CHW", "activation": "softmax", "thresholds": 0.99, "rule": "foreground", "background": 3}
    options |= {"truth": rng.integers(0, 1000, (3, 5)), "outputs": OUTPUTS, "dispersion": "official"}
    if walk == "GROUPED":
        options["groups"] = rng.permutation(1024) % 1000
    assert_equals_reference(scores, (3, 5), options)


def test_rising_logits_are_summed_as_exactly_as_falling_ones():
    # Each class raises the maximum; a sum rescaled each time would collect the rounding of 1,023 products.
    rising = (np.arange(1024) * 0.02).astype(np.float32)[:, None, None]
    truth = np.array([[0]])
    for scores, true in ((rising, truth), (rising[::-1].copy(), 1023 - truth)):
        options = {"truth": true, "outputs": ("confidence", "dispersion", "true_score")}
        found, expected = cuda.class_stats(scores, (1, 1), **options), reference.class_stats(scores, (1, 1), **options)
        for name in options["outputs"]:
            np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=5e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_pixels_with_a_corner_that_is_not_finite_have_no_class(activation, value):
    rng = np.random.default_rng(8)
    scores = scores_of(rng, activation, (1, 4, 5, 6), np.float32, 2)[0]
    scores[1, 2, 4], scores[3, 4, 0] = value, value
    outputs = ("label", "top", "confidence", "share", "dispersion", "second")
    for size in ((16, 20), (5, 5)):
        found, expected = (
            form.class_stats(scores, size, layout="HWC", activation=activation, outputs=outputs)
            for form in (cuda, reference)
        )
        assert 0 < (expected.top == 65535).mean() < 1
        np.testing.assert_array_equal(found.top == 65535, expected.top == 65535)
        np.testing.assert_allclose(found.share, expected.share, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("spread", [10, 40, 300])
def test_pixels_far_below_their_neighbors_are_summed_as_exactly(spread, grouped):
    # The classes of one source pixel are all far above those of the next, in the middle of both and everywhere else.
    rng = np.random.default_rng(7)
    scores = (rng.normal(0, 2, (6, 2, 4)) + spread * np.array([[1, 0, -1, 0.5], [0, 1, 0, -1]])).astype(np.float32)
    options = {"truth": rng.integers(0, 3, (12, 25)), "thresholds": 0.9, "rule": "foreground", "background": 1}
    options |= {"outputs": OUTPUTS, "dispersion": "exact"}
    if grouped:
        options |= {"groups": np.array([0, 1, 1, 2, 0, 2]), "num_targets": 3}
    launched.clear()
    found, expected = (form.class_stats(scores, (12, 25), **options) for form in (cuda, reference))
    assert launched[-1].endswith("4, 2>")
    clear = ~undecided(scores, (12, 25), {"activation": "softmax", **options})
    # Each value is rounded to 24 bits before it is compared with the others of its pixel.
    tolerance = 1e-5 + 1e-6 * spread
    for name in OUTPUTS:
        left, right = getattr(found, name), getattr(expected, name)
        if right.dtype != np.float32:
            np.testing.assert_array_equal(left[clear], right[clear], err_msg=name)
        else:
            np.testing.assert_allclose(left, right, rtol=tolerance, atol=1e-7, err_msg=name)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("layout", ["CHW", "HWC"])
def test_a_true_score_is_the_smallest_threshold_that_holds_its_class(activation, layout):
    rng = np.random.default_rng(5)
    scores = scores_of(rng, activation, (1, 5, 7, 8), np.float32, 3)[0]
    truth = rng.integers(0, 8, (13, 33))
    if layout == "CHW":
        scores = np.moveaxis(scores, -1, 0)
    options = {"activation": activation, "layout": layout}
    own = cuda.class_stats(scores, truth.shape, **options, truth=truth, outputs=("true_score",)).true_score
    sizes = [
        cuda.class_stats(scores, truth.shape, **options, thresholds=limit, outputs=("set_size",)).set_size
        for limit in (own, np.nextafter(own, np.float32(-np.inf)))
    ]
    assert (sizes[0] > sizes[1]).all()


def test_layouts_and_wide_loads_give_the_same_bits():
    rng = np.random.default_rng(6)
    scores = rng.normal(0, 4, (4, 6, 16)).astype(np.float16)
    shifted = np.empty(scores.size + 1, np.float16)[1:].reshape(scores.shape)
    shifted[...] = scores
    options = {"thresholds": 0.6, "rule": "foreground", "truth": rng.integers(0, 16, (9, 35)), "outputs": OUTPUTS}
    launched.clear()
    results = [
        cuda.class_stats(values, (9, 35), layout=layout, **options)
        for values, layout in (
            (scores, "HWC"),
            (shifted, "HWC"),
            (np.ascontiguousarray(np.moveaxis(scores, -1, 0)), "CHW"),
        )
    ]
    walks = [name.split(", ")[2] for name in launched[::3]]
    assert walks == ["VECTOR", "STRIDED", "STRIDED"]
    for name in OUTPUTS:
        first, *others = (getattr(result, name).tobytes() for result in results)
        assert others == [first, first], name


def test_out_is_filled_and_returned():
    scores = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
    out = ClassStats(label=np.empty((8, 9), np.uint8))
    found = cuda.class_stats(scores, (8, 9), outputs=("label", "top"), out=out)
    assert found.label is out.label
    np.testing.assert_array_equal(found.label, found.top)


@pytest.mark.parametrize(
    ("scores", "options", "message"),
    [
        (np.zeros((3, 4, 5)), {}, "scores must be float16, bfloat16, float32, got float64"),
        (np.zeros((3, 4, 5), np.float32), {"out": ClassStats(label=np.zeros((8, 8), np.uint8))}, r"out.label must be"),
        (
            np.zeros((3, 4, 5), np.float32),
            {"outputs": "true_score", "truth": np.zeros((8, 9), np.float32)},
            "truth must hold integers, got float32",
        ),
        (np.zeros((70000, 2, 1, 1), np.float32), {}, r"a grid of \(1, 1, 70000\) blocks"),
    ],
)
def test_what_a_device_cannot_take_is_refused(scores, options, message):
    with pytest.raises(UsageError, match=message):
        cuda.class_stats(scores, (8, 9), **options)
