from __future__ import annotations

import json
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from maskmill.engine.calibration.calibration import Calibration
from maskmill.engine.formats.rle import brush_of_mask
from maskmill.engine.labeling.export_labels import export_labels
from maskmill.engine.labeling.import_labels import import_labels, withdraw_reviews
from maskmill.engine.model.png import encode_png
from maskmill.engine.model.taxonomy import Taxonomy
from maskmill.engine.report.evaluate import evaluate_store
from maskmill.engine.store.label_store import LabelStore
from maskmill.engine.store.reviewed_labels import ReviewedLabels, open_reviewed
from maskmill.errors import UsageError
from maskmill.trainer.measure import evaluate

from ...models import color_bundle
from ...test_cli import maskmill, ok
from .test_export_labels import TAXONOMY, label_map, make_store

NUM = 20


def corrected_map(index: int) -> NDArray[np.uint8]:
    """The label map that a person made of :func:`label_map`: two rows of horse, one pixel without a label."""
    label = label_map(index)
    label[2:4] = 2
    label[5, index % 9] = 255
    return label


def correct_in_cvat(folder: Path) -> Path:
    """The exported task as CVAT gives it back: masks of other shape, from a person, in a new file."""
    lines = ['<?xml version="1.0" encoding="utf-8"?>\n<annotations><version>1.1</version><meta><task><labels>']
    lines += [f"<label><name>{name}</name></label>" for name in TAXONOMY.targets]
    lines.append("</labels></task></meta>")
    with zipfile.ZipFile(folder / "cvat.zip") as archive:
        assert archive.read("annotations.xml").count(b"<image ") == NUM
    for index in range(NUM):
        lines.append(f'<image id="{index}" name="{index}.png" width="9" height="6">')
        for value, name in enumerate(TAXONOMY.targets):
            mask = corrected_map(index) == value
            if mask.any():
                flat = np.concatenate([[False], mask.ravel()])
                edges = np.flatnonzero(np.diff(flat))
                counts = np.diff(np.concatenate([[0], edges, [mask.size]]))
                rle = ", ".join(map(str, counts))
                lines.append(
                    f'<mask label="{name}" source="manual" rle="{rle}" left="0" top="0" width="9" height="6"/>'
                )
        lines.append("</image>")
    path = folder / "job.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("annotations.xml", "\n".join([*lines, "</annotations>"]))
    return path


def correct_in_label_studio(folder: Path) -> Path:
    """The exported tasks as Label Studio gives them back: the predictions, and a person's annotation."""
    tasks = json.loads((folder / "tasks.json").read_text())
    for task in tasks:
        index = int(Path(task["data"]["name"]).stem)
        result: list[dict[str, Any]] = []
        for value, name in enumerate(TAXONOMY.targets):
            mask = corrected_map(index) == value
            region = {"format": "rle", "rle": brush_of_mask(mask), "brushlabels": [name]}
            sizes = {"original_width": 9, "original_height": 6, "image_rotation": 0}
            result.append({"type": "brushlabels", "from_name": "labels", "to_name": "image", "value": region, **sizes})
        task["annotations"] = [{"id": index, "result": result, "updated_at": "2026-01-01T00:00:00Z"}]
    path = folder / "project-1.json"
    path.write_text(json.dumps(tasks))
    return path


@pytest.mark.parametrize(("format", "correct"), [("cvat", correct_in_cvat), ("label-studio", correct_in_label_studio)])
def test_corrections_of_20_photos_win_and_withdrawal_restores(format: Any, correct: Any, tmp_path: Path) -> None:
    store = make_store(tmp_path, NUM)
    before = store.table(["id", "label", "weight", "counts", "row_hash"])
    export_labels(store, tmp_path / "out", format, ignored="drop", images="copy")
    summary = import_labels(store, correct(tmp_path / "out"), reviewer="ana")
    changed = sum(int((corrected_map(index) != label_map(index)).sum()) for index in range(NUM))
    assert (summary.corrected, summary.unchanged, summary.pixels, summary.unknown) == (NUM, 0, changed, ())
    opened = LabelStore.open(store.path)
    for index in range(NUM):
        label, weight = opened.read(f"{index}.png")
        assert (label == corrected_map(index)).all()
        assert ((weight == 255) == (label != 255)).all()
    assert opened.table(["id", "label", "weight", "counts", "row_hash"]) == before
    assert {row.origin for row in opened.current_reviews().values()} == {
        str(tmp_path / "out" / correct(tmp_path / "out").name)
    }
    assert withdraw_reviews(opened, reviewer="bob", names=["0.png"]) == 1
    assert withdraw_reviews(opened, reviewer="bob", of="nobody") == 0
    assert (opened.read("0.png")[0] == label_map(0)).all()
    assert (opened.read("1.png")[0] == corrected_map(1)).all()
    assert withdraw_reviews(opened, reviewer="bob") == NUM - 1
    for index in range(NUM):
        assert (opened.read(f"{index}.png")[0] == label_map(index)).all()


