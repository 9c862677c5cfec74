"""From photos with image-level labels to measured labels and pictures, as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from maskmill.engine.model.png import decode_png
from maskmill.engine.store.label_store import LabelStore
from maskmill.errors import StoreError

from ...models import color_cam_graph, color_decoder_graph, color_encoder_graph, color_image
from ...test_cli import maskmill, ok

PROMPTS = ("--set", "min_distance=3", "--set", "mode=peaks")
RECTANGLES = ((0, slice(4, 20), slice(4, 20)), (1, slice(12, 28), slice(26, 42)))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a classifier, a promptable model, photos, their label maps and image-level labels."""
    folder = tmp_path_factory.mktemp("home")
    onnx.save(color_cam_graph(size=("H", "W")), folder / "cam.onnx")
    onnx.save(color_encoder_graph(), folder / "encoder.onnx")
    onnx.save(color_decoder_graph(), folder / "decoder.onnx")
    (folder / "model-classes.txt").write_text("red\ngreen\nblue\n")
    ok("import", "cam.onnx", "-o", "cam", "--task", "cam", "--classes", "model-classes.txt", "--size", "16x24",
       "--activation", "sigmoid", cwd=folder)  # fmt: skip
    ok("import", "encoder.onnx", "-o", "sam", "--task", "promptable", "--decoder", "decoder.onnx", "--scale", "1/255",
       "--mean", "0", "--std", "1", "--pad-value", "0", cwd=folder)  # fmt: skip
    for name in ("photos", "labels"):
        (folder / name).mkdir()
    rows = ["image,labels"]
    for index in range(12):
        image, label = np.full((32, 48, 3), 90, np.uint8), np.zeros((32, 48), np.uint8)
        for color, vertical, horizontal in RECTANGLES[: 1 + index % 2]:
            image[vertical, horizontal] = color_image(np.full((1, 1), color))
            label[vertical, horizontal] = color + 1
        image[0, index] = 7
        Image.fromarray(image).save(folder / "photos" / f"{index}.png")
        Image.fromarray(label).save(folder / "labels" / f"{index}.png")
        rows.append(f"{index}.png,{';'.join(('red', 'green')[: 1 + index % 2])}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    return folder


MODELS = ("--cam", "cam", "--sam", "sam", "--image-labels", "labels.csv", *PROMPTS)


def test_from_image_level_labels_to_measured_labels(home: Path) -> None:
    output = ok("calibrate", *MODELS, "--images", "photos", "--labels", "labels", "--alpha", "0.1", "--min-images", "1",
                "-o", "thresholds.json", cwd=home)  # fmt: skip
    assert "thresholds.json: alpha 0.1" in output
    ok("label-prompted", *MODELS, "photos", "-o", "store", "--select", "conformal", "--calibration", "thresholds.json",
       "--embedding-cache", "0.1", cwd=home)  # fmt: skip
    assert list((home / "store" / "embeddings").rglob("*.npz"))
    quality = json.loads(ok("evaluate", "store", "--labels", "labels", "--json", cwd=home))
    assert quality["num_images"] == 12
    assert quality["accuracy_kept"] > 0.97
    assert quality["kept"] > 0.8
    again = ok("label-prompted", *MODELS, "photos", "-o", "store", "--select", "conformal", "--calibration",
               "thresholds.json", "--embedding-cache", "0.1", cwd=home)  # fmt: skip
    assert "nothing to do" in again
    picture = ok("show", "store", "1.png", "--steps", *MODELS[:6], "-o", "steps.png", cwd=home)
    assert picture == "wrote steps.png\n"
    with Image.open(home / "steps.png") as image:
        assert image.width > 4 * 360


def test_the_same_photo_with_other_image_level_labels_is_another_image(home: Path) -> None:
    folder = home / "twice"
    folder.mkdir()
    for name in ("a.png", "b.png", "c.png"):
        (folder / name).write_bytes((home / "photos" / "1.png").read_bytes())
    command = ("label-prompted", "--cam", "cam", "--sam", "sam", "--image-labels", "twice.csv", *PROMPTS, "twice",
               "-o", "twice-store")  # fmt: skip
    (home / "twice.csv").write_text("image,labels\na.png,red\nb.png,red;green\nc.png,red\n")
    ok(*command, cwd=home)
    store = LabelStore.open(home / "twice-store")
    ids = {Path(row.uri).name: row.id for row in store.inputs()}
    assert ids["a.png"] == ids["c.png"] != ids["b.png"]
    labels = {name: set(np.unique(store.read_id(id)[0])) for name, id in ids.items()}
    assert labels == {"a.png": {0, 1}, "b.png": {0, 1, 2}, "c.png": {0, 1}}
    (home / "twice.csv").write_text("image,labels\na.png,red\nb.png,green\nc.png,red\n")  # corrected: labeled again
    ok(*command, cwd=home)
    assert set(np.unique(LabelStore.open(store.path).read(str(folder / "b.png"))[0])) == {0, 2}


def test_other_prompts_are_refused_for_a_store_and_for_a_calibration(home: Path) -> None:
    ok("label-prompted", *MODELS, "photos", "-o", "one", "--limit", "2", cwd=home)
    other = maskmill("label-prompted", *MODELS, "--set", "tau=0.7", "photos", "-o", "one", cwd=home)
    assert other.returncode == 2
    assert "prompts.tau: 0.5 there, 0.7 now" in other.stderr


def test_an_image_without_a_row_is_a_reject_and_the_rest_is_labeled(home: Path) -> None:
    (home / "few.csv").write_text("image,labels\n0.png,red\n")
    options = ("--cam", "cam", "--sam", "sam", "--image-labels", "few.csv")
    result = maskmill("label-prompted", *options, *PROMPTS, "photos", "-o", "few", cwd=home)
    assert result.returncode == 1
    assert "rejected as no-labels: 11" in result.stdout
    assert len(LabelStore.open(home / "few")) == 1


def test_a_promptable_model_alone_segments_everything(home: Path) -> None:
    ok("segment", "--sam", "sam", "photos", "-o", "segments", "--set", "min_score=0.5", "--set", "side=8", cwd=home)
    store = LabelStore.open(home / "segments")
    assert store.run["maps"] == "segments"
    for row in store.iter_rows():
        label = decode_png(row.label)
        assert label.dtype == np.uint16
        assert label[10, 10] != label[30, 2] != 0
    shown = ok("show", "segments", "1.png", "-o", "segments.png", cwd=home)
    assert shown == "wrote segments.png\n"
    refused = maskmill("evaluate", "segments", "--labels", "labels", cwd=home)
    assert refused.returncode == 2
    assert "holds segments without classes" in refused.stderr
    for words in (("report", "segments", "-o", "r.html"), ("rank", "segments", "-o", "q.json"), ("serve", "segments")):
        refused = maskmill(*words, cwd=home)
        assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
        assert "`maskmill show STORE IMAGE` draws the segments" in refused.stderr
    with pytest.raises(StoreError, match="holds segments without classes"):
        _ = store.classes


def test_a_head_for_other_classes_is_fitted_and_used(home: Path) -> None:
    text = (home / "labels.csv").read_text().replace("red", "tomato").replace("green", "leaf")
    (home / "own.csv").write_text(text)
    output = ok("cam-head", "cam", "--images", "photos", "--image-labels", "own.csv", "-o", "own", cwd=home)
    assert "own: 2 classes from 12 images (0 not listed)" in output
    ok(
        "label-prompted",
        "--cam",
        "own",
        "--sam",
        "sam",
        "--image-labels",
        "own.csv",
        *PROMPTS,
        "photos",
        "-o",
        "owned",
        cwd=home,
    )
    assert LabelStore.open(home / "owned").classes["targets"] == ["background", "leaf", "tomato"]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("calibrate --images photos --labels labels --alpha .1 -o c.json", "expected a model"),
        (
            "calibrate --cam cam --images photos --labels labels --alpha .1 -o c.json",
            "--cam, --detector, --boxes, --points and --coarse-masks give prompts for --sam BUNDLE; add it",
        ),
        (
            "calibrate --sam sam --images photos --labels labels --alpha .1 -o c.json",
            "prompts need a source: --cam BUNDLE",
        ),
        ("calibrate cam --cam cam --sam sam --images photos --labels labels --alpha .1 -o c.json", "expected a model"),
        (
            "calibrate --cam cam --sam sam --tile 32 --images photos --labels labels --alpha .1 -o c.json",
            "--text, --tile and --overlap apply to BUNDLE, not to --sam",
        ),
        (
            "label-prompted photos --cam cam --sam sam --set tau -o refused",
            "--set takes NAME=VALUE with one of the names",
        ),
        ("label-prompted photos --cam cam --sam sam --set tau=high -o refused", "--set tau takes a number, got 'high'"),
        ("segment photos --sam sam --set tau=1 -o refused", "--set takes NAME=VALUE with one of the names"),
        ("show store --cam cam", "apply to --steps only"),
        ("show store -o picture.png", "needs an IMAGE"),
    ],
)
def test_options_that_do_not_apply_are_refused_in_one_line(home: Path, command: str, message: str) -> None:
    result = maskmill(*command.split(), cwd=home)
    assert result.returncode == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_class_mapping_is_drafted_from_the_classes_of_boxes_and_fits_a_calibration(home: Path) -> None:
    images = [{"id": index, "file_name": f"{index}.png", "width": 48, "height": 32} for index in range(12)]
    boxes = [{"image_id": index, "category_id": 5, "bbox": [4, 4, 16, 16]} for index in range(12)]
    boxes += [{"image_id": index, "category_id": 3, "bbox": [26, 12, 16, 16]} for index in range(1, 12, 2)]
    categories = [{"id": 5, "name": "tomato"}, {"id": 3, "name": "leaf"}, {"id": 9, "name": "plane"}]
    file = {"images": images, "annotations": boxes, "categories": categories}
    (home / "boxes.json").write_text(json.dumps(file))
    (home / "names.txt").write_text("0 background\n1 tomato\n2 leaf\n")
    mapping = ("--labels", "labels", "--label-names", "names.txt", "-o", "boxes.toml")
    refused = maskmill("taxonomy", "sam", *mapping, cwd=home)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "has no classes of its own; give the option that names them: --boxes, --points" in refused.stderr
    output = ok("taxonomy", "sam", "--boxes", "boxes.json", *mapping, cwd=home)
    assert "model class plane → dropped" in output
    ok("calibrate", "--sam", "sam", "--boxes", "boxes.json", "--images", "photos", "--labels", "labels",
       "--taxonomy", "boxes.toml", "--alpha", "0.2", "--min-images", "1", "-o", "boxes-calibration.json",
       cwd=home)  # fmt: skip
    (home / "next.json").write_text(json.dumps(file | {"annotations": boxes[:12]}))  # no leaf is prompted
    ok("label-prompted", "photos", "--sam", "sam", "--boxes", "next.json", "--taxonomy", "boxes.toml", "--select",
       "conformal", "--calibration", "boxes-calibration.json", "-o", "boxed", cwd=home)  # fmt: skip
    assert LabelStore.open(home / "boxed").classes["targets"] == ["background", "leaf", "tomato"]
    other = maskmill("taxonomy", "cam", "--boxes", "boxes.json", "-o", "other.toml", cwd=home)
    assert (other.returncode, other.stderr.count("\n")) == (2, 1)
    assert "cam has the task cam; --boxes gives prompts for a promptable model only" in other.stderr


