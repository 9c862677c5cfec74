"""One Lance dataset of a label store: opening at a version, merging on the key, compaction, tags.

Lance keeps no checksums. The rows of a dataset carry their own hashes (:mod:`.schema`); the files that say which rows
there are, the manifest and the deletion files of a version, have theirs in ``_checks/VERSION``, written after every
commit and compared when a version is opened. A version without that file (its writer was killed after the commit) is
read as it is until the next commit.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa

from ...errors import MaskmillError, StoreError
from ..model.publishing import published_folder, sync_files
from ..model.storage import is_remote, lance_options, lance_url, open_folder
from ..reading.bucket.client import MissingBucketError, RefusedError, translated
from .schema import KEYS, SCHEMAS

# fragments of this size are not compacted again, so a row is rewritten about once, however large the store grows
FRAGMENT_ROWS = 16_384
KEEP_VERSIONS = timedelta(hours=1)
"""Age at which untagged versions are dropped."""
CLOCK_SECONDS = 300.0
"""Largest difference of clocks, in seconds, at which the age of versions and files is trusted."""
_CHECKS = "_checks"
_OF_A_BUCKET = "Error performing"  # matches errors of requests that Lance makes
_LAST_VERSION = (1 << 64) - 1


class Table:
    """One dataset of a store; every method may be called from any thread."""

    def __init__(self, folder: Path, name: str, session: Any) -> None:
        self.name = name
        """Name of the dataset: labels, inputs or reviews."""
        self.path: Path = folder / f"{name}.lance"
        """Folder of the dataset."""
        self._session = session
        self.storage_options: dict[str, str] | None = lance_options(getattr(folder, "storage_options", None))
        """Storage options under the names that Lance uses; None on a disk."""
        self._process = os.getpid()
        self._hashes: dict[str, str] = {}
        self._synced: set[str] = set()
        self._folders: set[Path] = set()

    @staticmethod
    def create(folder: Path, name: str) -> None:
        """Create an empty dataset unless it exists; processes that do so at once agree on one."""
        path = folder / f"{name}.lance"
        if is_remote(path):
            _create_remote(path, name)
            return
        if path.exists():
            return
        # written aside and renamed: of two processes that create in place, the second would overwrite the first's rows
        try:
            with published_folder(path) as aside:
                lance.write_dataset(SCHEMAS[name].empty_table(), aside, mode="create", enable_stable_row_ids=True)
                # Lance needs none of the other files
                sync_files((aside / "_versions").glob("*.manifest"), [aside / "_versions", aside])
        except OSError:
            if not path.exists():
                raise

    def at(self, path: Path) -> Table:
        """Return the table of another folder with the same schema."""
        table = Table(path.parent, self.name, self._session)
        table.path = path
        return table

    def open(self, version: int | None = None) -> lance.LanceDataset:
        """Open a version, or the newest; a writer needs a handle of its own, since Lance blocks its other users.

        Raises :class:`StoreError` if the version was dropped or its manifest is damaged.
        """
        if os.getpid() != self._process:
            raise StoreError("a label store does not survive fork: start workers with spawn or forkserver")
        if version is not None and not self.manifest(version).exists():
            raise StoreError(
                f"version {version} of {self.path} no longer exists, because versions that are not pinned are dropped "
                "after an hour; open the store again"
            )
        dataset = lance.dataset(
            lance_url(self.path), version=version, session=self._session, storage_options=self.storage_options
        )
        if damaged := self.damaged_file(dataset):
            raise StoreError(f"{self.path / damaged} does not match its recorded hash; {REPAIR}")
        return dataset

    def merge(self, rows: pa.Table, *, replace: str | None = None) -> None:
        """Insert the rows whose keys are new; with ``replace``, a condition on source and target, also update.

        Other writers may commit meanwhile: Lance repeats the merge, with a growing pause.
        """
        num_inserted = self._merge(rows, None)
        if replace is not None and num_inserted < len(rows):
            # separate, because an insertion never blocks another writer's compaction and an update does
            self._merge(rows, replace)

    def _merge(self, rows: pa.Table, replace: str | None) -> int:
        dataset = self.open()
        merge = dataset.merge_insert(KEYS[self.name]).conflict_retries(100).retry_timeout(timedelta(minutes=5))
        merge = merge.when_not_matched_insert_all() if replace is None else merge.when_matched_update_all(replace)
        counts = merge.execute(rows)
        self.record(dataset)
        return counts["num_inserted_rows"]

    def num_small_fragments(self) -> int:
        """Count the fragments that a compaction would merge."""
        return self.open().stats.dataset_stats(FRAGMENT_ROWS)["num_small_files"]

    def compact(self) -> None:
        """Merge small fragments and drop untagged versions older than ``KEEP_VERSIONS``.

        Does nothing while another process of this machine compacts: Lance would refuse the second result, and leave its
        files for days.
        """
        if is_remote(self.path):
            self._compact()  # if two processes compact at once, one loses its work
            return
        with _locked(self.path / _CHECKS / "compacting") as is_first:
            if is_first:
                self._compact()

    def _compact(self) -> None:
        dataset = self.open()
        dataset.optimize.compact_files(
            target_rows_per_fragment=FRAGMENT_ROWS,
            num_threads=1,
            # pages are copied without decoding, which saves time and memory
            compaction_mode="try_binary_copy",
            binary_copy_read_batch_bytes=4 << 20,
            batch_size=256,
        )
        self.record(dataset)
        if not self._is_clock_right(dataset.version):
            return  # otherwise files that another writer is about to commit would look a week old, and be deleted
        dataset.cleanup_old_versions(KEEP_VERSIONS, error_if_tagged_old_versions=False)
        for check in (self.path / _CHECKS).iterdir():
            if check.name.isdecimal() and not self.manifest(int(check.name)).exists():
                check.unlink(missing_ok=True)

    def _is_clock_right(self, version: int) -> bool:
        """Compare the clock with that of the storage, and with the time that passed since this module was imported."""
        storage = self._check(version).stat().st_mtime  # written a moment ago
        return max(abs(time.time() - storage), abs(_clock_offset() - _OFFSET)) < CLOCK_SECONDS

    def manifest(self, version: int) -> Path:
        """Return the path of a version's manifest."""
        return self.path / "_versions" / f"{_LAST_VERSION - version:020d}.manifest"

    def record(self, dataset: Any) -> None:
        """Sync a version to the disk, which Lance does not, and write the hashes of its structural files."""
        if not is_remote(self.path):
            names = {*self._structure(dataset), *(name for name, _ in self._data_files(dataset))}
            files = [self.path / name for name in names - self._synced]
            folders = {file.parent for file in files}
            # a folder that was synced once stays
            sync_files(files, folders if folders <= self._folders else {self.path, *folders})
            self._synced = names
            self._folders |= folders
        lines = "".join(f"{self._hash(name)} {name}\n" for name in self._structure(dataset))
        open_folder(self.path).write(f"{_CHECKS}/{dataset.version}", f"{_digest(lines.encode())}\n{lines}".encode())

    def damaged_file(self, dataset: Any) -> str | None:
        """Return the first structural file of a version that does not match its recorded hash; None if all match."""
        recorded = self._recorded(dataset.version)
        if recorded is None:
            return None
        for name in self._structure(dataset):
            if recorded.get(name) != self._hash(name, fresh=True):
                return name
        return None

    def drop_unfinished(self) -> None:
        """Remove the newest versions if a power loss has emptied or cut their files before their commit returned."""
        while True:
            # the newest version sorts first
            newest, *older_files = sorted((self.path / "_versions").glob("*.manifest"))
            version = _LAST_VERSION - int(newest.stem)
            if not older_files or self._recorded(version) is not None or self._is_whole(version):
                return
            newest.unlink(missing_ok=True)

    def _is_whole(self, version: int) -> bool:
        """Return True if the files of a version have their recorded sizes."""
        try:
            dataset = lance.dataset(str(self.path), version=version)
            sizes = [(self.path / name).stat().st_size == size for name, size in self._data_files(dataset)]
            return all(sizes) and all((self.path / name).stat().st_size for name in self._structure(dataset))
        except (OSError, ValueError):
            return False

    @staticmethod
    def _data_files(dataset: Any) -> Iterator[tuple[str, int]]:
        """Return paths below the dataset, and sizes in bytes, of the files with a version's rows."""
        for fragment in dataset.get_fragments():
            for file in fragment.metadata.files:
                yield f"data/{file.path}", file.file_size_bytes

    def _recorded(self, version: int) -> dict[str, str] | None:
        try:
            head, _, lines = self._check(version).read_text(encoding="ascii").partition("\n")
        except (FileNotFoundError, UnicodeDecodeError):
            return None
        if head != _digest(lines.encode()):
            return None  # the record itself is damaged
        return {name: digest for digest, _, name in (line.partition(" ") for line in lines.splitlines())}

    def _check(self, version: int) -> Path:
        return self.path / _CHECKS / str(version)

    def _structure(self, dataset: Any) -> Iterator[str]:
        """Return the paths, below the dataset, of the files that decide which rows a version has."""
        yield self.manifest(dataset.version).relative_to(self.path).as_posix()
        for fragment in dataset.get_fragments():
            if deletions := fragment.deletion_file():
                yield deletions

    def _hash(self, name: str, *, fresh: bool = False) -> str:
        if fresh or name not in self._hashes:
            digest = _digest((self.path / name).read_bytes())
            if fresh:
                return digest
            self._hashes[name] = digest
        return self._hashes[name]


