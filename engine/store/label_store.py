"""The label store: a folder with two Lance datasets and ``run.json``.

* ``labels.lance``, one row for each distinct image, keyed by the hash of the file's bytes: label and weight maps;
* ``inputs.lance``, one row for each input, keyed by its uri: the image it led to, or why it was rejected;
* ``run.json``: what decided the labels. It is written last, so that a folder with it is a whole store.

::

    store = LabelStore.open("labels")
    label, weight = store.read("/photos/1.jpg")     # (H, W) uint8 each
    for row in store.rejects():
        print(row.uri, row.error, row.message)

Every row is there exactly once, however runs end and however many write: both keys are Lance primary keys and every
commit is a merge on them. Labels are committed before the inputs that point at them, so that a crash between the two
costs one more reading of the files. A commit survives the end of the process at any moment.

A store object is opened lazily, may be pickled to other processes and used by any thread. It reads the rows that were
there when it was first used, or after its own last commit; labels keep their row numbers. While others write, open it
anew within the hour: older versions are dropped. Lance does not survive ``fork``: start workers with spawn or
forkserver.
"""

from __future__ import annotations

import os
import secrets
import shutil
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ...errors import StoreError
from ..inputs.identity import content_id
from ..inputs.sources import Item
from .digests import DIGEST_BYTES, DigestIndex, DigestSet, digest_table
from .png import decode_png
from .rows import INPUT_COLUMNS, SCHEMAS, InputRow, LabelRow, fingerprint, input_table, label_table
from .run_record import RUN_FILE, check_run, publish_run, read_run

__all__ = ["COMPACT_EVERY", "SEGMENTS", "InputRow", "LabelRow", "LabelStore", "content_id"]

SEGMENTS = "segments"
"""What ``maps`` in a store's run says where maps hold numbers of segments; without the entry they hold classes."""

COMPACT_EVERY = 64
"""Commits between two compactions."""

# fragments this large are left alone, so that a row is rewritten about once however large the store grows
_FRAGMENT_ROWS = 16_384
# Lance keeps metadata of versions that are gone; its own limits let a long run grow by hundreds of megabytes
_CACHE_BYTES = 16 << 20
_PLAN_CHUNK = 1024
# which input rows a commit replaces: the file changed, or it was a reject and was tried again
_OUTDATED = "source.fingerprint <> target.fingerprint OR target.error IS NOT NULL"


