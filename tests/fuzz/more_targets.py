"""Further files that maskmill reads: other documents of the same schemas, and what stores, exports and formats hold."""

from __future__ import annotations

import base64
import io
import json
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from maskmill.engine.calibration.calibrate import calibrate
from maskmill.engine.calibration.calibration import Calibration, _seal
from maskmill.engine.calibration.drift.statistics import pack_statistics
from maskmill.engine.cluster.records import driver_record, worker_record
from maskmill.engine.formats.base import Instance
from maskmill.engine.formats.open import open_reader
from maskmill.engine.formats.rle import counts_to_string
from maskmill.engine.inputs.labels import open_labels
from maskmill.engine.inputs.sources import open_source
from maskmill.engine.labeling.certificate import _seal as seal_of_certificate
from maskmill.engine.labeling.certificate import verify_export
from maskmill.engine.labeling.export_labels import export_labels
from maskmill.engine.labeling.history import read_history
from maskmill.engine.labeling.progress import Progress
from maskmill.engine.model.bundle import Bundle
from maskmill.engine.model.taxonomy import Taxonomy
from maskmill.engine.predictors.score_files import ScoreFiles, write_score_bundle
from maskmill.engine.predictors.semantic import SemanticPredictor
from maskmill.engine.runtimes.onnx_runtime import OnnxSession
from maskmill.engine.runtimes.tuned import FILE as TUNED
from maskmill.engine.runtimes.tuned import TunedChoice, _read
from maskmill.engine.store.instances import decode_instances, encode_instances
from maskmill.engine.store.label_store import LabelStore
from maskmill.engine.store.rows import read_statistics
from maskmill.engine.store.run_record import _digest, read_run
from maskmill.errors import StoreError
from tests.builders import input_row, label_row
from tests.fuzz import variants
from tests.fuzz.mutation import Change, adjust_value, change_bytes, change_lines, change_value
from tests.fuzz.targets import TARGETS, Target, _json, training_run
from tests.models import band_bundle, color_bundle, color_image, sam_bundle, text_bundle

GRID = (4, 6)


def _bundle_of(make: Callable[[Path], Bundle]) -> Callable[[Path], Target]:
    def target(folder: Path) -> Target:
        bundle = make(folder)
        manifest = bundle.path / "bundle.json"

        def read(document: Any) -> None:
            manifest.write_bytes(_json(document))
            Bundle.load(bundle.path).verify()

        return Target(json.loads(manifest.read_text()), change_value, read, adjust_value)

    return target


def _calibration_of(kind: str, **options: Any) -> Callable[[Path], Target]:
    def target(folder: Path) -> Target:
        bundle = color_bundle(folder)
        chance = np.random.default_rng(1)
        for name in ("images", "labels"):
            (folder / name).mkdir()
        for number in range(8):
            label = chance.integers(0, 3, (16, 24)).astype(np.uint8)
            Image.fromarray(color_image(label, strength=60 + number)).save(folder / "images" / f"{number}.png")
            Image.fromarray(label).save(folder / "labels" / f"{number}.png")
        taxonomy = Taxonomy.of_model(bundle)
        predictor = SemanticPredictor(bundle, OnnxSession(bundle))
        images, labels = open_source(folder / "images"), open_labels(folder / "labels")
        calibration = calibrate(predictor, images, labels, taxonomy, **({"alpha": "0.4"} | options))
        path = folder / "calibration.json"
        calibration.save(path)
        original = json.loads(path.read_text())
        del original["seal"]
        if kind == "weighted":
            summary = {"like": "store", "images": 3, "effective_images": 6.5, "separation": 0.6}
            statistics = pack_statistics(calibration.counts.statistics[:3])
            values = [1.0] * len(original["counts"]["ids"])
            original["weighting"] = {**summary, "values": values, "statistics": statistics}
            original["report"]["weighting"] = summary
            original["report"]["overall"]["iou_kept"] = 0.5
            original["made_with"]["windows"] = 64
            original["counts"]["scenes"] = [f"{number}.tif" for number in range(len(values))]

        def read(document: Any) -> None:
            path.write_bytes(_json({**document, "seal": _seal(document)} if isinstance(document, dict) else document))
            Calibration.load(path)

        return Target(original, change_value, read, adjust_value)

    return target


