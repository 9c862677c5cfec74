"""Data sets as people have them: each is read as its owner means it, or refused with what to give."""

from __future__ import annotations

import json
import pickle
import unicodedata
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from maskmill.engine.formats.base import LabelReader
from maskmill.engine.inputs.labeled_source import LabeledSource, pair_images, pair_uris, value_names
from maskmill.engine.inputs.labels import LabelFolder, LabelSet, open_labels
from maskmill.engine.inputs.names import read_ids
from maskmill.engine.inputs.sources import open_source
from maskmill.engine.model.color_tables import ColorTable
from maskmill.engine.model.taxonomy import Taxonomy
from maskmill.errors import TaxonomyError, UsageError

from ...builders import gray_png

TARGETS = ("dark", "red", "green", "blue")
TAXONOMY = Taxonomy(targets=TARGETS, background=0, model=(0, 1, 2, 3), labels={index: index for index in range(4)})
ASSUMED = Taxonomy(
    targets=TARGETS, background=0, model=(0, 1, 2, 3), labels={index: index for index in range(4)}, assumed=True
)
COLORS = np.array([(0, 0, 0), (220, 0, 0), (0, 220, 0), (0, 0, 220)], np.uint8)


def truth(seed: int) -> NDArray[np.uint8]:
    """A class map without symmetry."""
    classes = np.zeros((6, 9), np.uint8)
    classes[:3, :4], classes[:3, 4:], classes[3:, :3] = 1 + seed % 3, 1 + (seed + 1) % 3, 1 + (seed + 2) % 3
    return classes


