"""Buckets of object stores: ``s3://``, ``gs://`` and ``az://`` as an fsspec filesystem.

Only this project uses the filesystem; URLs that other libraries open through fsspec in the same process are not
affected. Requests are made outside Python's lock. Each is bounded in size and time, retried after a temporary failure,
and interruptible on the main thread.
"""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

import fsspec
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

from ....errors import ImageError, UsageError
from ..access import MIN_RATE, Access, Meter
from ..outages import wait_out
from ..retries import in_thread, is_interrupted, may_pass, pause_before, wait_for_interrupt
from .client import REFUSED_NAME, MissingBucketError, RefusedNameError, open_client, translated
from .s3_names import list_folder

if TYPE_CHECKING:
    from datetime import datetime

    from obstore.store import ObjectStore

Result = TypeVar("Result")

_PROCESS: list[int] = []  # the process that uses the client; its threads do not survive a fork


def bucket_filesystem(url: str, options: Mapping[str, Any], access: Access) -> tuple[BucketFileSystem, str]:
    """Return the filesystem of a bucket's URL and the path in it.

    Raises :class:`UsageError` if an option is unknown or missing, and :class:`MissingPackageError`.
    """
    scheme, _, path = url.partition("://")
    system = _filesystem(scheme, tuple(sorted((key, str(value)) for key, value in options.items())), access)
    system.client(path.partition("/")[0])
    return system, path.rstrip("/")


def chained_through_bucket(url: str, options: Mapping[str, Any], access: Access) -> tuple[Any, str]:
    """Return the filesystem of a chained URL that ends in a bucket, as in ``zip://a.jpg::s3://bucket/a.zip``."""
    first, _, last = url.rpartition("::")
    scheme = last.partition("://")[0]
    name = f"maskmill-{scheme}"  # registered under a name that no other library uses
    fsspec.register_implementation(name, _ChainedBucket, clobber=True)
    arguments = {"scheme": scheme, "options": tuple(sorted((key, str(value)) for key, value in options.items()))}
    return fsspec.core.url_to_fs(f"{first}::maskmill-{last}", **{name: {**arguments, "access": access}})


@lru_cache(maxsize=64)
def _filesystem(scheme: str, options: tuple[tuple[str, str], ...], access: Access) -> BucketFileSystem:
    return BucketFileSystem(scheme, options, access)


