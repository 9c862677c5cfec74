"""Publish files and folders atomically: their final name appears only when they are complete.

Everything is written under a temporary name beside the target first. The name holds the host and the process, so that
:func:`remove_leftovers` can delete what a killed process left behind without touching the files of running ones.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

_LEFTOVER = re.compile(r"\..+\.(?P<host>[^.]*)\.(?P<process>\d+)\.[0-9a-f]{8}\.tmp")
_STALE_SECONDS = 24 * 3600.0  # age at which files of other hosts count as left behind


def write_atomically(path: Path, data: bytes, *, sync: bool = False) -> None:
    """Write a file and replace an older one in one step; with ``sync``, wait until the bytes are on the disk.

    Raises :class:`OSError` and leaves no partial file behind.
    """
    temporary = _temporary(path)
    try:
        _write(temporary, data, sync=sync)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_once(path: Path, data: bytes) -> bool:
    """Write a file and sync it unless it exists; returns False if another process was faster. Raises OSError."""
    temporary = _temporary(path)
    try:
        _write(temporary, data, sync=True)
        try:
            os.link(temporary, path)  # unlike a rename, a link never replaces a file
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
                raise
            os.replace(temporary, path)  # a file system without links
    finally:
        temporary.unlink(missing_ok=True)
    sync_files([], [path.parent])
    return True


def sync_files(files: Iterable[Path], folders: Iterable[Path]) -> None:
    """Sync files to the disk, then the folders that contain them; missing files are skipped."""
    for path in (*files, *folders):
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            continue
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):  # a file system that cannot sync folders
                raise
        finally:
            os.close(descriptor)


@contextmanager
def published_file(path: Path) -> Iterator[Path]:
    """Yield the path of a new file that replaces ``path`` at the end; after an error it is deleted."""
    temporary = _temporary(path)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def published_folder(folder: Path) -> Iterator[Path]:
    """Yield the path of a new empty folder that is renamed to ``folder`` at the end; after an error it is deleted.

    Folders of the same parent that killed processes left behind are deleted. Raises :class:`OSError` if ``folder``
    exists at the end and is not empty.
    """
    remove_leftovers(folder.parent)
    temporary = _temporary(folder)
    temporary.mkdir()
    try:
        yield temporary
        os.rename(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def remove_leftovers(folder: Path) -> None:
    """Delete the temporary files and folders in ``folder`` whose processes ended without publishing them."""
    for entry in os.scandir(folder):
        match = _LEFTOVER.fullmatch(entry.name)
        if match is not None and _is_stale(entry, match["host"], int(match["process"])):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                Path(entry.path).unlink(missing_ok=True)


def is_temporary(name: str) -> bool:
    """Return True for the name of a file or folder that is not published yet."""
    return _LEFTOVER.fullmatch(name) is not None


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{_host()}.{os.getpid()}.{secrets.token_hex(4)}.tmp")


def _host() -> str:
    return re.sub(r"[^\w-]", "-", socket.gethostname())[:40]


def _write(path: Path, data: bytes, *, sync: bool) -> None:
    with path.open("xb") as stream:
        stream.write(data)
        stream.flush()
        if sync:
            os.fsync(stream.fileno())


def _is_stale(entry: os.DirEntry[str], host: str, process: int) -> bool:
    if host == _host():
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
    try:
        return time.time() - entry.stat(follow_symlinks=False).st_mtime > _STALE_SECONDS
    except FileNotFoundError:
        return False
