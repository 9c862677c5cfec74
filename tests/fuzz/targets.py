"""Every file that maskmill reads, as a sound document and the code that reads it."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import random
import tarfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from maskmill.engine.calibration.calibrate import calibrate
from maskmill.engine.calibration.calibration import Calibration, _seal
from maskmill.engine.calibration.objects import ObjectThresholds
from maskmill.engine.formats.base import Instance
from maskmill.engine.inputs.image_labels import ImageLabels
from maskmill.engine.inputs.images import decode_image, decode_input, image_size
from maskmill.engine.inputs.label_maps import decode_label_map
from maskmill.engine.inputs.labels import open_labels
from maskmill.engine.inputs.names import read_ids
from maskmill.engine.inputs.rasters.bands import pixels_with_data
from maskmill.engine.inputs.sources import open_source
from maskmill.engine.model.bundle import Bundle
from maskmill.engine.model.files import read_class_names
from maskmill.engine.model.input_spec import BandSpec
from maskmill.engine.model.png import decode_png, encode_png
from maskmill.engine.model.taxonomy import Taxonomy
from maskmill.engine.predictors.prompted.class_masks import MaskSettings
from maskmill.engine.predictors.prompted.given_prompts import boxes_of, points_of
from maskmill.engine.predictors.prompted.prompts import PromptSettings
from maskmill.engine.predictors.prompted.setting_texts import parse_settings
from maskmill.engine.predictors.semantic import SemanticPredictor
from maskmill.engine.reading.geotiff import Windows, split_window
from maskmill.engine.reading.manifest import write_manifest
from maskmill.engine.runtimes.onnx_runtime import OnnxSession
from maskmill.engine.store.label_store import LabelStore
from maskmill.engine.store.run_record import _digest
from maskmill.errors import ImageError, StoreMismatch
from tests.builders import encoded, input_row, label_row, photo
from tests.fuzz import variants
from tests.fuzz.mutation import Change, adjust_value, change_bytes, change_lines, change_value
from tests.models import color_bundle, color_image

if TYPE_CHECKING:
    from maskmill.trainer.run import Run

Reader = Callable[[Any], None]
"""Writes a changed document and reads it; raises a :class:`maskmill.errors.MaskmillError` if it is refused."""


@dataclass(frozen=True)
class Target:
    """One kind of file."""

    original: Any
    """Sound document: bytes, or plain data of a JSON document."""
    change: Change
    """Change of the document."""
    read: Reader
    variant: Change | None = None
    """Document with other contents that is sound, or nearly."""


def _json(value: Any) -> bytes:
    return json.dumps(value).encode("utf-8", "surrogatepass")


def _bundle(folder: Path) -> Target:
    bundle = color_bundle(folder)
    manifest = bundle.path / "bundle.json"

    def read(document: Any) -> None:
        manifest.write_bytes(_json(document))
        model = Bundle.load(bundle.path)
        model.verify()
        Taxonomy.of_model(model)

    return Target(json.loads(manifest.read_text()), change_value, read, adjust_value)


def _calibration(folder: Path) -> Target:
    bundle = color_bundle(folder)
    chance = np.random.default_rng(1)
    for name in ("images", "labels"):
        (folder / name).mkdir()
    for number in range(12):
        label = chance.integers(0, 3, (16, 24)).astype(np.uint8)
        image = color_image(label, strength=60 + number)
        Image.fromarray(image).save(folder / "images" / f"{number}.png")
        Image.fromarray(label).save(folder / "labels" / f"{number}.png")
    taxonomy = Taxonomy.of_model(bundle)
    predictor = SemanticPredictor(bundle, OnnxSession(bundle))
    path = folder / "calibration.json"
    images, labels = open_source(folder / "images"), open_labels(folder / "labels")
    calibrate(predictor, images, labels, taxonomy, alpha="0.2").save(path)
    original = json.loads(path.read_text())
    del original["seal"]

    def read(document: Any) -> None:
        sealed = {**document, "seal": _seal(document)} if isinstance(document, dict) else document
        path.write_bytes(_json(sealed))
        calibration = Calibration.load(path)
        calibration.check(predictor, taxonomy)

    return Target(original, change_value, read, adjust_value)


def _toml(value: Any, name: str = "") -> str:
    """Write plain data as TOML: tables of plain values, the rest inline."""
    plain, tables = [], []
    for key, item in value.items():
        if isinstance(item, dict) and not name:
            tables.append(f"[{_key(key)}]\n{_toml(item, key)}")
        else:
            plain.append(f"{_key(key)} = {_inline(item)}")
    return "\n".join([*plain, *tables])


def _key(key: Any) -> str:
    return json.dumps(str(key), ensure_ascii=False)


def _inline(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(key)} = {_inline(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_inline, value)) + "]"
    return '""' if value is None else json.dumps(value, ensure_ascii=False).replace("NaN", "nan").replace("Inf", "inf")


def _taxonomy(folder: Path) -> Target:
    bundle = color_bundle(folder)
    path = folder / "taxonomy.toml"
    original = {
        "targets": ["ground", "leaf"],
        "background": "ground",
        "label_names": ["soil", "green", "sky"],
        "model": {"red": "ground", "green": "leaf", "blue": "dropped"},
        "labels": {"soil": "ground", "green": "leaf", "255": "ignore"},
    }

    def read(document: Any) -> None:
        path.write_bytes(_toml(document).encode("utf-8", "surrogatepass"))
        Taxonomy.load(path, bundle).encode(np.array([[0, 1, 255]], np.uint8), "a.png")

    return Target(original, change_value, read, adjust_value)


def _colors(folder: Path) -> Target:
    bundle = color_bundle(folder)
    path = folder / "taxonomy.toml"
    original = {
        "targets": ["ground", "leaf"],
        "model": {"red": "ground", "green": "leaf", "blue": "dropped"},
        "colors": {"0, 0, 0": "ground", "128, 0, 0": "leaf", "#ffffff": "ignore"},
    }

    def read(document: Any) -> None:
        path.write_bytes(_toml(document).encode("utf-8", "surrogatepass"))
        Taxonomy.load(path, bundle)

    return Target(original, change_value, read, adjust_value)


def _store_run(folder: Path) -> Target:
    store = LabelStore.create(
        folder / "store",
        {
            "bundle": "0" * 64,
            "select": "argmax",
            "weight": "none",
            "tile": None,
            "classes": {"targets": ["a", "b"], "background": 0, "model": [0, 1], "labels": {"0": 0, "7": 1}},
        },
    )
    store.commit([label_row("a", labels=np.zeros((2, 3), np.uint8))], [input_row("a")])
    path = folder / "store" / "run.json"
    original = json.loads(path.read_text())

    def read(document: Any) -> None:
        if isinstance(document, dict) and "run" in document:
            with suppress(ValueError):  # Python's JSON has infinity
                document = {**document, "hash": _digest(document["run"])}
        path.write_bytes(_json(document))
        opened = LabelStore.open(folder / "store")
        opened.read("a")
        if "classes" in opened.run:
            Taxonomy.from_json(opened.classes)
        with suppress(StoreMismatch):  # read, and of another run
            LabelStore.open_or_create(folder / "store", original["run"])

    return Target(original, change_value, read, adjust_value)


def _training_run(folder: Path) -> Target:
    from tests.trainer.test_run import RUN

    return training_run(folder, RUN)


def training_run(folder: Path, run: Run) -> Target:
    """Return the target of the settings of a training run."""
    from maskmill.trainer.run import Run

    run.save(folder)
    path = folder / "run.json"

    def read(document: Any) -> None:
        path.write_bytes(_json(document))
        Run.load(folder)

    return Target(json.loads(path.read_text()), change_value, read, adjust_value)


def _checkpoint(folder: Path) -> Target:
    import torch

    from maskmill.trainer.run import read_checkpoint, student_state

    buffer = io.BytesIO()
    torch.save({"model": {"w": torch.arange(30.0), "n": torch.ones(2)}, "ema": None, "step": 3, "best": None}, buffer)
    path = folder / "last.pt"

    def read(document: bytes) -> None:
        path.write_bytes(document + b"\nsha256 " + hashlib.sha256(document).hexdigest().encode() + b"\n")
        student_state(read_checkpoint(path))

    return Target(buffer.getvalue(), change_bytes, read, variants.checkpoint)


def _photo(format: str, **options: Any) -> Callable[[Path], Target]:
    def target(folder: Path) -> Target:
        def read(document: bytes) -> None:
            decode_image(document, max_pixels=1 << 22)

        variant = variants.png_chunks if format == "PNG" else variants.encoded_image(format)
        return Target(encoded(photo(24, 32), format, **options), change_bytes, read, variant)

    return target


def _label_map(folder: Path) -> Target:
    pixels = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(6, 8) % 4)
    buffer = io.BytesIO()
    pixels.save(buffer, "PNG")

    def read(document: bytes) -> None:
        decode_label_map(document, "a.png")

    return Target(buffer.getvalue(), change_bytes, read, variants.png_chunks)


def _stored_map(folder: Path) -> Target:
    def read(document: bytes) -> None:
        try:
            decode_png(document)
        except ValueError as error:
            raise ImageError("truncated", str(error)) from error

    return Target(encode_png(np.arange(48, dtype=np.uint8).reshape(6, 8)), change_bytes, read, variants.png_chunks)


def _image_labels(name: str, document: Any) -> Callable[[Path], Target]:
    def target(folder: Path) -> Target:
        path = folder / name
        is_json = not isinstance(document, bytes)

        def read(changed: Any) -> None:
            path.write_bytes(_json(changed) if is_json else changed)
            ImageLabels.load(path).find("/photos/1.jpg")

        return Target(
            document,
            change_value if is_json else change_lines,
            read,
            adjust_value if is_json else variants.text_numbers,
        )

    return target


def _listing(name: str, document: bytes, change: Change) -> Callable[[Path], Target]:
    def target(folder: Path) -> Target:
        (folder / "1.jpg").write_bytes(b"photo")
        path = folder / name

        def read(changed: bytes) -> None:
            path.write_bytes(changed)
            # what is listed may be refused as well
            with_problems = [item for item in open_source(path) if item.problem]
            if with_problems:
                raise ImageError("unreadable", with_problems[0].problem)

        return Target(document, change, read, variants.parquet_list if name.endswith(".parquet") else None)

    return target


def _names(folder: Path) -> Target:
    path = folder / "ids.txt"

    def read(document: bytes) -> None:
        path.write_bytes(document)
        read_ids(path)

    return Target(b'1.jpg\n# comment\n"2.jpg"\n3.jpg 3.png\n', change_lines, read)


def _class_list(folder: Path) -> Target:
    path = folder / "classes.txt"

    def read(document: bytes) -> None:
        path.write_bytes(document)
        read_class_names(path)

    return Target(b"0 background\n1 cow\n2 traffic light\n", change_lines, read)


def _tar(folder: Path) -> Target:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in ("a.jpg", "é/" + "x" * 120 + ".jpg", "b.png"):
            info = tarfile.TarInfo(name)
            info.size = 700
            tar.addfile(info, io.BytesIO(bytes(700)))
        link = tarfile.TarInfo("c.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "a.jpg"
        tar.addfile(link)
    path = folder / "s.tar"

    def change(original: bytes, chance: Any) -> tuple[bytes, tuple[Any, ...]]:
        data, place = change_bytes(original, chance)
        if len(data) != len(original) or chance.randrange(3) == 0:
            return data, place
        # half of the headers get the right checksum
        blocks = bytearray(data)
        for start in range(0, len(blocks) - 511, 512):
            if blocks[start + 257 : start + 262] == b"ustar":
                blocks[start + 148 : start + 156] = b" " * 8
                blocks[start + 148 : start + 156] = b"%06o\0 " % sum(blocks[start : start + 512])
        return bytes(blocks), place

    def read(document: bytes) -> None:
        path.write_bytes(document)
        source = open_source(path)
        for item in source:
            source.read(item)

    return Target(buffer.getvalue(), change, read, variants.tar_headers)


def _parquet() -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"path": ["1.jpg", "missing.jpg"], "size": [1, 2]}), buffer)
    return buffer.getvalue()


def _labels(name: str, document: Any, *, format: Any = None) -> Callable[[Path], Target]:
    def target(folder: Path) -> Target:
        (folder / "labels").mkdir()
        path = folder / "labels" / name
        path.parent.mkdir(exist_ok=True, parents=True)
        is_json = not isinstance(document, bytes)
        if format == "yolo-seg":
            (folder / "labels" / "data.yaml").write_text("names:\n  0: cow\n  1: horse\n")

        def read(changed: Any) -> None:
            path.write_bytes(_json(changed) if is_json else changed)
            labels = open_labels(path if format is None else folder / "labels", format=format)
            for entry in labels.entries():
                labels.read(entry, size=(6, 8))

        return Target(
            document,
            change_value if is_json else change_bytes,
            read,
            adjust_value if is_json else variants.text_numbers,
        )

    return target


COCO = {
    "images": [
        {"id": 1, "file_name": "1.jpg", "width": 8, "height": 6},
        {"id": 2, "file_name": "2.jpg", "width": 8, "height": 6},
    ],
    "categories": [{"id": 1, "name": "cow"}, {"id": 7, "name": "horse"}],
    "annotations": [
        {
            "id": 1,
            "image_id": 1,
            "category_id": 7,
            "iscrowd": 0,
            "segmentation": [[0, 0, 4, 0, 4, 4, 0, 4]],
            "area": 16,
            "bbox": [0, 0, 4, 4],
        },
        {
            "id": 2,
            "image_id": 1,
            "category_id": 1,
            "iscrowd": 1,
            "segmentation": {"size": [6, 8], "counts": [4, 40, 4]},
        },
        {"id": 3, "image_id": 2, "category_id": 1, "iscrowd": 1, "segmentation": {"size": [6, 8], "counts": "4\\1"}},
    ],
}
LABELME = {
    "version": "5.0",
    "imagePath": "1.jpg",
    "imageHeight": 6,
    "imageWidth": 8,
    "flags": {},
    "imageData": None,
    "shapes": [
        {"label": "cow", "points": [[0, 0], [4, 0], [4, 4]], "shape_type": "polygon", "group_id": None, "flags": {}}
    ],
}
CVAT = (
    b'<?xml version="1.0"?><annotations><version>1.1</version><meta><task><labels><label><name>cow</name></label>'
    b'</labels></task></meta><image id="0" name="1.jpg" width="8" height="6"><polygon label="cow" z_order="0" '
    b'points="0,0;4,0;4,4"/><mask label="cow" rle="1, 2, 3" left="1" top="1" width="3" height="2" z_order="1"/></image>'
    b"</annotations>"
)
LABEL_STUDIO = [
    {
        "id": 1, "data": {"image": "1.jpg"},
        "annotations": [{"result": [{
            "type": "polygonlabels", "original_width": 8, "original_height": 6, "image_rotation": 0,
            "value": {"points": [[0, 0], [50, 0], [50, 50]], "polygonlabels": ["cow"], "closed": True},
        }]}],
    }
]  # fmt: skip


def _settings(folder: Path) -> Target:
    def read(document: list[str]) -> None:
        values = parse_settings(
            list(map(str, document)), (PromptSettings, MaskSettings), {"scales": "tuple[float, ...]"}
        )
        PromptSettings(**values["PromptSettings"])
        MaskSettings(**values["MaskSettings"])

    original = [
        "tau=0.3",
        "min_distance=3",
        "max_peaks=5",
        "box_threshold=0.4",
        "scales=1,1.5",
        "mode=points",
        "pick=1",
    ]

    def change(document: list[str], chance: Any) -> tuple[list[str], tuple[Any, ...]]:
        changed, place = change_value({text.partition("=")[0]: text.partition("=")[2] for text in document}, chance)
        return [f"{name}={value}" for name, value in changed.items()], place

    def variant(document: list[str], chance: Any) -> tuple[list[str], tuple[Any, ...]]:
        changed, place = variants.setting_texts(
            {text.partition("=")[0]: text.partition("=")[2] for text in document}, chance
        )
        return [f"{name}={value}" for name, value in changed.items()], place

    return Target(original, change, read, variant)


def _recipe_settings(folder: Path) -> Target:
    from maskmill.trainer.recipes import csl, with_settings

    recipe = csl()
    plain = {key: value for key, value in recipe.to_json().items() if not isinstance(value, dict)}
    original = {key: _text(value) for key, value in plain.items() if key != "name"}

    def read(document: dict[str, Any]) -> None:
        with_settings(recipe, [f"{key}={_text(value)}" for key, value in document.items()])

    return Target(original, change_value, read, variants.setting_texts)


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _prompts(name: str, document: Any) -> Callable[[Path], Target]:
    def target(folder: Path) -> Target:
        path = folder / name
        is_json = not isinstance(document, bytes)
        reader = points_of if name.startswith("points") else boxes_of

        def read(changed: Any) -> None:
            path.write_bytes(_json(changed) if is_json else changed)
            prompts = reader(path)
            prompts.check(["/photos/1.jpg"])
            prompts.targets_of("/photos/1.jpg")
            prompts.condition("/photos/1.jpg")

        return Target(
            document,
            change_value if is_json else change_lines,
            read,
            adjust_value if is_json else variants.text_numbers,
        )

    return target


def _object_thresholds(folder: Path) -> Target:
    path = folder / "objects.json"
    thresholds = ObjectThresholds(
        alpha="0.1", iou=0.5, by="both", classes=("cow", "horse"), thresholds={"cow": 0.5, "horse": None},
        measured={"cow": {"images": 9, "objects": 12, "right": 10, "kept": 9, "wrong": 1}},
    )  # fmt: skip
    instance = Instance(target=0, score=0.9, quality=0.8, box=(0, 0, 4, 4), counts="04", area=4)

    def read(document: Any) -> None:
        path.write_bytes(_json(document))
        ObjectThresholds.load(path).keep([instance])

    return Target(thresholds.to_json(), change_value, read, adjust_value)


def _bands(original: Callable[[], bytes], variant: Change) -> Callable[[Path], Target]:
    spec = BandSpec(numbers=(4, 1, 2), sample_type="uint16", display=(4, 1, 2), display_range=(0, 10_000))

    def target(folder: Path) -> Target:
        def read(document: bytes) -> None:
            with suppress(ImageError):  # refused by size alone
                image_size(document)
            pixels_with_data(decode_input(document, spec, max_pixels=1 << 22))

        return Target(original(), change_bytes, read, variant)

    return target


def _windows(folder: Path) -> Target:
    path = folder / "scene.tif"

    def read(document: bytes) -> None:
        path.write_bytes(document)
        source = open_source(path, windows=Windows(side=16, overlap=4))
        for item in source:
            source.read(item)

    return Target(variants.tiff_of_bands(0), change_bytes, read, variants.bands_tiff)


def _image_table(folder: Path) -> Target:
    path = folder / "photos.parquet"

    def read(document: bytes) -> None:
        path.write_bytes(document)
        source = open_source(path)
        for item in source:
            source.read(item)

    return Target(variants.image_rows(random.Random(0)), change_bytes, read, variants.image_table)


def _manifest(folder: Path) -> Target:
    (folder / "1.jpg").write_bytes(b"photo")
    path = folder / "photos.parquet"
    write_manifest(open_source(folder / "1.jpg"), path)
    original = path.read_bytes()

    def read(document: bytes) -> None:
        path.write_bytes(document)
        for item in open_source(path):
            split_window(item.uri)

    return Target(original, change_bytes, read, variants.manifest)


def _comma(rows: list[list[str]]) -> bytes:
    buffer = io.StringIO()
    csv.writer(buffer).writerows(rows)
    return buffer.getvalue().encode()


TARGETS: dict[str, Callable[[Path], Target]] = {
    "bundle": _bundle,
    "calibration": _calibration,
    "taxonomy": _taxonomy,
    "taxonomy-colors": _colors,
    "store-run": _store_run,
    "training-run": _training_run,
    "checkpoint": _checkpoint,
    "photo-jpeg": _photo("JPEG"),
    "photo-png": _photo("PNG"),
    "photo-webp": _photo("WEBP"),
    "photo-tiff": _photo("TIFF"),
    "photo-gif": _photo("GIF"),
    "photo-bmp": _photo("BMP"),
    "label-map": _label_map,
    "stored-map": _stored_map,
    "image-labels-csv": _image_labels("labels.csv", b"image,cow,horse\n1.jpg,1,0\n2.jpg,0,1\n"),
    "image-labels-names": _image_labels("labels.csv", b"image,labels\n1.jpg,cow;horse\n2.jpg,\n"),
    "image-labels-lines": _image_labels(
        "labels.jsonl", b'{"image": "1.jpg", "labels": ["cow"]}\n{"image": "2", "labels": []}\n'
    ),
    "image-labels-coco": _image_labels("labels.json", COCO),
    "list-text": _listing("list.txt", b'1.jpg\n# comment\n"2.jpg"\nhttp://127.0.0.1:9/3.jpg\n', change_lines),
    "list-csv": _listing("list.csv", _comma([["size", "path"], ["1", "1.jpg"], ["2", "2, 3.jpg"]]), change_lines),
    "list-parquet": _listing("list.parquet", _parquet(), change_bytes),
    "names": _names,
    "class-list": _class_list,
    "tar": _tar,
    "labels-coco": _labels("coco.json", COCO),
    "labels-labelme": _labels("1.json", LABELME, format="labelme"),
    "labels-cvat": _labels("annotations.xml", CVAT),
    "labels-label-studio": _labels("export.json", LABEL_STUDIO, format=None),
    "labels-yolo": _labels(
        "labels/1.txt", b"0 0.1 0.1 0.5 0.1 0.5 0.5\n1 0.2 0.2 0.9 0.2 0.9 0.9\n", format="yolo-seg"
    ),
    "boxes-csv": _prompts(
        "boxes.csv", b"image,label,x0,y0,x1,y1,score\n1.jpg,cow,0,0,5.5,4,0.9\n2.jpg,horse,1,1,3,3,0.5\n"
    ),
    "boxes-coco": _prompts("boxes.json", COCO | {"annotations": COCO["annotations"][:1]}),
    "points-csv": _prompts(
        "points.csv", b"image,label,x,y,positive,object\n1.jpg,cow,1,2.5,1,a\n1.jpg,cow,3,3,0,a\n2.jpg,horse,1,1,1,\n"
    ),
    "object-thresholds": _object_thresholds,
    "bands-npy": _bands(lambda: variants.npy_of_bands(random.Random(2)), variants.bands_npy),
    "bands-tiff": _bands(lambda: variants.tiff_of_bands(0), variants.bands_tiff),
    "windows": _windows,
    "image-table": _image_table,
    "manifest": _manifest,
    "prompt-settings": _settings,
    "recipe-settings": _recipe_settings,
}
