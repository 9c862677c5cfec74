"""Checks of arguments, with the same words everywhere: choices, counts, numbers; and lists of names in messages."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from numbers import Real
from operator import index
from typing import Any, get_args

from .errors import UsageError

NAMES_SHOWN = 10
"""Names that a message lists before it counts the others."""


def check_choice(name: str, value: object, choices: Any) -> None:
    """Refuse a value that is none of the choices, a ``Literal`` or a collection; raises :class:`UsageError`."""
    allowed: Sequence[object] = list(choices) if isinstance(choices, Collection) else get_args(choices)
    if not any(value is choice or (isinstance(value, str) and value == choice) for choice in allowed):
        raise UsageError(f"{name} must be one of {', '.join(str(choice) for choice in allowed)}, got {value!r:.80}")


def check_count(name: str, value: Any, *, least: int = 0, most: int | None = None) -> None:
    """Refuse a value that is no whole number from ``least`` to ``most``; raises :class:`UsageError`."""
    number = None
    if not isinstance(value, bool):
        with suppress(TypeError):
            number = index(value)
    if number is None or number < least or (most is not None and number > most):
        limits = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise UsageError(f"{name} must be a whole number {limits}, got {value!r:.80}")


def check_number(
    name: str,
    value: object,
    *,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> None:
    """Refuse a value that is no number within the limits, of which only ``least`` and ``most`` are allowed values.

    Raises :class:`UsageError`, also for not-a-number.
    """
    limits = {"at least": least, "above": above, "at most": most, "below": below}
    if isinstance(value, Real) and not isinstance(value, bool):
        number = float(value)
        if (
            number == number
            and (least is None or number >= least)
            and (most is None or number <= most)
            and (above is None or number > above)
            and (below is None or number < below)
        ):
            return
    text = " and ".join(f"{word} {limit:g}" for word, limit in limits.items() if limit is not None)
    raise UsageError(f"{name} must be a number{f' {text}' if text else ''}, got {value!r:.80}")


def refuse_without(name: str, needed: object, **options: object) -> None:
    """Refuse arguments that apply only beside another one, ``name``, if that is missing; both are None if left out.

    Raises :class:`UsageError`.
    """
    for option, value in options.items():
        if value is not None and needed is None:
            raise UsageError(f"{option} applies to {name} only; add it, or leave {option} out")


def name_list(names: Iterable[object], *, most: int = NAMES_SHOWN) -> str:
    """Join names with commas for a message; after ``most`` names, the others are counted: ``a, b and 290 more``."""
    texts = [str(name) for name in names]
    if len(texts) <= most + 1:  # one more name is as short as its count
        return ", ".join(texts)
    return f"{', '.join(texts[:most])} and {len(texts) - most} more"
