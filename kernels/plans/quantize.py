"""Argument checks of ``quantize_weights``, shared by every form."""

from __future__ import annotations

from ...errors import UsageError


def check_levels(levels: int) -> None:
    """Refuse a number of levels that leaves none between 0 and 255, or more than there are gray values.

    Raises:
        UsageError: it is not in 3..256.
    """
    if not 3 <= levels <= 256:
        raise UsageError(f"levels must lie in 3..256, got {levels}")
