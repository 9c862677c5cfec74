"""Files of observations give what was put into them."""

from __future__ import annotations

import numpy as np
import pytest

from maskmill.engine.backends.host import HOST
from maskmill.engine.calibration.scores.observe import Observation
from maskmill.engine.calibration.scores.pixel_samples import Draw
from maskmill.engine.calibration.scores.score_counts import NUM_BINS, ScoreCounts
from maskmill.engine.cluster.calibration.observation_file import decode_observations, encode_observations


@pytest.mark.parametrize("scenes", [(), ("scene",)])
def test_an_observation_keeps_its_counts_and_its_scene(scenes: tuple[str, ...]) -> None:
    table = np.arange(2 * NUM_BINS, dtype=np.uint32).reshape(2, NUM_BINS)
    target = np.array([0, 2])
    counts = ScoreCounts(("name",), np.arange(9.0)[None], np.zeros(2, np.int64), target, table, table, table, scenes)
    draw = Draw(np.array([1, 3]), np.array([0, 2]), np.array([1.5, 2.0]))
    scores, classes = np.array([0.5, 0.25], np.float32), np.array([0, 2], np.uint16)
    observation = Observation(scores, classes, HOST, counts, draw, np.ones((2, 3), np.float32), "softmax")
    (copy,), meta = decode_observations(encode_observations([observation], has_grid=False, meta={"key": 1}))
    assert meta["key"] == 1
    assert copy.counts.to_json() == counts.to_json()
    assert copy.counts.scenes == scenes
    assert np.array_equal(copy.scores, scores)
    assert np.array_equal(copy.draw.weights, draw.weights)
