"""Sets of digests hold what was added and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from maskmill.engine.store.digests import DIGEST_BYTES, DigestIndex, DigestSet, digest_table


def digests(num: int, seed: int) -> list[bytes]:
    data = np.random.default_rng(seed).bytes(num * DIGEST_BYTES)
    return [data[start : start + DIGEST_BYTES] for start in range(0, len(data), DIGEST_BYTES)]


@pytest.mark.parametrize("num", [0, 1, 100])
def test_one_look_up_says_what_many_say(num: int) -> None:
    present = digests(num, 0)
    index = DigestIndex(digest_table(b"".join(present)))
    # halves of present digests, and values at both ends of the table
    absent = [*digests(50, 1), *(value[:8] + bytes(8) for value in present), bytes(16), b"\xff" * 16]
    rows = index.find(digest_table(b"".join([*present, *absent])))
    assert rows.tolist() == [*range(num), *[-1] * len(absent)]
    assert [value in index for value in present + absent] == (rows >= 0).tolist()


def test_a_set_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maskmill.engine.store.digests._FRESH_LIMIT", 10)
    first, later, absent = digests(20, 0), digests(95, 1), digests(50, 2)
    known = DigestSet(digest_table(b"".join(first)))
    for start in range(0, len(later), 7):
        known.add(b"".join(later[start : start + 7]))
    assert all(value in known for value in first + later)
    assert not any(value in known for value in absent)
    assert known.contains(digest_table(b"".join(later + absent))).tolist() == [True] * 95 + [False] * 50