class LabelStore:
    """Labels of a corpus, in a folder; see the module's text."""

    def __init__(self, path: Path, run: Mapping[str, Any]) -> None:
        self.path = path
        """The store's folder."""
        self.run = dict(run)
        """What decided the labels, as given when the store was made."""
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.RLock()
        self._write_lock = threading.Lock()
        self._process = os.getpid()
        self._session = lance.Session(index_cache_size_bytes=_CACHE_BYTES, metadata_cache_size_bytes=_CACHE_BYTES)
        self._datasets: dict[str, Any] = {}
        self._known: DigestSet | None = None
        self._rows: tuple[int, DigestIndex] | None = None
        self._commits = -1

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "run": self.run}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    def __repr__(self) -> str:
        return f"LabelStore({str(self.path)!r})"

    @classmethod
    def create(cls, path: str | os.PathLike[str], run: Mapping[str, Any]) -> LabelStore:
        """Make a store in a new or empty folder. ``run`` is plain data. Raises :class:`StoreError`."""
        folder = Path(path)
        if (folder / RUN_FILE).exists():
            raise StoreError(f"{folder} holds a label store already; open it, or choose another folder")
        return cls._create(folder, run)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> LabelStore:
        """Open a store. Raises :class:`StoreError` where there is none, or where it is newer than this program."""
        folder = Path(path)
        run = read_run(folder)
        for name in SCHEMAS:
            if not (folder / f"{name}.lance").is_dir():
                raise StoreError(f"the label store {folder} is damaged: {name}.lance is missing")
        return cls(folder, run)

    @classmethod
    def open_or_create(cls, path: str | os.PathLike[str], run: Mapping[str, Any]) -> LabelStore:
        """Open the store that was made with ``run``, or make it.

        Raises :class:`StoreMismatch` where the store was made with another ``run``; the message names what differs.
        Processes that start at the same time agree on one store.
        """
        folder = Path(path)
        if not (folder / RUN_FILE).exists():
            return cls._create(folder, run)
        store = cls.open(folder)
        check_run(folder, store.run, run)
        return store

    @classmethod
    def _create(cls, folder: Path, run: Mapping[str, Any]) -> LabelStore:
        with _errors(f"cannot make a label store in {folder}"):
            folder.mkdir(parents=True, exist_ok=True)
            ours = tuple(f"{name}.lance" for name in SCHEMAS)
            if others := [name for name in sorted(os.listdir(folder)) if not name.startswith((*ours, RUN_FILE))]:
                raise StoreError(
                    f"{folder} is not empty (it holds {others[0]}) and not a label store; choose a new folder"
                )
            for name, schema in SCHEMAS.items():
                dataset = _create_dataset(folder / f"{name}.lance", schema)
                if dataset.count_rows() and not (folder / RUN_FILE).exists():
                    raise StoreError(f"{folder} holds labels but no {RUN_FILE}, so nothing says how they were made")
            return cls(folder, publish_run(folder, run))

    @property
    def classes(self) -> dict[str, Any]:
        """The classes of the label maps, as :meth:`Taxonomy.to_json` writes them.

        Raises :class:`StoreError` for a store whose maps hold numbers of segments, which have no classes.
        """
        if self.run.get("maps") == SEGMENTS:
            raise StoreError(f"{self.path} holds segments without classes (`maskmill label --sam` alone made it)")
        return self.run["classes"]

    def plan(self, items: Iterable[Item], *, retry_rejects: bool = False) -> Iterator[Item]:
        """The items that are still to do, in order: unknown ones and those whose size or stamp changed.

        Only ``inputs.lance`` is read, 16 bytes an input. With ``retry_rejects`` rejects are still to do, too.
        """
        digests = []
        with _errors(f"cannot read the label store {self.path}"):
            condition = "error IS NULL" if retry_rejects else None
            for batch in self._dataset("inputs").to_batches(columns=["fingerprint"], filter=condition):
                column = batch.column(0)
                start = column.offset * DIGEST_BYTES
                digests.append(column.buffers()[1][start : start + len(column) * DIGEST_BYTES].to_pybytes())
        finished = DigestIndex(digest_table(b"".join(digests)))
        del digests
        return self._unfinished(iter(items), finished)

    @staticmethod
    def _unfinished(items: Iterator[Item], finished: DigestIndex) -> Iterator[Item]:
        while chunk := list(islice(items, _PLAN_CHUNK)):
            prints = b"".join([fingerprint(item.uri, item.size, item.stamp) for item in chunk])
            for index in np.flatnonzero(finished.find(digest_table(prints)) < 0):
                yield chunk[index]

    def has_id(self, id: str) -> bool:
        """Whether labels of these bytes are in the store, as far as this object has seen."""
        known = self._known
        if known is None:
            with self._lock:
                known = self._known = self._known or DigestSet(self._id_table())
        return bytes.fromhex(id) in known

    def commit(self, labels: Sequence[LabelRow], inputs: Sequence[InputRow]) -> None:
        """Add labels, then inputs, each all or nothing; safe against other writers of the same rows.

        Labels that are there already are kept. An input replaces the row of its uri where that is a reject or the file
        changed. Raises :class:`StoreError`, with nothing lost of what earlier commits held; the same commit may be made
        again.
        """
        labeled = list({row.id: row for row in labels}.values())
        finished = list({row.uri: row for row in inputs}.values())
        with self._write_lock, _errors(f"cannot write to the label store {self.path}"):
            try:
                if labeled:
                    self._merge_labels(label_table(labeled))
                    if self._known is not None:
                        for row in labeled:
                            self._known.add(bytes.fromhex(row.id))
                if finished:
                    self._merge_inputs(input_table(finished))
            finally:
                # the next reader sees what was committed
                self._datasets.clear()
            if self._commits < 0:
                # short runs leave fragments, too
                self._commits = self._open("inputs").stats.dataset_stats(_FRAGMENT_ROWS)["num_small_files"] - 1
            self._commits += 1
            if self._commits >= COMPACT_EVERY:
                self._commits = 0
                self._compact()

    def read(self, uri: str) -> tuple[NDArray[Any], NDArray[np.uint8]]:
        """Label and weight map, (H, W) each, of one input. Raises :class:`StoreError` for rejects and unknown uris."""
        quoted = uri.replace("'", "''")
        with _errors(f"cannot read the label store {self.path}"):
            rows = self._dataset("inputs").to_table(columns=INPUT_COLUMNS, filter=f"uri = '{quoted}'").to_pylist()
        if not rows:
            raise StoreError(f"{self.path} knows no input {uri}")
        if rows[0]["id"] is None:
            raise StoreError(f"{uri} has no labels: it was rejected as {rows[0]['error']}: {rows[0]['message']}")
        return self.read_id(rows[0]["id"])

    def read_id(self, id: str) -> tuple[NDArray[Any], NDArray[np.uint8]]:
        """Label and weight map, (H, W) each, of one image. Raises :class:`StoreError` where there are none."""
        row = self.row_of(id)
        if row is None:
            raise StoreError(f"{self.path} holds no labels of {id}")
        maps = self.take([row], columns=["label", "weight"])
        try:
            return decode_png(maps["label"][0].as_py()), decode_png(maps["weight"][0].as_py())
        except ValueError as error:
            raise StoreError(f"the maps of {id} in {self.path} cannot be read: {error}") from error

    def __len__(self) -> int:
        """Number of labeled images."""
        return self._dataset("labels").count_rows()

    def ids(self) -> list[str]:
        """Ids of the labeled images, in row order."""
        with _errors(f"cannot read the label store {self.path}"):
            return self._dataset("labels").to_table(columns=["id"])["id"].to_pylist()

    def row_of(self, id: str) -> int | None:
        """Row of an image, for :meth:`take`; None where there are no labels of it."""
        version = self._dataset("labels").version
        with self._lock:
            if self._rows is None or self._rows[0] != version:
                self._rows = version, DigestIndex(self._id_table())
            row = int(self._rows[1].find(digest_table(bytes.fromhex(id)))[0])
        return None if row < 0 else row

    def take(self, rows: Sequence[int], columns: Sequence[str] | None = None) -> pa.Table:
        """Label rows by number, in the order asked for; the columns are the fields of :class:`LabelRow`."""
        with _errors(f"cannot read the label store {self.path}"):
            return self._dataset("labels").take(list(rows), columns=list(columns or SCHEMAS["labels"].names))

    def iter_rows(self, columns: Sequence[str] | None = None, batch_size: int = 256) -> Iterator[dict[str, Any]]:
        """Label rows in order, as dictionaries of the fields of :class:`LabelRow`."""
        with _errors(f"cannot read the label store {self.path}"):
            names = list(columns or SCHEMAS["labels"].names)
            for batch in self._dataset("labels").to_batches(columns=names, batch_size=batch_size):
                yield from batch.to_pylist()

    def inputs(self) -> Iterator[InputRow]:
        """Every input, labeled or rejected."""
        return self._inputs(None)

    def rejects(self) -> Iterator[InputRow]:
        """Inputs that could not be decoded."""
        return self._inputs("error IS NOT NULL")

    def summary(self) -> dict[str, Any]:
        """Counts: ``inputs``, ``images``, ``rejects`` by kind, and ``bytes`` on disk."""
        with _errors(f"cannot read the label store {self.path}"):
            inputs = self._dataset("inputs")
            errors = inputs.to_table(columns=["error"], filter="error IS NOT NULL")["error"].to_pylist()
            return {
                "inputs": inputs.count_rows(),
                "images": len(self),
                "rejects": dict(sorted(Counter(errors).items())),
                "bytes": sum(file.stat().st_size for file in self.path.rglob("*") if file.is_file()),
            }

    def _inputs(self, condition: str | None) -> Iterator[InputRow]:
        with _errors(f"cannot read the label store {self.path}"):
            for batch in self._dataset("inputs").to_batches(columns=INPUT_COLUMNS, filter=condition):
                for row in batch.to_pylist():
                    yield InputRow(**row)

    def _dataset(self, name: str) -> Any:
        """The handle for readers, at the version it was opened at."""
        dataset = self._datasets.get(name)
        if dataset is None:
            with self._lock, _errors(f"cannot open the label store {self.path}"):
                dataset = self._datasets[name] = self._open(name)
        return dataset

    def _open(self, name: str) -> Any:
        """A handle at the newest version. Writing needs one of its own: Lance lets nobody else use it meanwhile."""
        if os.getpid() != self._process:
            raise StoreError("a label store does not survive fork: start workers with spawn or forkserver")
        return lance.dataset(self.path / f"{name}.lance", session=self._session)

    def _id_table(self) -> NDArray[np.uint64]:
        with _errors(f"cannot read the label store {self.path}"):
            batches = self._dataset("labels").to_batches(columns=["id"])
            return digest_table(b"".join([bytes.fromhex("".join(batch["id"].to_pylist())) for batch in batches]))

    def _merge_labels(self, rows: pa.Table) -> None:
        self._merging("labels").when_not_matched_insert_all().execute(rows)

    def _merge_inputs(self, rows: pa.Table) -> None:
        # insertions never stand in the way of another writer's compaction, updates do
        done = self._merging("inputs").when_not_matched_insert_all().execute(rows)
        if done["num_inserted_rows"] < len(rows):
            self._merging("inputs").when_matched_update_all(_OUTDATED).execute(rows)

    def _merging(self, name: str) -> Any:
        merge = self._open(name).merge_insert(SCHEMAS[name].names[0])
        # other writers: Lance tries again, with a growing pause
        return merge.conflict_retries(100).retry_timeout(timedelta(minutes=5))

    def _compact(self) -> None:
        for name in SCHEMAS:
            try:
                dataset = self._open(name)
                dataset.optimize.compact_files(
                    target_rows_per_fragment=_FRAGMENT_ROWS,
                    num_threads=1,
                    # pages are copied as they are: no time and memory for decoding them
                    compaction_mode="try_binary_copy",
                    binary_copy_read_batch_bytes=4 << 20,
                    batch_size=256,
                )
                dataset.cleanup_old_versions(timedelta(hours=1))
            except OSError:
                # another writer was at it, or the disk is full: nothing depends on it, and the next turn comes
                continue


def _create_dataset(path: Path, schema: pa.Schema) -> Any:
    if not path.exists():
        # made aside and moved into place whole: of two processes that create at once in the same place, the second
        # would overwrite what the first has committed by then
        aside = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
        lance.write_dataset(schema.empty_table(), aside, mode="create")
        try:
            os.rename(aside, path)
        except OSError:
            # another process was faster: a folder that is not empty is never replaced
            shutil.rmtree(aside, ignore_errors=True)
    return lance.dataset(path)


@contextmanager
def _errors(doing: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, RuntimeError, pa.ArrowException) as error:
        if isinstance(error, StoreError):
            raise
        text = str(error)
        if "No space left" in text or "Disk quota exceeded" in text or "File too large" in text:
            text = "the disk is full. What was committed is safe: free some space and run the same command again"
        raise StoreError(f"{doing}: {text.partition(', /')[0]}") from error
