"""Files of a model: hashes and class lists."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from ...errors import UsageError


def read_class_names(path: str | os.PathLike[str]) -> dict[int, str]:
    """Read a class list: one name a line, or ``index name`` on every line; empty lines are skipped.

    Raises :class:`UsageError` where the file cannot be read, is empty or names an index twice.
    """
    try:
        lines = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the class list {path}: {error}") from error
    if not lines:
        raise UsageError(f"the class list {path} is empty; it needs one class name a line")
    parts = [line.split(maxsplit=1) for line in lines]
    if all(len(part) == 2 and part[0].isdecimal() for part in parts):
        names = {int(index): name for index, name in parts}
        if len(names) != len(parts):
            raise UsageError(f"the class list {path} names an index twice")
        return names
    return dict(enumerate(lines))


def sha256(path: Path) -> str:
    """Hash of a file's bytes as hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
