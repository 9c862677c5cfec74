from __future__ import annotations

from typing import Any

import pytest

from maskmill.engine.model.taxonomy_difference import mapping_difference

BASE: dict[str, Any] = {
    "targets": ["sky", "cow"],
    "background": 0,
    "model": [0, 1, -1],
    "labels": {"0": 0, "1": 1},
}


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({}, ""),
        ({"targets": ["sky", "pig"]}, "the target cow is only there; the target pig is only here"),
        ({"targets": ["cow", "sky"], "background": 1}, "the targets have another order"),
        ({"background": None}, "the background is sky there and none here"),
        ({"model": [0, 1, 1]}, "other model classes are mapped to cow"),
        ({"labels": {"0": 0, "7": 1}}, "other labels are mapped to cow"),
    ],
)
def test_what_differs_is_named(change: dict[str, Any], difference: str) -> None:
    assert mapping_difference(BASE, BASE | change) == difference


def test_entries_that_one_lacks_are_not_compared() -> None:
    assert mapping_difference({"targets": ("sky", "cow"), "background": 0}, BASE) == ""
