from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from maskmill.engine.inputs.names import NameIndex, image_id, read_ids, select_ids
from maskmill.errors import UsageError


def ids(folder: Path, text: str, name: str = "ids.txt") -> frozenset[str]:
    (folder / name).write_text(text, encoding="utf-8")
    return read_ids(folder / name)


def test_an_image_id_is_the_file_name_alone() -> None:
    assert image_id("/a/b/1_10_s.jpg") == image_id("x.tar::q/1_10_s.png") == image_id("1_10_s") == "1_10_s"
    assert image_id("https://host/a/1.jpg?size=2") == "1"


def test_a_name_selects_the_file_and_no_other() -> None:
    uris = ["/p/p0.jpg", "/p/p0.v2.jpg", "/p/IMG_1_jpg.rf.abc.jpg", "/q/p1.jpg", "/q/p1.png"]
    assert select_ids(uris, ["p0.v2.jpg"]) == ["/p/p0.v2.jpg"]
    assert select_ids(uris, ["p0.jpg"]) == ["/p/p0.jpg"]
    assert select_ids(uris, ["IMG_1_jpg.rf.abc.jpg"]) == ["/p/IMG_1_jpg.rf.abc.jpg"]
    assert select_ids(uris, ["IMG_1_jpg.rf.abc"]) == ["/p/IMG_1_jpg.rf.abc.jpg"]
    assert select_ids(uris, ["q/p1.png", "/p/p0.jpg"]) == ["/p/p0.jpg", "/q/p1.png"]
    assert select_ids(uris, ["p0"]) == ["/p/p0.jpg"]
    assert select_ids(uris, None) == uris


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a"], r"a is ambiguous: x/a\.jpg and x/a\.png match; add the folder or the ending"),
        (["b.jpg"], r"b\.jpg is ambiguous: x/b\.jpg and y/b\.jpg"),
        (["x/c.jpg", "x/b.jpg"], r"1 of the 2 listed images are not there: x/c\.jpg$"),
        (["a.tif"], r"a\.tif \(a\.jpg is there\)"),
    ],
)
def test_names_that_select_no_image_or_several_are_refused(names: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        select_ids(["x/a.jpg", "x/a.png", "x/b.jpg", "y/b.jpg"], names)


def test_names_that_look_equal_are_equal() -> None:
    composed, decomposed = "/p/caf\u00e9.jpg", unicodedata.normalize("NFD", "caf\u00e9.jpg")
    assert select_ids([composed], [decomposed]) == [composed]


def test_a_list_of_names_may_have_comments_quotes_blanks_and_a_byte_order_mark(tmp_path: Path) -> None:
    text = '\ufeffa/1.jpg \r\n\r\n# a comment\r\n"b 2.jpg"\r\n"#3.jpg"\r\n'
    assert ids(tmp_path, text) == {"a/1.jpg", "b 2.jpg", "#3.jpg"}
    assert ids(tmp_path, "\ufeffimage,label\na/1.jpg,x.png\n", "ids.csv") == {"a/1.jpg"}


def test_an_empty_or_missing_list_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is empty"):
        ids(tmp_path, "\n# nothing\n")
    with pytest.raises(UsageError, match=r"cannot read the list of images .*none\.txt"):
        read_ids(tmp_path / "none.txt")
    with pytest.raises(UsageError, match="needs a header line with a column named image"):
        ids(tmp_path, "file\n1.jpg\n", "ids.csv")


def test_things_are_found_by_the_end_of_the_path() -> None:
    index = NameIndex({"a/1.jpg": 1, "b/1": 2, "2.png": 3, "2.jpg": 4}, "images in labels.csv")
    assert [index.find(uri) for uri in ("/p/a/1.jpg", "/p/b/1.png", "x.tar::2.jpg", "/p/2.png")] == [1, 2, 4, 3]
    assert index.find("/p/1.jpg") is index.find("/p/c/1.jpg") is None
    assert index.similar("/p/c/1.jpg") == ["a/1.jpg", "b/1"]
    with pytest.raises(UsageError, match=r"/p/2\.gif matches 2 images in labels\.csv \(2\.png, 2\.jpg\)"):
        index.find("/p/2.gif")
