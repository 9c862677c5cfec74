"""Blending of tiles: each gives way to the next over their overlap."""

from __future__ import annotations

import numpy as np
import pytest

from maskmill.engine.predictors.tiling import Prepared, blend_tiles


@pytest.mark.parametrize("upright", [True, False])
def test_a_tile_fades_into_its_neighbor_over_the_overlap(upright: bool) -> None:
    corners, size, tile = ((0, 0), (0, 16)), (16, 40), (16, 24)
    if not upright:
        corners, size, tile = tuple((left, top) for top, left in corners), size[::-1], tile[::-1]
    image = Prepared(tensors=(), size=size, covers=(1.0, 1.0), tile=tile, corners=corners)
    scores = [np.full((*tile, 1), value, np.float32) for value in (0.0, 1.0)]
    blended = blend_tiles(image, scores, "HWC", 8, np)[..., 0]
    line = blended[5] if upright else blended[:, 5]
    expected = np.clip((np.arange(40) + 0.5 - 16) / 8, 0, 1)
    assert np.allclose(line, expected, atol=1e-5)