def test_images_that_came_back_as_they_were_get_no_review_unless_somebody_looked(tmp_path: Path) -> None:
    store = make_store(tmp_path, 4)
    export_labels(store, tmp_path / "out", "coco")
    summary = import_labels(store, tmp_path / "out", reviewer="ana")
    assert (summary.corrected, summary.accepted, summary.unchanged) == (0, 0, 4)
    assert store.current_reviews() == {}
    with pytest.raises(UsageError, match="holds no reviewed labels"):
        ReviewedLabels(store)
    summary = import_labels(store, tmp_path / "out", reviewer="ana", unchanged="accept")
    assert (summary.accepted, summary.unchanged) == (4, 0)
    assert (store.read("1.png")[0] == label_map(1)).all()


@pytest.mark.parametrize("place", ["maps/classes.txt", "classes.txt"])
@pytest.mark.parametrize("form", ["background\ncow\nhorse\n", "0 background\n1 cow\n2 horse\n"])
def test_a_flat_folder_of_png_maps_comes_back(place: str, form: str, tmp_path: Path) -> None:
    store = make_store(tmp_path, 3)
    maps = tmp_path / "maps"
    maps.mkdir()
    for index in range(3):
        (maps / f"{index}.png").write_bytes(encode_png(corrected_map(index)))
    for format in (None, "png"):
        with pytest.raises(UsageError, match=r"needs? classes.txt, .* in the folder or the one above it"):
            import_labels(store, maps, format=format, reviewer="ana")
    with pytest.raises(UsageError, match="name one with --format;"):
        import_labels(store, maps, reviewer="ana")
    (tmp_path / place).write_text(form)
    summary = import_labels(store, maps, reviewer="ana")
    assert (summary.corrected, summary.unknown) == (3, ())
    assert all((store.read(f"{index}.png")[0] == corrected_map(index)).all() for index in range(3))


def test_a_later_review_replaces_an_earlier_one(tmp_path: Path) -> None:
    store = make_store(tmp_path, NUM)
    export_labels(store, tmp_path / "out", "cvat", ignored="drop")
    import_labels(store, correct_in_cvat(tmp_path / "out"), reviewer="ana")
    time.sleep(0.001)
    export_labels(store, tmp_path / "coco", "coco")
    reader = tmp_path / "coco" / "annotations" / "instances.json"
    raw = json.loads(reader.read_text())
    for annotation in raw["annotations"]:
        if annotation["category_id"] == 3:
            annotation["category_id"] = 2
    reader.write_text(json.dumps(raw))
    summary = import_labels(store, tmp_path / "coco", reviewer="bob")
    assert summary.corrected == NUM
    assert (store.read("3.png")[0] == np.where(corrected_map(3) == 2, 1, corrected_map(3))).all()


def test_reviewed_labels_are_true_labels_of_the_reviewed_images(tmp_path: Path) -> None:
    store = make_store(tmp_path, NUM)
    export_labels(store, tmp_path / "out", "cvat", ignored="drop")
    import_labels(store, correct_in_cvat(tmp_path / "out"), reviewer="ana")
    withdraw_reviews(store, reviewer="ana", names=["4.png"])
    truth = ReviewedLabels(store)
    assert truth.class_names == {0: "background", 1: "cow", 2: "horse"}
    assert len(truth) == NUM - 1
    assert (truth.read_labels(str(tmp_path / "photos" / "7.png")) == corrected_map(7)).all()


