"""Argument checks of ``quantize_weights``, shared by every form."""

from __future__ import annotations

from ...errors import UsageError


def check_levels(levels: int) -> None:
    """Check that there is a level between 0 and 255, and at most one level per gray value.

    Raises:
        UsageError: the number of levels is not in 3..256.
    """
    if not 3 <= levels <= 256:
        raise UsageError(f"levels must be in 3..256, got {levels}")
