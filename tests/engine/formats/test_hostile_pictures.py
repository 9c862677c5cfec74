"""Pictures in label files that run a program, promise what they do not hold, or are no pictures."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from maskmill.engine.formats.open import open_reader
from maskmill.errors import UsageError

from ...builders import _png, encoded

POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 6\n%ImageData: 8 6 8 1 0 1 1 x\n%%EndComments\nshowpage\n"
MASK = {"label": "cow", "points": [[0, 0], [3, 3]], "shape_type": "mask"}
PANOPTIC = {
    "images": [{"id": 1, "file_name": "x.jpg", "width": 8, "height": 6}],
    "categories": [{"id": 1, "name": "cow", "isthing": 1}],
    "annotations": [{"image_id": 1, "file_name": "x.png", "segments_info": []}],
}


def files_of(format: str, picture: bytes) -> dict[str, bytes | str]:
    text = base64.b64encode(picture).decode()
    return {
        "png": {"labels/x.png": picture, "classes.txt": "a\nb\n"},
        "voc": {"SegmentationClass/x.png": picture, "labelmap.txt": "cow:1,2,3::\n"},
        "fiftyone": {"labels/x.png": picture, "mask_targets.json": '{"1": "cow"}'},
        "ade20k": {"annotations/training/x.png": picture, "objectInfo150.txt": "Idx\tName\n1\twall\n"},
        "cityscapes": {"gtFine/train/a/x_gtFine_labelIds.png": picture},
        "coco-panoptic": {"p/x.png": picture, "p.json": json.dumps(PANOPTIC)},
        "labelme": {"x.json": json.dumps({"imageHeight": 6, "imageWidth": 8, "shapes": [{**MASK, "mask": text}]})},
        "labelme-size": {"x.json": json.dumps({"shapes": [], "imageData": text})},
        "yolo-seg": {"labels/x.txt": "0 .1 .1 .5 .1 .5 .5\n", "images/x.png": picture, "data.yaml": "names: [cow]\n"},
    }[format]  # type: ignore[return-value]


FORMATS = ("png", "voc", "fiftyone", "ade20k", "cityscapes", "coco-panoptic", "labelme", "labelme-size", "yolo-seg")


@pytest.fixture
def ghostscript(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that a program named ``gs`` makes when it runs."""
    program = tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {tmp_path / 'ran'}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    return tmp_path / "ran"


def read(location: Path, format: Any) -> None:
    reader = open_reader(location, format)
    for name in reader.names():
        reader.read_labels(name)


@pytest.mark.parametrize("picture", [POSTSCRIPT, b"no picture", b"", _png(60_000, 60_000)], ids=range(4))
@pytest.mark.parametrize("format", FORMATS)
def test_a_hostile_picture_is_refused_and_no_program_runs(
    format: str, picture: bytes, tmp_path: Path, ghostscript: Path
) -> None:
    for name, content in files_of(format, picture).items():
        path = tmp_path / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    location = tmp_path / "set" / ("p.json" if format == "coco-panoptic" else "")
    with pytest.raises(UsageError):
        read(location, format.removesuffix("-size"))
    assert not ghostscript.exists()


@pytest.mark.parametrize("picture", [POSTSCRIPT, b"no picture", b"", _png(60_000, 60_000)], ids=range(4))
def test_a_hostile_picture_in_a_table_is_refused(picture: bytes, tmp_path: Path, ghostscript: Path) -> None:
    table = pa.table({"image": [{"bytes": b"", "path": "x.png"}], "label": [{"bytes": picture, "path": "x.png"}]})
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(UsageError, match="cannot be decoded"):
        read(tmp_path / "a.parquet", "huggingface")
    assert not ghostscript.exists()


@pytest.mark.parametrize("start", [[1e300, 0], [float("nan"), 0], [-1, 2], [0, 6]])
def test_a_mask_that_begins_outside_of_its_image_is_refused(start: list[float], tmp_path: Path) -> None:
    mask = base64.b64encode(encoded(np.ones((2, 2), np.uint8), "PNG")).decode()
    shape = {**MASK, "points": [start, [3, 3]], "mask": mask}
    (tmp_path / "x.json").write_text(json.dumps({"imageHeight": 6, "imageWidth": 8, "shapes": [shape]}))
    with pytest.raises(UsageError, match="a shape of cow is damaged"):
        read(tmp_path, "labelme")