def test_a_file_of_other_images_classes_or_sizes_is_refused(tmp_path: Path) -> None:
    store = make_store(tmp_path, 2)
    image = {"id": 1, "file_name": "1.png", "height": 6, "width": 9}
    shape = {"id": 1, "image_id": 1, "category_id": 5, "segmentation": [[0, 0, 3, 0, 3, 3, 0, 3]]}
    raw = {"images": [image], "categories": [{"id": 5, "name": "zebra"}], "annotations": [shape]}
    path = tmp_path / "reviewed.json"
    for change, message in (
        ({}, "1.png has pixels of the class 'zebra'"),
        ({"images": [image | {"file_name": "9.png"}]}, "holds no labeled image"),
        (
            {"images": [image | {"width": 8}], "categories": [{"id": 5, "name": "cow"}]},
            "are 8x6 px, the image is 9x6 px",
        ),
    ):
        path.write_text(json.dumps(raw | change))
        with pytest.raises(UsageError, match=message):
            import_labels(store, path, reviewer="ana")
    assert store.current_reviews() == {}


def test_an_image_that_the_store_does_not_hold_is_named(tmp_path: Path) -> None:
    store = make_store(tmp_path, 2)
    images = [{"id": index, "file_name": f"{index}.png", "height": 6, "width": 9} for index in (1, 2)]
    raw = {"images": images, "categories": [{"id": 5, "name": "cow"}], "annotations": []}
    (tmp_path / "reviewed.json").write_text(json.dumps(raw))
    summary = import_labels(store, tmp_path / "reviewed.json", reviewer="ana")
    assert (summary.corrected, summary.unknown) == (1, ("2.png",))
    assert (store.read("1.png")[0] == 0).all()


def test_what_the_model_made_is_measured_against_what_people_corrected(tmp_path: Path) -> None:
    store = make_store(tmp_path, NUM)
    export_labels(store, tmp_path / "out", "cvat", ignored="drop")
    import_labels(store, correct_in_cvat(tmp_path / "out"), reviewer="ana")
    quality = evaluate(store, reviewed=True)
    pairs = [(label_map(index), corrected_map(index)) for index in range(NUM)]
    right = sum(int(((label == truth) & (label != 255) & (truth != 255)).sum()) for label, truth in pairs)
    kept = sum(int(((label != 255) & (truth != 255)).sum()) for label, truth in pairs)
    assert quality.num_images == NUM
    assert quality.accuracy_kept == pytest.approx(right / kept)
    # what is delivered is what people corrected
    taxonomy = Taxonomy.from_json(store.classes).for_own_labels()
    assert evaluate_store(store, open_reviewed(store), taxonomy).accuracy_kept == 1
    with pytest.raises(UsageError, match="expected true labels"):
        evaluate(store)


def test_labels_accepted_without_a_change_are_named_beside_the_figures(tmp_path: Path) -> None:
    store = make_store(tmp_path, NUM)
    export_labels(store, tmp_path / "out", "cvat", ignored="drop")
    import_labels(store, tmp_path / "out" / "cvat.zip", reviewer="ana", unchanged="accept")
    quality = evaluate(store, reviewed=True)
    assert quality.accuracy_kept == 1
    (note,) = quality.notes
    assert note.startswith("every image was accepted without a change: all their labels count as right")
    assert f"maskmill serve {store.path} --review" in note
    text = ok("evaluate", str(store.path), "--reviewed", cwd=tmp_path)
    assert "note: every image was accepted" in text
    assert "check [labels]" not in text
    import_labels(store, correct_in_cvat(tmp_path / "out"), reviewer="ben")
    assert evaluate(store, reviewed=True).notes == ()


def test_the_command_line_calibrates_on_reviewed_labels(tmp_path: Path) -> None:
    bundle = color_bundle(tmp_path, classes=("background", "cow", "horse"), background="background")
    store = make_store(tmp_path, NUM)
    export_labels(store, tmp_path / "out", "cvat", ignored="drop")
    import_labels(store, correct_in_cvat(tmp_path / "out"), reviewer="ana")
    arguments = ("calibrate", str(bundle.path), "--alpha", "0.1", "--min-images", "1", "-o")
    ok(*map(str, arguments), "c.json", "--reviewed", str(store.path), cwd=tmp_path)
    calibration = Calibration.load(tmp_path / "c.json")
    valid = sum(int((corrected_map(index) != 255).sum()) for index in range(NUM))
    assert calibration.report["num_pixels"] == valid
    assert calibration.report["num_images"] == NUM
    refused = maskmill(*map(str, arguments), "no.json", cwd=tmp_path)
    assert "expected labeled images" in refused.stderr
    quality = json.loads(ok("evaluate", str(store.path), "--reviewed", "--json", cwd=tmp_path))
    assert quality["num_images"] == NUM