def _store_run_of_everything(folder: Path) -> Target:
    run: dict[str, Any] = {
        "bundle": "0" * 64, "session": "cpu", "artifact": "1" * 64, "tile": 64, "overlap": 8, "bit_depth": 12,
        "maps": "classes", "classes_from": "bundle", "select": "conformal", "rule": "agree", "weight": "margin",
        "weight_levels": 16, "threshold": 0.5, "calibration": {"alpha": "0.1", "unit": "image"},
        "classes": {
            "targets": ["a", "b"], "background": 0, "model": [0, 1], "labels": {"0": 0, "7": 1}, "assumed": True,
            "named_labels": {"cow": 1}, "label_names": {"7": "cow"}, "colors": {"#000000": 0},
        },
        "kept_scores": {"version": 2, "alpha": "0.1", "limits": [0.5, "inf"], "splits": [0.2], "calibration": "0" * 64},
        "instances": {"min_score": 0.5}, "promptable": {"mode": "boxes"}, "prompts": {"tau": 0.3},
        "everything": {"points": 32},
        "drift": {"level": 0.05, "sample": 100, "statistics": ["top score"], "calibration": "x"},
        "reselected_from": {"store": "s", "selection": {"select": "argmax"}, "kept_scores": "0" * 64},
    }  # fmt: skip
    LabelStore.create(folder / "store", {"select": "argmax"})
    path = folder / "store" / "run.json"
    whole = {**json.loads(path.read_text()), "run": run}

    def read(document: Any) -> None:
        if isinstance(document, dict) and "run" in document:
            with suppress(ValueError):  # Python's JSON has infinity
                document = {**document, "hash": _digest(document["run"])}
        path.write_bytes(_json(document))
        read_run(folder / "store")

    return Target(whole, change_value, read, adjust_value)


def _training_run_on_bands(folder: Path) -> Target:
    from maskmill.engine.model.input_spec import BandSpec
    from tests.trainer.test_run import RUN

    bands = BandSpec(numbers=(4, 1, 2), sample_type="uint16", display=(4, 1, 2), display_range=(0, 10_000))
    return training_run(folder, replace(RUN, input=replace(RUN.input, bands=bands)))


def _training_log(folder: Path) -> Target:
    from maskmill.trainer.log import read_log

    def read(document: bytes) -> None:
        (folder / "log.csv").write_bytes(document)
        read_log(folder)

    return Target(b"step,lr,loss\n1,0.1,2.5\n2,0.1,2.25\n", change_lines, read, variants.text_numbers)


def _score_record(folder: Path) -> Target:
    (folder / "scores").mkdir()
    np.save(folder / "scores" / "1.npy", np.ones((3, 4, 4), np.float32))
    bundle = write_score_bundle(folder / "b", scores=folder / "scores", classes=["a", "b", "c"])
    rescaled = ScoreFiles.open(bundle.path).rescaled(folder / "r", scale=1.5, offsets=[0.0, 0.5, 1.0])
    path = rescaled.path / "scores.json"

    def read(document: Any) -> None:
        if isinstance(document, dict):  # other folders are read by design
            document = {**document, "scores": str(folder / "scores")}
        path.write_bytes(_json(document))
        ScoreFiles.open(rescaled.path)

    return Target(json.loads(path.read_text()), change_value, read, adjust_value)


def _score_array(folder: Path) -> Target:
    (folder / "scores").mkdir()
    path = folder / "scores" / "1.npy"
    np.save(path, np.random.default_rng(0).random((3, 4, 5)).astype(np.float32))
    write_score_bundle(folder / "b", scores=folder / "scores", classes=["a", "b", "c"])
    predictor = ScoreFiles.open(folder / "b")

    def read(document: bytes) -> None:
        path.write_bytes(document)
        predictor.predict(np.zeros((8, 8, 3), np.uint8), "1.jpg")

    return Target(path.read_bytes(), change_bytes, read, _other_scores)


