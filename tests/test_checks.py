"""Checks of arguments: what passes, and the words for what does not."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest

from maskmill.checks import check_choice, check_count, check_number, name_list, refuse_without
from maskmill.errors import UsageError

Color = Literal["red", "green"]


@pytest.mark.parametrize("choices", [Color, ("red", "green"), {"red": 1, "green": 2}])
def test_a_choice_is_one_of_a_literal_or_a_collection(choices: Any) -> None:
    check_choice("color", "green", choices)
    for value in ("gree", "", None, 1, ["red"]):
        with pytest.raises(UsageError, match="color must be one of red, green, got"):
            check_choice("color", value, choices)


@pytest.mark.parametrize("value", [0, 3, np.int64(2)])
def test_whole_numbers_within_the_limits_pass(value: Any) -> None:
    check_count("budget", value, most=3)


@pytest.mark.parametrize("value", [-1, 4, 2.0, "2", True, None, float("nan")])
def test_other_counts_are_refused(value: Any) -> None:
    with pytest.raises(UsageError, match="budget must be a whole number from 0 to 3, got"):
        check_count("budget", value, most=3)


def test_a_count_without_an_upper_limit_says_so() -> None:
    with pytest.raises(UsageError, match="tile must be a whole number of at least 16, got 3"):
        check_count("tile", 3, least=16)


@pytest.mark.parametrize("value", [0, 0.5, 1, np.float32(0.25)])
def test_numbers_within_the_limits_pass(value: Any) -> None:
    check_number("share", value, least=0, most=1)


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), "0.5", None, True])
def test_other_numbers_are_refused(value: Any) -> None:
    with pytest.raises(UsageError, match="share must be a number at least 0 and at most 1, got"):
        check_number("share", value, least=0, most=1)


@pytest.mark.parametrize("value", [0, 1])
def test_limits_that_are_no_values_themselves(value: float) -> None:
    check_number("rate", 0.5, above=0, below=1)
    with pytest.raises(UsageError, match="rate must be a number above 0 and below 1, got"):
        check_number("rate", value, above=0, below=1)


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, ""), (2, "c0, c1"), (11, ", c9, c10"), (12, ", c9 and 2 more"), (300, ", c9 and 290 more")],
)
def test_a_long_list_of_names_ends_in_their_number(count: int, text: str) -> None:
    names = name_list(f"c{number}" for number in range(count))
    assert names.endswith(text)
    assert names.count(",") <= 10


def test_an_argument_without_the_one_it_belongs_to_is_refused() -> None:
    refuse_without("labeled", "folder", ids=["a"])
    refuse_without("labeled", None, ids=None)
    with pytest.raises(UsageError, match="^ids applies to labeled only; add it, or leave ids out$"):
        refuse_without("labeled", None, labeled_share=None, ids=[])
