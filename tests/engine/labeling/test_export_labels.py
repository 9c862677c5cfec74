from __future__ import annotations

import json
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pycocotools.coco import COCO

from maskmill.engine.formats.open import open_reader
from maskmill.engine.labeling import export_labels as module
from maskmill.engine.labeling.certificate import promise, verify_export
from maskmill.engine.labeling.export_labels import export_labels
from maskmill.engine.labeling.export_names import export_names
from maskmill.engine.model.png import encode_png
from maskmill.engine.model.taxonomy import Taxonomy
from maskmill.engine.store.label_store import InputRow, LabelRow, LabelStore, ReviewRow, content_id
from maskmill.errors import StoreError, UsageError

from ...builders import encoded, input_row, photo

TAXONOMY = Taxonomy(targets=("background", "cow", "horse"), background=0, model=(0, 1, 2))


def label_map(index: int) -> NDArray[np.uint8]:
    label = np.random.default_rng(index).choice(np.array([0, 1, 2, 255], dtype=np.uint8), (6, 9))
    label[0] = index % 3
    return label


def make_store(folder: Path, num: int, names: list[str] | None = None) -> LabelStore:
    """A store of ``num`` photos under ``folder/photos``, with random label maps."""
    store = LabelStore.create(folder / "store", {"classes": TAXONOMY.to_json(), "select": "argmax"})
    labels, inputs = [], []
    for index, name in enumerate(names or [f"{index}.png" for index in range(num)]):
        path = folder / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        data = encoded(photo(6, 9, seed=index), "PNG")
        path.write_bytes(data)
        label = label_map(index)
        labels.append(
            LabelRow(
                id=content_id(data),
                width=9,
                height=6,
                label=encode_png(label),
                weight=encode_png(np.full(label.shape, 7, np.uint8)),
                counts=np.bincount(label[label != 255], minlength=3),
                kept=float((label != 255).mean()),
                confidence=0.5,
            )
        )
        inputs.append(InputRow(uri=str(path), size=1, stamp="", id=content_id(data), error=None, message=None))
    inputs.append(InputRow(uri="bad.png", size=1, stamp="", id=None, error="truncated", message="cut short"))
    store.commit(labels, inputs)
    return store


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("format", ["coco", "coco-polygons"])
def test_pixels_that_pycocotools_counts_are_those_of_the_store(format: Any, tmp_path: Path, capsys: Any) -> None:
    store = make_store(tmp_path, 20)
    summary = export_labels(store, tmp_path / "out", format, images="copy")
    assert (summary.num_images, summary.num_before, summary.skipped) == (20, 0, {"rejected input": 1})
    coco = COCO(str(tmp_path / "out" / "annotations" / "instances.json"))
    counts = dict.fromkeys(TAXONOMY.targets, 0)
    for annotation in coco.loadAnns(coco.getAnnIds(iscrowd=False)):
        name = coco.loadCats(annotation["category_id"])[0]["name"]
        counts[name] += int(coco.annToMask(annotation).sum())
    stored = np.sum(store.table(["counts"])["counts"].to_pylist(), axis=0)
    assert list(counts.values()) == stored.tolist()
    for image in coco.loadImgs(coco.getImgIds()):
        with Image.open(tmp_path / "out" / "images" / image["file_name"]) as file:
            assert (file.width, file.height) == (image["width"], image["height"])


def test_images_below_min_kept_are_left_out_and_counted(tmp_path: Path) -> None:
    store = make_store(tmp_path, 20)
    kept = np.array(store.table(["kept"])["kept"].to_pylist())
    bound = float(np.median(kept))
    summary = export_labels(store, tmp_path / "out", "png", min_kept=bound)
    assert summary.num_images == (kept >= bound).sum()
    assert summary.skipped["below --min-kept"] == (kept < bound).sum()
    with pytest.raises(UsageError, match="no image to export"):
        export_labels(store, tmp_path / "none", "png", min_kept=1)


def test_images_of_the_same_stem_never_overwrite_each_other(tmp_path: Path) -> None:
    names = ["a/1.png", "b/1.png", "b/1.jpg", "B/1.png", "c/1", "c/1.tar.png", "c/1.tar.jpg"]
    store = make_store(tmp_path, 0, names)
    export_labels(store, tmp_path / "out", "png", images="link")
    uris = sorted(str(tmp_path / "photos" / name) for name in names)
    exported = dict(zip(uris, export_names(uris), strict=True))
    assert len({stem.casefold() for _, stem in exported.values()}) == len(names)
    for index, name in enumerate(names):
        uri = str(tmp_path / "photos" / name)
        assert (tmp_path / "out" / "images" / exported[uri].name).read_bytes() == Path(uri).read_bytes()
        with Image.open(tmp_path / "out" / "labels" / f"{exported[uri].stem}.png") as image:
            assert (np.asarray(image) == label_map(index)).all()


