"""Reads from URLs end within their limits, whatever the server does."""

from __future__ import annotations

import errno
import io
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from maskmill.engine.inputs.labels import open_labels
from maskmill.engine.inputs.sources import Item, Source, open_source
from maskmill.engine.model.storage import location_of
from maskmill.engine.reading.access import Access, Cancelled, limit_reads, schemes_of
from maskmill.engine.reading.remote_path import StorageError
from maskmill.engine.store.label_store import LabelStore
from maskmill.errors import ImageError, SourceError, UsageError
from tests.hostile_server import HostileServer, hostile_server

from ...models import color_bundle
from ..corpus import label_folder, write_damaged_shards

PATIENT = Access(retries=0, max_bytes=4 << 20, max_unknown_bytes=1 << 20)
QUICK = replace(PATIENT, timeout=0.5)
SLOW = replace(PATIENT, timeout=2.0)
"""Enough for some bytes of a slow answer to arrive on a busy machine."""


@pytest.fixture(scope="module")
def server() -> Iterator[HostileServer]:
    with hostile_server() as server:
        server.files["a.jpg"] = b"a photo"
        yield server


def read(url: str, access: Access = PATIENT) -> bytes:
    return Source(url, access=access).read(Item(url))


@pytest.mark.parametrize(
    ("kind", "reason", "message"),
    [
        ("silent", "timeout", "no answer within 0.5 s"),
        ("slow", "timeout", "too slow: .* bytes arrived"),
        ("slow-headers", "timeout", "no answer within 0.5 s"),
        ("endless", "too-large", "more than 1,048,576 bytes"),
        ("claims", "too-large", "more than 4,194,304 bytes"),
        ("bomb", "too-large", "more than 1,048,576 bytes"),
        ("loop", "unreadable", "redirect"),
        ("to-file", "unreadable", "file:///etc/passwd"),
        ("error", "unreadable", "500"),
        ("endless-error", "unreadable", "500"),
        ("cut", "unreadable", "incomplete|not enough data"),
    ],
)
def test_an_answer_out_of_bounds_is_one_reject(server: HostileServer, kind: str, reason: str, message: str) -> None:
    url = f"{server.url}/{kind}/a.jpg"
    with pytest.raises(ImageError, match=f"(?i)^cannot read {url}: .*({message})") as caught:
        read(url, SLOW if kind == "slow" else QUICK if reason == "timeout" else PATIENT)
    assert caught.value.kind == reason


def test_failures_that_may_pass_are_tried_again(server: HostileServer) -> None:
    assert read(f"{server.url}/recovers/a.jpg", Access(retries=2)) == b"a photo"
    assert server.requests["recovers"] == 3


def test_limits_hold_for_images_and_labels_that_are_opened_under_them(server: HostileServer) -> None:
    silent = f"{server.url}/silent/a.jpg"
    with limit_reads(timeout=0.5, retries=0):
        source = Source(silent)
        with pytest.raises(UsageError, match=r"no answer in time \(--timeout\)"):
            open_labels(f"{server.url}/silent/labels.json", format="coco")
    before = server.requests["silent"]
    with pytest.raises(ImageError, match=r"no answer within 0\.5 s"):
        source.read(Item(silent))
    assert server.requests["silent"] == before + 1
    assert Source(silent).access == Access()


def test_a_missing_file_is_not_tried_again(server: HostileServer) -> None:
    before = server.requests["loop"]
    with pytest.raises(ImageError):
        read(f"{server.url}/loop/b.jpg", Access(retries=2))
    assert server.requests["loop"] - before < 15


def test_a_server_that_ignores_byte_ranges_is_noticed(server: HostileServer) -> None:
    with pytest.raises(ImageError, match="ignores byte ranges"):
        Source("", access=PATIENT).read(Item("s.tar::a.jpg", 3, path=f"{server.url}/whole/a.jpg", offset=2))


@pytest.mark.parametrize("kind", ["silent", "slow"])
def test_a_run_that_is_cancelled_waits_for_no_answer(server: HostileServer, kind: str) -> None:
    source = Source("", access=Access(timeout=3600, retries=0))
    threading.Timer(0.3, source.cancel).start()
    with pytest.raises(Cancelled):
        source.read(Item(f"{server.url}/{kind}/a.jpg"))


class Hanging(fsspec.AbstractFileSystem):
    """A file system without asynchronous calls that never answers."""

    protocol = "hanging"

    def _open(self, path: str, *_: object, **__: object) -> None:
        threading.Event().wait(60)


def test_any_file_system_is_timed_and_can_be_cancelled() -> None:
    fsspec.register_implementation("hanging", Hanging, clobber=True)
    with pytest.raises(ImageError, match="no answer within 0.5 s") as caught:
        read("hanging://a.jpg", QUICK)
    assert caught.value.kind == "timeout"
    source = Source("", access=Access())
    threading.Timer(0.3, source.cancel).start()
    with pytest.raises(Cancelled):
        source.read(Item("hanging://a.jpg"))


def test_members_of_zip_archives_count_decompressed(tmp_path: Path, server: HostileServer) -> None:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.jpg", bytes(2 << 20))
        archive.writestr("a.jpg", b"a photo")
    assert len(data.getvalue()) < 5000
    (tmp_path / "z.zip").write_bytes(data.getvalue())
    server.files["z.zip"] = data.getvalue()
    for place in (str(tmp_path / "z.zip"), f"{server.url}/ok/z.zip"):
        assert read(f"zip://a.jpg::{place}") == b"a photo"
        with pytest.raises(ImageError, match="more than 1,048,576 bytes") as caught:
            read(f"zip://bomb.jpg::{place}")
        assert caught.value.kind == "too-large"


