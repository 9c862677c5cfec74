"""Archives in URLs as sources: a folder, a pattern, a list or a shard in ``zip://`` and ``tar://``, from anywhere."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from maskmill.engine.inputs.archives import split_member
from maskmill.engine.inputs.names import file_key, image_id
from maskmill.engine.inputs.sources import open_source, read_uri
from maskmill.engine.reading.access import Access
from maskmill.errors import ImageError, MaskmillError
from tests.hostile_server import HostileServer, hostile_server

KEYS = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "aws_region": "us-east-1"}
NAMES = ("a.jpg", "b.png", "d/c.jpg")
SCHEMES = Access(schemes=("zip", "file", "memory"))


def packed(kind: str, files: dict[str, bytes]) -> bytes:
    """Archive of files, in their order."""
    stream = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(stream, "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data)
    else:
        with tarfile.open(fileobj=stream, mode="w") as archive:
            for name, data in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return stream.getvalue()


@pytest.fixture(scope="module")
def server() -> Iterator[HostileServer]:
    with hostile_server() as server:
        yield server


@pytest.fixture(params=["path", "file", "memory", "http", "cached", "s3"])
def put(request: pytest.FixtureRequest, tmp_path: Path, server: HostileServer) -> Any:
    """Function that stores an archive; returns the URL that others are chained to, and storage options."""
    options = {**KEYS, "aws_endpoint": server.url} if request.param == "s3" else {}

    def store(name: str, data: bytes) -> tuple[str, dict[str, str]]:
        if request.param == "memory":
            fsspec.filesystem("memory").pipe(f"/chained/{name}", data)
        else:
            (tmp_path / name).write_bytes(data)
            server.files[name] = data
        places = {
            "path": str(tmp_path / name),
            "file": f"file://{tmp_path / name}",
            "memory": f"memory://chained/{name}",
            "http": f"{server.url}/ok/{name}",
            "cached": f"simplecache::{server.url}/ok/{name}",
            "s3": f"s3://ok/{name}",
        }
        return places[request.param], options

    return store


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_items_keep_their_archive(put: Any, kind: str) -> None:
    place, options = put(f"s.{kind}", packed(kind, {name: name.encode() for name in NAMES}))
    source = open_source(f"{kind}://**/*.jpg::{place}", storage_options=options)
    items = list(source)
    assert [item.uri for item in items] == [f"{kind}://{name}::{place}" for name in ("a.jpg", "d/c.jpg")]
    for item, name in zip(items, ("a.jpg", "d/c.jpg"), strict=True):
        assert source.read(item) == read_uri(item.uri, options) == name.encode()
        assert (file_key(item.uri), image_id(item.uri)) == (f"{kind}://{name}", Path(name).stem)


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("", ["a.jpg", "b.png", "d/c.jpg"]),
        ("d", ["d/c.jpg"]),
        ("*.jpg", ["a.jpg"]),
        ("d/*", ["d/c.jpg"]),
        ("d/c.jpg", ["d/c.jpg"]),
    ],
)
def test_a_pattern_or_folder_in_an_archive(tmp_path: Path, kind: str, pattern: str, expected: list[str]) -> None:
    path = tmp_path / f"s.{kind}"
    path.write_bytes(packed(kind, {name: name.encode() for name in NAMES}))
    source = open_source(f"{kind}://{pattern}::{path}")
    assert [item.uri for item in source] == [f"{kind}://{name}::{path}" for name in expected]
    assert [source.read(item) for item in source] == [name.encode() for name in expected]


def test_lists_and_shards_in_an_archive(put: Any) -> None:
    files = {
        "a.jpg": b"a",
        "lists/l.txt": b"../a.jpg\nb.jpg\n",
        "lists/b.jpg": b"b",
        "s.tar": packed("tar", {"c.jpg": b"c"}),
    }
    place, options = put("z.zip", packed("zip", files))
    source = open_source(f"zip://s.tar::{place}", storage_options=options)
    (item,) = source
    assert split_member(item.uri) == (f"zip://s.tar::{place}", "c.jpg")
    assert source.read(item) == read_uri(item.uri, options) == b"c"
    source = open_source(f"zip://lists/l.txt::{place}", storage_options=options, access=SCHEMES)
    up, beside = source
    assert source.read(beside) == b"b"
    assert beside.uri == f"zip://lists/b.jpg::{place}"
    with pytest.raises(ImageError, match="cannot read zip://lists/../a.jpg::"):
        source.read(up)


def test_an_archive_is_opened_once(server: HostileServer) -> None:
    names = [f"{number:02d}.jpg" for number in range(20)]
    server.files["many.zip"] = packed("zip", {name: name.encode() for name in names})
    source = open_source(f"zip://*.jpg::{server.url}/ok/many.zip")
    items = list(source)
    before = server.requests["ok"]
    assert [source.read(item) for item in items] == [name.encode() for name in names]
    assert server.requests["ok"] < before + 20
    server.files["many.zip"] = b"no archive any more"
    fresh = open_source(f"zip://*.jpg::{server.url}/ok/many.zip", access=Access(timeout=20.0))
    with pytest.raises(ImageError, match="^cannot read zip://00.jpg::.*the archive is damaged, or of another kind"):
        fresh.read(items[0])


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("{folder}/none.a", "it does not exist|No such file"),
        ("{folder}/odd.a", "the archive is damaged, or of another kind"),
        ("{server}/ok/odd.a", "the archive is damaged, or of another kind"),
        ("{server}/refuses/none.a", "the server answers 403"),
        ("s3://ok/odd.a", "the archive is damaged, or of another kind"),
        ("s3://unknown/none.a", "the bucket unknown does not exist"),
        ("s3://refuses/none.a", "the server refuses access"),
        ("memory://none.a", "it does not exist"),
    ],
)
def test_an_archive_that_cannot_be_read_is_an_error(
    server: HostileServer, tmp_path: Path, kind: str, place: str, message: str
) -> None:
    server.files["odd.a"] = b"no archive, " * 100
    (tmp_path / "odd.a").write_bytes(server.files["odd.a"])
    url = f"{kind}://*.jpg::{place.format(folder=tmp_path, server=server.url)}"
    options = {**KEYS, "aws_endpoint": server.url} if "s3://" in url else {}
    with pytest.raises(MaskmillError, match=message) as caught:
        list(open_source(url, storage_options=options, access=Access(retries=0)))
    assert "\n" not in str(caught.value)
    assert url in str(caught.value)


def test_a_name_with_two_colons_in_an_archive_is_one_reject(put: Any) -> None:
    place, options = put("colons.zip", packed("zip", {"a::b.jpg": b"x", "c.jpg": b"c"}))
    source = open_source(f"zip://*.jpg::{place}", storage_options=options)
    odd, sound = source
    assert source.read(sound) == b"c"
    with pytest.raises(ImageError, match=r"^cannot read zip://a::b.jpg::.*: its name in the archive has '::'"):
        source.read(odd)


def test_an_archive_behind_a_server_without_byte_ranges_is_an_error(server: HostileServer) -> None:
    server.files["z.zip"] = packed("zip", {"a.jpg": b"a"})
    with pytest.raises(MaskmillError, match="the server ignores byte ranges, so its archives must be downloaded first"):
        list(open_source(f"zip://*.jpg::{server.url}/whole/z.zip"))


@pytest.mark.parametrize(
    ("uri", "key"),
    [
        ("s3://bucket/odd/a::b.jpg", "s3://bucket/odd/a::b.jpg"),
        ("https://host/a::b.jpg", "host/a::b.jpg"),
        ("zip://d/a.jpg::simplecache::s3://bucket/z.zip", "zip://d/a.jpg"),
        ("simplecache::s3://bucket/d/a.jpg", "s3://bucket/d/a.jpg"),
    ],
)
def test_the_key_of_an_image_is_its_name_in_the_archive(uri: str, key: str) -> None:
    assert file_key(uri) == key
