"""Detect losses that are not finite, without waiting for the device at each step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...errors import TrainingError
from ..objectives.base import Losses
from ..run import import_torch


class LossWatch:
    """Losses since the last check, on their device."""

    def __init__(self) -> None:
        self._finite: list[Any] = []
        self._rows: list[tuple[int, dict[str, Any], list[str]]] = []

    def add(self, step: int, losses: Losses, batch: Mapping[str, Any]) -> None:
        """Add the losses of a part of a step; queues work on the device and returns."""
        terms = {name: value.detach() for name, value in {"loss": losses.total, **losses.terms}.items()}
        self._finite.append(import_torch().isfinite(terms["loss"]))
        self._rows.append((step, terms, [uri for samples in batch.values() for uri in samples["uri"]]))

    def check(self) -> None:
        """Wait for the device; raises :class:`TrainingError` for the first loss that is not finite, with its images."""
        finite = import_torch().stack(self._finite).tolist() if self._finite else []
        rows, self._finite, self._rows = self._rows, [], []
        for (step, terms, uris), is_finite in zip(rows, finite, strict=True):
            if not is_finite:
                values = ", ".join(f"{name} {float(value):g}" for name, value in terms.items())
                raise TrainingError(
                    f"the loss of step {step} is not finite ({values}); try a lower lr, clip=1, or bf16 instead of "
                    f"fp16. Its images: {', '.join(uris)}"
                )