def _other_scores(original: bytes, chance: Any) -> tuple[bytes, tuple[Any, ...]]:
    shape = chance.choice(((3, 4, 5), (3, 1, 1), (3, 9, 2), (2, 4, 5)))
    kind = chance.choice(("<f4", ">f4", "<f2", "<f8", "<u2"))
    stream = io.BytesIO()
    values = np.frombuffer(chance.randbytes(int(np.prod(shape))), np.uint8).reshape(shape)
    np.save(stream, np.asfortranarray(values.astype(kind)) if chance.random() < 0.5 else values.astype(kind))
    return stream.getvalue(), (kind,)


def _certificate(folder: Path) -> Target:
    store = LabelStore.create(
        folder / "store",
        {"select": "argmax", "classes": {"targets": ["a", "b"], "background": 0, "model": [0, 1], "labels": {}}},
    )
    store.commit([label_row("a", labels=np.zeros((2, 3), np.uint8))], [input_row("a")])
    export_labels(store, folder / "out", "png", images="none")
    path = folder / "out" / "labels.cert.json"
    original = json.loads(path.read_text())
    del original["seal"]

    def read(document: Any) -> None:
        if isinstance(document, dict):
            document = {**document, "seal": seal_of_certificate(document)}
        path.write_bytes(_json(document))
        if verify_export(folder / "out").faults:
            raise StoreError("not as it was exported")

    return Target(original, change_value, read, adjust_value)


def _hashes(folder: Path) -> Target:
    _certificate(folder)
    path = folder / "out" / "labels.sha256"

    def read(document: bytes) -> None:
        path.write_bytes(document)
        verify_export(folder / "out")

    return Target(path.read_bytes(), change_lines, read)


def _history(folder: Path) -> Target:
    from maskmill.engine.labeling.history import HISTORY, add_run

    add_run(folder, Progress(images=3))
    (path,) = (folder / HISTORY).iterdir()

    def read(document: Any) -> None:
        path.write_bytes(_json(document))
        read_history(folder)

    return Target(json.loads(path.read_text()), change_value, read, adjust_value)


def _record(reader: Callable[[bytes], Any], fields: dict[str, Any]) -> Callable[[Path], Target]:
    def target(folder: Path) -> Target:
        process = {"host": "h", "process": 3, "started": "5", "boot": "b", "pids": "p", "state": "working", "beat": 1}
        whole = process | fields | {"time": 1.5, "progress": Progress(images=3).record()}
        assert reader(_json(whole)) is not None

        def read(document: Any) -> None:
            reader(_json(document))

        return Target(whole, change_value, read, adjust_value)

    return target


def _objects(folder: Path) -> Target:
    row = label_row("a", labels=np.zeros((6, 8), np.uint8))
    objects = [
        Instance(target=0, score=0.9, quality=0.8, box=(0, 0, 4, 4), counts=counts_to_string([0, 4, 44]), area=4)
    ]
    original = json.loads(zlib.decompress(encode_instances(objects)[1:]))

    def read(document: Any) -> None:
        decode_instances(replace(row, instances=b"\x02" + zlib.compress(_json(document))), 3)

    return Target(original * 2, change_value, read, _other_objects)


def _other_objects(original: list[list[Any]], chance: Any) -> tuple[Any, tuple[Any, ...]]:
    """Change the class, score or quality of an object, or the number of objects."""
    objects = [list(values) for values in original for _ in range(chance.choice((0, 1, 30)))]
    place = chance.randrange(3)
    for values in objects:
        values[place] = chance.randrange(3) if place == 0 else round(chance.random(), 6)
    return objects, ("*", place)


def _statistics(folder: Path) -> Target:
    def read(document: Any) -> None:
        read_statistics(json.dumps(document))

    return Target({"top score": 0.5, "brightness": 12.5, "contrast": 3}, change_value, read, adjust_value)