def save(path: Path, pixels: NDArray[Any] | bytes, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(pixels, bytes):
        path.write_bytes(pixels)
    else:
        Image.fromarray(pixels).save(path, **options)


def data_set(
    folder: Path, *, image: str = "images/p{}.jpg", label: str = "labels/p{}.png", encode=lambda map: map
) -> None:
    for seed in range(3):
        save(folder / image.format(seed), COLORS[truth(seed)])
        save(folder / label.format(seed), encode(truth(seed)))


def pair(folder: Path, images: str = "images", labels: str = "labels", taxonomy: Taxonomy = TAXONOMY, **options: Any):
    ids = options.pop("ids", None)
    return pair_images(open_source(folder / images), open_labels(folder / labels, **options), taxonomy, ids=ids)


def seeds(labeled: LabeledSource) -> dict[str, int]:
    """Seed of the map that each image was given, by the image's name."""
    maps = {truth(seed).tobytes(): seed for seed in range(3)}
    return {uri.rsplit("/", 1)[1]: maps[labeled.read(uri).tobytes()] for uri in labeled.uris}


RIGHT = {"p0.jpg": 0, "p1.jpg": 1, "p2.jpg": 2}


def test_a_plain_set_is_paired_and_counted(tmp_path: Path) -> None:
    data_set(tmp_path)
    labeled = pair(tmp_path)
    assert seeds(labeled) == RIGHT
    assert labeled.summary.line() == "3 images used; 0.0% of the label pixels ignored"
    assert [item.uri for item in labeled.items] == labeled.uris


def test_equal_stems_in_two_folders_share_no_map(tmp_path: Path) -> None:
    data_set(tmp_path, image="images/a/p{}.jpg", label="labels/a/p{}.png")
    for seed in range(3):
        save(tmp_path / f"images/b/p{seed}.jpg", COLORS[truth(seed + 1)])
    labeled = pair(tmp_path)
    assert seeds(labeled) == RIGHT
    assert len(labeled.summary.without_map) == 3
    assert (
        "photos without a map: 3: b/p0.jpg, b/p1.jpg, b/p2.jpg (a/p0.png has the name of b/p0.jpg but is in another "
        in (labeled.summary.line())
    )
    with pytest.raises(UsageError, match=r"no image has a label map .*a/p0\.png has the name of b/p0\.jpg"):
        pair(tmp_path, images="images/b")


def test_one_folder_holds_photos_and_maps(tmp_path: Path) -> None:
    data_set(tmp_path, image="p{}.jpg", label="p{}.png")
    labeled = pair(tmp_path, images=".", labels=".")
    assert seeds(labeled) == RIGHT
    assert labeled.summary.skipped == {"label maps beside the photos": 3}
    assert labeled.summary.without_map == labeled.summary.without_image == []


def test_the_root_of_a_data_set_gives_its_photos_only(tmp_path: Path) -> None:
    data_set(tmp_path)
    save(tmp_path / "labels" / "unused.png", truth(0))
    for labels in (".", "labels"):
        labeled = pair(tmp_path, images=".", labels=labels)
        assert seeds(labeled) == RIGHT
    assert labeled.summary.without_image == ["unused.png"]


def test_dots_in_names_are_part_of_the_name(tmp_path: Path) -> None:
    data_set(tmp_path, image="images/p{}_jpg.rf.abc.jpg", label="labels/p{}_jpg.rf.abc.png")
    (tmp_path / "ids.txt").write_text("p0_jpg.rf.abc.jpg\np2_jpg.rf.abc.jpg\n")
    assert seeds(pair(tmp_path, ids=read_ids(tmp_path / "ids.txt"))) == {"p0_jpg.rf.abc.jpg": 0, "p2_jpg.rf.abc.jpg": 2}


@pytest.mark.parametrize(
    ("image", "label", "rule"),
    [
        ("images/p{}.jpg", "labels/p{}_mask.png", "suffix _mask"),
        ("images/p{}.jpg", "labels/p{}.jpg.png", "double ending"),
        ("images/p{}_leftImg8bit.png", "labels/p{}_gtFine_labelIds.png", "suffixes _leftImg8bit and _gtFine_labelIds"),
    ],
)
def test_known_names_are_recognized_and_printed(tmp_path: Path, image: str, label: str, rule: str) -> None:
    data_set(tmp_path, image=image, label=label)
    labeled = pair(tmp_path)
    assert list(seeds(labeled).values()) == [0, 1, 2]
    assert f"paired by {rule} (3)" in labeled.summary.line()


def test_the_other_maps_of_cityscapes_are_passed_over(tmp_path: Path) -> None:
    data_set(tmp_path, image="images/a/p{}_leftImg8bit.png", label="labels/a/p{}_gtFine_labelIds.png")
    for kind in ("color", "instanceIds"):
        save(tmp_path / f"labels/a/p0_gtFine_{kind}.png", truth(0))
    labeled = pair(tmp_path)
    assert list(seeds(labeled).values()) == [0, 1, 2]
    assert labeled.summary.without_image == []
    assert "files skipped: 2 color and instance maps of Cityscapes" in labeled.summary.line()


def test_a_near_miss_is_named_and_a_pattern_pairs_it(tmp_path: Path) -> None:
    data_set(tmp_path, label="labels/p{}_wahr.png")
    with pytest.raises(UsageError, match=r"p0_wahr\.png is similar to images/p0\.jpg; .* --pairing '\*=\*_wahr'"):
        pair(tmp_path)
    assert seeds(pair(tmp_path, pairing="*=*_wahr")) == RIGHT


def test_two_maps_for_one_photo_are_both_named(tmp_path: Path) -> None:
    data_set(tmp_path)
    save(tmp_path / "labels/p0.tif", truth(0) * 0)
    with pytest.raises(UsageError, match=r"images/p0\.jpg: p0\.png .* and p0\.tif"):
        pair(tmp_path)
    assert seeds(pair(tmp_path, pairing="*=*.png")) == RIGHT


def test_linked_folders_are_followed_on_both_sides(tmp_path: Path) -> None:
    data_set(tmp_path / "elsewhere")
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "train").symlink_to(tmp_path / "elsewhere" / kind)
    (tmp_path / "labels" / "circle").symlink_to(tmp_path / "labels")
    assert seeds(pair(tmp_path)) == RIGHT


def test_resource_forks_are_passed_over_and_counted(tmp_path: Path) -> None:
    data_set(tmp_path)
    for path in [*(tmp_path / "images").iterdir(), *(tmp_path / "labels").iterdir()]:
        path.with_name(f"._{path.name}").write_bytes(b"\0\5\x16\7" + bytes(80))
    labeled = pair(tmp_path)
    assert seeds(labeled) == RIGHT
    assert "files skipped: 6 resource forks" in labeled.summary.line()


def test_names_in_another_unicode_form_are_paired(tmp_path: Path) -> None:
    save(tmp_path / "images" / "caf\u00e9.jpg", COLORS[truth(0)])
    save(tmp_path / "labels" / unicodedata.normalize("NFD", "caf\u00e9.png"), truth(0))
    assert list(seeds(pair(tmp_path)).values()) == [0]