@pytest.mark.parametrize(
    ("uris", "names"),
    [
        (["/p/a/1.jpg", "/p/a/2.jpg"], ["1.jpg", "2.jpg"]),
        (["/p/a/1.jpg"], ["1.jpg"]),
        (["/p/a/1.jpg", "/p/b/1.jpg"], ["a/1.jpg", "b/1.jpg"]),
        (["s3://x/a/1.jpg", "s3://y/a/1.jpg"], ["x/a/1.jpg", "y/a/1.jpg"]),
        (["/s/0.tar::a/1.jpg", "/s/1.tar::a/1.jpg"], ["0.tar/a/1.jpg", "1.tar/a/1.jpg"]),
        (["/p/A.jpg", "/p/a.jpg"], ["A.jpg", "a-2.jpg"]),
        (["/p/é.jpg", "/p/é.jpg"], ["é.jpg", "é-2.jpg"]),
        (["/p/../x/.hidden.jpg", "/p/x/a?b.jpg"], ["_.hidden.jpg", "a_b.jpg"]),
    ],
)
def test_names_are_short_unique_and_safe(uris: list[str], names: list[str]) -> None:
    assert [name for name, _ in export_names(uris)] == names


def test_an_interrupted_export_is_continued_and_gives_the_same_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store(tmp_path, 30)
    monkeypatch.setattr(module, "_CHUNK", 4)
    export_labels(store, tmp_path / "whole", "coco", workers=2)

    def stop(done: int, total: int) -> None:
        if done >= 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_labels(store, tmp_path / "out", "coco", workers=2, progress=stop)
    journal = tmp_path / "out" / ".export" / "parts.jsonl"
    with journal.open("a") as stream:
        stream.write('{"part": "cut sh')
    store.commit([], [InputRow(uri="late.png", size=1, stamp="", id=store.ids()[0], error=None, message=None)])
    with pytest.raises(UsageError, match="with other options"):
        export_labels(store, tmp_path / "out", "coco", min_kept=0.5)
    summary = export_labels(store, tmp_path / "out", "coco")
    assert summary.num_before >= 10
    for name in ("annotations/instances.json", "labels.sha256"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not (tmp_path / "out" / ".export").exists()


def test_a_folder_that_holds_something_is_not_touched(tmp_path: Path) -> None:
    store = make_store(tmp_path, 2)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="is not empty"):
        export_labels(store, tmp_path / "out", "png")
    export_labels(store, tmp_path / "new", "png")
    with pytest.raises(UsageError, match="a finished export of 2 images; .* delete the folder and export again"):
        export_labels(store, tmp_path / "new", "png")
    third = store.take(store.ids()[:1])[0]
    store.commit([replace(third, id=content_id(b"third"))], [input_row("third")])
    with pytest.raises(UsageError, match="a finished export of 2 images, and .* holds 3 now"):
        export_labels(store, tmp_path / "new", "png")


def test_a_row_of_a_table_that_moved_is_exported_once(tmp_path: Path) -> None:
    names = ["a", "b", "c"]
    store = make_store(tmp_path, 3)
    rows = [row for row in store.inputs() if row.id is not None]
    other = make_store(tmp_path / "other", 0)
    places = [f"t.parquet::{place}/{name}.png" for place, name in enumerate(names)]
    inputs = [replace(row, uri=uri, stamp="1", time=1) for row, uri in zip(rows, places, strict=True)]
    moved = [
        replace(row, uri=f"t.parquet::{place}/{name}.png", stamp="2", time=2)
        for place, (row, name) in enumerate([(rows[0], "a"), (rows[2], "c")])
    ]
    other.commit(store.take([row.id or "" for row in rows]), inputs)
    other.commit([], moved)
    assert export_labels(other, tmp_path / "out", "png").num_images == 3  # b was deleted, as a file may be
    assert len(list((tmp_path / "out").rglob("c*.png"))) == 1


def test_rows_of_one_version_of_a_table_may_share_a_name(tmp_path: Path) -> None:
    store = make_store(tmp_path, 2, ["t.parquet::0/a.png", "t.parquet::1/a.png"])
    assert export_labels(store, tmp_path / "out", "png").num_images == 2


def test_a_photo_that_changed_stops_the_export(tmp_path: Path) -> None:
    store = make_store(tmp_path, 2)
    (tmp_path / "photos" / "1.png").write_bytes(encoded(photo(6, 9, seed=99), "PNG"))
    with pytest.raises(StoreError, match=r"1.png has changed since it was labeled"):
        export_labels(store, tmp_path / "out", "coco", images="copy")


def test_the_certificate_is_checked_at_the_receiver(tmp_path: Path) -> None:
    store = make_store(tmp_path, 3)
    out = tmp_path / "out"
    export_labels(store, out, "voc", images="copy")
    check = verify_export(out)
    assert check.faults == ()
    assert check.num_files == 8
    assert check.certificate["export"]["num_images"] == 3
    assert check.certificate["promise"].startswith("None; the labels are the model's best class of every pixel")
    (out / "SegmentationClass" / "1.png").write_bytes(b"")
    (out / "SegmentationClass" / "2.png").unlink()
    assert set(verify_export(out).faults) == {
        "SegmentationClass/1.png was changed after it was written",
        "SegmentationClass/2.png is missing",
    }
    text = (out / "labels.cert.json").read_text()
    (out / "labels.cert.json").write_text(text.replace('"num_images": 3', '"num_images": 4'))
    assert "labels.cert.json was changed after it was written" in verify_export(out).faults
    with pytest.raises(StoreError, match="no certificate"):
        verify_export(tmp_path)


