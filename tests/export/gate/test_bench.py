"""Throughput of sessions: images per second in calls of the session's batch size."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from maskmill.engine.runtimes.onnx_runtime import OnnxSession
from maskmill.export.gate.bench import throughput

from ...models import color_bundle


@pytest.mark.parametrize("batch", ["N", 4])
def test_calls_have_the_sessions_batch_size_and_all_images_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: int | str
) -> None:
    session = OnnxSession(color_bundle(tmp_path, batch=batch))
    sizes, run = [], session.run

    def counted(inputs: np.ndarray) -> list[np.ndarray]:
        sizes.append(len(inputs))
        return run(inputs)

    monkeypatch.setattr(session, "run", counted)
    images = [np.zeros((1, 3, 16, 24), np.float32) for _ in range(3)]
    started = time.perf_counter()
    rate = throughput(session, images, callers=1, seconds=0.2)
    elapsed = time.perf_counter() - started
    assert set(sizes) == {1 if batch == "N" else 4}
    timed = sum(sizes[1:])  # the first call warms up
    assert timed / elapsed <= rate <= timed / 0.2