def _tuned(folder: Path) -> Target:
    choice = TunedChoice(**{field: _example(kind) for field, kind in TunedChoice.__annotations__.items()})
    path = folder / TUNED

    def read(document: Any) -> None:
        path.write_bytes(_json(document))
        _read(path)

    return Target({"choices": [asdict(choice)]}, change_value, read, adjust_value)


def _example(kind: Any) -> Any:
    examples = {"str": "x", "int": 3, "float": 1.5, "bool": True, "Provider": "cpu"}
    return next((value for name, value in examples.items() if str(kind).startswith(name)), None)


PANOPTIC = {
    "images": [{"id": 1, "file_name": "1.jpg", "width": 8, "height": 6}],
    "categories": [{"id": 1, "name": "cow", "isthing": 1}, {"id": 2, "name": "sky", "isthing": 0}],
    "annotations": [
        {
            "image_id": 1,
            "file_name": "1.png",
            "segments_info": [{"id": 1, "category_id": 1, "iscrowd": 0, "bbox": [0, 0, 8, 3], "area": 24}],
        }
    ],
}
CITYSCAPES = {
    "imgHeight": 6,
    "imgWidth": 8,
    "objects": [{"label": "road", "polygon": [[0, 0], [4, 0], [4, 4]], "deleted": 0}],
}


def _set(format: str, file: str, document: Any, others: dict[str, bytes], variant: Change | None = None) -> Any:
    """A folder of labels of which one file changes."""

    def target(folder: Path) -> Target:
        is_json = not isinstance(document, bytes)
        content = _json(document) if is_json else document
        for name, data in (others | {file: content}).items():
            (folder / "set" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "set" / name).write_bytes(data)
        location = folder / "set" / ("p.json" if format == "coco-panoptic" else "")

        def read(changed: Any) -> None:
            (folder / "set" / file).write_bytes(_json(changed) if is_json else changed)
            reader = open_reader(location, format)  # type: ignore[arg-type]
            for name in reader.names():
                reader.read_labels(name, (6, 8))

        change = change_value if is_json else change_lines if content.isascii() else change_bytes
        return Target(document, change, read, adjust_value if is_json else variant)

    return target