def _create_remote(path: Any, name: str) -> None:
    """Create an empty dataset in a bucket unless it has a version; may be retried after a failure.

    A version is written only if there is none, so a retry never replaces one. A failed attempt may leave other files,
    which no version refers to.
    """
    if _has_version(path):
        return
    options = lance_options(path.storage_options)
    empty = SCHEMAS[name].empty_table()
    try:
        lance.write_dataset(empty, lance_url(path), mode="create", enable_stable_row_ids=True, storage_options=options)
    except OSError as error:
        if not _has_version(path):
            raise (translated(error, str(path)) if _OF_A_BUCKET in str(error) else error) from error


def _has_version(path: Path) -> bool:
    return any((path / "_versions").glob("*.manifest"))


REPAIR = "run `maskmill verify STORE --repair`, and label again what it removes"
"""Advice in messages about damage."""


def _clock_offset() -> float:
    """Return the clock minus the time since the machine was started, sleep included, in seconds."""
    return time.time() - time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


_OFFSET = _clock_offset()


@contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Hold a lock file; yields False if another process holds it."""
    path.parent.mkdir(exist_ok=True)
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK):  # a file system without locks
                raise
        yield True


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


@contextmanager
def store_errors(action: str) -> Iterator[None]:
    """Turn errors of Lance, panics of its Rust code included, into :class:`StoreError`: ACTION: reason."""
    try:
        yield
    except MaskmillError:
        raise
    except BaseException as error:
        # a Rust panic arrives as a class of its own, which derives from BaseException
        panic = type(error).__name__ == "PanicException"
        if not panic and not isinstance(error, OSError | ValueError | RuntimeError | pa.ArrowException):
            raise
        text = str(error)
        if isinstance(error, OSError) and error.strerror and error.filename is not None:
            text = error.strerror  # the files have temporary names
        if "No space left" in text or "Disk quota exceeded" in text or "File too large" in text:
            text = "the disk is full. What was committed is safe: free some space and run the same command again"
        elif _OF_A_BUCKET in text:
            text = str(translated(ConnectionError(text), "the store"))
        elif panic:
            text = f"its files are damaged ({text}); {REPAIR}"
        failure = StoreError(f"{action}: {text.partition(', /')[0]}")
        raise failure.of_the_call() if isinstance(error, RefusedError | MissingBucketError) else failure from error
