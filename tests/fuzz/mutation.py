"""Changes of sound documents: of one value of a JSON document, of a line of a text, or of some bytes."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from typing import Any

VALUES: list[Any] = [
    *(None, True, False, -1, 0, 1, 3, 255, 65536, 2**31, 2**63, -(2**63), 2**200, 0.5, -0.0, 1e-320, 1e308),
    *(float("nan"), float("inf"), "", "x", " ", "a\0b", "os:system", "../../etc/passwd", "/etc/passwd", "é", "\ud800"),
    *(
        "\x1b[2J",
        "=1+1",
        "1e999",
        "9" * 5000,
        "x" * 70_000,
        "nan",
        "cpu",
        "argmax",
        [],
        {},
        [[]],
        [{}],
        ["x"],
        [1],
        [0],
    ),
    *([0, 1, 2, 3], [None], {"x": 1}, {"": None}, {"0": 0}, [[1, 2], [3, 4]], [-1], ["x"] * 300, [1e300] * 3),
]
"""Values that replace values of a document."""

Place = tuple[Any, ...]
Document = Any


def places(raw: Document, path: Place = ()) -> Iterator[Place]:
    """Yield every place in a JSON value, the inner ones first."""
    for key in raw if isinstance(raw, dict) else range(len(raw)) if isinstance(raw, list) else ():
        yield from places(raw[key], (*path, key))
        yield (*path, key)


def field_of(place: Place) -> Place:
    """Return the field of a schema that a place is an instance of: indices of lists do not count."""
    return tuple("*" if isinstance(key, int) else key for key in place)


def draw_place(original: Document, chance: random.Random) -> Place:
    """Draw a field, each with the same probability, and one of its places."""
    instances: dict[Place, list[Place]] = {}
    for place in places(original):
        instances.setdefault(field_of(place), []).append(place)
    return chance.choice(instances[chance.choice(list(instances))])


def adjust_value(original: Document, chance: random.Random) -> tuple[Document, Place]:
    """Change one value to another of its kind, or the order of some; most documents stay sound."""
    place = draw_place(original, chance)
    document = copy.deepcopy(original)
    parent = document
    for key in place[:-1]:
        parent = parent[key]
    parent[place[-1]] = _similar(parent[place[-1]], [*_values_near(original, place)], chance)
    return document, field_of(place)


def _values_near(original: Document, place: Place) -> Iterator[Any]:
    """Yield the values beside a place, and those of the same field elsewhere."""
    field = field_of(place)
    for other in places(original):
        if other[:-1] == place[:-1] or field_of(other) == field:
            value = original
            for key in other:
                value = value[key]
            yield value


def _similar(value: Any, near: list[Any], chance: random.Random) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return chance.choice((value, value, value + 1, max(value - 1, 0), 1))
    if isinstance(value, float):
        return value * chance.choice((1.0, 0.5, 0.999, 1.001))
    if isinstance(value, str):
        texts = [other for other in near if isinstance(other, str)]
        return chance.choice((value, value, *texts, value + "x"))
    if isinstance(value, list):
        return chance.sample(value, len(value)) if chance.random() < 0.7 else value[:-1]
    if isinstance(value, dict):
        items = list(value.items())
        chance.shuffle(items)
        return dict(items)
    return value


def change_value(original: Document, chance: random.Random) -> tuple[Document, Place]:
    """Replace, delete, nest or exchange one value; returns the document and the field."""
    place = draw_place(original, chance)
    document = copy.deepcopy(original)
    parent = document
    for key in place[:-1]:
        parent = parent[key]
    key = place[-1]
    kind = chance.randrange(10)
    if kind == 0:
        del parent[key]
    elif kind == 1:
        parent[key] = _nested(parent[key], chance.choice((1, 3, 60)))
    elif kind == 2 and isinstance(parent, dict):
        parent[chance.choice(("", "x", "__class__", "seal", str(key) + "_"))] = parent[key]
    elif kind == 2:
        parent.extend([parent[key]] * chance.choice((1, 1000)))
    elif kind == 3:
        other = original
        for part in chance.choice(list(places(original))):
            other = other[part]
        parent[key] = copy.deepcopy(other)
    elif kind == 4 and isinstance(parent[key], int | float) and not isinstance(parent[key], bool):
        parent[key] = parent[key] * chance.choice((-1, 2, 0.5, 1000)) + chance.choice((0, 1, -1))
    else:
        parent[key] = copy.deepcopy(chance.choice(VALUES))
    return document, field_of(place)


def _nested(value: Any, depth: int) -> Any:
    for _ in range(depth):
        value = [value]
    return value


def change_bytes(original: bytes, chance: random.Random) -> tuple[bytes, Place]:
    """Flip, cut, insert, repeat or overwrite some bytes; returns the data and the eighth of the file that changed."""
    data = bytearray(original)
    place = chance.randrange(len(data))
    kind = chance.randrange(7)
    if kind <= 1:
        data[place] ^= 1 << chance.randrange(8)
    elif kind == 2:
        del data[place:]
    elif kind == 3:
        data[place:place] = chance.randbytes(chance.choice((1, 7, 600)))
    elif kind == 4:
        part = data[place : place + chance.choice((1, 16, 512))]
        data[place:place] = part * chance.choice((1, 50))
    elif kind == 5:
        length = chance.choice((1, 2, 4, 8, 12))
        data[place : place + length] = chance.choice((b"\0", b"\xff", b"\x7f", b"\x80"))[:1] * length
    else:
        del data[place : place + chance.choice((1, 4, 512))]
    return bytes(data), (f"eighth {8 * place // max(len(original), 1)}",)


def change_lines(original: bytes, chance: random.Random) -> tuple[bytes, Place]:
    """Change one field of one line of a text."""
    lines = original.split(b"\n")
    place = chance.randrange(len(lines))
    fields = lines[place].split(b",")
    field = chance.randrange(len(fields))
    kind = chance.randrange(6)
    if kind == 0:
        del fields[field]
    elif kind == 1:
        fields[field] = fields[field] * chance.choice((2, 3000))
    elif kind == 2:
        fields.insert(field, fields[field])
    else:
        value = chance.choice(VALUES)
        fields[field] = str(value).encode("utf-8", "surrogatepass")[:100_000]
    lines[place] = b",".join(fields)
    if kind == 5:
        lines.insert(chance.randrange(len(lines)), lines[place])
    return b"\n".join(lines), (f"line {place}", f"field {field}")


Change = Callable[[Any, random.Random], tuple[Any, Place]]
