"""Recursive listing of folders, local and behind URLs: files first, then subfolders, both sorted by name."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ...errors import SourceError
from .access import chain_of
from .remote import location, reason, stamp

MAX_DEPTH = 100
"""Most levels of folders that are searched behind a URL, since an index page may link to itself."""


def walk_folder(top: str, takes: Callable[[str], bool]) -> Iterator[tuple[str, str]]:
    """Yield (path, problem) of the files below a folder that ``takes`` accepts, by name, and of unreadable folders.

    ``problem`` is the reason why a folder cannot be listed, and empty for files. Links to folders are followed, except
    to one of the folder's ancestors. Raises :class:`SourceError` if ``top`` itself cannot be listed.
    """
    status = os.stat(top)
    waiting = [(top, frozenset({(status.st_dev, status.st_ino)}))]
    while waiting:
        folder, ancestors = waiting.pop()
        files, folders = [], []
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    try:
                        is_folder = entry.is_dir()
                    except OSError:
                        # a link that leads to itself
                        is_folder = False
                    (folders if is_folder else files).append(entry.name)
        except OSError as error:
            if folder == top:
                raise SourceError(f"cannot list the folder {folder}: {error.strerror}") from error
            yield folder, f"the folder cannot be listed: {error.strerror}"
        prefix = os.path.join(folder, "")
        for name in sorted(files):
            if takes(name):
                yield prefix + name, ""
        for name in sorted(folders, reverse=True):
            if name == "__MACOSX":
                takes(f"{name}/")
                continue
            try:
                status = os.stat(prefix + name)
            except OSError as error:
                yield prefix + name, f"the folder cannot be listed: {error.strerror}"
                continue
            identity = (status.st_dev, status.st_ino)
            if identity not in ancestors:
                waiting.append((prefix + name, ancestors | {identity}))


def match_remote(
    filesystem: Any, pattern: str, takes: Callable[[str], bool]
) -> Iterator[tuple[str, Mapping[str, Any], str]]:
    """Yield (name, info, problem), as :func:`walk_remote`, of matching files and of files in matching folders."""
    matches = filesystem.glob(pattern, detail=True)
    for name, info in sorted(matches.items()):
        if info.get("type") != "directory":
            yield name, info, ""
        elif "**" not in pattern:
            yield from walk_remote(filesystem, name, takes)


def listed_file(
    filesystem: Any, name: str, info: Mapping[str, Any], problem: str, url: str
) -> tuple[str, int | None, str, str]:
    """Return (URL, size, stamp, problem) of a file that the filesystem of ``url`` lists."""
    place = location(filesystem, name, url)
    if len(chain_of(place)) > len(chain_of(url)):
        problem = "its name in the archive has '::', which separates the parts of a URL; unpack the archive"
    return place, info.get("size"), stamp(info), problem


def walk_remote(
    filesystem: Any, top: str, takes: Callable[[str], bool]
) -> Iterator[tuple[str, Mapping[str, Any], str]]:
    """Yield (name, info, problem) of the files below a folder of an fsspec filesystem, one listing per folder.

    ``info`` is the filesystem's. ``problem`` is the reason why a folder cannot be listed, and empty for files. Raises
    the filesystem's own exceptions if ``top`` itself cannot be listed.
    """
    waiting = [(top, 0)]
    while waiting:
        folder, depth = waiting.pop()
        try:
            infos = sorted(filesystem.ls(folder, detail=True), key=lambda info: info["name"])
        except Exception as error:
            # every fsspec filesystem raises exceptions of its own
            if folder == top:
                raise
            yield folder, {}, f"the folder cannot be listed: {reason(error)}"
            continue
        # only buckets have this method
        for name in getattr(filesystem, "refused_names", lambda folder: ())(folder):
            yield name, {}, "its name has an empty part, '.', '..' or a control character, which is not read"
        folders = []
        for info in infos:
            name = info["name"]
            if info.get("type") == "directory":
                # not the folder itself or its parents
                if len(name.rstrip("/")) > len(folder.rstrip("/")):
                    folders.append(name)
            elif takes(name):
                yield name, info, ""
        if folders and depth == MAX_DEPTH:
            yield folders[0], {}, f"it is {MAX_DEPTH} folders deep; name it as a source of its own"
        else:
            waiting.extend((name, depth + 1) for name in reversed(folders))
