"""A label store from somebody else cannot write outside an export, whatever its rows say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from maskmill.cli import app
from maskmill.engine.formats.base import FileSink
from maskmill.engine.labeling.export_labels import export_labels
from maskmill.engine.model.png import encode_png
from maskmill.engine.model.taxonomy import Taxonomy
from maskmill.engine.store.label_store import InputRow, LabelRow, LabelStore, content_id
from maskmill.errors import MaskmillError, StoreError, UsageError

TAXONOMY = Taxonomy(targets=("background", "cow"), background=0, model=(0, 1))
URIS = (
    "../../../outside.png",
    "/etc/../../outside.png",
    "a/../../../../outside.png",
    "..\\..\\outside.png",
    "http://host/%2e%2e/%2e%2e/outside.png",
    "s.tar::../../outside.png",
    "\x1b[2J\n.png",
    ".hidden",
    "C:\\outside.png",
)


def hostile_store(folder: Path, ids: list[str]) -> LabelStore:
    store = LabelStore.create(folder / "store", {"classes": TAXONOMY.to_json(), "select": "argmax"})
    label = np.zeros((2, 3), np.uint8)
    rows = [
        LabelRow(
            id=id, width=3, height=2, label=encode_png(label), weight=encode_png(label + 7), counts=[6, 0], kept=1.0,
            confidence=0.5,
        )
        for id in ids
    ]  # fmt: skip
    inputs = [
        InputRow(uri=uri, size=1, stamp="", id=id, error=None, message=None) for uri, id in zip(URIS, ids, strict=False)
    ]
    store.commit(rows, inputs)
    return store


@pytest.mark.parametrize("format", ["png", "coco", "yolo-seg", "labelme", "voc", "cvat"])
def test_an_export_writes_into_its_own_folder_only(format: Any, tmp_path: Path) -> None:
    inside = tmp_path / "deep" / "deeper"
    inside.mkdir(parents=True)
    store = hostile_store(tmp_path, [content_id(uri.encode()) for uri in URIS])
    before = {path for path in tmp_path.rglob("*") if "store" not in path.parts}
    marks_ignored = format not in ("yolo-seg", "labelme", "cvat")
    export_labels(store, inside / "out", format, ignored=None if marks_ignored else "background")
    after = {path for path in tmp_path.rglob("*") if "store" not in path.parts}
    assert all((inside / "out") in (path, *path.parents) for path in after - before)
    assert not any("\x1b" in path.name or "\n" in path.name for path in after)


def test_ids_that_are_no_hashes_are_damage(tmp_path: Path) -> None:
    store = hostile_store(tmp_path, ["../../../../outside"])
    with pytest.raises(StoreError, match="its id is not a hash"):
        store.read(URIS[0])


@pytest.mark.parametrize("name", ["../a.png", "/a.png", "a/../../b.png", "a\0.png"])
def test_a_name_outside_the_folder_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="its own folder only"):
        FileSink(tmp_path).save(name, b"")
    assert not list(tmp_path.iterdir())


VALUES: list[tuple[str, Any]] = [
    ("statistics", "[]"),
    ("statistics", "{"),
    ("statistics", "[" * 100_000),
    ("statistics", '{"top score": "x"}'),
    ("statistics", '{"top score": NaN}'),
    ("counts", [1]),
    ("counts", [-5, 2**62]),
    ("kept", float("nan")),
    ("confidence", 1e300),
    ("width", 0),
    ("height", 2**31 - 1),
]


@pytest.mark.parametrize(("column", "value"), VALUES, ids=[f"{name}-{index}" for index, (name, _) in enumerate(VALUES)])
def test_values_that_cannot_be_are_read_or_refused_in_one_line(column: str, value: Any, tmp_path: Path) -> None:
    store = hostile_store(tmp_path, [content_id(uri.encode()) for uri in URIS])
    row = next(store.iter_rows())
    other = LabelStore.create(tmp_path / "other", store.run)
    rows = [replace(row, id=content_id(b"new"), **{column: value}), row]
    inputs = [replace(next(store.inputs()), uri=f"{index}.png", id=row.id) for index, row in enumerate(rows)]
    other.commit(rows, inputs)
    for command in (["show"], ["report", "-o", str(tmp_path / "page.html")], ["verify"]):
        result = CliRunner().invoke(app, [command[0], str(tmp_path / "other"), *command[1:]])
        assert result.exception is None or isinstance(result.exception, SystemExit | MaskmillError), command
