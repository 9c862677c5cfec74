from __future__ import annotations

import unicodedata

import pytest

from maskmill.engine.inputs.pairing import PairingIndex, Pairs
from maskmill.errors import UsageError


def pair(labels: list[str], images: list[str], *, root: str = "/p", **options) -> Pairs[str]:
    index = PairingIndex([(name, name) for name in labels], **options)
    return index.pair([f"{root}/{name}" for name in images], root)


def labels_of(pairs: Pairs[str], root: str = "/p") -> dict[str, str]:
    return {uri.removeprefix(f"{root}/"): label for uri, label in pairs.labels.items()}


def test_a_map_serves_the_image_at_its_place() -> None:
    pairs = pair(["a/1.png", "b/1.png"], ["a/1.jpg", "b/1.jpg"])
    assert labels_of(pairs) == {"a/1.jpg": "a/1.png", "b/1.jpg": "b/1.png"}
    assert pairs.rules == {"same name": 2}
    assert labels_of(pair(["1.png"], ["train/1.jpg"])) == {"train/1.jpg": "1.png"}


def test_a_map_of_another_folder_serves_no_image() -> None:
    index = PairingIndex([("a/1.png", "map")])
    pairs = index.pair(["/p/b/1.jpg", "/p/1.jpg"], "/p")
    assert (pairs.labels, pairs.without_label, pairs.unused) == ({}, ["/p/b/1.jpg", "/p/1.jpg"], ["a/1.png"])
    assert index.find("/p/b/1.jpg") is None
    assert index.similar("/p/b/1.jpg") == "a/1.png has the name of b/1.jpg but is in another folder"


@pytest.mark.parametrize(
    ("label", "image", "rule"),
    [
        ("1_mask.png", "1.jpg", "suffix _mask"),
        ("0001TP_L.png", "0001TP.png", "suffix _L"),
        ("0000.seg.png", "0000.jpg", "suffix .seg"),
        ("1.jpg.png", "1.jpg", "double ending"),
        ("c/x_gtFine_labelIds.png", "c/x_leftImg8bit.png", "suffixes _leftImg8bit and _gtFine_labelIds"),
        ("train/labels/1.png", "train/images/1.jpg", "parallel folders"),
        ("masks/1_mask.png", "1.jpg", "suffix _mask, parallel folders"),
        ("a/SegmentationClass/1.png", "a/JPEGImages/1.jpg", "parallel folders"),
    ],
)
def test_known_names_are_recognized(label: str, image: str, rule: str) -> None:
    pairs = pair([label], [image])
    assert labels_of(pairs) == {image: label}
    assert pairs.rules == {rule: 1}


def test_parallel_folders_keep_the_other_folders_apart() -> None:
    pairs = pair(["a/labels/1.png", "b/labels/1.png"], ["a/images/1.jpg", "b/images/1.jpg", "c/images/1.jpg"])
    assert labels_of(pairs) == {"a/images/1.jpg": "a/labels/1.png", "b/images/1.jpg": "b/labels/1.png"}


@pytest.mark.parametrize(
    ("pattern", "labels", "images", "expected"),
    [
        ("*_photo=*_truth", ["a/1_truth.png"], ["a/1_photo.jpg"], {"a/1_photo.jpg": "a/1_truth.png"}),
        ("train/*=trainannot/*", ["trainannot/1.png"], ["train/1.png"], {"train/1.png": "trainannot/1.png"}),
        ("*=*.png", ["1.png", "1.tif"], ["1.jpg"], {"1.jpg": "1.png"}),
        ("IMG_*_*=*-*", ["7-x.png"], ["IMG_7_x.jpg"], {"IMG_7_x.jpg": "7-x.png"}),
        ("*.jpg=*", ["1.png"], ["1.jpg", "1.webp"], {"1.jpg": "1.png"}),
    ],
)
def test_a_pattern_names_the_maps(pattern: str, labels: list[str], images: list[str], expected: dict) -> None:
    assert labels_of(pair(labels, images, pattern=pattern)) == expected


@pytest.mark.parametrize("pattern", ["*", "a=b", "*=a", "=*"])
def test_a_pattern_without_matching_stars_is_refused(pattern: str) -> None:
    with pytest.raises(UsageError, match="IMAGE=LABEL with the same number of"):
        PairingIndex([("1.png", 1)], pattern=pattern)


@pytest.mark.parametrize(
    ("labels", "images", "message"),
    [
        (["1.png", "1.tif"], ["1.jpg"], r"two label maps match the image /p/1\.jpg: 1\.png .* and 1\.tif"),
        (["1.png", "1_mask.png"], ["1.jpg"], r"1\.png \(same name\) and 1_mask\.png \(suffix _mask\)"),
        (["1.png"], ["1.jpg", "1.webp"], r"1\.png matches two images, /p/1\.jpg and /p/1\.webp"),
        (["1.png"], ["a/1.jpg", "b/1.jpg"], r"1\.png matches two images, /p/a/1\.jpg and /p/b/1\.jpg"),
        (
            ["x_gtFine_labelIds.png", "x_gtFine_labelTrainIds.png"],
            ["x_leftImg8bit.png"],
            "labelIds.* and .*labelTrainIds",
        ),
    ],
)
def test_an_ambiguous_match_names_both_files(labels: list[str], images: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        pair(labels, images)


def test_the_image_at_the_maps_own_place_wins() -> None:
    pairs = pair(["1.png"], ["1.jpg", "old/1.jpg"])
    assert labels_of(pairs) == {"1.jpg": "1.png"}
    assert pairs.without_label == ["/p/old/1.jpg"]


def test_a_map_with_the_very_name_of_an_image_is_that_images() -> None:
    pairs = pair(["cat.png", "cat_L.png"], ["cat.jpg", "cat_L.jpg"])
    assert labels_of(pairs) == {"cat.jpg": "cat.png", "cat_L.jpg": "cat_L.png"}


def test_names_that_look_equal_are_equal() -> None:
    decomposed = unicodedata.normalize("NFD", "caf\u00e9.png")
    assert list(pair([decomposed], ["caf\u00e9.jpg"]).labels.values()) == [decomposed]


def test_other_formats_name_the_images_themselves() -> None:
    pairs = pair(["a/1.jpg", "2.png"], ["a/1.jpg", "2.png", "2.jpg", "3.jpg"], image_names=True)
    assert labels_of(pairs) == {"a/1.jpg": "a/1.jpg", "2.png": "2.png"}


def test_a_similar_name_is_suggested() -> None:
    index = PairingIndex([("1_foo.png", 1)])
    assert index.similar("/p/1.jpg").endswith("give --pairing '*=*_foo'")
    assert index.similar("/p/2.jpg") == ""
