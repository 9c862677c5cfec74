"""Every field of every schema is in a document of a target, so that fuzzing changes it."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from maskmill.engine.calibration.calibration_file import CalibrationFile
from maskmill.engine.calibration.objects import ObjectThresholds
from maskmill.engine.model.bundle import Bundle
from maskmill.engine.model.taxonomy_file import TaxonomyFile
from maskmill.engine.runtimes.tuned import TunedChoice
from maskmill.engine.store.run_record import RunRecord
from tests.fuzz.more_targets import ALL
from tests.fuzz.mutation import Place, field_of, places

SCHEMAS: list[tuple[Any, Place, tuple[str, ...]]] = [
    (Bundle, (), ("bundle", "bundle-bands", "bundle-promptable", "bundle-text")),
    (
        CalibrationFile,
        (),
        ("calibration", *(f"calibration-{kind}" for kind in ("weighted", "rates", "misses", "positions"))),
    ),
    (TaxonomyFile, (), ("taxonomy", "taxonomy-colors")),
    (RunRecord, ("run",), ("store-run", "store-run-of-everything")),
    (ObjectThresholds, (), ("object-thresholds",)),
    (TunedChoice, ("choices", "*"), ("tuned",)),
]
NOT_IN_FILES = {(Bundle, ("path",)), (CalibrationFile, ("report", "classes", "*", "name"))}
"""Fields that a file does not hold, or under another name: ``class``."""


def fields_of(kind: Any, path: Place = (), parents: tuple[Any, ...] = ()) -> Iterator[Place]:
    """Every field of a schema, ``*`` in place of the keys of a mapping and the indices of an array."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind) and kind not in parents:
        hints = typing.get_type_hints(kind)
        for field in dataclasses.fields(kind):
            yield (*path, field.name)
            yield from fields_of(hints[field.name], (*path, field.name), (*parents, kind))
    elif origin in (typing.Union, types.UnionType, typing.Annotated):
        for argument in arguments:
            yield from fields_of(argument, path, parents)
    elif isinstance(origin, type) and issubclass(origin, Mapping):
        yield from fields_of(arguments[1], (*path, "*"), parents)
    elif isinstance(origin, type) and issubclass(origin, list | tuple):
        for argument in arguments:
            yield from fields_of(argument, (*path, "*"), parents)


def is_in(field: Place, document: set[Place]) -> bool:
    return any(
        len(field) == len(place) and all(a == b or a == "*" for a, b in zip(field, place, strict=True))
        for place in document
    )


@pytest.mark.parametrize(("schema", "prefix", "targets"), SCHEMAS, ids=[schema.__name__ for schema, *_ in SCHEMAS])
def test_every_field_of_a_schema_is_changed(
    schema: Any, prefix: Place, targets: tuple[str, ...], tmp_path: Path
) -> None:
    document: set[Place] = set()
    for name in targets:
        (tmp_path / name).mkdir()
        document |= {field_of(place) for place in places(ALL[name](tmp_path / name).original)}
    missing = [
        ".".join(map(str, field))
        for field in fields_of(schema)
        if not is_in((*prefix, *field), document) and (schema, field) not in NOT_IN_FILES
    ]
    assert not missing


def test_every_field_of_a_training_run_is_changed(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from maskmill.trainer.run import _RunFile

    test_every_field_of_a_schema_is_changed(_RunFile, (), ("training-run-bands",), tmp_path)
