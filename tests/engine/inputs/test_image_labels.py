from __future__ import annotations

import json
from pathlib import Path

import pytest

from maskmill.engine.inputs.image_labels import ImageLabels
from maskmill.errors import ImageError, UsageError

CLASSES = ("cow", "horse", "sheep")


def load(folder: Path, name: str, text: str) -> ImageLabels:
    (folder / name).write_text(text, encoding="utf-8")
    return ImageLabels.load(folder / name)


COCO = {
    "images": [{"id": 7, "file_name": "a/1.jpg"}, {"id": 8, "file_name": "2.jpg"}, {"id": 9, "file_name": "3.jpg"}],
    "annotations": [{"image_id": i, "category_id": c} for i, c in ((7, 1), (7, 3), (8, 1), (8, 1))],
    "categories": [{"id": 1, "name": "cow"}, {"id": 3, "name": "sheep"}],
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("labels.csv", "image,labels\na/1.jpg,cow; sheep\n2.jpg,cow\n3.jpg,\n"),
        ("labels.csv", "\ufeffimage,cow,sheep\na/1.jpg,1,1\n2.jpg,1,0\n3.jpg,0,\n"),
        (
            "labels.jsonl",
            """{"image": "a/1.jpg", "labels": ["sheep", "cow"]}

            {"image": "2.jpg", "labels": ["cow"]}
            {"image": "3.jpg", "labels": []}""",
        ),
        ("labels.json", json.dumps(COCO)),
    ],
)
def test_every_format_says_the_same(tmp_path: Path, name: str, text: str) -> None:
    labels = load(tmp_path, name, text)
    assert len(labels) == 3
    assert labels.names == {"cow", "sheep"}
    assert labels.classes_of("/photos/a/1.jpg", CLASSES) == [0, 2]
    assert labels.classes_of("shard.tar::2.png", CLASSES) == [0]
    assert labels.classes_of("3.jpg", CLASSES) == []


def test_equal_file_names_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    labels = load(tmp_path, "labels.csv", "image,labels\na/1.jpg,cow\nb/1.jpg,horse\n")
    assert labels.classes_of("/photos/b/1.jpg", CLASSES) == [1]
    with pytest.raises(ImageError, match=r"does not list /photos/1\.jpg \(it lists a/1\.jpg\)"):
        labels.classes_of("/photos/1.jpg", CLASSES)


def test_a_name_with_an_ending_means_that_file(tmp_path: Path) -> None:
    labels = load(tmp_path, "labels.csv", "image,labels\n1.jpg,cow\n1.png,horse\n")
    assert labels.classes_of("/photos/1.png", CLASSES) == [1]


def test_an_image_that_is_not_listed_is_an_image_error(tmp_path: Path) -> None:
    labels = load(tmp_path, "labels.csv", "image,labels\n1.jpg,cow\n")
    with pytest.raises(ImageError, match=r"does not list 2\.jpg; add it, with no classes if it shows none"):
        labels.classes_of("2.jpg", CLASSES)


def test_classes_that_the_model_lacks_are_named(tmp_path: Path) -> None:
    labels = load(tmp_path, "labels.csv", "image,labels\n1.jpg,cow;zebra;yak\n")
    with pytest.raises(UsageError, match="does not have: yak, zebra; it has cow, horse, sheep"):
        labels.check(CLASSES)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("labels.txt", "1.jpg cow", "a .csv, .jsonl or COCO .json file, got labels.txt"),
        ("labels.csv", "file,labels\n1.jpg,cow\n", "needs a first line with `image,labels`"),
        ("labels.csv", "image,labels\n1.jpg,cow,sheep\n", "line 2: expected 2 values"),
        ("labels.csv", "image,cow,sheep\n1.jpg,2,0\n", "line 2: cow is '2', expected 0 or 1"),
        ("labels.csv", "image,labels\n", "lists no image"),
        ("labels.csv", "image,labels\n1.jpg,cow\n1.jpg,sheep\n", "lists the image 1.jpg twice"),
        ("labels.jsonl", '{"image": "1.jpg"}\n', 'line 1: expected {"image": NAME'),
        ("labels.jsonl", '{"image": "1.jpg", "labels": "cow"}\n', "line 1: the image is a name and its labels a list"),
        ("labels.jsonl", "cow\n", "line 1: expected"),
        ("labels.json", "[]", "is not a COCO file"),
        (
            "labels.json",
            '{"images": [], "categories": [], "annotations": [{"image_id": 1}]}',
            "annotation 0: it needs image_id",
        ),
    ],
)
def test_a_file_that_is_not_as_it_must_be_is_refused(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load(tmp_path, name, text)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read the image-level labels"):
        ImageLabels.load(tmp_path / "labels.csv")
