"""Seeded splits of labeled images, for the regimes of the semi-supervised papers (1/16, 1/8, … of the labels).

::

    names = seeded_split(labeled.uris, Fraction(1, 16), seed=0)
"""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction

import numpy as np

from ...engine.inputs.names import image_id
from ...errors import UsageError


def parse_share(text: str) -> Fraction:
    """Parse a share such as ``1/16`` or ``0.25``; raises :class:`UsageError` if it is not above 0 and at most 1."""
    try:
        share = Fraction(text)
    except (ValueError, ZeroDivisionError):
        raise UsageError(f"a share of the labeled images must be like 1/16 or 0.25, got {text!r}") from None
    if not 0 < share <= 1:
        raise UsageError(f"a share of the labeled images must be above 0 and at most 1, got {text}")
    return share


def seeded_split(uris: Iterable[str], share: Fraction, *, seed: int) -> list[str]:
    """Choose a share of the images, at least one: the first floor(n x share) of an order that the seed shuffles.

    The order is that of the file names, so that copies of a data set in other folders give the same split. Splits of
    the same seed are nested: that of 1/8 holds that of 1/16.
    """
    sequence = sorted(uris, key=lambda uri: (image_id(uri), uri))
    count = max(1, int(len(sequence) * share))
    order = np.random.default_rng(seed).permutation(len(sequence))
    return sorted(sequence[index] for index in order[:count])
