from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from maskmill.engine.predictors.prompted.embedding_cache import EmbeddingCache, rounded
from maskmill.errors import UsageError

ENCODER, OTHER = "a" * 64, "b" * 64


def embedding(value: float, cells: int = 512) -> list[np.ndarray]:
    return rounded([np.full((1, cells), value, np.float32), np.full(3, -value, np.float32)])


def test_what_is_kept_is_found_again(tmp_path: Path) -> None:
    EmbeddingCache(tmp_path, encoder=ENCODER, max_bytes=1 << 20).put("x", embedding(1.5))
    cache = EmbeddingCache(tmp_path, encoder=ENCODER, max_bytes=1 << 20)
    found = cache.get("x")
    assert found is not None
    for kept, given in zip(found, embedding(1.5), strict=True):
        np.testing.assert_array_equal(kept, given)
    assert cache.get("y") is None
    assert (cache.hits, cache.misses) == (1, 1)


def test_another_encoders_embeddings_are_not_found(tmp_path: Path) -> None:
    EmbeddingCache(tmp_path, encoder=ENCODER, max_bytes=1 << 20).put("x", embedding(1))
    assert EmbeddingCache(tmp_path, encoder=OTHER, max_bytes=1 << 20).get("x") is None


def test_a_key_is_the_pixels_and_the_shape() -> None:
    image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    assert EmbeddingCache.key(image) == EmbeddingCache.key(np.asfortranarray(image))
    assert EmbeddingCache.key(image) != EmbeddingCache.key(image.reshape(4, 2, 3))
    assert EmbeddingCache.key(image) != EmbeddingCache.key(image + 1)


def test_past_the_limit_those_used_longest_ago_go(tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path, encoder=ENCODER, max_bytes=8000)
    for name in "abc":
        cache.put(name, embedding(1))
    size = (tmp_path / ENCODER[:16] / "a.npz").stat().st_size
    for age, name in enumerate("abc"):
        os.utime(tmp_path / ENCODER[:16] / f"{name}.npz", (1000 + age, 1000 + age))
    assert cache.get("a") is not None  # used: younger than the others now
    for name in "defg":
        cache.put(name, embedding(2))
    left = {path.stem for path in tmp_path.rglob("*.npz")}
    assert len(left) * size <= 8000
    assert "b" not in left
    assert "g" in left


def test_what_is_larger_than_the_limit_is_not_kept(tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path, encoder=ENCODER, max_bytes=500)
    cache.put("x", embedding(1))
    assert cache.get("x") is None


def test_a_damaged_file_counts_as_missing(tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path, encoder=ENCODER, max_bytes=1 << 20)
    cache.put("x", embedding(1))
    path = tmp_path / ENCODER[:16] / "x.npz"
    path.write_bytes(path.read_bytes()[:300])
    assert cache.get("x") is None


def test_values_beyond_16_bits_stay_as_they_are_and_are_not_kept(tmp_path: Path) -> None:
    large = rounded([np.array([1e6, 1.0], np.float32)])
    assert large[0].dtype == np.float32
    cache = EmbeddingCache(tmp_path, encoder=ENCODER, max_bytes=1 << 20)
    cache.put("x", large)
    assert cache.get("x") is None


def test_a_cache_without_room_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="room for at least one embedding, got 0 bytes"):
        EmbeddingCache(tmp_path, encoder=ENCODER, max_bytes=0)
