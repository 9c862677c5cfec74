"""Details of other people's files that readers get wrong."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from maskmill.engine.formats.base import LabelReader, ShapeOptions
from maskmill.engine.formats.label_studio import image_name
from maskmill.engine.formats.open import detect, open_reader
from maskmill.engine.formats.rle import brush_of_mask
from maskmill.engine.formats.yolo_seg import read_names
from maskmill.engine.model.png import encode_png
from maskmill.errors import UsageError

SQUARE = [2, 2, 8, 2, 8, 8, 2, 8]
SMALL = [4, 4, 6, 4, 6, 6, 4, 6]


def coco_file(folder: Path, annotations: list[dict[str, Any]], **changes: Any) -> Path:
    raw = {
        "images": [{"id": 7, "file_name": "a.jpg", "height": 10, "width": 12}],
        "categories": [{"id": 3, "name": "cow"}, {"id": 90, "name": "horse"}],
        # keys of an entry stay in its order
        "annotations": [{"id": index, "image_id": 7, **entry} for index, entry in enumerate(annotations)],
        **changes,
    }
    path = folder / "instances.json"
    path.write_text(json.dumps(raw, indent=1))
    return path


def names_at(reader: LabelReader, name: str = "a.jpg") -> Any:
    """Return a function from (row, column) to the class name, or None for an ignored pixel."""
    label = reader.read_labels(name)
    return lambda row, column: reader.class_names.get(int(label[row, column]))


def test_coco_uncovered_pixels_are_background_and_categories_keep_their_names(tmp_path: Path) -> None:
    reader = open_reader(coco_file(tmp_path, [{"category_id": 90, "segmentation": [SQUARE]}]))
    at = names_at(reader)
    assert (at(0, 0), at(5, 5)) == ("background", "horse")
    assert reader.class_names == {0: "background", 1: "cow", 2: "horse"}
    assert (reader.read_labels("a.jpg") == 2).sum() == 36


def test_coco_of_overlapping_objects_the_smaller_is_on_top_unless_asked_otherwise(tmp_path: Path) -> None:
    path = coco_file(
        tmp_path,
        [{"category_id": 3, "segmentation": [SMALL]}, {"category_id": 90, "segmentation": [SQUARE]}],
    )
    assert names_at(open_reader(path))(5, 5) == "cow"
    assert names_at(open_reader(path, options=ShapeOptions(overlaps="later")))(5, 5) == "horse"


def test_coco_parts_are_united_and_crowds_are_ignored(tmp_path: Path) -> None:
    crowd = {"size": [10, 12], "counts": [0, 20, 100]}
    path = coco_file(
        tmp_path,
        [
            {"category_id": 3, "segmentation": [SMALL, [9, 0, 12, 0, 12, 2, 9, 2]]},
            {"category_id": 3, "iscrowd": 1, "segmentation": crowd},
        ],
    )
    at = names_at(open_reader(path))
    assert (at(5, 5), at(0, 10), at(0, 0), at(9, 11)) == ("cow", "cow", None, "background")


@pytest.mark.parametrize("value", ["0", "1", 2, [], {}])
def test_coco_a_mark_of_crowds_that_is_neither_0_nor_1_is_refused(tmp_path: Path, value: object) -> None:
    path = coco_file(tmp_path, [{"category_id": 3, "iscrowd": value, "segmentation": [SQUARE]}])
    with pytest.raises(UsageError, match="annotation 0.*: iscrowd must be 0 or 1, got"):
        open_reader(path).read_labels("a.jpg")


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("last", ["iscrowd", "segmentation"])  # Datumaro writes the mark behind the mask
def test_coco_masks_that_are_all_marked_as_crowds_are_refused_unless_they_are_said_to_be_objects(
    tmp_path: Path, last: str, indent: int | None
) -> None:
    mask = {"size": [10, 12], "counts": [0, 20, 100]}
    entry: dict[str, Any] = {"category_id": 3, "iscrowd": 1, "segmentation": mask}
    entry[last] = entry.pop(last)
    path = coco_file(tmp_path, [entry])
    path.write_text(json.dumps(json.loads(path.read_text()), indent=indent))
    with pytest.raises(UsageError, match="--labels-format coco-datumaro"):
        open_reader(path)
    assert names_at(open_reader(path, "coco-datumaro"))(0, 0) == "cow"


def test_coco_compressed_and_uncompressed_masks_are_the_same_pixels(tmp_path: Path) -> None:
    mask = np.zeros((10, 12), dtype=np.uint8, order="F")
    mask[3:7, 2:9] = 1
    compressed = coco_mask.encode(mask)["counts"].decode()
    for counts in (compressed, [23, 4, 6, 4, 6, 4, 6, 4, 6, 4, 6, 4, 6, 4, 33]):
        path = coco_file(tmp_path, [{"category_id": 3, "segmentation": {"size": [10, 12], "counts": counts}}])
        assert ((open_reader(path).read_labels("a.jpg") == 1) == mask).all()


def test_coco_a_background_that_is_drawn_leaves_the_rest_ignored(tmp_path: Path) -> None:
    categories = [{"id": 3, "name": "cow"}, {"id": 90, "name": "background"}]
    path = coco_file(tmp_path, [{"category_id": 90, "segmentation": [SQUARE]}], categories=categories)
    at = names_at(open_reader(path))
    assert (at(5, 5), at(0, 0)) == ("background", None)


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        ({"category_id": 3, "segmentation": [], "bbox": [1, 1, 3, 3]}, "boxes alone are not a label map"),
        ({"category_id": 3, "bbox": [1, 1, 3, 3]}, "boxes alone are not a label map"),
        ({"category_id": 3, "segmentation": {"size": [12, 10], "counts": [120]}}, "the mask is \\[12, 10\\]"),
        ({"category_id": 3, "segmentation": {"size": [10, 12], "counts": [100]}}, "expected 120"),
    ],
)
def test_coco_what_is_no_mask_is_refused_by_name(tmp_path: Path, annotation: dict[str, Any], message: str) -> None:
    reader = open_reader(coco_file(tmp_path, [annotation]))
    with pytest.raises(UsageError, match=rf"annotation 0 \(a.jpg\): .*{message}"):
        reader.read_labels("a.jpg")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": [{"id": 7, "file_name": "a.jpg"}]}, "height and width"),
        ({"images": [{"id": 7, "file_name": "a.jpg", "height": 1, "width": 1}] * 2}, "twice"),
        ({"categories": [{"id": 3}]}, "category 0: it needs id and name"),
        ({"categories": [{"id": 1, "name": "cow"}]}, "category 3 is not in the file"),
        ({"categories": [{"id": 3, "name": "cow"}, {"id": 3, "name": "horse"}]}, "category id 3 twice"),
    ],
)
def test_coco_an_inconsistent_file_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = coco_file(tmp_path, [{"category_id": 3, "segmentation": [SQUARE]}], **changes)
    with pytest.raises(UsageError, match=message):
        open_reader(path, "coco")


def test_coco_a_nested_image_id_does_not_confuse_the_index(tmp_path: Path) -> None:
    entry = {"attributes": {"image_id": 9, "category_id": 1}, "category_id": 3, "segmentation": [SQUARE]}
    assert names_at(open_reader(coco_file(tmp_path, [entry])))(5, 5) == "cow"


@pytest.mark.parametrize("nested", [False, True])
def test_coco_an_annotation_id_that_occurs_twice_is_refused(tmp_path: Path, nested: bool) -> None:
    entry = {"category_id": 3, "segmentation": [SQUARE]} | ({"attributes": {"id": 1}} if nested else {})
    with pytest.raises(UsageError, match=r"annotation id 8 twice \(annotations 0 and 2\)"):
        open_reader(coco_file(tmp_path, [{"id": number, **entry} for number in (8, 9, 8)]))
    assert names_at(open_reader(coco_file(tmp_path, [{"id": 8, **entry}, {"id": 9, **entry}, entry])))(5, 5) == "cow"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"categories": [', '"categories": [], "categories": ['),
        ('"category_id": 3', '"category_id": 1, "category_id": 3'),
        ('"file_name": "a.jpg"', '"file_name": "b.jpg", "file_name": "a.jpg"'),
        ('"segmentation": [', '"segmentation": [[0, 0, 1, 0, 1, 1]], "segmentation": ['),
    ],
)
def test_coco_a_name_that_occurs_twice_in_an_object_is_refused(tmp_path: Path, old: str, new: str) -> None:
    path = coco_file(tmp_path, [{"category_id": 3, "segmentation": [SQUARE]}])
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    with pytest.raises(UsageError, match="occurs twice"):
        open_reader(path, "coco").read_labels("a.jpg")


@pytest.mark.parametrize("text", ["", "{", '{"images": [', '{"images": [], "annotations": [{]}', "[]{"])
def test_a_damaged_json_file_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "labels.json"
    path.write_text(text)
    with pytest.raises(UsageError):
        open_reader(path, "coco")


CVAT = """<?xml version="1.0" encoding="utf-8"?>
<annotations><version>1.1</version><meta><task><labels>
<label><name>cow &amp; calf</name></label><label><name>horse</name></label></labels></task></meta>
<image id="0" name="dir/a.jpg" width="12" height="10">{shapes}</image>
<image id="1" name="b.jpg" width="3" height="2"/>
<image id="2" name="c.jpg" width="3" height="2"><tag label="night" source="manual"/></image>
</annotations>
"""
MASK = '<mask label="horse" source="manual" occluded="0" rle="1, 2, 3" left="4" top="5" width="3" height="2"{z}/>'
POLYGON = '<polygon label="cow &amp; calf" points="2.0,2.0;8.0,2.0;8.0,8.0;2.0,8.0"{z}></polygon>'


def test_cvat_masks_run_along_rows_and_begin_with_unset_pixels(tmp_path: Path) -> None:
    (tmp_path / "annotations.xml").write_text(CVAT.format(shapes=MASK.format(z="")))
    reader = open_reader(tmp_path / "annotations.xml")
    label = reader.read_labels("dir/a.jpg")
    assert np.argwhere(label == 2).tolist() == [[5, 5], [5, 6]]
    assert reader.class_names == {0: "background", 1: "cow & calf", 2: "horse"}
    assert list(reader.names()) == ["dir/a.jpg", "b.jpg", "c.jpg"]
    assert (reader.read_labels("b.jpg") == 0).all()
    assert (reader.read_labels("c.jpg") == 0).all()


@pytest.mark.parametrize(("mask", "polygon", "expected"), [(0, 1, 1), (1, 0, 2), (0, 0, 1)])
def test_cvat_the_higher_z_order_is_on_top(tmp_path: Path, mask: int, polygon: int, expected: int) -> None:
    shapes = MASK.format(z=f' z_order="{mask}"') + POLYGON.format(z=f' z_order="{polygon}"')
    with zipfile.ZipFile(tmp_path / "task.zip", "w") as archive:
        archive.writestr("annotations.xml", CVAT.format(shapes=shapes))
    reader = open_reader(tmp_path / "task.zip")
    assert reader.read_labels("dir/a.jpg")[5, 5] == expected


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ('<box label="horse" xtl="1" ytl="1" xbr="3" ybr="3"/>', "holds a box of horse"),
        (MASK.format(z="").replace('left="4"', 'left="10"'), "does not fit into 12x10"),
        (MASK.format(z="").replace("1, 2, 3", "1, 2"), "expected 6"),
        (MASK.format(z="").replace('rle="1, 2, 3"', ""), "damaged"),
        ('<polygon label="horse" points="1,2;x,3"/>', "damaged"),
    ],
)
def test_cvat_what_is_no_mask_is_refused_by_name(tmp_path: Path, shapes: str, message: str) -> None:
    (tmp_path / "annotations.xml").write_text(CVAT.format(shapes=shapes))
    with pytest.raises(UsageError, match=f"image dir/a.jpg.*{message}"):
        open_reader(tmp_path).read_labels("dir/a.jpg")


@pytest.mark.parametrize("text", ["", "<annotations>", "no xml"])
def test_cvat_a_damaged_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "annotations.xml").write_text(text)
    with pytest.raises(UsageError, match="not valid XML"):
        open_reader(tmp_path)


def region(mask: Any, label: str, **changes: Any) -> dict[str, Any]:
    height, width = mask.shape
    value = {"format": "rle", "rle": brush_of_mask(mask), "brushlabels": [label]}
    return {
        "type": "brushlabels",
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "value": value,
        **changes,
    }


def test_label_studio_the_last_annotation_counts_and_predictions_do_not(tmp_path: Path) -> None:
    left, right = np.zeros((4, 6), dtype=bool), np.zeros((4, 6), dtype=bool)
    left[:, :3], right[:, 3:] = True, True
    annotations = [
        {"result": [region(left, "cow")], "updated_at": "2026-01-02T00:00:00Z"},
        {"result": [region(right, "cow")], "updated_at": "2026-01-01T00:00:00Z"},
        {"result": [], "updated_at": "2026-01-03T00:00:00Z", "was_cancelled": True},
    ]
    tasks = [
        {"data": {"image": "/data/upload/3/0a1b2c3d-a.jpg"}, "annotations": annotations},
        {"data": {"image": "b.jpg"}, "predictions": [{"result": [region(right, "horse")]}]},
    ]
    path = tmp_path / "project.json"
    path.write_text(json.dumps(tasks))
    reader = open_reader(path)
    assert list(reader.names()) == ["a.jpg"]
    assert ((reader.read_labels("a.jpg") == 1) == left).all()


def test_label_studio_polygons_are_shares_of_a_hundred(tmp_path: Path) -> None:
    corners = {"points": [[25, 25], [75, 25], [75, 75], [25, 75]], "polygonlabels": ["cow"]}
    result = {"type": "polygonlabels", "original_width": 8, "original_height": 4, "value": corners}
    tasks = [{"data": {"image": "a.jpg"}, "annotations": [{"result": [result]}]}]
    (tmp_path / "p.json").write_text(json.dumps(tasks))
    label = open_reader(tmp_path / "p.json").read_labels("a.jpg")
    assert label.tolist() == [[0] * 8, [0, 0, 1, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1, 0, 0], [0] * 8]


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ({"type": "rectanglelabels", "value": {"rectanglelabels": ["cow"]}}, "rectanglelabels are not label maps"),
        (region(np.ones((4, 6)), "cow", original_width=7), "original_width"),
        (region(np.ones((4, 6)), "cow", image_rotation=90), "rotated"),
        (region(np.ones((4, 6)), "cow", original_height=None), "height and width"),
    ],
)
def test_label_studio_what_is_no_mask_is_refused_by_name(tmp_path: Path, result: Any, message: str) -> None:
    (tmp_path / "p.json").write_text(json.dumps([{"data": {"image": "a.jpg"}, "annotations": [{"result": [result]}]}]))
    with pytest.raises(UsageError, match=message):
        open_reader(tmp_path / "p.json").read_labels("a.jpg")


@pytest.mark.parametrize(
    ("image", "name"),
    [
        ("/data/upload/3/0a1b2c3d-street%20a.jpg", "street a.jpg"),
        ("/data/local-files/?d=photos/a/1.jpg", "photos/a/1.jpg"),
        ("s3://bucket/photos/1.jpg", "bucket/photos/1.jpg"),
        ("https://host/photos/1.jpg?token=x", "host/photos/1.jpg"),
    ],
)
def test_label_studio_prefixes_of_images_are_taken_off(image: str, name: str) -> None:
    assert image_name({"data": {"image": image}}, "p.json") == name


def test_labelme_polygons_rectangles_and_masks_are_read_and_circles_refused(tmp_path: Path) -> None:
    shapes = [
        {"label": "cow", "shape_type": "polygon", "points": np.reshape(SQUARE, (-1, 2)).tolist(), "group_id": 1},
        {"label": "horse", "shape_type": "rectangle", "points": [[12, 0], [9, 2]]},
    ]
    raw = {"shapes": shapes, "imagePath": "..\\photos\\a.jpg", "imageData": None, "imageHeight": 10, "imageWidth": 12}
    (tmp_path / "a.json").write_text(json.dumps(raw))
    reader = open_reader(tmp_path)
    at = names_at(reader)
    assert (at(5, 5), at(1, 10), at(9, 0)) == ("cow", "horse", "background")
    shapes.append({"label": "horse", "shape_type": "circle", "points": [[5, 5], [6, 6]]})
    (tmp_path / "a.json").write_text(json.dumps(raw))
    with pytest.raises(UsageError, match="holds a circle of horse"):
        open_reader(tmp_path).read_labels("a.jpg")


def test_labelme_a_size_that_is_missing_is_taken_from_the_image(tmp_path: Path) -> None:
    Image.new("RGB", (12, 10)).save(tmp_path / "a.png")
    (tmp_path / "a.json").write_text(json.dumps({"shapes": [], "imagePath": "a.png", "imageHeight": None}))
    assert open_reader(tmp_path).read_labels("a.png").shape == (10, 12)


def yolo_folder(folder: Path, line: str, names: str = "names: [cow, horse]") -> Path:
    (folder / "labels" / "train").mkdir(parents=True)
    (folder / "images" / "train").mkdir(parents=True)
    (folder / "data.yaml").write_text(f"train: images/train\n{names}\nnc: 2\n")
    (folder / "labels" / "train" / "a.txt").write_text(line)
    Image.new("RGB", (8, 4)).save(folder / "images" / "train" / "a.jpg")
    return folder


def test_yolo_polygons_are_shares_of_the_image_beside_the_labels(tmp_path: Path) -> None:
    reader = open_reader(yolo_folder(tmp_path, "1 0.25 0.25 0.75 0.25 0.75 0.75 0.25 0.75\n"))
    assert reader.names() == ["train/a"]
    label = reader.read_labels("train/a")
    assert label.shape == (4, 8)
    assert (label == 2).sum() == 8
    assert reader.class_names == {0: "background", 1: "cow", 2: "horse"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 0.5 0.5 0.2 0.2", "holds a box"),
        ("0 0.1 0.1 0.2 0.1 0.2", "three corners"),
        ("7 0.1 0.1 0.2 0.1 0.2 0.2", "class 7 has no name"),
        ("0 10 10 20 10 20 20", "shares in"),
        ("cow 0.1 0.1 0.2 0.1 0.2 0.2", "class number"),
    ],
)
def test_yolo_what_is_no_polygon_is_refused_by_line(tmp_path: Path, line: str, message: str) -> None:
    reader = open_reader(yolo_folder(tmp_path, f"0 0 0 1 0 1 1\n\n{line}\n"))
    with pytest.raises(UsageError, match=f"a.txt, line 3.*{message}"):
        reader.read_labels("train/a")


@pytest.mark.parametrize(
    "text",
    [
        "names: [cow, 'horse, brown', \"x: y\"]",
        "nc: 3\nnames:\n  - cow\n  - 'horse, brown'\n  - \"x: y\"\ntrain: images",
        "names:\n- cow  # first\n- 'horse, brown'\n- \"x: y\"\n",
        "names:\n  0: cow\n  1: 'horse, brown'\n  2: \"x: y\"\n",
        "names: {0: cow, 1: 'horse, brown', 2: \"x: y\"}",
        'names: [cow, "horse\\x2C brown", "x: \\U00000079"]',
    ],
)
def test_yolo_names_are_read_in_every_form_of_yaml(text: str) -> None:
    assert read_names(text, "data.yaml") == {0: "cow", 1: "horse, brown", 2: "x: y"}


def test_voc_color_maps_need_their_color_list(tmp_path: Path) -> None:
    (tmp_path / "SegmentationClass").mkdir()
    colors = np.zeros((2, 3, 3), dtype=np.uint8)
    colors[0, 0], colors[1, 2] = (128, 0, 0), (224, 224, 192)
    Image.fromarray(colors).save(tmp_path / "SegmentationClass" / "a.png")
    with pytest.raises(UsageError, match="add labelmap.txt"):
        open_reader(tmp_path).read_labels("a")
    (tmp_path / "labelmap.txt").write_text("# label:color_rgb:parts:actions\ncow:128,0,0::\nbackground:0,0,0::\n")
    assert open_reader(tmp_path).read_labels("a").tolist() == [[1, 0, 0], [0, 0, 255]]


def test_ade20k_value_0_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "annotations" / "training").mkdir(parents=True)
    Image.fromarray(np.array([[0, 1], [2, 2]], dtype=np.uint8)).save(tmp_path / "annotations" / "training" / "a.png")
    header = "Idx\tRatio\tTrain\tVal\tStuff\tName\n"
    (tmp_path / "objectInfo150.txt").write_text(f"{header}1\t.1\t1\t1\t1\twall\n2\t.1\t1\t1\t1\tbuilding, edifice\n")
    reader = open_reader(tmp_path)
    assert reader.format == "ade20k"
    assert reader.class_names == {1: "wall", 2: "building"}
    assert reader.read_labels("training/a").tolist() == [[255, 1], [2, 2]]


def test_cityscapes_polygons_are_filled_in_order_and_groups_count_as_their_members(tmp_path: Path) -> None:
    folder = tmp_path / "gtFine" / "train" / "ulm"
    folder.mkdir(parents=True)
    objects = [
        {"label": "road", "polygon": [[0, 0], [8, 0], [8, 4], [0, 4]]},
        {"label": "cargroup", "polygon": [[2, 1], [6, 1], [6, 3], [2, 3]]},
        {"label": "out of roi", "polygon": [[7, 0], [8, 0], [8, 1], [7, 1]]},
        {"label": "license plate", "polygon": [[3, 1], [4, 1], [4, 2], [3, 2]]},
    ]
    raw = {"imgHeight": 4, "imgWidth": 8, "objects": objects}
    (folder / "ulm_1_gtFine_polygons.json").write_text(json.dumps(raw))
    reader = open_reader(tmp_path)
    label = reader.read_labels("ulm/ulm_1")
    assert (label[0, 0], label[1, 3], label[0, 7]) == (7, 26, 255)
    assert (reader.class_names[7], reader.class_names[26]) == ("road", "car")


def test_panoptic_void_and_crowd_are_ignored_and_colors_are_ids(tmp_path: Path) -> None:
    segments = [
        {"id": 5, "category_id": 1, "iscrowd": 0},
        {"id": 256 * 3 + 65536, "category_id": 9, "iscrowd": 0},
        {"id": 7, "category_id": 9, "iscrowd": 1},
    ]
    raw = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": 1, "width": 4}],
        "categories": [{"id": 1, "name": "sky", "isthing": 0}, {"id": 9, "name": "cow", "isthing": 1}],
        "annotations": [{"image_id": 1, "file_name": "a.png", "segments_info": segments}],
    }
    (tmp_path / "panoptic.json").write_text(json.dumps(raw))
    (tmp_path / "panoptic").mkdir()
    colors = np.array([[[0, 0, 0], [5, 0, 0], [0, 3, 1], [7, 0, 0]]], dtype=np.uint8)
    Image.fromarray(colors).save(tmp_path / "panoptic" / "a.png")
    assert detect(str(tmp_path / "panoptic.json")) == "coco-panoptic"
    assert open_reader(tmp_path / "panoptic.json").read_labels("a.jpg").tolist() == [[255, 0, 1, 255]]


def test_hugging_face_images_are_named_by_their_path_if_no_column_names_them(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    label = encode_png(np.array([[0, 3], [255, 1]], dtype=np.uint8))
    rows = {"image": [{"bytes": b"photo", "path": "a.jpg"}], "mask": [{"bytes": label, "path": None}]}
    pq.write_table(pa.table(rows), tmp_path / "train.parquet")
    reader = open_reader(tmp_path)
    assert list(reader.names()) == ["a.jpg"]
    assert reader.read_labels("a.jpg").tolist() == [[0, 3], [255, 1]]
    pq.write_table(pa.table({"image": rows["image"], "text": ["x"]}), tmp_path / "train.parquet")
    with pytest.raises(UsageError, match="needs a column of label maps"):
        open_reader(tmp_path)


def test_a_row_of_a_parquet_file_whose_label_is_no_image_is_named(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sound = encode_png(np.zeros((2, 3), np.uint8))
    for wrong in (b"no image", sound[:40]):
        rows = {"name": ["a.png", "b.png", "c.png"], "label": pa.array([sound, sound, wrong], pa.binary())}
        pq.write_table(pa.table(rows), tmp_path / "train.parquet", row_group_size=2)
        reader = open_reader(tmp_path / "train.parquet")
        assert reader.read_labels("b.png").shape == (2, 3)
        with pytest.raises(UsageError, match="row 2: the label map of c.png in column label cannot be decoded"):
            reader.read_labels("c.png")
