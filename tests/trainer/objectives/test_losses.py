"""Each loss against its value written out in NumPy."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from maskmill.kernels import reference  # noqa: E402
from maskmill.trainer.objectives import losses, pseudo_labels  # noqa: E402

IGNORE = 255


def random_logits(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 2, shape).astype(np.float32)


def softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def pixel_losses(logits: np.ndarray, label: np.ndarray) -> np.ndarray:
    """-log p of the label, 0 where it is ignored."""
    safe = np.where(label == IGNORE, 0, label)[:, None].astype(np.int64)
    chosen = np.take_along_axis(softmax(logits), safe, axis=1)[:, 0]
    return np.where(label == IGNORE, 0, -np.log(chosen))


@pytest.fixture
def maps() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    label = rng.integers(0, 3, (2, 4, 5)).astype(np.uint8)
    label[0, 0] = IGNORE
    return random_logits(2, 3, 4, 5), label, rng.random((2, 4, 5)).astype(np.float32)


def test_cross_entropy_is_the_mean_over_the_labeled_pixels(maps) -> None:
    logits, label, _ = maps
    expected = pixel_losses(logits, label).sum() / (label != IGNORE).sum()
    found = losses.cross_entropy(torch.tensor(logits), torch.tensor(label), ignore=IGNORE)
    assert float(found) == pytest.approx(expected, rel=1e-6)


def test_weights_do_not_change_what_the_sum_is_divided_by(maps) -> None:
    logits, label, weight = maps
    expected = (weight * pixel_losses(logits, label)).sum() / (label != IGNORE).sum()
    found = losses.cross_entropy(torch.tensor(logits), torch.tensor(label), torch.tensor(weight), ignore=IGNORE)
    assert float(found) == pytest.approx(expected, rel=1e-6)


def test_a_count_of_the_whole_step_takes_the_place_of_the_batch_s_own(maps) -> None:
    logits, label, _ = maps
    found = losses.cross_entropy(torch.tensor(logits), torch.tensor(label), ignore=IGNORE, count=100.0)
    assert float(found) == pytest.approx(pixel_losses(logits, label).sum() / 100, rel=1e-6)


def test_a_batch_without_a_label_has_no_loss_and_no_gradient() -> None:
    logits = torch.zeros(1, 3, 2, 2, requires_grad=True)
    loss = losses.cross_entropy(logits, torch.full((1, 2, 2), IGNORE), ignore=IGNORE)
    loss.backward()
    assert float(loss.detach()) == 0
    assert float(logits.grad.abs().sum()) == 0


def test_half_precision_logits_are_compared_in_float32() -> None:
    logits = torch.tensor(random_logits(1, 3, 4, 4)).bfloat16()
    label = torch.zeros(1, 4, 4, dtype=torch.uint8)
    found = losses.cross_entropy(logits, label, ignore=IGNORE)
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(pixel_losses(logits.float().numpy(), label.numpy()).mean(), rel=1e-6)


def test_self_reliance_decays_exponentially() -> None:
    weights = [losses.self_reliance_weight(step, 100, initial=0.01, decay=5) for step in (0, 50, 99)]
    np.testing.assert_allclose(weights, [0.01, 0.01 * np.exp(-2.5), 0.01 * np.exp(-4.95)])


def test_self_reliance_shares_the_loss_out() -> None:
    found = losses.self_reliance(torch.tensor(2.0), torch.tensor(5.0), 0.1)
    assert float(found) == pytest.approx(0.9 * 2 + 0.1 * 5)


def test_pcos_labels_are_the_argmax_with_the_kernels_weights() -> None:
    logits = random_logits(2, 4, 12, 10, seed=3)
    real = np.ones((2, 12, 10), bool)
    real[1, :, 7:] = False
    found = pseudo_labels.pcos_labels(torch.tensor(logits), torch.tensor(real), ignore=IGNORE)
    p = softmax(logits)
    top = p.max(axis=1)
    others = np.where(np.arange(4)[:, None, None] == p.argmax(axis=1)[:, None], 0, p)
    mean = (1 - top) / 3
    # the authors' variance counts the top class's emptied slot
    dispersion = (((others - mean[:, None]) ** 2).sum(axis=1)) / 3
    expected = reference.pcos(top.astype(np.float32), dispersion.astype(np.float32), mask=real)
    np.testing.assert_array_equal(found.label, np.where(real, p.argmax(axis=1), IGNORE))
    np.testing.assert_allclose(found.weight, expected.weight, atol=2e-3)
    assert not found.weight[~torch.tensor(real)].any()
    assert (np.asarray(found.reliable) == expected.reliable).mean() > 0.99
    assert not found.reliable[~torch.tensor(real)].any()


def test_threshold_labels_count_confident_pixels_in_full_and_others_not_at_all() -> None:
    probabilities = np.array([[0.96, 0.03, 0.01], [0.5, 0.3, 0.2], [0.01, 0.01, 0.98], [0.97, 0.02, 0.01]])
    logits = torch.tensor(np.log(probabilities).T[None, :, None].astype(np.float32))
    real = torch.tensor([[[True, True, True, False]]])
    found = pseudo_labels.threshold_labels(logits, real, threshold=0.95, ignore=IGNORE)
    assert found.label.tolist() == [[[0, 0, 2, IGNORE]]]
    assert found.weight.tolist() == [[[1, 0, 1, 0]]]


def test_argmax_labels_are_upsampled_like_the_logits_of_the_loss() -> None:
    logits = torch.tensor(random_logits(2, 5, 4, 6))
    real = torch.ones(2, 16, 24, dtype=torch.bool)
    upsampled = torch.nn.functional.interpolate(logits, size=(16, 24), mode="bilinear", align_corners=False)
    found = pseudo_labels.argmax_labels(logits, real, ignore=IGNORE)
    assert (found == upsampled.argmax(dim=1)).float().mean() > 0.999
