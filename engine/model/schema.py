"""Read JSON objects into the dataclasses that describe them, with one clear line per fault.

pydantic validates, and is imported when a file is read: a machine that only runs models need not have it::

    spec = read_value(InputSpec, raw["input"], "input")   # UsageError: "input.height must be a valid integer, got '16'"

Dataclasses are the schemas: fields without a default are required, unknown fields are refused, and no value is
converted, except a JSON array to a tuple and an integer to a float.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ...errors import ImageError, UsageError
from ..reading.remote_path import StorageError
from .storage import read_file

if TYPE_CHECKING:
    from pydantic import TypeAdapter

ValueT = TypeVar("ValueT")

MAX_BYTES = 64 * 2**20
"""Largest JSON file that is read; a manifest has a few kilobytes."""


def read_json_object(path: Path, *, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Raises :class:`FileNotFoundError` if there is no such file, and :class:`UsageError` for anything that is not a JSON
    object in UTF-8 of at most ``max_bytes``.
    """
    try:
        raw = decode_json(read_file(path, max_bytes).decode("utf-8-sig"))
    except (FileNotFoundError, StorageError):
        raise
    except (OSError, ImageError, ValueError, RecursionError) as error:
        # json raises ValueError for numbers of thousands of digits, RecursionError for thousands of brackets
        raise UsageError(f"cannot read {path}: {error}") from error
    if not isinstance(raw, dict):
        raise UsageError(f"{path} must hold a JSON object, got {_text(raw)}")
    return raw


def decode_json(text: str | bytes) -> Any:
    """Decode JSON as :func:`json.loads`; raises :class:`ValueError` as well if a name occurs twice in one object."""
    return json.loads(text, object_pairs_hook=_object)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object; raises :class:`ValueError` if a name occurs twice."""
    result = dict(pairs)
    if len(result) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        twice = next(name for name, count in counts.items() if count > 1)
        raise ValueError(f"the name {twice!r:.80} occurs twice in one object; remove one of them")
    return result


def read_value(kind: type[ValueT], raw: object, where: str = "") -> ValueT:
    """Return a JSON or TOML value as the type ``kind``, a dataclass or another annotation.

    ``where`` is the value's name in messages; empty for a whole file. Raises :class:`UsageError` with the first fault,
    and any other error that the ``__post_init__`` of a dataclass raises.
    """
    from pydantic import ValidationError

    try:
        # dates of TOML become texts; strict JSON, unlike strict Python values, lets arrays be tuples
        document = json.dumps({where: raw}, default=str)
        return _validator(kind).validate_json(document, strict=True)[where]
    except ValidationError as error:
        raise UsageError(_line(error.errors(include_url=False), where, raw)) from error
    except RecursionError as error:
        raise UsageError(f"{where or 'the file'} is nested too deeply") from error


@cache
def _validator(kind: Any) -> TypeAdapter[dict[str, Any]]:
    from pydantic import TypeAdapter

    # wrapped, since only so the configuration reaches dataclasses
    return TypeAdapter(dict[str, kind], config={"extra": "forbid"})


def _line(faults: Sequence[Mapping[str, Any]], where: str, raw: object) -> str:
    """Describe the fault with the longest path in one sentence; each type of a union reports one."""
    places = [_place(where, raw, fault) for fault in faults]
    fault, place = max(zip(faults, places, strict=True), key=lambda pair: len(pair[1]))
    match fault["type"]:
        case "missing":
            return f"{place} is missing"
        case "unexpected_keyword_argument":
            return f"{place} is not a known field"
        case "value_error":
            return f"{place}: {fault['ctx']['error']}" if place else str(fault["ctx"]["error"])
        case "json_invalid":
            deep = "recursion" in fault["ctx"]["error"]
            return f"{place or 'the file'} {'is nested too deeply' if deep else 'holds a text that is not Unicode'}"
        case _:
            rule = fault["msg"].replace(" after validation", "")[:200]
            rule = f" must{rule.removeprefix('Input should')}" if rule.startswith("Input should") else f": {rule}"
            return f"{place or 'the file'}{rule}, got {_text(fault['input'])}"


def _place(where: str, raw: Any, fault: Mapping[str, Any]) -> str:
    """Return the name of a place in a document, as in ``files[0].path``, without pydantic's names of union types."""
    for number, part in enumerate(fault["loc"][1:], start=2):
        try:
            raw = raw[part]
        except (KeyError, IndexError, TypeError):
            if number < len(fault["loc"]) or fault["type"] not in ("missing", "unexpected_keyword_argument"):
                continue
        if isinstance(part, int):
            where += f"[{part}]"
        else:
            name = part if part.isidentifier() else f"{part!r:.80}"
            where += f".{name}" if where else name
    return where


def _text(raw: object) -> str:
    names = {dict: "an object", list: "an array", type(None): "null"}
    return names.get(type(raw)) or f"{raw!r:.80}"
