"""Find a small sufficient subset, by testing subsets.

::

    fp32_nodes = smallest_subset(nodes, lambda subset: passes_with(subset), budget=40)

This is QuickXplain (U. Junker, "QUICKXPLAIN: Preferred Explanations and Relaxations for Over-Constrained Problems",
AAAI 2004): k of n items are found with O(k log(n / k)) tests.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


def smallest_subset(items: Sequence[T], enough: Callable[[frozenset[T]], bool], *, budget: int) -> frozenset[T]:
    """Return a sufficient subset of ``items`` from which no item can be removed; later items are preferred.

    All items together must be sufficient, and every superset of a sufficient set must be. After ``budget`` tests the
    result is still sufficient, but may contain items that could be removed.
    """
    num_tests = 0

    def is_enough(chosen: frozenset[T]) -> bool:
        nonlocal num_tests
        if num_tests >= budget:
            return False
        num_tests += 1
        return enough(chosen)

    def search(background: frozenset[T], has_changed: bool, candidates: Sequence[T]) -> frozenset[T]:
        if has_changed and is_enough(background):
            return frozenset()
        if len(candidates) == 1:
            return frozenset(candidates)
        half = len(candidates) // 2
        first, second = candidates[half:], candidates[:half]
        subset = search(background | frozenset(first), True, second)
        return subset | search(background | subset, bool(subset), first)

    if not items or is_enough(frozenset()):
        return frozenset()
    return search(frozenset(), False, items)
