"""Objects from a model to filtered COCO instances, on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from ...models import color_image, object_bundle
from ...test_cli import maskmill, ok


def test_from_a_model_to_objects_of_which_few_are_wrong(tmp_path: Path) -> None:
    masks = np.zeros((2, 24, 36), bool)
    masks[0, 2:12, 2:12], masks[1, 14:20, 20:30] = True, True
    object_bundle(
        tmp_path, masks, scores=[0.9, 0.6], indices=[1, 1], classes=("ground", "cow", "horse"), background="ground"
    )
    (tmp_path / "my photos").mkdir()
    images, annotations = [], []
    for index in range(4):
        Image.fromarray(color_image(np.full((24, 36), index % 3))).save(tmp_path / "my photos" / f"{index}.png")
        images.append({"id": index, "file_name": f"{index}.png", "height": 24, "width": 36})
        corners = [2, 2, 12, 2, 12, 12, 2, 12]
        annotations.append({"id": index, "image_id": index, "category_id": 1, "segmentation": [corners], "iscrowd": 0})
    truth = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cow"}]}
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    ok("label", "bundle", "my photos", "-o", "labels", "--instances", "--min-score", "0.1", cwd=tmp_path)
    output = ok("calibrate-objects", "labels", "--labels", "truth.json", "--alpha", "0.25", "-o", "objects.json",
                cwd=tmp_path)  # fmt: skip
    text = "cow: score x quality 0.900 and more; 4 of 8 objects on 4 images kept, 0 of them wrong; with thresholds"
    assert text in output.replace("\n", " ")  # two images are too few for alpha .25
    ok("export-labels", "labels", "--format", "coco", "--instances", "--object-thresholds", "objects.json", "-o", "out",
       cwd=tmp_path)  # fmt: skip
    written = json.loads((tmp_path / "out/annotations/instances.json").read_text())["annotations"]
    objects = [entry for entry in written if not entry["iscrowd"]]
    assert [(entry["bbox"], entry["score"]) for entry in objects] == [([2, 2, 10, 10], 0.9)] * 4
    result = maskmill("calibrate-objects", "labels", "--labels", "nowhere.json", "--alpha", "0.1", "-o", "x.json",
                      cwd=tmp_path)  # fmt: skip
    assert (result.returncode, "Traceback" in result.stderr) == (2, False)
    result = maskmill("calibrate-objects", "labels", "--labels", "truth.json", "--alpha", "often", "-o", "x.json",
                      cwd=tmp_path)  # fmt: skip
    assert result.returncode == 2
    assert "alpha" in result.stderr
