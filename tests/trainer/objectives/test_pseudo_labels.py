"""Selection of pseudo-labels: PCOS in its forms, against the algorithm of the supplement written out."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from maskmill.trainer.objectives.pseudo_labels import (  # noqa: E402
    PseudoLabels,
    conformal_labels,
    most_confident,
    pcos_labels,
    pcos_weights,
)

IGNORE = 255


def random_logits(seed: int = 0, classes: int = 5, size: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 2, (2, classes, size, size)).astype(np.float32)


def features_of(logits: np.ndarray) -> dict[str, np.ndarray]:
    shares = np.exp(logits - logits.max(axis=1, keepdims=True)).astype(np.float64)
    shares /= shares.sum(axis=1, keepdims=True)
    ordered = np.sort(shares, axis=1)[:, ::-1]
    others = ordered[:, 1:]
    entropy = -(shares * np.log(shares)).sum(axis=1)
    return {
        "confidence": ordered[:, 0],
        "dispersion": others.var(axis=1),
        "entropy": entropy,
        "residual-entropy": -(others * np.log(others)).sum(axis=1),
        "margin": ordered[:, 0] - ordered[:, 1],
    }


def algorithm_1(phi: np.ndarray, signs: list[int], alpha: float, epsilon: float) -> np.ndarray:
    """The pseudo-code of the supplement, with signs for features that are better if lower."""
    vectors = np.linalg.svd(phi, full_matrices=False)[2][:2]
    cluster = np.abs(vectors).argmax(axis=0)
    stats = [(phi[:, cluster == c].mean(axis=1), phi[:, cluster == c].var(axis=1, ddof=1)) for c in range(2)]
    mean, variance = max(stats, key=lambda pair: pair[0][0])
    z = np.array(signs)[:, None] * (phi - mean[:, None]) / np.sqrt(variance + epsilon)[:, None]
    weight = np.exp(-(z**2).sum(axis=0) / alpha)
    weight[(z > 0).any(axis=0)] = 1
    return weight


def test_the_supplement_form_is_algorithm_1() -> None:
    logits = random_logits()
    real = torch.ones(2, 16, 16, dtype=torch.bool)
    found = pcos_labels(torch.tensor(logits), real, form="supplement", ignore=IGNORE)
    features = features_of(logits)
    for image in range(2):
        phi = np.stack([features[name][image].ravel() for name in ("confidence", "dispersion")])
        expected = algorithm_1(phi, [1, -1], 64, 0)
        np.testing.assert_allclose(found.weight[image].ravel(), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("metrics", "names", "signs"),
    [
        ("dispersion+entropy", ["dispersion", "entropy"], [1, -1, -1]),
        ("dispersion+residual-entropy", ["dispersion", "residual-entropy"], [1, -1, 1]),
        ("dispersion+margin", ["dispersion", "margin"], [1, -1, 1]),
        ("all", ["dispersion", "entropy", "residual-entropy", "margin"], [1, -1, -1, 1, 1]),
    ],
)
def test_more_metrics_are_more_rows_of_the_feature_matrix(metrics, names: list[str], signs: list[int]) -> None:
    logits = random_logits(1)
    real = torch.ones(2, 16, 16, dtype=torch.bool)
    found = pcos_labels(torch.tensor(logits), real, form="supplement", metrics=metrics, ignore=IGNORE)
    features = features_of(logits)
    for image in range(2):
        phi = np.stack([features[name][image].ravel() for name in ("confidence", *names)])
        np.testing.assert_allclose(found.weight[image].ravel(), algorithm_1(phi, signs, 64, 0), atol=1e-3)


def test_groups_by_class_weigh_each_predicted_class_alone() -> None:
    logits = random_logits(2, classes=3)
    real = torch.ones(2, 16, 16, dtype=torch.bool)
    found = pcos_labels(torch.tensor(logits), real, form="supplement", groups="class", ignore=IGNORE)
    features = features_of(logits)
    for image in range(2):
        for number in range(3):
            members = logits[image].argmax(axis=0) == number
            phi = np.stack([features[name][image][members] for name in ("confidence", "dispersion")])
            np.testing.assert_allclose(found.weight[image][members], algorithm_1(phi, [1, -1], 64, 0), atol=1e-4)


def test_the_general_form_with_two_features_is_the_kernel() -> None:
    logits = random_logits(3)
    real = torch.ones(2, 16, 16, dtype=torch.bool)
    kernel = pcos_labels(torch.tensor(logits), real, form="supplement", ignore=IGNORE)
    features = features_of(logits)
    phi = torch.tensor(np.stack([features[name][0].ravel() for name in ("confidence", "dispersion")]))
    weight, reliable = pcos_weights(phi, torch.tensor([1.0, -1.0]), "supplement")
    np.testing.assert_allclose(weight, kernel.weight[0].ravel(), atol=1e-4)
    assert (reliable == kernel.reliable[0].ravel()).float().mean() > 0.99


def test_padding_has_no_label_and_no_weight_in_any_form() -> None:
    real = torch.ones(2, 16, 16, dtype=torch.bool)
    real[:, :, 10:] = False
    for options in ({"form": "supplement"}, {"metrics": "all"}, {"groups": "class"}):
        found = pcos_labels(torch.tensor(random_logits(4)), real, ignore=IGNORE, **options)
        assert (found.label[~real] == IGNORE).all()
        assert not found.weight[~real].any()
        assert not found.reliable[~real].any()


def test_pixels_that_are_all_alike_keep_their_full_weight() -> None:
    weight, reliable = pcos_weights(torch.tensor([[0.9] * 5, [0.01] * 5]), torch.tensor([1.0, -1.0]), "supplement")
    assert weight.tolist() == [1.0] * 5
    assert reliable.all()


def test_conformal_labels_keep_pixels_whose_set_is_their_best_class() -> None:
    logits = random_logits(3, classes=3)
    real = torch.ones(2, 16, 16, dtype=torch.bool)
    real[0, :4] = False
    limits = np.array([0.6, 0.4, -np.inf])
    result = conformal_labels(torch.tensor(logits), real, torch.tensor(limits), ignore=IGNORE)
    shares = np.exp(logits.astype(np.float64))
    shares /= shares.sum(axis=1, keepdims=True)
    members, best = 1 - shares <= limits[None, :, None, None], shares.argmax(axis=1)
    expected = (members.sum(axis=1) == 1) & np.take_along_axis(members, best[:, None], 1)[:, 0] & real.numpy()
    np.testing.assert_array_equal(result.reliable, expected)
    np.testing.assert_array_equal(result.weight, expected)
    np.testing.assert_array_equal(result.label, np.where(real.numpy(), best, IGNORE))


def test_a_student_without_thresholds_selects_nothing() -> None:
    real = torch.ones(2, 16, 16, dtype=torch.bool)
    assert not conformal_labels(torch.tensor(random_logits()), real, None, ignore=IGNORE).reliable.any()


def test_matched_labels_are_the_most_confident_pixels() -> None:
    logits = torch.tensor(random_logits(4))
    real = torch.ones(2, 16, 16, dtype=torch.bool)
    real[1, 8:] = False
    weight = torch.zeros(2, 16, 16)
    weight[0, :2], weight[1, 0] = 0.5, 1.0
    own = PseudoLabels(torch.zeros(2, 16, 16), weight, weight > 0)
    result = most_confident(logits, real, own)
    confidence = logits.softmax(dim=1).amax(dim=1)
    assert result.reliable.sum(dim=(1, 2)).tolist() == [16, 16]
    assert not result.reliable[~real].any()
    for image in range(2):
        left_out = real[image] & ~result.reliable[image]
        assert confidence[image][result.reliable[image]].min() >= confidence[image][left_out].max()
