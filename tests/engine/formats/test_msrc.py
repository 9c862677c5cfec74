"""MSRC's true labels in many formats: every map comes back exactly, and every format gives the same calibration."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from maskmill.engine.calibration.calibrate import calibrate
from maskmill.engine.calibration.calibration import Calibration
from maskmill.engine.formats.base import FileSink, LabelClasses, LabeledImage, ShapeOptions, WriterOptions
from maskmill.engine.formats.open import WRITERS, open_reader
from maskmill.engine.inputs.labels import open_labels
from maskmill.engine.inputs.sources import open_source
from maskmill.engine.model.bundle import Bundle
from maskmill.engine.model.files import read_class_names
from maskmill.engine.model.taxonomy import Taxonomy
from maskmill.engine.predictors.semantic import SemanticPredictor
from maskmill.engine.runtimes.onnx_runtime import OnnxSession
from maskmill.export.adopt.semantic import bundle_from_onnx

from .builders import read

NUM_PHOTOS = 8
FORMATS = [format for format in WRITERS if format not in ("webdataset", "geotiff")]


@pytest.fixture(scope="module")
def photos(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``images`` and ``labels`` of a few photos, spread over the set."""
    folder = tmp_path_factory.mktemp("msrc")
    (folder / "images").mkdir()
    (folder / "labels").mkdir()
    files = sorted((data / "msrc" / "images").glob("*.jpg"))
    for file in files[:: len(files) // NUM_PHOTOS][:NUM_PHOTOS]:
        shutil.copy(file, folder / "images")
        shutil.copy(data / "msrc" / "labels" / f"{file.stem}.png", folder / "labels")
    return folder


@pytest.fixture(scope="module")
def classes(data: Path) -> LabelClasses:
    """MSRC's classes without void, value i being label i + 1."""
    return LabelClasses(names=tuple(read_class_names(data / "msrc" / "classes.txt").values())[1:])


def write(format: Any, folder: Path, photos: Path, classes: LabelClasses) -> list[LabeledImage]:
    images = []
    for file in sorted((photos / "labels").glob("*.png")):
        raw = np.array(Image.open(file))
        photo = photos / "images" / f"{file.stem}.jpg"
        label = np.where(raw == 0, 255, raw.astype(int) - 1).astype(np.uint8)
        images.append(LabeledImage(name=photo.name, stem=photo.stem, label=label, data=photo.read_bytes()))
    kind = WRITERS[format]
    writer = kind(WriterOptions(classes=classes, images="copy", ignored=None if kind.marks_ignored else "class"))
    folder.mkdir()
    sink = FileSink(folder)
    parts = [
        writer.write(start // writer.batch, images[start : start + writer.batch], sink)
        for start in range(0, len(images), writer.batch)
    ]
    writer.finish(lambda: iter(parts), sink)
    return images


@pytest.mark.data
@pytest.mark.parametrize("format", FORMATS)
def test_all_classes_come_back_exactly(format: Any, photos: Path, classes: LabelClasses, tmp_path: Path) -> None:
    images = write(format, tmp_path / "out", photos, classes)
    reader = open_reader(tmp_path / "out", options=ShapeOptions(uncovered="ignore"))
    for image in images:
        (name,) = [name for name in reader.names() if name.removesuffix(".jpg").endswith(image.stem)]
        assert (read(reader, name, classes) == image.label).all()


@pytest.fixture(scope="module")
def bundle(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    model = data / "models" / "deeplabv3-257"
    spelling = {"biyclce": "bicycle"}
    return bundle_from_onnx(
        model / "model.onnx",
        tmp_path_factory.mktemp("bundle") / "deeplab",
        classes=[spelling.get(name, name) for name in read_class_names(model / "labels.txt").values()],
        background="background",
        layout="NHWC",
        size=(257, 257),
        resize="stretch",
        scale=1 / 127.5,
        mean=(1.0, 1.0, 1.0),
    )


def taxonomy_file(folder: Path, bundle: Bundle, names: dict[int, str], *, colors: bool = False) -> Path:
    """MSRC's classes mapped to the model's, by name or by color (palette of VOC)."""
    lines = [f"targets = {json.dumps(list(bundle.classes))}", 'background = "background"', "[model]"]
    lines += [f"{json.dumps(name)} = {json.dumps(name)}" for name in bundle.classes]
    palette = LabelClasses(names=tuple(names.values())).colors.tolist()
    lines.append("[colors]" if colors else "[labels]")
    for index, name in names.items():
        target = {"face": "person", "body": "person"}.get(name, name)
        target = "ignore" if name == "void" else target if target in bundle.classes else "background"
        key = ", ".join(map(str, palette[index])) if colors else name
        lines.append(f"{json.dumps(key)} = {json.dumps(target)}")
    if not colors:
        lines.insert(2, f"label_names = {json.dumps(list(names.values()))}")
    path = folder / ("colors.toml" if colors else "names.toml")
    path.write_text("\n".join(lines))
    return path


def record(calibration: Calibration) -> dict[str, Any]:
    """Everything a calibration holds but the names of files."""
    raw = dataclasses.asdict(calibration)
    report = dict(raw.pop("report"))
    report.pop("source")
    return {
        "thresholds": raw.pop("thresholds").tobytes(),
        "report": json.dumps(report, sort_keys=True, default=str),
        "counts": json.dumps(calibration.counts.to_json(), sort_keys=True),
        "pooled": raw["pooled"],
    }


@pytest.mark.data
def test_every_format_gives_the_same_calibration(
    photos: Path, classes: LabelClasses, bundle: Bundle, data: Path, tmp_path: Path
) -> None:
    names = read_class_names(data / "msrc" / "classes.txt")
    by_name = Taxonomy.load(taxonomy_file(tmp_path, bundle, names), bundle)
    by_color = Taxonomy.load(taxonomy_file(tmp_path, bundle, names, colors=True), bundle)
    palette = LabelClasses(names=tuple(names.values())).colors
    (tmp_path / "color-png").mkdir()
    for file in (photos / "labels").glob("*.png"):
        Image.fromarray(palette[np.array(Image.open(file))]).save(tmp_path / "color-png" / file.name)
    predictor = SemanticPredictor(bundle, OnnxSession(bundle))

    def calibrated(labels: Path, taxonomy: Taxonomy) -> dict[str, Any]:
        source = open_source(photos / "images")
        truth = open_labels(labels)
        return record(calibrate(predictor, source, truth, taxonomy, alpha="0.1", min_images=1, workers=2))

    expected = calibrated(photos / "labels", by_name)
    assert calibrated(tmp_path / "color-png", by_color) == expected
    for format in ("coco", "cvat", "label-studio", "yolo-seg"):
        write(format, tmp_path / format, photos, classes)
        for photo in (tmp_path / format).rglob("*.jpg"):
            # the photos are read from their own folder; YOLO's labels need theirs for the size
            if format != "yolo-seg":
                photo.unlink()
        assert calibrated(tmp_path / format, by_name) == expected, format
