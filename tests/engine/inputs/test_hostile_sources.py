"""One bad entry of a source is one reject: everything else is listed and read."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from maskmill.engine.inputs.archives import MAX_HEADER, split_member, tar_members
from maskmill.engine.inputs.names import file_key, image_id
from maskmill.engine.inputs.sources import Item, Source, open_source, read_uri
from maskmill.errors import ImageError, UsageError

BLOCK = 512


def header(name: bytes, size: bytes, kind: bytes = b"0", target: bytes = b"") -> bytes:
    """Tar header with the fields as they are given, and the right checksum."""
    block = bytearray(BLOCK)
    block[0 : len(name)] = name
    block[100:108] = b"0000644\0"
    block[124:136] = size.ljust(12, b"\0")
    block[156:157] = kind
    block[157 : 157 + len(target)] = target
    block[257:265] = b"ustar\00000"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def member(name: bytes, data: bytes, kind: bytes = b"0") -> bytes:
    return header(name, b"%011o" % len(data), kind) + data + bytes(-len(data) % BLOCK)


GOOD = member(b"good.jpg", b"a photo")
END = bytes(2 * BLOCK)
CHAIN = member(b"././@LongLink", b"x" * 200, b"L")
NEGATIVE = b"\xff" * 11 + b"\0"
HUGE = b"\x80" + (1 << 62).to_bytes(11, "big")

DAMAGED = {
    "a declared size of 2^62": header(b"bad.jpg", HUGE),
    "a negative size": header(b"bad.jpg", NEGATIVE),
    "a long name of 2^62 bytes": header(b"././@LongLink", HUGE, b"L"),
    "a long name of negative size": header(b"././@LongLink", NEGATIVE, b"L"),
    "extended headers of 2^62 bytes": header(b"x", HUGE, b"x"),
    "5,000 chained long names": CHAIN * 5000,
    "5,000 chained extended headers": member(b"x", b"13 path=long\n", b"x") * 5000,
    "5,000 global headers": member(b"x", b"14 comment=aa\n", b"g") * 5000,
    "an extended header with a negative size": member(b"x", b"12 size=-512\n", b"x") + header(b"a.jpg", b"0"),
    "a truncated member": header(b"bad.jpg", b"%011o" % 5000) + b"only this",
    "noise": b"\xffnoise" * 100,
}


@pytest.mark.parametrize("damage", DAMAGED.values(), ids=DAMAGED.keys())
def test_what_precedes_damage_in_an_archive_is_read_and_damage_is_one_reject(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "bad.tar").write_bytes(GOOD + damage)
    (tmp_path / "photo.jpg").write_bytes(b"another")
    (tmp_path / "list.txt").write_text("bad.tar\nphoto.jpg\n")
    source = open_source(tmp_path / "list.txt")
    good, bad, photo = source
    assert (source.read(good), source.read(photo)) == (b"a photo", b"another")
    with pytest.raises(ImageError, match="cut short, damaged, or compressed") as caught:
        source.read(bad)
    assert (caught.value.kind, bad.uri) == ("unreadable", str(tmp_path / "bad.tar"))


def test_a_chain_of_links_costs_no_time(tmp_path: Path) -> None:
    links = b"".join(header(b"%d.jpg" % n, b"0", b"2", b"%d.jpg" % (n + 1)) for n in range(20_000))
    path = tmp_path / "links.tar"
    path.write_bytes(links + member(b"20000.jpg", b"photo") + END)
    members = [item for item in open_source(path) if not item.problem]
    # the file itself and the links that are close enough to it
    assert len(members) == 41
    assert {item.offset for item in members} == {members[0].offset}


def test_of_repeated_names_the_first_is_used_and_the_others_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "s.tar"
    path.write_bytes(GOOD + member(b"b.jpg", b"b") + member(b"good.jpg", b"other") + END)
    source = open_source(path)
    assert [source.read(item) for item in source] == [b"a photo", b"b"]
    assert source.skipped == {"repeated names in archives": 1}


def test_headers_within_the_limit_are_read(tmp_path: Path) -> None:
    name = "d/" * 400 + "a.jpg"
    with tarfile.open(tmp_path / "s.tar", "w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "x" * 5000}) as tar:
        info = tarfile.TarInfo(name)
        info.size = 3
        tar.addfile(info, io.BytesIO(b"abc"))
    with (tmp_path / "s.tar").open("rb") as file:
        (only,) = tar_members(file, "s.tar")
    assert (only.name, only.size, only.problem) == (name, 3, "")
    assert len(name) < MAX_HEADER


def test_a_folder_and_an_archive_without_permission_are_one_reject_each() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        for file in ("a/1.jpg", "closed/2.jpg", "z/3.jpg"):
            (folder / file).parent.mkdir()
            (folder / file).write_bytes(b"x")
        (folder / "z.tar").write_bytes(GOOD + END)
        (folder / "list.txt").write_text("a\nclosed\nz.tar\nz\n")
        for path in (folder / "closed", folder / "z.tar"):
            path.chmod(0)
        list(open_source(folder / "a"))
        user = os.geteuid()
        try:
            if user == 0:
                # no permission stops root
                os.seteuid(65534)
            walked, listed = (list(open_source(folder / spec)) for spec in (".", "list.txt"))
        finally:
            os.seteuid(user)
        (folder / "closed").chmod(0o755)
    for items, names in (
        (walked, ["1.jpg", "closed", "3.jpg"]),
        (listed, ["1.jpg", "closed", "z.tar", "3.jpg"]),
    ):
        assert [item.uri.rpartition("/")[2] for item in items] == names
        assert all(("Permission denied" in item.problem) == (item.uri[-3:] != "jpg") for item in items)


@pytest.fixture
def deep(tmp_path: Path) -> Iterator[Path]:
    """Folder for folders that are too deep for Python to remove."""
    yield tmp_path
    subprocess.run(["rm", "-rf", str(tmp_path)], check=True)


def nest(folder: Path, names: list[str]) -> None:
    """Make folders within folders, and a photo in each 100th of them."""
    place = os.open(folder, os.O_RDONLY)
    for depth, name in enumerate(names):
        os.mkdir(name, dir_fd=place)
        below = os.open(name, os.O_RDONLY, dir_fd=place)
        if depth % 100 == 0:
            os.close(os.open(f"{depth}.jpg", os.O_CREAT | os.O_WRONLY, dir_fd=below))
        os.close(place)
        place = below
    os.close(place)


def test_folders_beyond_the_longest_path_are_one_reject(deep: Path) -> None:
    nest(deep, ["deeper"] * 1300)
    (deep / "last.jpg").write_bytes(b"")
    (deep / "z").mkdir()
    (deep / "z" / "z.jpg").write_bytes(b"")
    *items, too_deep, last = open_source(deep)
    assert [item.uri.rpartition("/")[2] for item in items][:3] == ["last.jpg", "0.jpg", "100.jpg"]
    assert "File name too long" in too_deep.problem
    assert last.uri.endswith("z/z.jpg")


def test_1300_nested_folders_are_walked(deep: Path) -> None:
    nest(deep, ["d"] * 1300)
    assert [item.uri.rpartition("/")[2] for item in open_source(deep)] == [f"{n}.jpg" for n in range(0, 1300, 100)]


def test_bad_entries_of_a_list_are_one_reject_each(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(name.encode())
    lines = [b"a.jpg", b"\xff\xfe.jpg", b"n\0ul.jpg", b"long" * 30_000, b"x" * 300 + b".jpg", b"missing.jpg", b"b.jpg"]
    (tmp_path / "list.txt").write_bytes(b"\n".join(lines))
    (tmp_path / "list.csv").write_bytes(b"\n".join([b"image,size", *lines]) + b"\n,1\n")
    for name in ("list.txt", "list.csv"):
        source = open_source(tmp_path / name)
        items = list(source)
        errors = []
        for item in items:
            try:
                assert source.read(item) == item.uri.rpartition("/")[2].encode()
            except ImageError as error:
                errors.append(str(error))
        assert sum("b.jpg" in item.uri for item in items) == 1
        for message in ("in UTF-8", "binary data", "longer than 65,536", "File name too long", "does not exist"):
            assert sum(message in error for error in errors) == 1, (message, errors)
    assert sum("line 9: the column image is empty" in error for error in errors) == 1


def test_two_colons_in_local_names_mean_nothing(tmp_path: Path) -> None:
    for name in ("a::b.jpg", "s::t/c.jpg", "x.tar::y.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    source = open_source(tmp_path)
    for item in source:
        assert source.read(item) == read_uri(item.uri) == item.uri.removeprefix(f"{tmp_path}/").encode()
    assert file_key("/photos/a::b.jpg") == "/photos/a::b.jpg"
    assert image_id("/photos/a::b.jpg") == "a::b"
    assert image_id("/photos/s.tar::d/b.jpg") == "b"
    assert image_id("zip://d/b.jpg::https://host/photos.zip") == "b"


@pytest.mark.parametrize(
    ("uri", "parts"),
    [
        ("/p/s.tar::a.jpg", ("/p/s.tar", "a.jpg")),
        ("/p/s.TAR::a::b.jpg", ("/p/s.TAR", "a::b.jpg")),
        ("/p::q/s.tar::/a.jpg", ("/p::q/s.tar", "/a.jpg")),
        ("https://host/s.tar?key=1::a.jpg", ("https://host/s.tar?key=1", "a.jpg")),
        ("zip://s.tar::https://host/a.zip", None),
        ("/p/a::b.jpg", None),
        ("/p/a.jpg", None),
    ],
)
def test_members_are_told_by_their_archive(uri: str, parts: tuple[str, str] | None) -> None:
    assert split_member(uri) == parts


def test_devices_and_pipes_are_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "zero.jpg").symlink_to("/dev/zero")
    for name in ("pipe.jpg", "zero.jpg"):
        with pytest.raises(ImageError, match="it is not a regular file"):
            read_uri(str(tmp_path / name))
    os.mkfifo(tmp_path / "list.txt")
    os.mkfifo(tmp_path / "s.tar")
    for name in ("list.txt", "s.tar"):
        source = open_source(tmp_path / name)
        (item,) = source
        with pytest.raises(ImageError, match="it is not a regular file"):
            source.read(item)


def test_a_file_whose_size_is_not_told_is_read_to_its_end() -> None:
    assert b"Name" in Source("").read(Item("/proc/self/status"))


def test_an_id_list_with_a_bad_line_is_refused(tmp_path: Path) -> None:
    from maskmill.engine.inputs.names import read_ids

    (tmp_path / "ids.txt").write_bytes(b"a.jpg\n\xff.jpg\n")
    with pytest.raises(UsageError, match="line 2: a list holds"):
        read_ids(tmp_path / "ids.txt")


def test_names_with_two_colons_are_paired_with_their_own_label_map(tmp_path: Path) -> None:
    from maskmill.engine.inputs.labels import open_labels

    for name in ("a::x", "b::x"):
        for folder, suffix in (("images", ".jpg"), ("labels", ".png")):
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / f"{name}{suffix}").write_bytes(b"x")
    pairs = open_labels(tmp_path / "labels").pair(
        [str(tmp_path / "images" / "a::x.jpg"), str(tmp_path / "images" / "b::x.jpg")], str(tmp_path / "images")
    )
    assert [entry.name.rpartition("/")[2] for entry in pairs.labels.values()] == ["a::x.png", "b::x.png"]


def test_a_sparse_member_is_one_reject(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(header(b"sparse.jpg", b"0", b"S") + GOOD + END)
    source = open_source(tmp_path / "a.tar")
    sparse, good = source
    assert source.read(good) == b"a photo"
    with pytest.raises(ImageError, match="stored as a sparse file"):
        source.read(sparse)