@pytest.mark.parametrize("name", ["../photos/0.png", "/etc/passwd", "a/../../store/run.json"])
def test_a_list_of_hashes_reads_no_file_outside_the_export(name: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export_labels(make_store(tmp_path, 3), out, "voc", images="none")
    with (out / "labels.sha256").open("a") as file:
        file.write(f"{'0' * 64}  {name}\n")
    assert any(fault.startswith(f"{name} is not in the export") for fault in verify_export(out).faults)


@pytest.mark.parametrize("text", ["[]", "[" * 100_000, '{"files": []}', '{"files": {"sha256": 1}}', "{}", "\ud800"])
def test_a_damaged_certificate_is_refused_in_one_line(text: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export_labels(make_store(tmp_path, 2), out, "voc", images="none")
    (out / "labels.cert.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(StoreError, match="no certificate that can be read"):
        verify_export(out)


def test_a_text_that_is_not_unicode_in_a_certificate_is_a_change(tmp_path: Path) -> None:
    out = tmp_path / "out"
    export_labels(make_store(tmp_path, 2), out, "voc", images="none")
    certificate = json.loads((out / "labels.cert.json").read_text())
    (out / "labels.cert.json").write_text(json.dumps({**certificate, "promise": "\ud800"}))
    assert verify_export(out).faults == ("labels.cert.json was changed after it was written",)


@pytest.mark.parametrize(
    ("run", "words"),
    [
        ({"select": "argmax"}, "None"),
        ({"select": "threshold"}, "chosen by hand"),
        (
            {"select": "conformal", "calibration": {"alpha": "0.05", "unit": "pixel", "group": "class"}},
            "Heuristic: .*0.05",
        ),
        (
            {"select": "conformal", "calibration": {"alpha": "0.1", "unit": "image", "group": "pooled"}},
            "Guarantee: .*0.1",
        ),
        ({"select": "conformal", "calibration": {"alpha": "0.1", "unit": "image", "group": "class"}}, "per class"),
    ],
)
def test_the_promise_says_no_more_than_holds(run: dict[str, Any], words: str) -> None:
    assert re.search(words, promise(run))


def review(id: str, verdict: Any, label: NDArray[np.uint8] | None = None, region: Any = None) -> ReviewRow:
    return ReviewRow(
        id=id,
        reviewer="ana",
        time=time.time_ns() // 1000,
        verdict=verdict,
        label=None if label is None else encode_png(label),
        region=None if region is None else encode_png(region),
    )


def test_reviewed_pixels_win_and_withdrawal_restores(tmp_path: Path) -> None:
    store = make_store(tmp_path, 3)
    first, second, third = (store.find(f"{index}.png").id or "" for index in range(3))
    before = store.table(["id", "label", "weight", "row_hash"])
    corrected = np.full((6, 9), 2, np.uint8)
    region = np.zeros((6, 9), np.uint8)
    region[:3] = 255
    corrected[1, 1] = 255
    store.commit_reviews([review(first, "corrected", corrected, region), review(second, "rejected")])
    label, weight = store.read("0.png")
    assert (label[:3] == corrected[:3]).all()
    assert (label[3:] == label_map(0)[3:]).all()
    assert (weight[0] == 255).all()
    assert (weight[1, 1], weight[5, 5]) == (0, 7)
    assert (store.read("1.png")[0] == 255).all()
    summary = export_labels(store, tmp_path / "out", "png", min_kept=0.0)
    assert summary.skipped["rejected by a reviewer"] == 1
    with Image.open(tmp_path / "out" / "labels" / "0.png") as image:
        assert (np.asarray(image) == label).all()
    certificate = json.loads((tmp_path / "out" / "labels.cert.json").read_text())
    assert certificate["reviews"] == {"images": 2, "reviewers": ["ana"]}
    store.commit_reviews([review(first, "withdrawn"), review(second, "withdrawn")])
    assert (store.read("0.png")[0] == label_map(0)).all()
    assert (store.read("1.png")[0] == label_map(1)).all()
    assert store.table(["id", "label", "weight", "row_hash"]) == before
    assert third in store.ids()


def test_an_export_of_shapes_is_read_with_the_certificate(tmp_path: Path) -> None:
    store = make_store(tmp_path, 4)
    for ignored in ("drop", "class"):
        export_labels(store, tmp_path / ignored, "cvat", ignored=ignored)
        reader = open_reader(tmp_path / ignored)
        for index in range(4):
            label = reader.read_labels(f"{index}.png")
            names = [reader.class_names.get(value) for value in label.ravel().tolist()]
            expected = [dict(enumerate(TAXONOMY.targets)).get(value) for value in label_map(index).ravel().tolist()]
            assert names == expected