def test_steps_of_other_models_are_refused(home: Path) -> None:
    ok("label-prompted", *MODELS, "photos", "-o", "stored", "--limit", "1", cwd=home)
    ok("import", "cam.onnx", "-o", "other", "--task", "cam", "--classes", "model-classes.txt", "--size", "32x48",
       "--activation", "sigmoid", cwd=home)  # fmt: skip
    result = maskmill("show", "stored", "0.png", "--steps", "--cam", "other", "--sam", "sam", cwd=home)
    assert result.returncode == 2
    assert "was labeled with another classifier" in result.stderr


def test_prompts_from_a_file_and_coarse_masks_from_a_store(home: Path) -> None:
    rows = [f"{index}.png,red,10,10" for index in range(12)] + [f"{index}.png,green,33,20" for index in range(1, 12, 2)]
    (home / "points.csv").write_text("image,label,x,y\n" + "\n".join(rows) + "\n")
    ok("label-prompted", "photos", "--sam", "sam", "--points", "points.csv", "-o", "pointed", "--instances",
       "--min-score", "0.2", "--batch", "4", cwd=home)  # fmt: skip
    store = LabelStore.open(home / "pointed")
    assert store.classes["targets"] == ["background", "green", "red"]
    ok("export-labels", "pointed", "--format", "coco", "--instances", "-o", "objects", cwd=home)
    assert len(json.loads((home / "objects/annotations/instances.json").read_text())["annotations"]) == len(rows)
    ok("label-prompted", "photos", "--sam", "sam", "--coarse-masks", "pointed", "-o", "refined", cwd=home)
    maps = [decode_png(row.label) for row in LabelStore.open(home / "refined").iter_rows()]
    assert sum(bool((label == 1).any()) for label in maps) == 6
    (home / "some.csv").write_text("image,label,x,y\n0.png,red,10,10\nnope.jpg,red,10,10\n")
    result = ok("label-prompted", "photos", "--sam", "sam", "--points", "some.csv", "-o", "some", cwd=home)
    assert "warning: 11 images without a point, labeled background; 1 name of some.csv has no image: nope.jpg" in result
    (home / "none.csv").write_text("image,label,x,y\nnope.jpg,red,10,10\n")
    for options, message in (
        ((), "prompts need a source"),
        (("--points", "none.csv"), "none of the 12 images has a point in none.csv"),
        (("--points", "points.csv", "--cam", "cam"), "prompts have one source"),
        (("--points", "points.csv", "--set", "mode=box"), "--set applies to prompts from --cam"),
        (("--boxes", "nowhere.csv"), "nowhere.csv"),
    ):
        result = maskmill("label-prompted", "photos", "--sam", "sam", *options, "-o", "other", cwd=home)
        assert result.returncode == 2
        assert message in result.stderr
    result = maskmill("label-prompted", "photos", "--sam", "cam", "--points", "points.csv", "-o", "other", cwd=home)
    assert result.returncode == 2
    assert "cam is a cam bundle; --sam needs a promptable one, such as Segment Anything" in result.stderr


