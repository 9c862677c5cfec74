"""Every format that is written is read back by maskmill itself, exactly; detection names the format."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from PIL import Image

from maskmill.engine.formats.base import Ignored, LabelClasses, ShapeOptions, WriterOptions
from maskmill.engine.formats.open import CERTIFICATE, WRITERS, OutputFormat, detect, open_reader
from maskmill.errors import UsageError

from .builders import CLASSES, name_in, nested_map, read, write

READ_AS = {"coco-polygons": "coco"}
FORMATS = [format for format in get_args(OutputFormat) if format not in ("webdataset", "geotiff")]
SHAPES = [format for format in FORMATS if not WRITERS[format].marks_ignored]


@pytest.mark.parametrize("format", FORMATS)
def test_a_written_map_is_read_back_exactly(format: OutputFormat, tmp_path: Path) -> None:
    maps = [nested_map(), np.flip(nested_map()), np.full((3, 5), 255, np.uint8), np.zeros((4, 4), np.uint8)]
    images = write(tmp_path, format, maps)
    assert detect(str(tmp_path)) == READ_AS.get(format, format)
    reader = open_reader(tmp_path)
    assert len(reader) == len(images)
    for image in images:
        assert (read(reader, name_in(reader, image.stem)) == image.label).all()


@pytest.mark.parametrize("format", SHAPES)
def test_dropped_pixels_are_ignored_when_the_certificate_says_so(format: OutputFormat, tmp_path: Path) -> None:
    (image,) = write(tmp_path, format, [nested_map()], ignored="drop")
    (tmp_path / CERTIFICATE).write_text(json.dumps({"export": {"uncovered": "ignore", "background": "background"}}))
    reader = open_reader(tmp_path)
    assert (read(reader, name_in(reader, image.stem)) == image.label).all()


@pytest.mark.parametrize("format", SHAPES)
def test_ignored_pixels_become_background_on_request(format: OutputFormat, tmp_path: Path) -> None:
    (image,) = write(tmp_path, format, [nested_map()], ignored="background")
    reader = open_reader(tmp_path)
    expected = np.where(image.label == 255, 0, image.label)
    assert (read(reader, name_in(reader, image.stem)) == expected).all()


@pytest.mark.parametrize("format", SHAPES)
def test_a_format_that_cannot_mark_ignored_pixels_asks_what_to_do(format: OutputFormat) -> None:
    with pytest.raises(UsageError, match="cannot mark pixels without a label; give --ignored drop"):
        WRITERS[format](WriterOptions(classes=CLASSES))


@pytest.mark.parametrize("ignored", get_args(Ignored))
def test_a_format_that_marks_ignored_pixels_takes_no_choice(ignored: Ignored) -> None:
    with pytest.raises(UsageError, match="leave out --ignored"):
        WRITERS["coco"](WriterOptions(classes=CLASSES, ignored=ignored))


def test_a_format_without_a_place_for_weights_refuses_them() -> None:
    with pytest.raises(UsageError, match="no place for weights"):
        WRITERS["coco"](WriterOptions(classes=CLASSES, weights=True))


@pytest.mark.parametrize("format", ["png", "coco", "coco-polygons", "coco-panoptic", "huggingface"])
def test_300_classes_are_read_back_exactly(format: OutputFormat, tmp_path: Path) -> None:
    classes = LabelClasses(names=tuple(f"class {index}" for index in range(300)), background=None)
    label = (np.arange(600, dtype=np.uint16) % 300).reshape(20, 30)
    label[3, 4] = 65535
    (image,) = write(tmp_path, format, [label], classes=classes)
    reader = open_reader(tmp_path, options=ShapeOptions(uncovered="ignore"))
    assert (read(reader, name_in(reader, image.stem), classes) == label).all()


def test_exports_are_the_same_bytes_each_time(tmp_path: Path) -> None:
    for format in FORMATS:
        for folder in ("first", "second"):
            write(tmp_path / folder / format, format, [nested_map()])
    first = {path.relative_to(tmp_path / "first"): path.read_bytes() for path in (tmp_path / "first").rglob("*.*")}
    second = {path.relative_to(tmp_path / "second"): path.read_bytes() for path in (tmp_path / "second").rglob("*.*")}
    assert first == second


def test_weights_go_along_where_there_is_a_place(tmp_path: Path) -> None:
    write(tmp_path / "png", "png", [nested_map()], weights=True)
    with Image.open(tmp_path / "png" / "weights" / "folder 0" / "0.png") as image:
        assert (np.asarray(image) == 100).all()


def test_signs_of_two_formats_are_an_error_that_names_both(tmp_path: Path) -> None:
    write(tmp_path, "coco", [nested_map()])
    write(tmp_path, "voc", [nested_map()])
    with pytest.raises(UsageError, match="looks like voc and coco; name the format with --labels-format"):
        open_reader(tmp_path)
    assert open_reader(tmp_path, "voc").format == "voc"


def test_a_folder_without_a_format_says_what_is_known(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(b"")
    assert detect(str(tmp_path)) is None
    with pytest.raises(UsageError, match="holds no label format that maskmill knows"):
        open_reader(tmp_path)
    with pytest.raises(UsageError, match="no such file or folder"):
        open_reader(tmp_path / "nowhere")


def test_labels_are_read_through_fsspec(tmp_path: Path) -> None:
    import fsspec

    images = write(tmp_path / "local", "coco", [nested_map()])
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path / "local"), "/remote", recursive=True)
    location = "memory://remote/local" if memory.exists("/remote/local") else "memory://remote"
    reader = open_reader(location)
    assert (read(reader, images[0].name) == images[0].label).all()


def test_the_labeling_configuration_names_what_the_predictions_name(tmp_path: Path) -> None:
    write(tmp_path, "label-studio", [nested_map()])
    config = (tmp_path / "label_config.xml").read_text()
    (task,) = json.loads((tmp_path / "tasks.json").read_text())
    (prediction,) = task["predictions"]
    assert prediction["score"] == 0.75
    for region in prediction["result"]:
        assert f'<BrushLabels name="{region["from_name"]}" toName="{region["to_name"]}">' in config
        assert f'<Image name="{region["to_name"]}"' in config
        assert f'<Label value="{region["value"]["brushlabels"][0]}"' in config
    assert set(re.findall(r'Label value="([^"]*)"', config)) == {*CLASSES.names, "ignore"}
