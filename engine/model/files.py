"""Reading files: text, lists, class lists and hashes; and the check that no input is overwritten."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from ...errors import ImageError, MaskmillError, UsageError
from ..reading.remote_path import StorageError
from .storage import read_file

MAX_TEXT = 1 << 30
"""Largest text file that is read, in bytes."""


def read_text(path: str | os.PathLike[str], purpose: str, *, error: type[MaskmillError] = UsageError) -> str:
    """Read a UTF-8 text file without its byte order mark, and with newlines for every line ending.

    ``purpose`` names the file in the message, as in "the class list". Raises ``error`` if the file cannot be read or is
    not UTF-8.
    """
    try:
        data = read_file(path, MAX_TEXT)
    except StorageError:
        raise
    except OSError as problem:
        raise error(f"cannot read {purpose} {path}: {problem.strerror or problem}") from problem
    except (ImageError, ValueError) as problem:
        raise error(f"cannot read {purpose} {path}: {problem}") from problem
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise error(
            f"cannot read {purpose} {path}: it is not UTF-8 text (byte {problem.start:,}); save it as UTF-8"
        ) from (problem)
    return text.replace("\r\n", "\n").replace("\r", "\n")


def inflate(data: bytes, limit: int) -> bytes:
    """Decompress zlib data; raises ValueError if they are damaged or hold more than ``limit`` bytes."""
    inflater = zlib.decompressobj()
    try:
        result = inflater.decompress(data, limit + 1)
    except zlib.error as error:
        raise ValueError(str(error)) from error
    if len(result) > limit or not inflater.eof:
        raise ValueError(f"compressed data are cut short or hold more than {limit:,} bytes")
    return result


def list_lines(lines: Iterable[str]) -> Iterator[str]:
    """Yield the entries of a list with one entry per line.

    Blanks around an entry and quotes that enclose it are removed; empty lines and lines that start with ``#`` are
    skipped. A name that starts with ``#`` or ends in a blank is written in quotes.
    """
    for line in lines:
        entry = line.lstrip("\ufeff").strip()
        if not entry or entry.startswith("#"):
            continue
        if len(entry) >= 2 and entry[0] == entry[-1] and entry[0] in "\"'":
            entry = entry[1:-1]
        if entry:
            yield entry


def refuse_overwriting(output: object, inputs: Iterable[object]) -> None:
    """Refuse an output that is one of the inputs: raises :class:`UsageError` if both name the same file or folder.

    They are paths or URLs, as text or as the objects that stand for them.
    """
    for source in inputs:
        if _is_same(str(output), str(source)):
            raise UsageError(f"{output} is an input and would be overwritten; write to another file or folder")


def _is_same(path: str, second_path: str) -> bool:
    if path == second_path or "://" in path or "://" in second_path:
        return path == second_path
    try:
        return os.path.samefile(path, second_path)
    except (OSError, ValueError):  # one of them does not exist, or is not a path
        return os.path.abspath(path) == os.path.abspath(second_path)


def read_class_names(path: str | os.PathLike[str]) -> dict[int, str]:
    """Read a class list: one name per line, or ``index name`` on every line; see :func:`list_lines` for comments.

    Raises :class:`UsageError` if the file cannot be read, is empty or names an index twice.
    """
    return parse_class_names(read_text(path, "the class list"), path)


def read_ordered_class_names(path: str | os.PathLike[str]) -> list[str]:
    """Read a class list in the order of its indices; raises :class:`UsageError` if it leaves an index out."""
    names = read_class_names(path)
    if sorted(names) != list(range(len(names))):
        raise UsageError(f"{path} must name every class from 0 to {max(names)}, with none left out")
    return [names[index] for index in range(len(names))]


def parse_class_names(text: str, path: str | os.PathLike[str]) -> dict[int, str]:
    """Read the text of a class list as :func:`read_class_names` does; ``path`` names it in messages."""
    entries = list(list_lines(text.split("\n")))
    if not entries:
        raise UsageError(f"the class list {path} is empty; it needs one class name per line")
    parts = [entry.split(maxsplit=1) for entry in entries]
    if all(len(part) == 2 and part[0].isdecimal() for part in parts):
        names = {int(index): name for index, name in parts}
        if len(names) != len(parts):
            raise UsageError(f"the class list {path} names an index twice; give each index one name")
        return names
    return dict(enumerate(entries))


def sha256(path: Path) -> str:
    """Return the hash of a file's bytes as hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
