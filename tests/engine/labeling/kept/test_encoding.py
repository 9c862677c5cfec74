"""Kept scores come back as they were, and damaged ones are refused."""

from __future__ import annotations

import numpy as np
import pytest

from maskmill.engine.labeling.kept.encoding import RATIO_LEVELS, KeptScores, decode_scores, encode_scores
from maskmill.engine.labeling.kept.levels import EDGES, NO_DATA

SIZE = (7, 11)
FIELDS = ("top", "code", "share", "ratio", "num_more", "more_class", "more_code")


def kept_scores(*, wide: bool = False, shares: bool = False, seed: int = 0) -> KeptScores:
    rng = np.random.default_rng(seed)
    kind = np.uint16 if wide else np.uint8
    num_more = (rng.integers(0, 4, SIZE) * (rng.random(SIZE) < 0.3)).astype(kind)
    total = int(num_more.sum())
    return KeptScores(
        top=rng.integers(0, 700 if wide else 256, SIZE).astype(kind),
        code=rng.integers(0, 1600, SIZE).astype(np.uint16),
        share=rng.integers(0, 1600, SIZE).astype(np.uint16) if shares else None,
        ratio=rng.integers(0, RATIO_LEVELS + 1, SIZE).astype(np.uint8),
        num_more=num_more,
        more_class=rng.integers(0, 200, total).astype(kind),
        more_code=rng.integers(0, 1600, total).astype(np.uint16),
    )


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("shares", [False, True])
def test_every_field_comes_back(wide: bool, shares: bool) -> None:
    kept = kept_scores(wide=wide, shares=shares)
    decoded = decode_scores(encode_scores(kept), SIZE, 700)
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(decoded, name), getattr(kept, name))
        assert getattr(decoded.top, "dtype", None) == kept.top.dtype


def test_an_image_without_further_classes_comes_back() -> None:
    kept = kept_scores()
    nothing = np.empty(0, np.uint8)
    kept = KeptScores(**{
        **vars(kept), "num_more": np.zeros_like(kept.num_more), "more_class": nothing,
        "more_code": nothing.astype(np.uint16),
    })  # fmt: skip
    assert decode_scores(encode_scores(kept), SIZE, 700).more_code.size == 0


def test_bytes_of_another_version_or_cut_short_are_refused() -> None:
    data = encode_scores(kept_scores())
    with pytest.raises(ValueError, match="of version 9, expected version 2"):
        decode_scores(b"\x09" + data[1:], SIZE, 700)
    for damaged in (b"", data[:4], data[:20], data[:-3]):
        with pytest.raises(ValueError, match="kept scores"):
            decode_scores(damaged, SIZE, 700)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("top", 200, "a class is 200, expected at most 199"),
        ("more_class", 200, "a class is 200, expected at most 199"),
        ("code", NO_DATA + 1, f"a code is {NO_DATA + 1}, expected at most {NO_DATA}"),
        ("more_code", 65_535, f"a code is 65535, expected at most {NO_DATA}"),
        ("share", len(EDGES), f"a share is {len(EDGES)}, expected at most {len(EDGES) - 1}"),
        ("ratio", RATIO_LEVELS + 1, f"a dispersion is {RATIO_LEVELS + 1}, expected at most {RATIO_LEVELS}"),
    ],
)
def test_a_class_or_code_out_of_range_is_refused(name: str, value: int, message: str) -> None:
    kept = kept_scores(shares=True)
    kept.top[kept.top > 199] = 0
    kept.code[0, 0] = NO_DATA
    decode_scores(encode_scores(kept), SIZE, 200)
    getattr(kept, name).flat[3] = value
    with pytest.raises(ValueError, match=f"^kept scores are damaged: {message}$"):
        decode_scores(encode_scores(kept), SIZE, 200)
