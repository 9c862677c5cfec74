"""Rescaling of a teacher's logits on labeled pixels: one scale and an offset per class (vector scaling)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Rescaling:
    """Logits z become ``scale`` z_k + ``offsets[k]``."""

    scale: float
    offsets: NDArray[np.float64]

    def apply(self, logits: NDArray[np.floating], *, axis: int) -> NDArray[np.float64]:
        """Return the rescaled logits; ``axis`` is that of the classes."""
        shape = [1] * logits.ndim
        shape[axis] = len(self.offsets)
        return self.scale * logits + self.offsets.reshape(shape)


def fit_rescaling(
    logits: NDArray[np.floating], truth: NDArray[np.integer], *, spread: float = 1e-3, background: int | None = 0
) -> Rescaling:
    """Minimize the mean of -log softmax(scale z + offsets)[y], a convex problem, by Newton's method.

    ``logits`` (n, K) and ``truth`` (n,). ``spread`` times the summed squares of the distances between the foreground
    offsets and their mean is added, which gives a class without pixels the mean offset. Source: vector scaling without
    its scale per class, Guo et al. 2017.
    """
    num, classes = logits.shape
    values, rows = logits.astype(np.float64), np.arange(num)
    foreground = np.array([k for k in range(classes) if k != background])
    center = np.eye(len(foreground)) - 1 / len(foreground)
    penalty = np.zeros((classes + 1, classes + 1))
    penalty[np.ix_(foreground + 1, foreground + 1)] = 2 * spread * center
    counts = np.bincount(truth, minlength=classes)

    def loss_of(parameters: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        scores = parameters[0] * values + parameters[1:]
        scores -= scores.max(axis=1, keepdims=True)
        log_sum = np.log(np.exp(scores).sum(axis=1))
        loss = (log_sum - scores[rows, truth]).mean() + parameters @ penalty @ parameters / 2
        return float(loss), np.exp(scores - log_sum[:, None])

    parameters = np.zeros(classes + 1)
    parameters[0] = 1.0
    loss, shares = loss_of(parameters)
    for _ in range(100):
        expected = (shares * values).sum(axis=1)
        gradient = np.concatenate([[(expected - values[rows, truth]).mean()], (shares.sum(axis=0) - counts) / num])
        gradient += penalty @ parameters
        mixed = (shares * (values - expected[:, None])).mean(axis=0)
        curvature = np.block(
            [
                [np.array([[((shares * values**2).sum(axis=1) - expected**2).mean()]]), mixed[None]],
                [mixed[:, None], np.diag(shares.mean(axis=0)) - shares.T @ shares / num],
            ]
        )
        step = np.linalg.solve(curvature + penalty + 1e-9 * np.eye(classes + 1), gradient).astype(np.float64)
        length = 1.0
        while length > 1e-6:
            changed, changed_shares = loss_of(parameters - length * step)
            if changed <= loss:
                break
            length /= 2
        else:
            break
        parameters, shares, decrease, loss = parameters - length * step, changed_shares, loss - changed, changed
        if decrease < 1e-10:
            break
    return Rescaling(float(parameters[0]), parameters[1:] - parameters[1:].mean())
