"""Settings of prompted labeling as texts, ``NAME=VALUE``: parsed from a command line, written from a record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from ....errors import UsageError

_READABLE = {
    "bool": "true or false",
    "tuple[float, ...]": "numbers separated by commas",
    "int": "a whole number",
    "int | None": "a whole number",
}


def parse_settings(
    texts: Sequence[str], settings: Sequence[type], views: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """Parse ``NAME=VALUE`` texts into values per settings class; ``views`` holds names that no class has.

    Raises :class:`UsageError` that lists the known names, or the type that was expected.
    """
    owners = {name: ("views", kind) for name, kind in views.items()}
    for owner in settings:
        owners |= {field.name: (owner.__name__, str(field.type)) for field in fields(owner)}
    values: dict[str, dict[str, Any]] = {"views": {}, **{owner.__name__: {} for owner in settings}}
    for text in texts:
        name, equals, value = text.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or name not in owners:
            raise UsageError(f"--set takes NAME=VALUE with one of the names {', '.join(owners)}; got {text!r}")
        owner, kind = owners[name]
        try:
            values[owner][name] = _parse(value.strip(), kind)
        except ValueError:
            raise UsageError(f"--set {name} takes {_READABLE.get(kind, 'a number')}, got {value!r}") from None
    return values


def format_settings(recorded: Mapping[str, Any]) -> tuple[str, ...]:
    """Write the ``prompts`` that a store or calibration records as ``NAME=VALUE`` texts."""
    return tuple(f"{name}={_text(value)}" for name, value in recorded.items() if value is not None)


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _parse(value: str, kind: str) -> bool | int | float | str | tuple[float, ...]:
    if kind == "bool":
        if value.lower() not in ("true", "false"):
            raise ValueError(value)
        return value.lower() == "true"
    if kind.startswith("tuple"):
        return tuple(float(part) for part in value.split(","))
    if kind in ("int", "int | None"):
        return int(value)
    if kind == "float":
        return float(value)
    return int(value) if value.isdecimal() else value
