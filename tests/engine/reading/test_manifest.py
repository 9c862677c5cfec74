"""Manifests hold what a listing of the source gives."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import maskmill
from maskmill.engine.inputs.sources import open_source
from maskmill.engine.reading.manifest import write_manifest
from maskmill.errors import SourceError

from ...builders import encoded, photo


def test_a_manifest_gives_the_items_of_its_source(tmp_path: Path) -> None:
    (tmp_path / "photos" / "sub folder").mkdir(parents=True)
    for index, name in enumerate(("a.png", "sub folder/b.png", "c.txt")):
        (tmp_path / "photos" / name).write_bytes(encoded(photo(seed=index), "PNG"))
    with tarfile.open(tmp_path / "photos" / "d.tar", "w") as tar:
        data = encoded(photo(), "PNG")
        member = tarfile.TarInfo("inside.png")
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))
    (tmp_path / "list.txt").write_text("photos\nphotos/d.tar\n")
    source = open_source(tmp_path / "list.txt")
    assert write_manifest(source, tmp_path / "all.parquet") == 3
    listed = open_source(tmp_path / "all.parquet")
    assert list(listed) == list(source)
    assert [listed.read(item) for item in listed] == [source.read(item) for item in source]


def test_a_manifest_lists_nothing(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(encoded(photo(), "PNG"))
    write_manifest(open_source(tmp_path / "photos"), tmp_path / "all.parquet")
    (tmp_path / "photos" / "b.png").write_bytes(b"")
    os.remove(tmp_path / "photos" / "a.png")
    assert [Path(item.uri).name for item in open_source(tmp_path / "all.parquet")] == ["a.png"]


def test_an_empty_source_leaves_no_manifest(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    with pytest.raises(SourceError, match="no images in"):
        maskmill.write_manifest(tmp_path / "photos", tmp_path / "all.parquet")
    assert os.listdir(tmp_path) == ["photos"]


def test_a_manifest_names_only_allowed_places(tmp_path: Path) -> None:
    write_manifest([("ftp://host/a.png", 3, "", None, None, "")], tmp_path / "all.parquet")
    (item,) = open_source(tmp_path / "all.parquet")
    assert "allow it with --schemes" in item.problem


def test_another_parquet_file_stays_a_list(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(photo(), "PNG"))
    pq.write_table(pa.table({"uri": ["a.png"]}), tmp_path / "list.parquet")
    assert [item.uri for item in open_source(tmp_path / "list.parquet")] == [str(tmp_path / "a.png")]
