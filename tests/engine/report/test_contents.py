from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from maskmill.engine.labeling.import_labels import withdraw_reviews
from maskmill.engine.report.contents import describe_store
from maskmill.engine.store.label_store import LabelStore, ReviewRow

from ...builders import input_row, label_row
from ..labeling.test_export_labels import make_store

RUN = {
    "bundle": "d5f2b5244a45" + "0" * 52,
    "session": "onnxruntime/cpu/fp32",
    "artifact": "692ab5603234" + "0" * 52,
    "tile": 512,
    "overlap": 64,
    "select": "conformal",
    "rule": "agree",
    "weight": "pcos",
    "calibration": {"alpha": "0.1", "group": "class", "unit": "pixel", "control": "miscoverage", "delta": None},
}


def test_the_run_is_told_in_words_and_without_hashes(tmp_path: Path) -> None:
    text = "\n".join(describe_store(LabelStore.create(tmp_path / "store", RUN)))
    assert "model: bundle d5f2b5244a45, run by onnxruntime cpu fp32" in text
    assert "tiles: 512 px, overlapping by 64 px" in text
    assert "selection: conformal, rule agree, miscoverage alpha 0.1; a threshold per class, measured per pixel" in text
    assert "weight: pcos" in text
    assert not re.search("[0-9a-f]{16}|[{}]", text)


def test_kept_scores_and_the_origin_of_a_reselection_are_told(tmp_path: Path) -> None:
    kept = {"version": 2, "alpha": "0.05", "limits": [0.1], "splits": [0.0], "calibration": "c" * 64}
    origin = {"store": "/data/labels", "selection": {}, "kept_scores": "k" * 64}
    run = {**RUN, "kept_scores": kept, "reselected_from": origin}
    lines = describe_store(LabelStore.create(tmp_path / "store", run))
    assert "kept scores: for `maskmill reselect` at alpha 0.05 and above" in lines
    assert "reselected from: /data/labels" in lines


def test_shares_of_classes_and_reviews_in_force_are_counted(tmp_path: Path) -> None:
    store = make_store(tmp_path, 3)
    labels = np.stack([store.read(f"{index}.png")[0] for index in range(3)])
    reviews = [ReviewRow(id=id, reviewer="ana", time=1, verdict="accepted") for id in store.ids()]
    store.commit_reviews(reviews)
    withdraw_reviews(store, reviewer="ana", names=["0.png"])
    lines = describe_store(store)
    kept = labels[labels != 255]
    assert f"kept: {kept.size / labels.size:.1%} of the pixels have a label" in lines
    assert f"cow {(kept == 1).mean():.1%}" in "\n".join(lines)
    assert "reviews in force: 2" in lines


def test_stores_without_classes_are_described(tmp_path: Path) -> None:
    segments = {"maps": "segments", "encoder": {"session": "a/b"}, "decoder": {"session": "a/b"}, "everything": {}}
    store = LabelStore.create(tmp_path / "store", segments)
    store.commit([label_row("a")], [input_row("a")])
    lines = describe_store(store)
    assert "model: not recorded, run by a b" in lines
    assert "maps: segments without classes" in lines
