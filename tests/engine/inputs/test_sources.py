from __future__ import annotations

import io
import os
import pickle
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from maskmill.engine.inputs.identity import shard
from maskmill.engine.inputs.sources import EXTENSIONS, Item, open_source, read_uri
from maskmill.errors import ImageError, SourceError, UsageError


def write(folder: Path, *names: str) -> None:
    """Files that hold their own name."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())


def contents(spec: str | Path, **options: Any) -> list[str]:
    source = open_source(spec, **options)
    return [source.read(item).decode() for item in source]


def write_tar(path: Path, *names: str, prefix: str = "") -> None:
    with tarfile.open(path, "w") as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = len((prefix + name).encode())
            tar.addfile(info, io.BytesIO((prefix + name).encode()))


def test_a_folder_is_walked_in_order(tmp_path: Path) -> None:
    write(tmp_path, "b.JPG", "a.png", "notes.txt", "z/2.tiff", "z/1.webp", "c/deep/er/x.jpeg", "c/x.json", "a10.jpg")
    assert contents(tmp_path) == ["a.png", "a10.jpg", "b.JPG", "c/deep/er/x.jpeg", "z/1.webp", "z/2.tiff"]


def test_items_of_a_folder_know_size_and_time(tmp_path: Path) -> None:
    write(tmp_path, "a.jpg")
    os.utime(tmp_path / "a.jpg", ns=(0, 1234567890123456789))
    assert list(open_source(tmp_path)) == [Item(str(tmp_path / "a.jpg"), 5, "1234567890123456789")]


def test_relative_folders_give_absolute_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "photos/a.jpg")
    monkeypatch.chdir(tmp_path)
    expected = [str(tmp_path / "photos" / "a.jpg")]
    for spec in ("photos", "./photos/", "photos/a.jpg", "photos/*.jpg", f"file://{tmp_path}/photos"):
        assert [item.uri for item in open_source(spec)] == expected


def test_every_listed_extension_is_taken(tmp_path: Path) -> None:
    write(tmp_path, *(f"x{extension}" for extension in EXTENSIONS))
    assert len(list(open_source(tmp_path))) == len(EXTENSIONS)


def test_an_empty_ending_is_refused(tmp_path: Path) -> None:
    for ending in ("", "."):
        with pytest.raises(UsageError, match="the ending of images is empty; give one, as in --image-ending jpg"):
            open_source(tmp_path, image_ending=ending)


def test_linked_folders_are_followed_and_circles_end(tmp_path: Path) -> None:
    write(tmp_path, "photos/a.jpg", "elsewhere/b.jpg")
    (tmp_path / "photos" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "photos" / "circle").symlink_to(tmp_path / "photos")
    assert contents(tmp_path / "photos") == ["photos/a.jpg", "elsewhere/b.jpg"]


def test_a_text_list_is_taken_as_it_is(tmp_path: Path) -> None:
    write(tmp_path, "photos/b.jpg", "photos/no-extension", "photos/a.jpg", "outside/c.jpg")
    outside = f"file://{tmp_path}/outside/c.jpg"
    entries = ["b.jpg", "no-extension", "", "a.jpg", "  ", str(tmp_path / "outside" / "c.jpg"), outside]
    for ending in ("\n", "\r\n"):
        (tmp_path / "photos" / "list.txt").write_bytes(b"\xef\xbb\xbf" + ending.join(entries).encode())
        names = contents(tmp_path / "photos" / "list.txt")
        assert names == ["photos/b.jpg", "photos/no-extension", "photos/a.jpg", "outside/c.jpg", "outside/c.jpg"]


def test_entries_of_a_list_know_size_and_time(tmp_path: Path) -> None:
    write(tmp_path, "a.jpg")
    (tmp_path / "list.txt").write_text(f"a.jpg\n{tmp_path}/a.jpg\nfile://{tmp_path}/a.jpg\n")
    assert set(open_source(tmp_path / "list.txt")) == set(open_source(tmp_path))


def test_lists_may_name_folders_and_shards(tmp_path: Path) -> None:
    write(tmp_path, "photos/b.jpg", "photos/a.jpg")
    write_tar(tmp_path / "x.tar", "m.jpg")
    (tmp_path / "list.txt").write_text("x.tar\nphotos\n")
    assert contents(tmp_path / "list.txt") == ["m.jpg", "photos/a.jpg", "photos/b.jpg"]


def test_missing_entries_of_a_list_are_items_that_cannot_be_read(tmp_path: Path) -> None:
    write(tmp_path, "a.jpg")
    (tmp_path / "list.txt").write_text("gone.jpg\na.jpg\n")
    source = open_source(tmp_path / "list.txt")
    gone, there = list(source)
    assert (gone.size, gone.stamp) == (None, "")
    assert source.read(there) == b"a.jpg"
    with pytest.raises(ImageError, match=r"gone\.jpg: it does not exist") as caught:
        source.read(gone)
    assert caught.value.kind == "unreadable"


@pytest.mark.parametrize("column", ["uri", "path", "url", "image", "whatever"])
def test_a_parquet_list_is_found_by_its_column(tmp_path: Path, column: str) -> None:
    write(tmp_path, "b.jpg", "a.jpg")
    pq.write_table(pa.table({"n": [1, 2], column: ["b.jpg", "a.jpg"]}), tmp_path / "list.parquet")
    assert contents(tmp_path / "list.parquet") == ["b.jpg", "a.jpg"]


def test_the_first_known_column_of_a_parquet_list_wins(tmp_path: Path) -> None:
    write(tmp_path, "a.jpg")
    table = pa.table({"caption": ["?"], "url": ["?"], "path": pa.array(["a.jpg"], pa.large_string())})
    pq.write_table(table, tmp_path / "list.parquet")
    assert contents(tmp_path / "list.parquet") == ["a.jpg"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("list.txt", b"\xff\xfe\x00", "line 1: a list holds one path or URL per line in UTF-8"),
        ("list.txt", b"b\0.jpg\na.jpg", "line 1: .* binary"),
        ("list.txt", b"\n\n", "no images in"),
        ("list.parquet", b"PAR1 and noise", "not a Parquet file"),
    ],
)
def test_broken_lists_say_what_is_wrong(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError, match=message):
        list(open_source(tmp_path / name))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"a": ["x"], "b": ["y"]},
            "in a column of strings named image, uri, path or url .* or images in .* it has a, b",
        ),
        ({"n": [1]}, "it has n"),
    ],
)
def test_parquet_lists_without_paths_are_refused(tmp_path: Path, columns: dict[str, list[Any]], message: str) -> None:
    pq.write_table(pa.table(columns), tmp_path / "list.parquet")
    with pytest.raises(SourceError, match=message):
        list(open_source(tmp_path / "list.parquet"))


def test_a_glob_takes_every_file_that_matches(tmp_path: Path) -> None:
    write(tmp_path, "b/2.jpg", "b/1.png", "a/3.jpg", "a/odd", "c/deep/4.jpg")
    assert contents(tmp_path / "*" / "*.jpg") == ["a/3.jpg", "b/2.jpg"]
    assert contents(tmp_path / "**" / "*.jpg") == ["a/3.jpg", "b/2.jpg", "c/deep/4.jpg"]
    assert contents(tmp_path / "a" / "*") == ["a/3.jpg", "a/odd"]
    assert contents(tmp_path / "[bc]") == ["b/1.png", "b/2.jpg", "c/deep/4.jpg"]


def test_brackets_in_a_real_name_are_no_glob(tmp_path: Path) -> None:
    write(tmp_path, "trip [2020]/a.jpg")
    assert contents(tmp_path / "trip [2020]") == ["trip [2020]/a.jpg"]


def test_shards_give_their_images(tmp_path: Path) -> None:
    write_tar(tmp_path / "s-0.tar", "b.jpg", "b.json", "deep/a.PNG", "x" * 150 + ".jpg")
    write_tar(tmp_path / "s-1.tar", "b.jpg", prefix="second ")
    assert contents(tmp_path / "s-*.tar") == ["b.jpg", "deep/a.PNG", "x" * 150 + ".jpg", "second b.jpg"]
    first, *_ = open_source(tmp_path / "s-0.tar")
    assert first.uri == f"{tmp_path}/s-0.tar::b.jpg"
    assert first.size == 5
    assert first.stamp == str((tmp_path / "s-0.tar").stat().st_mtime_ns)


def test_members_are_read_in_any_order_by_many_threads(tmp_path: Path) -> None:
    names = [f"{index:03d}.jpg" for index in range(200)]
    write_tar(tmp_path / "s.tar", *names)
    source = pickle.loads(pickle.dumps(open_source(tmp_path / "s.tar")))
    items = pickle.loads(pickle.dumps(list(source)))
    found: dict[str, str] = {}

    def read(part: list[Item]) -> None:
        found.update({item.uri.rpartition("::")[2]: source.read(item).decode() for item in part})

    threads = [threading.Thread(target=read, args=(items[::-1][start::8],)) for start in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {name: name for name in names}


def test_a_cut_shard_loses_no_image_silently(tmp_path: Path) -> None:
    path = tmp_path / "s.tar"
    write_tar(path, "a.jpg", "b.jpg", "c.jpg")
    whole = path.read_bytes()
    damaged = whole[:1024] + b"damage" * 100 + whole[1624:]
    for broken, message in (
        (whole[: 512 * 3 + 2], r"b\.jpg needs 5 bytes, more than the archive has"),
        (damaged, "no header at byte 1,024"),
    ):
        path.write_bytes(broken)
        source = open_source(path)
        first, damage = source
        assert first.uri.endswith("::a.jpg")
        assert damage.uri == str(path)
        with pytest.raises(ImageError, match=message):
            source.read(damage)


def add(tar: tarfile.TarFile, name: str, data: bytes = b"", *, kind: bytes = tarfile.REGTYPE, target: str = "") -> None:
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.size = kind, target, len(data)
    tar.addfile(member, io.BytesIO(data))


def test_links_inside_an_archive_are_followed(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "links.tar", "w") as tar:
        add(tar, "early.jpg", kind=tarfile.SYMTYPE, target="deep/a.jpg")
        add(tar, "deep/a.jpg", b"a.jpg")
        add(tar, "hard.jpg", kind=tarfile.LNKTYPE, target="deep/a.jpg")
        add(tar, "deep/soft.jpg", kind=tarfile.SYMTYPE, target="a.jpg")
        add(tar, "chain.jpg", kind=tarfile.SYMTYPE, target="deep/soft.jpg")
        add(tar, "lost.jpg", kind=tarfile.SYMTYPE, target="../outside.jpg")
        add(tar, "loop.jpg", kind=tarfile.SYMTYPE, target="loop.jpg")
    source = open_source(tmp_path / "links.tar")
    items = {item.uri.rpartition("::")[2]: item for item in source}
    assert sorted(items) == [
        *("chain.jpg", "deep/a.jpg", "deep/soft.jpg", "early.jpg", "hard.jpg", "loop.jpg", "lost.jpg"),
    ]
    for name in ("chain.jpg", "deep/a.jpg", "deep/soft.jpg", "early.jpg", "hard.jpg"):
        assert source.read(items[name]) == b"a.jpg"
    for name, target in (("lost.jpg", r"\.\./outside\.jpg"), ("loop.jpg", r"loop\.jpg")):
        with pytest.raises(ImageError, match=f"it is a link to {target}, which the archive does not hold"):
            source.read(items[name])


def test_samples_with_several_pictures_need_an_ending(tmp_path: Path) -> None:
    names = [f"{index:04}.{ending}" for index in range(3) for ending in ("jpg", "seg.png", "json")]
    write_tar(tmp_path / "s.tar", *names)
    with pytest.raises(
        UsageError, match=r"several pictures per sample \(0000\.jpg, 0000\.seg\.png\); .* --image-ending jpg"
    ):
        list(open_source(tmp_path / "s.tar"))
    for ending in ("jpg", ".JPG"):
        assert contents(tmp_path / "s.tar", image_ending=ending) == ["0000.jpg", "0001.jpg", "0002.jpg"]
    assert contents(tmp_path / "s.tar", image_ending="seg.png") == ["0000.seg.png", "0001.seg.png", "0002.seg.png"]


def test_the_ending_of_a_sample_is_matched_exactly(tmp_path: Path) -> None:
    write_tar(tmp_path / "s.tar", "0.png", "0.seg.png", "1.png", "1.seg.png")
    assert contents(tmp_path / "s.tar", image_ending="png") == ["0.png", "1.png"]


def test_names_with_dots_of_their_own_are_no_samples(tmp_path: Path) -> None:
    names = ["IMG_0.rf.ab.jpg", "IMG_0.rf.cd.jpg", "IMG_1.rf.ab.jpg"]
    write_tar(tmp_path / "s.tar", *names)
    assert contents(tmp_path / "s.tar") == contents(tmp_path / "s.tar", image_ending="jpg") == names


def test_an_ending_can_be_chosen_for_folders_too(tmp_path: Path) -> None:
    write(tmp_path, "a.jpg", "a.mask.png", "b.jpg")
    source = open_source(tmp_path, image_ending="jpg")
    assert [item.uri.rpartition("/")[2] for item in source] == ["a.jpg", "b.jpg"]
    assert source.skipped == {".png": 1}
    with pytest.raises(SourceError, match=r"searched for \.tif, and it holds 2 \.jpg, 1 \.png"):
        list(open_source(tmp_path, image_ending="tif"))


def test_a_member_with_an_impossible_size_is_a_reject_and_the_rest_goes_on(tmp_path: Path) -> None:
    write_tar(tmp_path / "good.tar", "ok.jpg")
    data = bytearray((tmp_path / "good.tar").read_bytes())
    data[124:136] = b"\x80" + (1 << 62).to_bytes(11, "big")
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    (tmp_path / "bad.tar").write_bytes(bytes(data))
    (tmp_path / "none.tar").write_bytes(b"not a tar archive" * 100)
    (tmp_path / "list.txt").write_text("bad.tar\nnone.tar\ngood.tar\n")
    source = open_source(tmp_path / "list.txt")
    bad, none, good = source
    assert source.read(good) == b"ok.jpg"
    for item, message in ((bad, "more than the archive has"), (none, "cut short, damaged, or compressed")):
        with pytest.raises(ImageError, match=message) as caught:
            source.read(item)
        assert caught.value.kind == "unreadable"
    assert (bad.uri, none.uri) == (str(tmp_path / "bad.tar"), str(tmp_path / "none.tar"))


def test_a_csv_list_is_read_by_its_column(tmp_path: Path) -> None:
    write(tmp_path, "p/0.jpg", "p/1, with a comma.jpg")
    (tmp_path / "list.csv").write_text('\ufefflabel,image\nx.png,p/0.jpg\n\nx.png,"p/1, with a comma.jpg"\n')
    assert contents(tmp_path / "list.csv") == ["p/0.jpg", "p/1, with a comma.jpg"]
    (tmp_path / "list.csv").write_text("file,label\na,b\n")
    with pytest.raises(SourceError, match="a column named image, uri, path or url; its first line is file"):
        list(open_source(tmp_path / "list.csv"))


def test_a_text_list_has_comments_quotes_and_blanks(tmp_path: Path) -> None:
    write(tmp_path, "0.jpg", "1 .jpg", "#2.jpg")
    (tmp_path / "list.txt").write_text("\ufeff0.jpg \n# a comment\n\n\"1 .jpg\"\n  '#2.jpg'\n")
    assert contents(tmp_path / "list.txt") == ["0.jpg", "1 .jpg", "#2.jpg"]


def test_files_passed_over_are_counted_by_kind(tmp_path: Path) -> None:
    write(tmp_path, "a.jpg", "._a.jpg", "b/._b.jpg", ".DS_Store", "notes.txt", "README", "c.xyz", "__MACOSX/d.jpg")
    source = open_source(tmp_path)
    assert [item.uri.rpartition("/")[2] for item in source] == ["a.jpg"]
    assert source.skipped == {"resource forks": 3, ".ds_store": 1, ".txt": 1, "no ending": 1, ".xyz": 1}
    list(source)
    assert source.skipped.total() == 7
    write_tar(tmp_path / "s.tar", "a.jpg", "._a.jpg", "__MACOSX/b.jpg", "a.json")
    archive = open_source(tmp_path / "s.tar")
    assert len(list(archive)) == 1
    assert archive.skipped == {"resource forks": 2, ".json": 1}


def test_one_image_is_read_by_its_uri(tmp_path: Path) -> None:
    write(tmp_path, "a.jpg")
    write_tar(tmp_path / "s.tar", "m.jpg")
    assert read_uri(str(tmp_path / "a.jpg")) == b"a.jpg"
    assert read_uri(f"{tmp_path}/s.tar::m.jpg") == b"m.jpg"
    with pytest.raises(SourceError, match="no longer exists"):
        read_uri(f"{tmp_path}/s.tar::n.jpg")


def test_a_shard_that_shrank_after_listing_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "s.tar"
    write_tar(path, "a.jpg", "b.jpg")
    source = open_source(path)
    _, second = source
    path.write_bytes(path.read_bytes()[: 512 * 3 + 2])
    with pytest.raises(ImageError, match="2 of 5 bytes: the archive is cut short"):
        source.read(second)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("missing", "no such file or folder: .*missing"),
        ("missing/*.jpg", "nothing matches"),
        ("missing.txt", "no such file or folder"),
        ("empty", r"no images in .*empty; folders and archives are searched for \.jpg"),
        ("memory://missing", "memory://missing: it does not exist"),
        ("memory://missing/*.jpg", "nothing matches"),
    ],
)
def test_sources_without_images_say_so(tmp_path: Path, spec: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match=message):
        list(open_source(spec if "://" in spec else tmp_path / spec))


@pytest.mark.parametrize("spec", ["", "nonsense://photos"])
def test_specs_that_mean_nothing_are_usage_errors(spec: str) -> None:
    with pytest.raises(UsageError):
        open_source(spec)


def test_a_source_is_listed_lazily(tmp_path: Path) -> None:
    write(tmp_path, "a.jpg", "b/c.jpg")
    items = iter(open_source(tmp_path))
    assert next(items).uri.endswith("a.jpg")
    write(tmp_path, "b/d.jpg")
    assert [Path(item.uri).name for item in items] == ["c.jpg", "d.jpg"]


@pytest.fixture
def memory() -> Iterator[Any]:
    filesystem = fsspec.filesystem("memory")
    filesystem.store.clear()
    filesystem.pseudo_dirs[:] = [""]
    yield filesystem
    filesystem.store.clear()


def test_memory_urls(memory: Any, tmp_path: Path) -> None:
    write_tar(tmp_path / "s.tar", "m.jpg", "n.jpg")
    for name in ("photos/b.jpg", "photos/deep/a.png", "photos/notes.md"):
        memory.pipe(f"/{name}", name.encode())
    memory.pipe("/s.tar", (tmp_path / "s.tar").read_bytes())
    memory.pipe("/photos/list.txt", b"deep/a.png\nmemory://photos/b.jpg\n")
    assert contents("memory://photos") == ["photos/b.jpg", "photos/deep/a.png"]
    assert contents("memory://photos/*.jpg") == ["photos/b.jpg"]
    assert contents("memory://photos/deep/a.png") == ["photos/deep/a.png"]
    assert contents("memory://photos/list.txt") == ["photos/deep/a.png", "photos/b.jpg"]
    assert contents("memory://s.tar") == contents("memory://*.tar") == ["m.jpg", "n.jpg"]
    first, _ = open_source("memory://photos")
    assert (first.uri, first.size) == ("memory:///photos/b.jpg", 12)
    assert first.stamp


def test_a_rewritten_remote_file_has_another_stamp(memory: Any) -> None:
    stamps = set()
    for content in (b"1", b"2"):
        memory.pipe("/photos/b.jpg", content)
        stamps.update(item.stamp for item in open_source("memory://photos"))
    assert len(stamps) == 2


class Handler(SimpleHTTPRequestHandler):
    """Serves a folder, with byte ranges."""

    def send_head(self) -> Any:
        path = self.translate_path(self.path)
        wanted = self.headers.get("Range")
        if wanted is None or not os.path.isfile(path):
            return super().send_head()
        data = Path(path).read_bytes()
        start, end = (int(value) for value in wanted.removeprefix("bytes=").split("-"))
        part = data[start : end + 1]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {start}-{start + len(part) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        return io.BytesIO(part)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(tmp_path))) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_http_urls(server: str, tmp_path: Path) -> None:
    write(tmp_path, "photos/b.jpg", "photos/a.png", "photos/notes.md", "photos/photo-without-extension")
    write_tar(tmp_path / "s.tar", "m.jpg", "n.jpg")
    (tmp_path / "photos" / "list.txt").write_text(f"b.jpg\n{server}/photos/photo-without-extension\n/photos/a.png\n")
    assert contents(f"{server}/photos/") == ["photos/a.png", "photos/b.jpg"]
    assert contents(f"{server}/photos/b.jpg") == ["photos/b.jpg"]
    assert contents(f"{server}/photos/list.txt") == ["photos/b.jpg", "photos/photo-without-extension", "photos/a.png"]
    assert contents(f"{server}/s.tar") == ["m.jpg", "n.jpg"]
    (item,) = open_source(f"{server}/photos/b.jpg")
    assert (item.uri, item.size) == (f"{server}/photos/b.jpg", 12)
    assert item.stamp


def test_http_failures_are_reported(server: str, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(f"{server}/gone.jpg\n")
    source = open_source(tmp_path / "list.txt")
    (item,) = source
    with pytest.raises(ImageError, match=r"cannot read http://.*/gone\.jpg") as caught:
        source.read(item)
    assert caught.value.kind == "unreadable"
    with pytest.raises(SourceError, match="cannot list"):
        list(open_source(f"{server}/gone.txt"))


def test_shards_of_a_run_are_disjoint_and_complete() -> None:
    items = [Item(f"/photos/{index}.jpg") for index in range(1000)]
    parts = [list(shard(items, index, 4)) for index in range(4)]
    assert sorted(item.uri for part in parts for item in part) == sorted(item.uri for item in items)
    assert all(200 < len(part) < 300 for part in parts)
    assert [list(shard(reversed(items), index, 4))[::-1] for index in range(4)] == parts


@pytest.mark.parametrize(("index", "count"), [(4, 4), (-1, 4), (0, 0)])
def test_shards_are_counted_from_zero(index: int, count: int) -> None:
    with pytest.raises(UsageError, match="counted from 0"):
        shard([], index, count)
