"""Find the few of many things that matter, by asking whether a choice of them is enough.

::

    kept = smallest_subset(nodes, lambda kept: passes_with(kept), budget=40)

This is QuickXplain (U. Junker, "QUICKXPLAIN: Preferred Explanations and Relaxations for Over-Constrained Problems",
AAAI 2004): k of n are found with O(k log(n / k)) questions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


def smallest_subset(items: Sequence[T], enough: Callable[[frozenset[T]], bool], *, budget: int) -> frozenset[T]:
    """A subset of ``items`` that is enough and of which nothing can be left out; later items are preferred.

    All of them must be enough, and more of them never less so. After ``budget`` questions the answer is still enough,
    but something may be left out of it.
    """
    asked = 0

    def is_enough(chosen: frozenset[T]) -> bool:
        nonlocal asked
        if asked >= budget:
            return False
        asked += 1
        return enough(chosen)

    def search(background: frozenset[T], changed: bool, candidates: Sequence[T]) -> frozenset[T]:
        if changed and is_enough(background):
            return frozenset()
        if len(candidates) == 1:
            return frozenset(candidates)
        half = len(candidates) // 2
        first, second = candidates[half:], candidates[:half]
        needed = search(background | frozenset(first), True, second)
        return needed | search(background | needed, bool(needed), first)

    if not items or is_enough(frozenset()):
        return frozenset()
    return search(frozenset(), False, items)