class BucketFileSystem(AbstractFileSystem):
    """The buckets that one scheme, its options and ``access`` reach; paths are ``BUCKET/KEY``."""

    cachable = False

    def __init__(self, scheme: str, options: tuple[tuple[str, str], ...], access: Access) -> None:
        super().__init__()
        self.protocol = scheme
        self.access = access
        self._options = dict(options)
        self._clients: dict[str, Any] = {}
        self._refused: dict[str, list[str]] = {}  # refused names of the folders that were listed

    def __reduce__(self) -> tuple[object, ...]:
        return _filesystem, (self.protocol, tuple(sorted(self._options.items())), self.access)

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(name) for name in path]
        text = os.fspath(path)
        return text.partition("://")[2].rstrip("/") if "://" in text else text.rstrip("/")

    def unstrip_protocol(self, name: str) -> str:
        """Return the URL of a path."""
        return name if "://" in name else f"{self.protocol}://{name}"

    def client(self, bucket: str) -> ObjectStore:
        """Return the client of a bucket; raises :class:`UsageError` and :class:`MissingPackageError`."""
        if _PROCESS and [os.getpid()] != _PROCESS:
            raise UsageError("access to buckets does not survive fork: start workers with spawn or forkserver")
        if bucket not in self._clients:
            _PROCESS[:] = [os.getpid()]
            self._clients[bucket] = open_client(str(self.protocol), bucket, self._options, self.access)
        return self._clients[bucket]

    def fetch(self, path: str, meter: Meter, part: tuple[int, int] | None = None) -> bytes:
        """Return an object's bytes, or those from ``part[0]`` up to ``part[1]`` as far as they exist; one attempt.

        Raises :class:`ImageError` beyond the limits of ``meter``, and ``OSError``.
        """
        client, key = self._located(path)
        try:
            answer = client.get(key, options=None if part is None else {"range": part})
            first, last = answer.range
            if last - first > meter.limit:
                raise ImageError("too-large", f"it has {last - first:,} bytes; at most {meter.limit:,} are read")
            # small parts: at the slowest allowed rate, one arrives within half the time limit
            smallest = max(1, min(1 << 20, int(MIN_RATE * meter.access.timeout / 2)))
            parts = [meter.count(chunk) for chunk in answer.stream(min_chunk_size=smallest)]
        except ImageError:
            raise
        except Exception as error:
            failure = translated(error, self.unstrip_protocol(path))
            if part is not None and getattr(failure, "status", 0) == 416:
                return b""  # nothing is there
            raise failure from error
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def answers(self, path: str) -> bool:
        """Return True if a server answers at all, in one attempt; the content of the answer does not matter."""
        return not isinstance(self._probe(path), TimeoutError | ConnectionError)

    def serves(self, path: str) -> bool:
        """Return True if a server works, in one attempt: it answers, and not with a server error."""
        failure = self._probe(path)
        return failure is None or not may_pass(failure)

    def _probe(self, path: str) -> Exception | None:
        """Return the failure of one cheap request, None if it succeeds."""
        try:
            self.client(path.partition("/")[0]).head("_")
        except Exception as error:
            # the client's exceptions have no common base beside Exception
            return translated(error, self.unstrip_protocol(path))
        return None

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        """Return the bytes of an object, or of a part of it."""
        path = self._strip_protocol(path)
        if start is None and end is None:
            return self._repeated(path, lambda: self.fetch(path, Meter(self.access, self.access.max_bytes)))
        if min(start or 0, end or 0) < 0 or end is None:
            return super().cat_file(path, start, end)
        part = start or 0, end
        if end <= part[0]:
            return b""
        return self._repeated(path, lambda: self.fetch(path, Meter(self.access, 1 << 62), part))

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
        """Write an object in one step; with the mode ``create``, raises ``FileExistsError`` if it exists."""
        client, key = self._located(path)
        self._requested(path, lambda: client.put(key, value, mode="create" if mode == "create" else "overwrite"))

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """Return the name, size, type, ETag and time of an object or folder; raises ``FileNotFoundError``."""
        path = self._strip_protocol(path)
        client, key = self._located(path, anything=True)
        if key:
            try:
                return self._entry(path, self._requested(path, lambda: client.head(key)))
            except MissingBucketError:
                raise
            except FileNotFoundError:
                pass
        if not key or self._listed(path) is not None:
            return {"name": path, "size": 0, "type": "directory"}
        raise FileNotFoundError(f"{self.unstrip_protocol(path)} does not exist")

    def exists(self, path: str, **_: Any) -> bool:
        """Return True if there is an object or folder; unlike other filesystems, it raises if the request fails."""
        return self._type(path) != ""

    def isdir(self, path: str) -> bool:
        """Return True if there is a folder."""
        return self._type(path) == "directory"

    def isfile(self, path: str) -> bool:
        """Return True if there is an object."""
        return self._type(path) == "file"

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        """Return the objects and folders in a folder; raises ``FileNotFoundError`` if there are none."""
        path = self._strip_protocol(path)
        entries = self._listed(path)
        if entries is None:
            entries = [self.info(path)]
        return entries if detail else [entry["name"] for entry in entries]

    def find(
        self, path: str, maxdepth: int | None = None, withdirs: bool = False, detail: bool = False, **_: Any
    ) -> list[str] | dict[str, dict[str, Any]]:
        """Return all objects below a folder, sorted."""
        if maxdepth is not None or withdirs:
            return super().find(path, maxdepth=maxdepth, withdirs=withdirs, detail=detail)
        path = self._strip_protocol(path)
        client, key = self._located(path, anything=True)
        try:
            chunks = self._requested(path, lambda: list(client.list(key or None, chunk_size=1000)))
        except RefusedNameError:
            # folder by folder
            return super().find(path, detail=detail)
        bucket = path.partition("/")[0]
        entries = {f"{bucket}/{meta['path']}": meta for chunk in chunks for meta in chunk}
        # consoles write empty objects for folders
        folders = {name.rpartition("/")[0] for name in entries} | {path}
        files = {name: self._entry(name, entries[name]) for name in sorted(entries) if name not in folders}
        if not files and self.isfile(path):
            files = {path: self.info(path)}
        return files if detail else list(files)

    def refused_names(self, path: str) -> list[str]:
        """Return the paths directly in a listed folder that cannot be read because of their names."""
        return self._refused.get(self._strip_protocol(path), [])

    def rm_file(self, path: str) -> None:
        """Delete an object, if it exists."""
        client, key = self._located(path)
        self._requested(path, lambda: client.delete(key))

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Do nothing: a bucket has no folders of its own."""

    def _rm(self, path: str) -> None:
        self.rm_file(path)

    def get_file(self, rpath: str, lpath: str, **_: Any) -> None:
        """Copy an object of any size into a local file."""
        rpath = self._strip_protocol(rpath)
        with open(lpath, "wb") as file:
            position, size = 0, self.info(rpath)["size"]
            while position < size:
                file.write(self.cat_file(rpath, position, min(size, position + (1 << 25))))
                position = file.tell()

    def modified(self, path: str) -> datetime:
        """Return the time of an object's last change."""
        return self.info(path)["LastModified"]

    def _open(self, path: str, mode: str = "rb", block_size: Any = None, **options: Any) -> _File | _Upload:
        if mode == "wb":
            return _Upload(self, path)
        options.pop("autocommit", None)
        return _File(self, path, mode, block_size or "default", **options)

    def _type(self, path: str) -> str:
        try:
            return self.info(path)["type"]
        except MissingBucketError:
            raise
        except FileNotFoundError:
            return ""

    def _listed(self, path: str) -> list[dict[str, Any]] | None:
        """Return the contents of a folder, empty if only its marker object exists; None if there is no folder."""
        client, key = self._located(path, anything=True)
        bucket = path.partition("/")[0]
        refused_names: list[str] = []
        try:
            answer = self._requested(path, lambda: client.list_with_delimiter(key or None))
            objects, names = answer["objects"], answer["common_prefixes"]
            if "" in names:  # at the top of a bucket the client makes this of /
                raise RefusedNameError(f"{REFUSED_NAME} ({self.unstrip_protocol(bucket)}//)")
        except MissingBucketError:
            raise
        except FileNotFoundError:
            return None
        except RefusedNameError:
            if self.protocol not in ("s3", "s3a"):
                raise
            objects, names, refused_names = self._repeated(
                path, lambda: list_folder(bucket, key, self._options, self.access)
            )
        if not (objects or names or refused_names):
            return None
        self._refused[path] = [f"{bucket}/{name}" for name in refused_names]
        folders = [{"name": f"{bucket}/{name}", "size": 0, "type": "directory"} for name in names]
        # consoles write an empty object for a folder
        objects = [meta for meta in objects if meta["path"] != key]
        return [self._entry(f"{bucket}/{meta['path']}", meta) for meta in objects] + folders

    def _entry(self, name: str, meta: Mapping[str, Any]) -> dict[str, Any]:
        changed = {"ETag": meta["e_tag"], "LastModified": meta["last_modified"]}
        return {"name": name, "size": meta["size"], "type": "file", **changed}

    def _located(self, path: str, *, anything: bool = False) -> tuple[Any, str]:
        bucket, _, key = self._strip_protocol(path).partition("/")
        if key.startswith("/"):  # the client would take the object without the slash
            raise RefusedNameError(f"{REFUSED_NAME} ({self.unstrip_protocol(path)})")
        if not key and not anything:
            raise FileNotFoundError(f"{self.unstrip_protocol(path)} names no object")
        return self.client(bucket), key

    def _requested(self, path: str, request: Callable[[], Result]) -> Result:
        """Make a request of the client, with its exceptions translated."""

        def attempt() -> Result:
            try:
                return request()
            except Exception as error:
                raise translated(error, self.unstrip_protocol(path)) from error

        return self._repeated(path, attempt)

    def place(self, path: str) -> str:
        """Return the URL of a path's bucket."""
        return f"{self.protocol}://{path.partition('/')[0]}"

    def _repeated(self, path: str, attempt: Callable[[], Result]) -> Result:
        """Call ``attempt`` until it succeeds: within the number of retries, and for minutes during an outage."""
        return wait_out(lambda: self._attempts(attempt), may_pass, self.place(self._strip_protocol(path)))

    def _attempts(self, attempt: Callable[[], Result]) -> Result:
        # the client does not notice signals, which arrive on the main thread
        on_main = threading.current_thread() is threading.main_thread()
        for number in range(self.access.retries + 1):
            try:
                return in_thread(attempt).result() if on_main else attempt()
            except Exception as error:
                if number == self.access.retries or not may_pass(error) or is_interrupted():
                    raise
            wait_for_interrupt(pause_before(number + 1))
        raise AssertionError("the last attempt returns or raises")


class _ChainedBucket(BucketFileSystem):
    """The filesystem as a part of a chained URL."""

    protocol = ("maskmill-s3",)

    @classmethod
    def _get_kwargs_from_urls(cls, path: str) -> dict[str, Any]:
        return {}


class _File(AbstractBufferedFile):
    """An object with random access."""

    def _fetch_range(self, start: int, end: int) -> bytes:
        return self.fs.cat_file(self.path, start, end)


class _Upload(io.BytesIO):
    """A new object, written when it is closed; nothing is written after an exception."""

    def __init__(self, system: BucketFileSystem, path: str) -> None:
        super().__init__()
        self._system, self._path = system, path

    def __exit__(self, kind: Any, *_: Any) -> None:
        if kind is not None:
            super().close()
        self.close()

    def close(self) -> None:
        """Write the object."""
        if not self.closed:
            data = self.getvalue()
            super().close()
            self._system.pipe_file(self._path, data)

    def __del__(self) -> None:
        super().close()