def _map(values: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(values, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def _other_segments(original: bytes, chance: Any) -> tuple[bytes, tuple[Any, ...]]:
    """Write another map of the two segments."""
    size = chance.choice((1, 6, 33)), chance.choice((1, 8, 31))
    values = np.frombuffer(chance.randbytes(size[0] * size[1]), np.uint8).reshape(size) % 2
    buffer = io.BytesIO()
    picture = Image.fromarray(np.dstack([values, *np.zeros((2, *size), np.uint8)]))
    picture.save(buffer, "PNG", compress_level=chance.randrange(10))
    return buffer.getvalue(), (str(size),)


def _table_of_maps(folder: Path) -> Target:
    path = folder / "a.parquet"

    def written(bytes: list[Any], names: list[Any], **options: Any) -> bytes:  # noqa: A002
        maps = [{"bytes": data, "path": name} for data, name in zip(bytes, names, strict=True)]
        buffer = io.BytesIO()
        table = pa.table({"image": maps, "label": maps})
        pq.write_table(table.replace_schema_metadata({"maskmill:classes": '["a", "b"]'}), buffer, **options)
        return buffer.getvalue()

    def variant(original: bytes, chance: Any) -> tuple[bytes, tuple[Any, ...]]:
        maps = [_map(np.full((chance.choice((1, 6)), 8), chance.choice((0, 1)))) for _ in range(3)]
        names = [chance.choice(("1.png", "é.png", "a/b.png")) + str(number) for number in range(3)]
        kind = chance.choice(("none", "snappy", "zstd"))
        return written(maps, names, compression=kind, row_group_size=chance.choice((1, 3))), (kind,)

    def read(document: bytes) -> None:
        path.write_bytes(document)
        reader = open_reader(path, "huggingface")
        for name in reader.names():
            reader.read_labels(name)

    return Target(written([_map([[0, 1]])] * 2, ["1.png", "2.png"]), change_bytes, read, variant)


CITY = "gtFine/train/a/x"
SHAPE = {"label": "cow", "points": [[1, 1], [3, 3]], "shape_type": "mask", "group_id": None, "flags": {}}
LABELME_MASK = {
    "imagePath": "1.jpg",
    "imageHeight": 6,
    "imageWidth": 8,
    "shapes": [{**SHAPE, "mask": base64.b64encode(_map(np.ones((3, 3)))).decode()}],
}
MAPS = {"labels/1.png": _map(np.arange(48).reshape(6, 8) % 2)}
ADE = b"Idx\tRatio\tTrain\tVal\tName\n1\t0.1\t10\t5\twall\n2\t0.1\t10\t5\tsky, air\n"
VOC_MAP = {"SegmentationClass/1.png": _map(np.arange(48).reshape(6, 8) % 2)}
ID_MAP = _map(np.arange(48).reshape(6, 8) % 20)
SEGMENTS = _map(np.dstack([np.arange(48).reshape(6, 8) // 24, *np.zeros((2, 6, 8))]))

ALL: dict[str, Callable[[Path], Target]] = {
    **TARGETS,
    "bundle-bands": _bundle_of(band_bundle),
    "bundle-promptable": _bundle_of(sam_bundle),
    "bundle-text": _bundle_of(text_bundle),
    "calibration-weighted": _calibration_of("weighted"),
    "calibration-rates": _calibration_of("rates", control="false-label-rate"),
    "calibration-misses": _calibration_of("misses", control="miss-rate"),
    "calibration-positions": _calibration_of("positions", group="position", grid=GRID),
    "store-run-of-everything": _store_run_of_everything,
    "training-run-bands": _training_run_on_bands,
    "training-log": _training_log,
    "score-record": _score_record,
    "score-array": _score_array,
    "certificate": _certificate,
    "hashes": _hashes,
    "history": _history,
    "worker": _record(worker_record, {"leases": {"a": 1}, "name": "n", "stalled": "", "error": "", "alone": False}),
    "driver": _record(
        driver_record,
        {"token": "t", "version": "1", "planned_all": True, "commits": 2, "commit_seconds": 0.5},
    ),
    "objects": _objects,
    "statistics": _statistics,
    "tuned": _tuned,
    "labels-panoptic": _set("coco-panoptic", "p.json", PANOPTIC, {"p/1.png": SEGMENTS}),
    "labels-panoptic-map": _set("coco-panoptic", "p/1.png", SEGMENTS, {"p.json": _json(PANOPTIC)}, _other_segments),
    "labels-cityscapes": _set("cityscapes", f"{CITY}_gtFine_polygons.json", CITYSCAPES, {}),
    "labels-cityscapes-map": _set(
        "cityscapes", "gtFine/train/a/x_gtFine_labelIds.png", ID_MAP, {}, variants.png_chunks
    ),
    "labels-cityscapes-names": _set(
        "cityscapes", "labels.json", {"5": "other", "6": "more"}, {f"{CITY}_gtFine_labelIds.png": ID_MAP}
    ),
    "labels-voc-names": _set("voc", "labelmap.txt", b"background:0,0,0::\ncow:128,0,0::\n", VOC_MAP),
    "labels-fiftyone": _set("fiftyone", "mask_targets.json", {"0": "sky", "1": "cow"}, MAPS),
    "labels-ade20k": _set("ade20k", "objectInfo150.txt", ADE, {"annotations/t/1.png": MAPS["labels/1.png"]}),
    "labels-labelme-mask": _set("labelme", "1.json", LABELME_MASK, {}),
    "labels-yolo-names": _set(
        "yolo-seg", "data.yaml", b"names:\n  0: cow\n  1: horse\n", {"labels/1.txt": b"0 .1 .1 .5 .1 .5 .5\n"}
    ),
    "labels-table": _table_of_maps,
}
"""Every target by name."""
