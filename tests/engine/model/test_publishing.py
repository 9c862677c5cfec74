from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from maskmill.engine.model.publishing import published_folder, remove_leftovers, write_atomically, write_once

KILLED = """
import os, signal, sys
from pathlib import Path
from maskmill.engine.model import publishing

os.replace = os.rename = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[2] == "file":
    publishing.write_atomically(Path(sys.argv[1]) / "last.pt", bytes(1000))
with publishing.published_folder(Path(sys.argv[1]) / "bundle") as folder:
    (folder / "model.onnx").write_bytes(bytes(1000))
"""


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_a_file_is_replaced_in_one_step(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a", b"1")
    write_atomically(tmp_path / "a", b"2", sync=True)
    assert (tmp_path / "a").read_bytes() == b"2"
    assert names(tmp_path) == ["a"]


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(tmp_path / "a", b"1")
    assert names(tmp_path) == []


def test_the_first_of_two_writers_wins(tmp_path: Path) -> None:
    assert write_once(tmp_path / "a", b"1")
    assert not write_once(tmp_path / "a", b"2")
    assert (tmp_path / "a").read_bytes() == b"1"
    assert names(tmp_path) == ["a"]


def test_a_folder_appears_only_when_it_is_complete(tmp_path: Path) -> None:
    with published_folder(tmp_path / "a") as folder:
        (folder / "file").touch()
        assert not (tmp_path / "a").exists()
    assert names(tmp_path) == ["a"]
    with pytest.raises(RuntimeError), published_folder(tmp_path / "b") as folder:
        raise RuntimeError
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_a_killed_process_left_is_removed(tmp_path: Path, kind: str) -> None:
    with published_folder(tmp_path / "mine") as running:
        assert subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), kind], check=False).returncode == -9
        assert len(names(tmp_path)) == 2
        remove_leftovers(tmp_path)
        assert names(tmp_path) == [running.name]
    assert names(tmp_path) == ["mine"]