def test_colors_are_read_with_a_table(tmp_path: Path) -> None:
    data_set(tmp_path, encode=lambda map: COLORS[map])
    with pytest.raises(
        UsageError, match=r"p0\.png holds colors, e\.g\. \d+, \d+, \d+; give their classes in the taxonomy"
    ):
        seeds(pair(tmp_path))
    table = ColorTable(name="", colors=tuple(map(tuple, COLORS.tolist())), indices=(0, 1, 2, 3), names={})  # type: ignore[arg-type]
    colored = Taxonomy(targets=TARGETS, background=0, model=(0, 1, 2, 3), labels=TAXONOMY.labels, colors=table)
    assert seeds(pair(tmp_path, taxonomy=colored)) == RIGHT


def test_gray_as_rgb_and_gray_of_4_bits_are_indices(tmp_path: Path) -> None:
    data_set(tmp_path / "rgb", encode=lambda map: np.dstack([map] * 3))
    data_set(tmp_path / "bits", encode=lambda map: gray_png(map, 4))
    assert seeds(pair(tmp_path / "rgb")) == seeds(pair(tmp_path / "bits")) == RIGHT


@pytest.mark.parametrize("taxonomy", [TAXONOMY, ASSUMED])
def test_a_set_of_0_and_255_is_asked_about(tmp_path: Path, taxonomy: Taxonomy) -> None:
    data_set(tmp_path, encode=lambda map: (map == 1).astype(np.uint8) * 255)
    with pytest.raises(UsageError, match=r"hold only 0 and 255, and 255 on \d+% of the pixels; .*255 = \"TARGET\""):
        pair(tmp_path, taxonomy=taxonomy)
    for target in (1, -1):
        declared = Taxonomy(targets=TARGETS, background=0, model=(0, 1, 2, 3), labels={0: 0, 255: target})
        labeled = pair(tmp_path, taxonomy=declared)
        assert set(np.unique(labeled.read(labeled.uris[0]))) == {0, 1 if target == 1 else 255}


def test_a_large_ignored_share_is_reported(tmp_path: Path) -> None:
    data_set(tmp_path, encode=lambda map: np.where(map == 0, np.uint8(255), map))
    labeled = pair(tmp_path)
    for uri in labeled.uris:
        labeled.read(uri)
    assert labeled.summary.ignored_share == pytest.approx(18 / 54)
    assert "33.3% of the label pixels ignored, a large share: check [labels]" in labeled.summary.line()


@pytest.mark.parametrize("orientation", range(2, 9))
def test_maps_as_stored_are_turned_with_their_photos(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x112] = orientation
    for seed in range(3):
        stored = Image.fromarray(np.zeros((6, 9, 3), np.uint8))
        stored.save(tmp_path / f"p{seed}.jpg", exif=exif)
        save(tmp_path / "labels" / f"p{seed}.png", truth(seed))
    plain = pair(tmp_path, images="p0.jpg")
    uri = plain.uris[0]
    photo = Path(uri).read_bytes()
    plain.read(uri, photo)
    assert "1 photos turned by their EXIF orientation and their maps not" in plain.summary.line()
    assert "--labels-as-stored" in plain.size_hint(uri, photo)
    turned = pair(tmp_path, images="p0.jpg", as_stored=True)
    upright = np.array(Image.fromarray(truth(0)).transpose(METHODS[orientation]))
    np.testing.assert_array_equal(turned.read(uri, photo), upright)
    np.testing.assert_array_equal(turned.read(uri), upright)
    assert turned.summary.turned == 2
    assert turned.size_hint(uri, photo) == "they must be the same size"


METHODS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def test_a_folder_that_maskmill_wrote_is_refused_by_name(tmp_path: Path) -> None:
    data_set(tmp_path)
    (tmp_path / "labels.cert.json").write_text("{}")
    with pytest.raises(UsageError, match="is part of an export that maskmill wrote"):
        open_labels(tmp_path / "labels")
    (tmp_path / "store" / "labels.lance").mkdir(parents=True)
    with pytest.raises(UsageError, match="is a label store of maskmill, not true labels"):
        open_labels(tmp_path / "store")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("instances.json", json.dumps({"images": [], "annotations": [], "categories": []}), "holds no labeled image"),
        ("other.json", "{}", r"is a file in an unknown format; labels are .* coco"),
        ("labels.txt", "1.png", r"is a file; labels are a folder, tar archive or URL of \.png"),
    ],
)
def test_other_files_are_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UsageError, match=message):
        open_labels(tmp_path / name)


