"""Boxes and points from files, coarse masks from a store: prompts, masks, scores and objects that follow."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from maskmill.engine.inputs.sources import open_source
from maskmill.engine.labeling.export_labels import export_labels
from maskmill.engine.labeling.instances import InstanceSettings
from maskmill.engine.labeling.label_run import label
from maskmill.engine.labeling.selection import Selection
from maskmill.engine.model.bundle import Bundle
from maskmill.engine.model.taxonomy import Taxonomy
from maskmill.engine.predictors.prompted.given_predictor import GivenPredictor
from maskmill.engine.predictors.prompted.given_prompts import GivenPrompts, boxes_of, inner_points, masks_of, points_of
from maskmill.engine.runtimes.onnx_runtime import OnnxSession
from maskmill.engine.store.instances import decode_instances
from maskmill.engine.store.label_store import LabelStore
from maskmill.errors import ImageError, UsageError

from ....models import color_image, sam_bundle

RED, GREEN = (slice(4, 20), slice(4, 20)), (slice(12, 28), slice(26, 42))


def picture(*, mirrored: bool = False) -> NDArray[np.uint8]:
    image = np.full((32, 48, 3), 90, np.uint8)
    for color, place in ((0, RED), (1, GREEN)):
        image[place] = color_image(np.full((1, 1), color))
    return image[:, ::-1].copy() if mirrored else image


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.fromarray(picture()).save(folder / "a 1.png")
    Image.fromarray(picture(mirrored=True)).save(folder / "b.png")
    Image.fromarray(np.full((32, 48, 3), 90, np.uint8)).save(folder / "empty.png")
    return folder


def predictor_of(folder: Path, prompts: GivenPrompts, *, batch: int = 1, signature: str = "batched") -> GivenPredictor:
    name = f"sam-{batch}-{signature}"
    there = (folder / name).exists()
    bundle = Bundle.load(folder / name) if there else sam_bundle(folder, name=name, signature=signature)
    encoder, decoder = (OnnxSession(bundle, role=role) for role in ("encoder", "decoder"))
    return GivenPredictor(bundle, encoder, decoder, prompts, batch=batch)


def labeled(folder: Path, photos: Path, prompts: GivenPrompts, name: str = "store", **options: object) -> LabelStore:
    predictor = predictor_of(folder, prompts, **options)  # type: ignore[arg-type]
    selection = Selection.argmax(instances=InstanceSettings(min_score=0.1))
    label(predictor, open_source(str(photos)), folder / name, Taxonomy.of_model(predictor.bundle), selection)
    assert predictor.encoded == 2  # not the photo without prompts
    return LabelStore.open(folder / name)


def maps_of(store: LabelStore) -> dict[str, NDArray[np.uint8]]:
    rows = {row.uri.rsplit("/", 1)[-1]: row.id for row in store.inputs() if row.id is not None}
    return {name: store.maps(store.take([id])[0])[0] for name, id in rows.items()}


def truth() -> NDArray[np.uint8]:
    """Classes background, green, red: in the order of their names."""
    label = np.zeros((32, 48), np.uint8)
    label[RED], label[GREEN] = 2, 1
    return label


@pytest.mark.parametrize(("batch", "signature"), [(1, "batched"), (3, "batched"), (2, "official")])
def test_points_become_masks_of_their_class(tmp_path: Path, photos: Path, batch: int, signature: str) -> None:
    (tmp_path / "points.csv").write_text(
        "image,label,x,y,positive\na 1.png,red,10.5,10.5,1\na 1.png,green,30.5,20.5,1\nb.png,red,37.5,10.5,1\n"
        "b.png,green,14.5,20.5,1\n"
    )
    store = labeled(tmp_path, photos, points_of(tmp_path / "points.csv"), batch=batch, signature=signature)
    assert store.classes["targets"] == ["background", "green", "red"]
    maps = maps_of(store)
    assert (maps["a 1.png"] == truth()).mean() > 0.97
    assert (maps["b.png"] == truth()[:, ::-1]).mean() > 0.97
    assert (maps["empty.png"] == 0).all()


def test_boxes_become_objects_with_their_scores(tmp_path: Path, photos: Path) -> None:
    rows = ["image,label,x0,y0,x1,y1,score", "a 1.png,red,4,4,20,20,1", "b.png,red,28,4,44,20,0.5"]
    (tmp_path / "boxes.csv").write_text("\n".join(rows) + "\n")
    store = labeled(tmp_path, photos, boxes_of(tmp_path / "boxes.csv"))
    assert (maps_of(store)["a 1.png"][5:19, 5:19] == 1).all()
    objects = sorted(
        (instance.score, instance.box, instance.area)
        for row in store.iter_rows(extras=True)
        for instance in decode_instances(row, len(store.classes["targets"]))
    )
    # the mask that the model scores highest has a predicted IoU of .9; upsampling takes a pixel from each of its edges
    assert objects == [(pytest.approx(0.45), (29, 5, 14, 14), 196), (pytest.approx(0.9), (5, 5, 14, 14), 196)]
    export_labels(store, tmp_path / "coco", "coco", instances=True)
    again = boxes_of(tmp_path / "coco/annotations/instances.json")  # a COCO file is read as boxes
    assert again.classes == ("red",)
    (target,) = again.targets_of("/elsewhere/b.png")
    assert target.score == pytest.approx(0.45)
    assert target.prompts[0].points.tolist() == [[29, 5], [43, 19]]


def test_coarse_masks_are_refined_and_kept_if_nothing_agrees(tmp_path: Path, photos: Path) -> None:
    coarse = np.zeros((32, 48), np.uint8)
    coarse[RED], coarse[GREEN] = 2, 1
    coarse[4:12, 4:12] = coarse[20:28, 34:42] = 0  # a quarter of each is missing
    coarse[24:30, 2:8] = 2  # on gray: no mask of the model agrees with it
    folder = tmp_path / "coarse"
    folder.mkdir()
    Image.fromarray(coarse).save(folder / "a 1.png")
    Image.fromarray(coarse[:, ::-1]).save(folder / "b.png")
    (folder / "classes.txt").write_text("0 background\n1 green\n2 red\n")
    prompts = masks_of(folder)
    assert prompts.classes == ("green", "red")
    assert [len(target.prompts) for target in prompts.targets_of("a 1.png")] == [5, 5, 5]
    maps = maps_of(labeled(tmp_path, photos, prompts))
    inside = np.zeros((32, 48), bool)
    inside[22:, :10] = True
    assert (maps["a 1.png"] == truth())[~inside].mean() > 0.97
    assert (coarse == truth())[~inside].mean() < 0.93
    assert (maps["a 1.png"] == coarse)[inside].mean() > 0.9


class MaskDecoder:
    """Session of a decoder whose masks are the mask prompts, and empty without one."""

    kind, artifact, max_batch, threads = "test/cpu/fp32", "0" * 64, None, 1

    def __init__(self) -> None:
        self.feeds: list[dict[str, NDArray[np.float32]]] = []

    def run(self, feeds: dict[str, NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        self.feeds.append(feeds)
        given = feeds["has_mask_input"][:, None, None, None] > 0
        masks = np.where(given, feeds["mask_input"], np.float32(-5))
        scores = np.full(masks.shape[:2], 0.5, np.float32)
        return [np.repeat(masks, 3, axis=1), np.repeat(scores, 3, axis=1)]


@pytest.mark.parametrize("signature", ["batched", "official"])
def test_a_coarse_mask_is_a_prompt_if_the_decoder_takes_one(tmp_path: Path, signature: str) -> None:
    coarse = truth()
    (tmp_path / "coarse").mkdir()
    Image.fromarray(coarse).save(tmp_path / "coarse" / "a.png")
    (tmp_path / "coarse" / "classes.txt").write_text("0 background\n1 green\n2 red\n")
    bundle = sam_bundle(tmp_path, signature=signature)
    assert bundle.prompt is not None
    bundle = replace(bundle, prompt=replace(bundle.prompt, masks=signature == "batched"))
    decoder = MaskDecoder()
    predictor = GivenPredictor(bundle, OnnxSession(bundle, role="encoder"), decoder, masks_of(tmp_path / "coarse"))
    (score_map,) = predictor.run([predictor.prepare(picture(), "a.png")])
    masked = [row for feeds in decoder.feeds for row in np.flatnonzero(feeds["has_mask_input"])]
    assert len(masked) == 4  # two of the five ways to ask for each of the two parts
    # the answer to the mask alone is the part itself
    assert score_map.objects is not None
    assert (score_map.objects.scores > 0.95).all()
    for mask, value in zip(score_map.objects.masks, (1, 2), strict=True):
        assert ((mask > 0) == (coarse[::2, ::2] == value)).mean() > 0.97


def test_other_prompts_make_other_labels_of_the_same_photo(tmp_path: Path) -> None:
    path = tmp_path / "points.csv"
    path.write_text("image,label,x,y\na.png,red,1,2\nb.png,red,1,2\nb.png,red,5,5\n")
    prompts = points_of(path)
    assert prompts.condition("a.png").startswith("prompts: ")
    assert prompts.condition("a.png") != prompts.condition("b.png")
    assert prompts.condition("c.png") == ""
    path.write_text("image,label,x,y\na.png,red,1,3\n")
    assert points_of(path).condition("a.png") != prompts.condition("a.png")


def test_points_lie_deep_inside_and_apart() -> None:
    part = np.zeros((40, 90), bool)
    part[10:30, 5:85] = True
    points = inner_points(part, 3)
    assert len(points) == 3
    assert ((points[:, 1] > 15) & (points[:, 1] < 25)).all()
    assert np.diff(np.sort(points[:, 0])).min() > 15
    assert len(inner_points(np.ones((1, 1), bool), 3)) == 1


def coco_boxes(box: list[float], **fields: object) -> str:
    """A COCO file of two boxes of one photo, the second one as given."""
    first = {"id": 1, "image_id": 3, "category_id": 7, "bbox": [4, 4, 16, 16]}
    return json.dumps(
        {
            "images": [{"id": 3, "file_name": "a 1.png", "width": 48, "height": 32}],
            "categories": [{"id": 7, "name": "red"}],
            "annotations": [first, first | {"id": 2, "bbox": box} | fields],
        }
    )


def test_crowds_are_no_prompts(tmp_path: Path) -> None:
    path = tmp_path / "boxes.json"
    path.write_text(coco_boxes([0, 0, 40, 30], iscrowd=1))
    prompts = boxes_of(path)
    (target,) = prompts.targets_of("a 1.png")
    assert target.prompts[0].points.tolist() == [[4, 4], [20, 20]]
    assert prompts.check(["a 1.png"]) == [f"1 iscrowd box of {path} is left out"]


def test_the_classes_of_a_coco_file_are_its_categories(tmp_path: Path) -> None:
    names = {1: "green", 7: "red", 8: "blue", 9: "background", 10: "ignore"}
    raw = json.loads(coco_boxes([0, 0, 40, 30]))
    raw["categories"] = [{"id": number, "name": name} for number, name in names.items()]
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps(raw))
    prompts = boxes_of(path)
    assert prompts.classes == ("blue", "green", "red")
    assert {target.target for target in prompts.targets_of("a 1.png")} == {2}


def test_a_file_of_crowds_alone_says_that_they_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "boxes.json"
    raw = json.loads(coco_boxes([0, 0, 40, 30]))
    path.write_text(json.dumps(raw | {"annotations": [entry | {"iscrowd": 1} for entry in raw["annotations"]]}))
    with pytest.raises(UsageError, match="holds no prompts; 2 iscrowd boxes of .* are left out"):
        boxes_of(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": [{"id": 3, "file_name": "a.png"}, {"id": 3, "file_name": "b.png"}]}, "the image b.png or its id 3"),
        ({"categories": [{"id": 7, "name": "red"}, {"id": 7, "name": "green"}]}, "the category id 7 twice"),
        ({"categories": [{"id": 8, "name": "red"}]}, "annotation 0: the category 7 is not in the file"),
        ({"images": [{"id": 4, "file_name": "a.png"}]}, "annotation 0: the image 3 is not in the file"),
        ({"images": [{"id": 3}]}, "image 0: it needs id and file_name"),
    ],
)
def test_boxes_of_an_inconsistent_coco_file_are_refused(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps(json.loads(coco_boxes([0, 0, 4, 3])) | changes))
    with pytest.raises(UsageError, match=message):
        boxes_of(path)


def test_a_point_is_on_the_object_or_off_it(tmp_path: Path) -> None:
    path = tmp_path / "points.csv"
    for value in ("-1", "0.5", "2"):
        path.write_text(f"image,label,x,y,positive\na.png,red,1,1,1\na.png,red,5,5,{value}\n")
        with pytest.raises(UsageError, match=f"line 3: positive must be 1 on the object or 0 off it, got {value}"):
            points_of(path)


def test_a_box_given_twice_is_one_object(tmp_path: Path, photos: Path) -> None:
    head, row = "image,label,x0,y0,x1,y1\n", "a 1.png,red,4,4,20,20\n"
    other = "b.png,red,28,4,44,20\n"
    stores = []
    for name, text in (("once", row + other), ("twice", row + row + other)):
        (tmp_path / "boxes.csv").write_text(head + text)
        stores.append(labeled(tmp_path, photos, boxes_of(tmp_path / "boxes.csv"), name))
    once, twice = map(maps_of, stores)
    assert all(np.array_equal(once[name], twice[name]) for name in once)
    boxes = [
        sorted(
            instance.box
            for row in store.iter_rows(extras=True)
            for instance in decode_instances(row, len(store.classes["targets"]))
        )
        for store in stores
    ]
    assert boxes[0] == boxes[1]
    assert len(boxes[0]) == 2


def test_boxes_are_cut_to_the_photo_and_prompts_outside_of_it_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "boxes.csv"
    path.write_text(
        "image,label,x0,y0,x1,y1\nred.png,red,-30,-2,20,20\nright.png,red,48,0,60,9\nfar.png,red,500,500,600,600\n"
    )
    predictor = predictor_of(tmp_path, boxes_of(path))
    (target,) = predictor.prepare(picture(), "red.png").targets
    assert target.prompts[0].points.tolist() == [[0, 0], [20, 20]]
    for name in ("right.png", "far.png"):
        with pytest.raises(ImageError, match="lies outside of the image, 48x32 pixels; correct the file"):
            predictor.prepare(picture(), name)
    points = tmp_path / "points.csv"
    points.write_text("image,label,x,y\nin.png,red,48,32\nout.png,red,10,33\n")
    predictor = predictor_of(tmp_path, points_of(points))
    assert len(predictor.prepare(picture(), "in.png").targets) == 1
    with pytest.raises(ImageError, match="the prompt 10, 33 lies outside"):
        predictor.prepare(picture(), "out.png")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("boxes.csv", "image,label,x0,y0,x1\n", "lacks y1"),
        ("boxes.csv", "image,label,x0,y0,x1,y1\na.png,red,5,5,5,9\n", "line 2: expected a box"),
        ("boxes.csv", "image,label,x0,y0,x1,y1\na.png,red,5,5,nan,9\n", "line 2: expected a number"),
        ("boxes.csv", "image,label,x0,y0,x1,y1\n", "holds no prompts"),
        ("boxes.csv", "image,label,x0,y0,x1,y1\na.png,background,1,1,5,9\n", "what no prompt covers"),
        ("boxes.csv", "image,label,x0,y0,x1,y1\na.png,red,5,5,1e39,9\n", "line 2: expected a number of pixels"),
        ("boxes.csv", "image,label,x0,y0,x1,y1,score\na.png,red,5,5,6,9,nan\n", "line 2: expected a number"),
        ("boxes.csv", "image,label,x0,y0,x1,y1,score\na.png,red,5,5,6,9,1.5\n", "a score in .0, 1., got .* and 1.5"),
        ("boxes.json", json.dumps([{"image_id": 1, "bbox": [1, 2, 3, 4]}]), "must hold a JSON object"),
        ("boxes.json", '{"images": [], "categories": []}', "is not a COCO file of images, categories and boxes"),
        (
            "boxes.json",
            coco_boxes([1, 1, 0, 3]),
            "^[^(]*, annotation 1: expected a box .*; correct it or leave",
        ),
        ("boxes.json", coco_boxes([1, 1, 2, 3], score=float("nan")), "annotation 1: .* and nan"),
        ("boxes.json", coco_boxes([1, 1, 2, 3], iscrowd="0"), "annotation 1: iscrowd must be 0 or 1, got '0'"),
        ("boxes.json", coco_boxes([1, 1, 10**400, 3]), "is not a COCO file"),
        ("boxes.json", "[" * 100_000, "cannot read"),
    ],
)
def test_files_that_are_not_as_expected_are_refused(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=message):
        boxes_of(tmp_path / name)


def test_masks_of_another_size_than_the_photo_are_named(tmp_path: Path, photos: Path) -> None:
    folder = tmp_path / "coarse"
    folder.mkdir()
    Image.fromarray(np.ones((16, 24), np.uint8)).save(folder / "b.png")
    (folder / "classes.txt").write_text("0 background\n1 green\n")
    with pytest.raises(UsageError, match="16x24 pixels, the image 32x48"):
        predictor_of(tmp_path, masks_of(folder)).predict(picture(), "b.png")


def test_names_that_match_no_image_are_counted_and_all_of_them_are_refused(tmp_path: Path, photos: Path) -> None:
    boxes = tmp_path / "boxes.csv"
    boxes.write_text("image,label,x0,y0,x1,y1\na 1.png,red,4,4,20,20\nb.png,red,1,1,9,9\nnope.jpg,red,1,1,9,9\n")
    store = labeled(tmp_path, photos, boxes_of(boxes))
    uris = [row.uri for row in store.inputs()]
    assert boxes_of(boxes).check(uris) == [
        f"1 image without a box, labeled background; 1 name of {boxes} has no image: nope.jpg"
    ]
    assert masks_of(store.path).check(uris) == []
    boxes.write_text("image,label,x0,y0,x1,y1\nnope.jpg,red,4,4,20,20\n")
    folder = tmp_path / "others"
    folder.mkdir()
    Image.fromarray(picture()).save(folder / "other.png")
    for batch, prompts in ((2, boxes_of(boxes)), (3, masks_of(store.path))):
        predictor = predictor_of(tmp_path, prompts, batch=batch)
        with pytest.raises(UsageError, match="none of the 1 images has a"):
            label(
                predictor,
                open_source(folder),
                tmp_path / "new",
                Taxonomy.of_model(predictor.bundle),
                Selection.argmax(),
            )
        assert not (tmp_path / "new").exists()
