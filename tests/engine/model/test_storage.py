"""Folders that are copied from a URL: nothing is written elsewhere, and nothing grows without end."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest

from maskmill.engine.model import storage
from maskmill.engine.model.storage import fetched, open_folder, stays_below
from maskmill.errors import UsageError


def archive(path: Path, names: list[str], size: int = 3) -> str:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name in names:
            file.writestr(name, b"x" * size)
    return f"zip://model::{path}"


def test_a_folder_is_copied_with_its_subfolders(tmp_path: Path) -> None:
    copy = fetched(archive(tmp_path / "a.zip", ["model/bundle.json", "model/engines/a.plan", "other.txt"]))
    assert sorted(path.relative_to(copy).as_posix() for path in copy.rglob("*.*")) == ["bundle.json", "engines/a.plan"]


@pytest.mark.parametrize("name", ["model/../../out", "model/a/../../../out", "model/..\\out", "model/C:out"])
def test_a_name_that_leads_out_of_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="leads out of the folder"):
        fetched(archive(tmp_path / "a.zip", ["model/bundle.json", name]))


def test_a_folder_of_too_many_bytes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "MAX_COPIED", 1000)
    with pytest.raises(UsageError, match="more than"):
        fetched(archive(tmp_path / "a.zip", ["model/bundle.json"], size=2000))


def test_a_folder_of_too_many_files_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "MAX_COPIED_FILES", 2)
    with pytest.raises(UsageError, match="more than"):
        fetched(archive(tmp_path / "a.zip", [f"model/{number}" for number in range(3)]))


@pytest.mark.parametrize("name", ["", "/etc/passwd", "../a", "a/..", "a//b", "./a", "C:/a", "a\\..\\b"])
def test_a_path_that_leaves_its_folder_is_recognized(name: str) -> None:
    assert not stays_below(name)


@pytest.mark.parametrize("name", ["a", "a/b.png", "..a/b..", "a b/=c"])
def test_a_path_of_plain_names_stays_in_its_folder(name: str) -> None:
    assert stays_below(name)


def test_a_pipe_in_a_folder_is_refused_and_never_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "record.json")
    with pytest.raises(OSError, match="not a regular file"):
        open_folder(tmp_path).read("record.json")


def test_a_file_beyond_the_limit_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "record.json").open("wb") as file:
        file.truncate(storage.MAX_FILE + 1)
    with pytest.raises(OSError, match="at most"):
        open_folder(tmp_path).read("record.json")