def test_a_missing_or_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none do not exist; labels are a folder"):
        open_labels(tmp_path / "none")
    (tmp_path / "p0.jpg").write_bytes(b"")
    with pytest.raises(UsageError, match=r"holds no label map .* and it holds 1 \.jpg"):
        open_labels(tmp_path)


def test_without_a_taxonomy_known_names_must_be_the_models(tmp_path: Path) -> None:
    data_set(tmp_path)
    labeled = pair(tmp_path, taxonomy=ASSUMED)
    assert seeds(labeled) == RIGHT
    assert "label i assumed to be class i of the model" in labeled.summary.line()
    (tmp_path / "classes.txt").write_text("\ufeffdark\nred\ngreen\nblue\n")
    assert seeds(pair(tmp_path, taxonomy=ASSUMED)) == RIGHT
    (tmp_path / "classes.txt").write_text("dark\ngreen\nred\nblue\n")
    message = (
        r"label 1 of .*labels is green, but without a taxonomy it is the model's red; draft .*maskmill taxonomy BUNDLE"
    )
    with pytest.raises(UsageError, match=message):
        pair(tmp_path, taxonomy=ASSUMED)
    assert seeds(pair(tmp_path, taxonomy=TAXONOMY)) == RIGHT
    (tmp_path / "classes.txt").write_text("dark\nred\ngreen\nblue\nsky\n")
    with pytest.raises(UsageError, match="label 4 of .* is sky, but without a taxonomy the model has no class for it"):
        pair(tmp_path, taxonomy=ASSUMED)


def test_values_without_a_name_are_refused_with_what_to_give(tmp_path: Path) -> None:
    data_set(tmp_path)
    labels = LabelFolder(tmp_path / "labels")
    with pytest.raises(UsageError, match=r"hold 0, 1, 2, 3, and no name is known for them; .* --label-names FILE"):
        value_names(labels)
    assert value_names(labels, {0: "a", 1: "b", 2: "c", 3: "d", 255: "void"}) == {0: "a", 1: "b", 2: "c", 3: "d"}
    (tmp_path / "classes.txt").write_text("0 dark\n1 red\n2 green\n")
    with pytest.raises(UsageError, match="hold 3, and no name is known for it"):
        value_names(labels)


def test_listed_images_need_a_map(tmp_path: Path) -> None:
    data_set(tmp_path)
    (tmp_path / "labels" / "p1.png").unlink()
    assert len(pair(tmp_path).uris) == 2
    with pytest.raises(UsageError, match=r"1 of the listed images have no label map .*p1\.jpg"):
        pair(tmp_path, ids=["p0.jpg", "p1.jpg"])


def test_maps_come_from_archives_and_urls_too(tmp_path: Path) -> None:
    import tarfile

    data_set(tmp_path)
    with tarfile.open(tmp_path / "labels.tar", "w") as archive:
        archive.add(tmp_path / "labels", "labels")
    assert seeds(pair(tmp_path, labels="labels.tar")) == RIGHT
    memory = fsspec.filesystem("memory")
    try:
        for path in (tmp_path / "labels").iterdir():
            memory.pipe(f"/set/labels/a/{path.name}", path.read_bytes())
        source = open_source(tmp_path / "images")
        remote = [(f"/elsewhere/a/{Path(item.uri).name}", item) for item in source]
        pairs = open_labels("memory://set/labels").pair([uri for uri, _ in remote])
        assert [entry.name for entry in pairs.labels.values()] == [f"memory:///set/labels/a/p{n}.png" for n in range(3)]
    finally:
        memory.rm("/set", recursive=True)


def test_a_label_map_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    data_set(tmp_path)
    labeled = pair(tmp_path)
    (tmp_path / "labels" / "p1.png").unlink()
    with pytest.raises(UsageError, match=r"cannot read the label map .*p1\.png: .* it does not exist"):
        labeled.read(labeled.uris[1])


