"""Read JSON objects into the dataclasses that describe them, with one clear error per fault.

Only the standard library is used: a machine that runs models has no pydantic::

    spec = read_record(InputSpec, raw["input"], "input")     # UsageError: "input.height must be a whole number, …"
"""

from __future__ import annotations

import dataclasses
import json
import os
import types
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from ...errors import ImageError, UsageError
from ..reading.local import read_local
from .storage import is_remote

MAX_BYTES = 64 * 2**20
"""Largest JSON file that is read; a manifest has a few kilobytes."""

T = TypeVar("T")


def read_json_object(path: Path, *, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Raises :class:`FileNotFoundError` if there is no such file, and :class:`UsageError` for anything that is not a JSON
    object in UTF-8 of at most ``max_bytes``.
    """
    try:
        raw = json.loads(_data_of(path, max_bytes).decode("utf-8-sig"))
    except FileNotFoundError:
        raise
    except (OSError, ImageError, ValueError, RecursionError) as error:
        # json raises ValueError for numbers of thousands of digits, RecursionError for thousands of brackets
        raise UsageError(f"cannot read {path}: {error}") from error
    if not isinstance(raw, dict):
        raise UsageError(f"{path} must hold a JSON object, got {_name_of(raw)}")
    return raw


def _data_of(path: Path, max_bytes: int) -> bytes:
    if not is_remote(path):
        return read_local(os.fspath(path), max_bytes)
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise
    except Exception as error:
        # each fsspec filesystem raises exceptions of its own
        raise OSError(f"the storage does not answer: {error}") from error


def read_record(kind: type[T], raw: object, where: str) -> T:
    """Build the dataclass ``kind`` from a JSON object that is called ``where`` in messages.

    Raises :class:`UsageError` for a missing or unknown field, and for a value of another type than the field has.
    """
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if not isinstance(raw, Mapping):
        raise UsageError(f"{where} must be an object, got {_name_of(raw)}")
    if unknown := [str(name) for name in raw if name not in fields]:
        raise UsageError(f"{where} has the unknown field {unknown[0]!r}; known fields are {', '.join(fields)}")
    types_of = _types_of(kind)
    values = {}
    for name, field in fields.items():
        if name in raw:
            values[name] = read_value(types_of[name], raw[name], f"{where}.{name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise UsageError(f"{where} lacks the field {name!r}")
    return kind(**values)


def read_value(kind: Any, raw: object, where: str) -> Any:
    """Check one JSON value against a type annotation; lists become tuples."""
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return raw
    if origin is Literal:
        if raw not in arguments or isinstance(raw, bool):
            raise UsageError(f"{where} must be one of {', '.join(map(str, arguments))}, got {raw!r:.80}")
        return raw
    if origin in (Union, types.UnionType):
        return _read_union(arguments, raw, where)
    if origin is tuple:
        return _read_tuple(arguments, raw, where)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(raw, Mapping):
            raise UsageError(f"{where} must be an object, got {_name_of(raw)}")
        return {str(name): read_value(arguments[1], value, f"{where}.{name}") for name, value in raw.items()}
    if origin is list:
        return list(_read_tuple((arguments[0], ...), raw, where))
    if dataclasses.is_dataclass(kind):
        return read_record(kind, raw, where)  # type: ignore[arg-type]
    if kind is float and isinstance(raw, int | float) and not isinstance(raw, bool):
        try:
            return float(raw)
        except OverflowError:
            raise UsageError(f"{where} is too large a number") from None
    if isinstance(raw, kind) and (kind is bool or not isinstance(raw, bool)):
        return raw
    raise UsageError(f"{where} must be {_WORDS.get(kind, str(kind))}, got {_name_of(raw)}")


def _read_union(kinds: tuple[Any, ...], raw: object, where: str) -> Any:
    if raw is None and type(None) in kinds:
        return None
    *others, last = [kind for kind in kinds if kind is not type(None)]
    for kind in others:
        try:
            return read_value(kind, raw, where)
        except UsageError:
            continue
    return read_value(last, raw, where)


def _read_tuple(kinds: tuple[Any, ...], raw: object, where: str) -> tuple[Any, ...]:
    if not isinstance(raw, list | tuple):
        raise UsageError(f"{where} must be a list, got {_name_of(raw)}")
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        kinds = (kinds[0],) * len(raw)
    if len(kinds) != len(raw):
        raise UsageError(f"{where} must have {len(kinds)} values, got {len(raw)}")
    return tuple(
        read_value(kind, value, f"{where}[{index}]") for index, (kind, value) in enumerate(zip(kinds, raw, strict=True))
    )


_WORDS = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}


def _name_of(raw: object) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(raw), f"{raw!r:.80}")


@cache
def _types_of(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)
