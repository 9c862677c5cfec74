"""Hold millions of 128-bit digests in memory, 24 bytes each."""

from __future__ import annotations

import struct
import threading

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

DIGEST_BYTES = 16

_FRESH_LIMIT = 1 << 16
_HALVES = struct.Struct("=QQ")  # format of a digest in the tables


def digest_table(digests: bytes) -> NDArray[np.uint64]:
    """Convert concatenated 16-byte digests to (n, 2) uint64."""
    return np.frombuffer(digests, dtype=np.uint64).reshape(-1, 2)


def digests_of(ids: pa.Array | pa.ChunkedArray) -> bytes:
    """Return the concatenated 16-byte digests of ids, which are strings of 32 hexadecimal digits."""
    return bytes.fromhex("".join(ids.to_pylist()))


class DigestIndex:
    """Finds the rows of digests by binary search; ``table`` is (n, 2) uint64. ``in`` looks up one digest."""

    def __init__(self, table: NDArray[np.uint64]) -> None:
        self._rows = np.argsort(table[:, 0])
        self._first = table[self._rows, 0]
        self._second = table[self._rows, 1]

    def find(self, table: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Return the row of each of (m, 2) uint64 digests, (m,) int64; -1 if absent.

        Of two digests that share their first half (probability 2^-64), one may be reported absent; they are never
        confused.
        """
        if not len(self._first):
            return np.full(len(table), -1, dtype=np.int64)
        order = np.argsort(table[:, 0])  # sorted, so that neighbors search the same, cached part of the index
        position = np.minimum(np.searchsorted(self._first, table[order, 0]), len(self._first) - 1)
        matches = (self._first[position] == table[order, 0]) & (self._second[position] == table[order, 1])
        rows = np.full(len(table), -1, dtype=np.int64)
        rows[order[matches]] = self._rows[position[matches]]
        return rows

    def __contains__(self, digest: bytes) -> bool:
        first, second = _HALVES.unpack(digest)
        position = int(self._first.searchsorted(np.uint64(first)))
        is_inside = position < len(self._first)
        return is_inside and int(self._first[position]) == first and int(self._second[position]) == second

    def table(self) -> NDArray[np.uint64]:
        """Return the digests, (n, 2) uint64, in any order."""
        return np.stack([self._first, self._second], axis=1)

    def __len__(self) -> int:
        return len(self._first)


class DigestSet:
    """Growing set of digests; threads may look up digests while others add some."""

    def __init__(self, table: NDArray[np.uint64]) -> None:
        self._lock = threading.Lock()
        self._fresh: set[bytes] = set()
        # each is at least twice as large as the next one, so a digest is re-sorted only a few times
        self._indexes: tuple[DigestIndex, ...] = (DigestIndex(table),)

    def __contains__(self, digest: bytes) -> bool:
        if digest in self._fresh:
            return True
        return any(digest in index for index in self._indexes)

    def contains(self, table: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Return for each of (n, 2) uint64 digests, (n,) bool, if it is in the set."""
        fresh = self._fresh
        is_known = np.zeros(len(table), bool)
        if fresh:
            data = np.ascontiguousarray(table).tobytes()
            starts = range(0, len(data), DIGEST_BYTES)
            is_known |= np.array([data[start : start + DIGEST_BYTES] in fresh for start in starts], bool)
        for index in self._indexes:
            is_known |= index.find(table) >= 0
        return is_known

    def add(self, digests: bytes) -> None:
        """Add concatenated 16-byte digests."""
        with self._lock:
            self._fresh.update(digests[start : start + DIGEST_BYTES] for start in range(0, len(digests), DIGEST_BYTES))
            if len(self._fresh) < _FRESH_LIMIT:
                return
            newest = digest_table(b"".join(self._fresh))
            indexes = list(self._indexes)
            while indexes and len(indexes[-1]) < 2 * len(newest):
                newest = np.concatenate([indexes.pop().table(), newest])
            # update the indexes first, so that a look-up without the lock finds every digest
            self._indexes = (*indexes, DigestIndex(newest))
            self._fresh = set()