def test_a_list_of_urls_names_only_allowed_schemes(tmp_path: Path, server: HostileServer) -> None:
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(b"secret")
    entries = [
        f"file://{secret}",
        f"zip://a.jpg::{secret}",
        f"zip://a.jpg::file://{secret}",
        "ssh://host/a.jpg",
        f"{server.url}/ok/a.jpg",
        str(secret),
    ]
    server.files["list.txt"] = "\n".join(entries).encode()
    source = open_source(f"{server.url}/ok/list.txt", access=PATIENT)
    *refused, allowed, absolute = source
    assert source.read(allowed) == b"a photo"
    assert absolute.uri == f"{server.url}{secret}"
    for item in refused:
        with pytest.raises(ImageError, match="a list may not name .*:// URLs here; allow it with --schemes"):
            source.read(item)
    (tmp_path / "list.txt").write_text("\n".join(entries))
    names = [item.uri for item in open_source(tmp_path / "list.txt") if not item.problem]
    assert names == [str(secret), f"{server.url}/ok/a.jpg", str(secret)]
    ssh = Access(schemes=("ssh",))
    assert [item.problem[:24] for item in open_source(tmp_path / "list.txt", access=ssh)][3:5] == [
        "",
        "a list may not name http",
    ]


def test_every_part_of_a_chained_url_has_a_scheme() -> None:
    assert schemes_of("/a/b::c.jpg") == []
    assert schemes_of("HTTPS://host/a::b.jpg") == ["https"]
    assert schemes_of("zip://a.jpg::simplecache::https://host/b.zip") == ["zip", "simplecache", "https"]
    assert schemes_of("zip://a.jpg::/etc/x.zip") == ["zip", "file"]


@pytest.mark.parametrize("entry", ["endless/list.txt", "silent/list.txt", "error/list.txt", "endless/s.tar"])
def test_lists_and_archives_that_cannot_be_read_are_errors(server: HostileServer, entry: str) -> None:
    with pytest.raises(SourceError):
        list(open_source(f"{server.url}/{entry}", access=QUICK))


def test_a_remote_archive_that_cannot_be_read_is_one_reject(server: HostileServer, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(f"{server.url}/error/s.tar\n{server.url}/ok/a.jpg\n")
    source = open_source(tmp_path / "list.txt", access=PATIENT)
    broken, photo = source
    assert (broken.uri, source.read(photo)) == (f"{server.url}/error/s.tar", b"a photo")
    assert "500" in broken.problem


def test_an_index_page_that_goes_deeper_for_ever_ends(server: HostileServer) -> None:
    *items, last = open_source(f"{server.url}/index/", access=PATIENT)
    assert len(items) == 101
    assert last.problem.startswith("it is 100 folders deep")


def test_members_of_remote_archives_are_read(server: HostileServer) -> None:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        info = tarfile.TarInfo("m.jpg")
        info.size = 3
        tar.addfile(info, io.BytesIO(b"abc"))
    system = fsspec.filesystem("memory")
    system.pipe("/hostile/s.tar", data.getvalue())
    source = open_source("memory://hostile/s.tar")
    (item,) = source
    assert source.read(item) == b"abc"
    system.rm("/hostile", recursive=True)


def test_what_is_sound_in_damaged_remote_archives_is_labeled(server: HostileServer, tmp_path: Path) -> None:
    write_damaged_shards(tmp_path / "shards")
    for path in (tmp_path / "shards").iterdir():
        server.files[path.name] = path.read_bytes()
    shards = [f"{server.url}/ok/s-{number}.tar" for number in range(4)]
    (tmp_path / "list.txt").write_text("\n".join([f"{server.url}/error/s.tar", *shards]))
    progress = label_folder(color_bundle(tmp_path), tmp_path / "list.txt", tmp_path / "store")
    assert progress.images == 12
    rejects = {row.uri: row.message for row in LabelStore.open(tmp_path / "store").rejects()}
    assert sorted(rejects) == [f"{server.url}/error/s.tar", shards[1], f"{shards[2]}::1.png", shards[3]]
    assert all("is cut short, damaged" in str(rejects[shard]) for shard in (shards[1], shards[3]))


@pytest.mark.parametrize(
    "values",
    [{"timeout": 0}, {"timeout": float("nan")}, {"timeout": 1e9}, {"retries": -1}, {"schemes": ("http://",)}],
    ids=str,
)
def test_limits_out_of_range_are_usage_errors(values: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="must be|--schemes"):
        Access(**values)  # pyright: ignore[reportArgumentType]


class ReadOnly(MemoryFileSystem):
    """A file system that nobody may change."""

    protocol = "readonly"

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", path)

    pipe_file = rm_file = makedirs


def test_changes_that_a_file_system_refuses_are_one_error() -> None:
    fsspec.register_implementation("readonly", ReadOnly, clobber=True)
    place: Any = location_of("readonly://a/b")
    for action, change in (
        ("create", place.mkdir),
        ("write", lambda: place.write_bytes(b"x")),
        ("delete", place.unlink),
    ):
        with pytest.raises(StorageError, match=f"^cannot {action} readonly://a/b: Permission denied$"):
            change()