def test_a_calibration_of_prompts_from_one_file_holds_for_those_of_another(home: Path) -> None:
    corners = {"red": "4,4,20,20", "green": "26,12,42,28"}
    for name, images in (("first", range(8)), ("second", range(8, 12))):
        boxes = [f"{i}.png,{color},{corners[color]}" for i in images for color in ("red", "green")[: 1 + i % 2]]
        (home / f"{name}.csv").write_text("\n".join(["image,label,x0,y0,x1,y1", *boxes]) + "\n")
        (home / f"{name}.txt").write_text("\n".join(f"{i}.png" for i in images) + "\n")
    (home / "one_file.toml").write_text(
        'targets = ["background", "red", "green"]\nbackground = "background"\n[model]\nbackground = "background"\n'
        'red = "red"\ngreen = "green"\n[labels]\n0 = "background"\n1 = "red"\n2 = "green"\n'
    )
    options = ("--sam", "sam", "--taxonomy", "one_file.toml")
    output = ok("calibrate", *options, "--boxes", "first.csv", "--images", "photos", "--labels", "labels", "--ids",
                "first.txt", "--alpha", "0.2", "--min-images", "1", "-o", "one_file.json", cwd=home)  # fmt: skip
    assert "warning: 4 images without a box, labeled background" in output
    ok("label-prompted", "photos", *options, "--boxes", "second.csv", "-o", "from one file", "--select", "conformal",
       "--calibration", "one_file.json", cwd=home)  # fmt: skip
    quality = json.loads(
        ok("evaluate", "from one file", "--labels", "labels", "--ids", "second.txt", "--json", cwd=home)
    )
    assert quality["accuracy_kept"] > 0.95
    (home / "points of both.csv").write_text("image,label,x,y\n0.png,red,10,10\n1.png,green,33,20\n")
    result = maskmill("label-prompted", "photos", *options, "--points", "points of both.csv", "-o", "pointed again",
                      "--select", "conformal", "--calibration", "one_file.json", cwd=home)  # fmt: skip
    assert result.returncode == 2
    assert "prompt_kind: calibrated with box, labeling with point" in result.stderr
    (home / "cow.csv").write_text("image,label,x0,y0,x1,y1\n0.png,red,4,4,20,20\n1.png,cow,4,4,20,20\n")
    result = maskmill("label-prompted", "photos", *options, "--boxes", "cow.csv", "-o", "cows", cwd=home)
    assert result.returncode == 2
    assert "cow" in result.stderr
    assert result.stderr.count("\n") == 1
    (home / "far.csv").write_text("image,label,x0,y0,x1,y1\n0.png,red,4,4,20,20\n1.png,red,400,400,600,600\n")
    result = maskmill("label-prompted", "photos", "--sam", "sam", "--boxes", "far.csv", "-o", "far", cwd=home)
    assert result.returncode == 1
    assert [row.error for row in LabelStore.open(home / "far").inputs() if row.id is None] == ["outside"]
