"""Names of images in an export: short, unique on every file system, and the same in every run."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

# characters that Windows refuses, and control characters
_UNSAFE = re.compile(r'[<>:"|?*\x00-\x1f\x7f]')


class ExportName(NamedTuple):
    """Names of one image."""

    name: str
    """Relative path of the photo with ``/`` and extension."""
    stem: str
    """Path of files that belong to the photo, without extension."""


def export_names(uris: Sequence[str]) -> list[ExportName]:
    """Name every uri by its path below the common folder; archives become folders.

    Stems that differ only in case, in Unicode form or in the extension of their photos keep the extension, and names
    that would still be equal are numbered, so that no file of an export overwrites another.
    """
    paths = [_parts(uri) for uri in uris]
    shared = len(paths[0]) - 1 if paths else 0
    for path in paths:
        shared = min(shared, len(path) - 1)
        while path[:shared] != paths[0][:shared]:
            shared -= 1
    names = _numbered(["/".join(path[shared:]) for path in paths])
    stems = [name.rsplit(".", 1)[0] if "." in name.rsplit("/", 1)[-1] else name for name in names]
    number = Counter(map(_same, stems))
    stems = _numbered([name if number[_same(stem)] > 1 else stem for name, stem in zip(names, stems, strict=True)])
    return [ExportName(name, stem) for name, stem in zip(names, stems, strict=True)]


def _parts(uri: str) -> list[str]:
    path = uri
    if "://" in uri:
        # the host is kept: two buckets may hold the same path
        url = urlsplit(uri)
        path = f"{url.netloc}/{unquote(url.path)}" + (f"_{url.query}" if url.query else "")
    parts = path.replace("::", "/").replace("\\", "/").split("/")
    parts = [_UNSAFE.sub("_", part).strip(" ") for part in parts if part not in ("", ".", "..")]
    # a name that begins with a dot would be a hidden file
    return [f"_{part}" if part.startswith(".") or not part else part for part in parts] or ["_"]


def _numbered(names: Sequence[str]) -> list[str]:
    """Add numbers to names that some file system considers equal, starting with the second."""
    taken_names: set[str] = set()
    result = []
    for name in names:
        folder, slash, file = name.rpartition("/")
        stem, dot, extension = file.rpartition(".")
        stem, extension = (stem, dot + extension) if dot else (file, "")
        candidate, number = name, 1
        while _same(candidate) in taken_names:
            number += 1
            candidate = f"{folder}{slash}{stem}-{number}{extension}"
        taken_names.add(_same(candidate))
        result.append(candidate)
    return result


def _same(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
