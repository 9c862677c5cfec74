"""Local files: only regular ones, and only up to a limit."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from maskmill.engine.reading.local import read_local
from maskmill.errors import ImageError


def test_a_file_of_more_bytes_than_allowed_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(bytes(11))
    assert len(read_local(str(path), 11)) == 11
    assert read_local(str(path), 4, offset=2, size=3) == bytes(3)
    for size in (None, 11):
        with pytest.raises(ImageError, match="11 bytes; at most 10 are read") as caught:
            read_local(str(path), 10, size=size)
        assert caught.value.kind == "too-large"


def test_a_pipe_is_refused_without_waiting_for_a_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(ImageError):
        read_local(str(tmp_path / "pipe.jpg"), 10)
