"""Archives behind URLs are read in a few large requests, whatever the number of their members."""

from __future__ import annotations

import io
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from maskmill.engine.inputs.sources import open_source
from maskmill.engine.reading.read_ahead import LARGEST_BLOCK, ReadAhead
from tests.hostile_server import hostile_server

DATA = bytes(range(251)) * 400_000  # 100 MB
SIZE = 30_000


class Archive:
    def __init__(self) -> None:
        self.requests: list[tuple[int, int]] = []
        self._lock = threading.Lock()

    def fetch(self, *, offset: int, size: int) -> bytes:
        with self._lock:
            self.requests.append((offset, size))
        return DATA[offset : offset + size]


def test_reads_in_order_are_a_few_requests() -> None:
    archive, ahead = Archive(), ReadAhead()
    for offset in range(512, len(DATA), SIZE + 512):
        assert ahead.read("a.tar", offset, SIZE, archive.fetch) == DATA[offset : offset + SIZE]
    assert len(archive.requests) < 20
    assert sum(size for _, size in archive.requests) < len(DATA) + 2 * LARGEST_BLOCK
    assert max(size for _, size in archive.requests) == LARGEST_BLOCK


def test_threads_that_read_in_order_share_requests() -> None:
    archive, ahead = Archive(), ReadAhead()
    offsets = range(512, 50_000_000, SIZE + 512)
    with ThreadPoolExecutor(4) as pool:
        parts = pool.map(lambda offset: ahead.read("a.tar", offset, SIZE, archive.fetch), offsets)
        assert all(part == DATA[offset : offset + SIZE] for part, offset in zip(parts, offsets, strict=True))
    assert len(archive.requests) < 60


def test_reads_at_random_fetch_no_more_than_they_need() -> None:
    archive, ahead = Archive(), ReadAhead()
    for offset in (90_000_000, 10_000_000, 50_000_000, 20_000_000):
        assert ahead.read("a.tar", offset, SIZE, archive.fetch) == DATA[offset : offset + SIZE]
    assert [size for _, size in archive.requests] == [SIZE] * 4


def test_the_end_of_an_archive_gives_what_there_is() -> None:
    archive, ahead = Archive(), ReadAhead()
    assert ahead.read("a.tar", len(DATA) - 10, SIZE, archive.fetch) == DATA[-10:]
    assert ahead.read("a.tar", len(DATA) + 10, SIZE, archive.fetch) == b""


def test_a_member_larger_than_a_block_is_one_request() -> None:
    archive, ahead = Archive(), ReadAhead()
    assert ahead.read("a.tar", 0, 3 * LARGEST_BLOCK, archive.fetch) == DATA[: 3 * LARGEST_BLOCK]
    assert len(archive.requests) == 1


@pytest.mark.parametrize("scheme", ["http", "s3"])
def test_a_shard_behind_a_url_is_a_few_requests(scheme: str) -> None:
    data, members = io.BytesIO(), [bytes([number]) * SIZE for number in range(250)]
    with tarfile.open(fileobj=data, mode="w") as tar:
        for number, content in enumerate(members):
            info = tarfile.TarInfo(f"{number:03}.jpg")
            info.size = SIZE
            tar.addfile(info, io.BytesIO(content))
    with hostile_server() as server:
        server.files["s.tar"] = data.getvalue()
        options = {"aws_endpoint": server.url, "aws_access_key_id": "a", "aws_secret_access_key": "b"}
        source = open_source("s3://ok/s.tar" if scheme == "s3" else f"{server.url}/ok/s.tar", storage_options=options)
        items = list(source)
        listing = server.requests["ok"]
        assert [source.read(item) for item in items] == members
        assert listing < 12
        assert server.requests["ok"] - listing < 8
