"""Argument checks of ``quantize_weights``, shared by every form."""

from __future__ import annotations

from ...checks import check_count


def check_levels(levels: int) -> None:
    """Check that there is a level between 0 and 255, and at most one level per gray value.

    Raises:
        UsageError: the number of levels is not in 3..256.
    """
    check_count("the number of weight levels", levels, least=3, most=256)