def test_images_may_be_given_by_their_uris(tmp_path: Path) -> None:
    data_set(tmp_path)
    uris = [str(tmp_path / "images" / f"p{seed}.jpg") for seed in (2, 0)]
    labeled = pickle.loads(pickle.dumps(pair_uris(uris, open_labels(tmp_path / "labels"), TAXONOMY)))
    assert seeds(labeled) == {"p2.jpg": 2, "p0.jpg": 0}
    assert labeled.name_of(uris[0]) == str(tmp_path / "labels" / "p2.png")


def test_images_given_by_their_uris_are_paired_as_those_of_a_folder(tmp_path: Path) -> None:
    data_set(tmp_path, image="p{}.jpg", label="labels/p{}.png")
    save(tmp_path / "old" / "p0.jpg", COLORS[truth(1)])
    uris = [str(path) for path in sorted(tmp_path.rglob("*.jpg")) + sorted(tmp_path.rglob("*.png"))]
    labeled = pair_uris(uris, open_labels(tmp_path / "labels"), TAXONOMY)
    assert seeds(labeled) == RIGHT
    assert labeled.summary.without_map == [str(tmp_path / "old" / "p0.jpg")]
    assert labeled.summary.skipped == {"label maps beside the photos": 3}


@pytest.mark.parametrize("content", ["{}", "not JSON", '{"annotations": 3}', "[]"])
def test_a_stray_json_file_beside_label_maps_changes_nothing(tmp_path: Path, content: str) -> None:
    data_set(tmp_path)
    (tmp_path / "labels" / "info.json").write_text(content)
    assert seeds(pair(tmp_path)) == RIGHT


class Reader(LabelReader):
    """Labels of a format of its own, whose values are not the model's."""

    format, path, notes = "own", "set.json", ("pixels without a shape are dark",)
    class_names = {0: "dark", 1: "blue", 2: "Green", 3: "red"}
    image_names = tuple(f"p{seed}.jpg" for seed in range(3))

    def decode_labels(self, name: str, size: tuple[int, int] | None = None) -> NDArray[Any]:
        return np.array([0, 3, 2, 1], np.uint8)[truth(int(name[1]))]


@pytest.mark.parametrize("taxonomy", [ASSUMED, replace(TAXONOMY, labels={}, named_labels={"blue": 3})])
def test_another_format_is_read_by_the_names_of_its_classes(tmp_path: Path, taxonomy: Taxonomy) -> None:
    data_set(tmp_path)
    labels = LabelSet(Reader())
    labeled = pair_images(open_source(tmp_path / "images"), labels, taxonomy)
    assert seeds(labeled) == RIGHT
    assert labeled.name_of(labeled.uris[0]) == "set.json: p0.jpg"
    assert "labels read as own (pixels without a shape are dark)" in labeled.summary.line()
    assert value_names(labels) == Reader.class_names
    narrow = replace(taxonomy, targets=("dark", "red", "green"), model=(0, 1, 2, -1), named_labels={})
    with pytest.raises(TaxonomyError, match=r'has the class blue, which stands for no target .*`"blue" = "TARGET"`'):
        pair_images(open_source(tmp_path / "images"), labels, narrow)
    with pytest.raises(TaxonomyError, match="names bleu, which set.json does not have; did you mean blue"):
        pair_images(open_source(tmp_path / "images"), labels, replace(taxonomy, named_labels={"bleu": 3}))


def test_a_coco_file_is_read_as_labels(tmp_path: Path) -> None:
    save(tmp_path / "images" / "p0.jpg", COLORS[truth(0)])
    shape = {"image_id": 1, "category_id": 7, "iscrowd": 0, "segmentation": [[0, 0, 4, 0, 4, 3, 0, 3]], "id": 1}
    coco = {
        "images": [{"id": 1, "file_name": "p0.jpg", "height": 6, "width": 9}],
        "annotations": [shape],
        "categories": [{"id": 7, "name": "green"}],
    }
    (tmp_path / "instances.json").write_text(json.dumps(coco))
    dark = replace(ASSUMED, assumed=False, labels={}, named_labels={"background": 0})
    labeled = pair(tmp_path, labels="instances.json", taxonomy=dark)
    expected = np.zeros((6, 9), np.uint8)
    expected[:3, :4] = 2
    np.testing.assert_array_equal(labeled.read(labeled.uris[0]), expected)
