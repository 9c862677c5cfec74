"""Scenes read by windows with a label map per scene: as chips of the same windows with a map per chip."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import maskmill
from maskmill.engine.calibration.calibration import Calibration
from maskmill.engine.inputs.labeled_source import pair_images, pair_uris
from maskmill.engine.inputs.labels import open_labels
from maskmill.engine.inputs.sources import open_source
from maskmill.engine.model.bundle import Bundle
from maskmill.engine.model.taxonomy import Taxonomy
from maskmill.engine.reading.geotiff import Windows, split_window
from maskmill.errors import CalibrationError, CalibrationMismatch, UsageError

from ....models import band_bundle
from .test_geotiff import write_tiff

pytest.importorskip("rasterio")

BANDS = (5, 1, 4)
WINDOWS = Windows(side=16, overlap=4)


def write_scene(folder: Path, name: str, seed: int, *, height: int = 40, width: int = 34) -> None:
    """A scene of five bands in ``folder/scenes``, its map in ``folder/maps``, and both cut into chips beside them."""
    chance = np.random.default_rng(seed)
    label = np.repeat(np.repeat(chance.integers(0, 3, (height // 4 + 1, width // 4 + 1)), 4, 0), 4, 1)[:height, :width]
    values = np.full((5, height, width), 300, np.uint16)
    for index, band in enumerate(BANDS):
        values[band - 1] += ((label == index) * chance.integers(0, 9000, label.shape)).astype(np.uint16)
    write_tiff(folder / "scenes" / f"{name}.tif", values)
    for place in ("maps", "chips", "chip maps"):
        (folder / place).mkdir(exist_ok=True)
    Image.fromarray(label.astype(np.uint8)).save(folder / "maps" / f"{name}.png")
    for number, (row, column, rows, columns) in enumerate(WINDOWS.cut(height, width)):
        part = np.s_[row : row + rows, column : column + columns]
        # the axis in front says that bands come first
        np.save(folder / "chips" / f"{name} {number:03}.npy", values[None, :, *part])
        Image.fromarray(label[part].astype(np.uint8)).save(folder / "chip maps" / f"{name} {number:03}.png")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    for seed in range(3):
        write_scene(folder, f"scene {seed}", seed)
    band_bundle(folder, bands=BANDS, size=(16, 16))
    return folder


def test_a_calibration_and_a_measurement_by_windows_are_those_of_chips(data: Path) -> None:
    options: dict[str, Any] = {"windows": 16, "window_overlap": 4}
    model, fit = data / "bundle", {"alpha": 0.1, "min_images": 1}
    by_windows = maskmill.calibrate(model, data / "scenes", data / "maps", **fit, **options)
    by_chips = maskmill.calibrate(model, chips(data), data / "chip maps", **fit)
    assert by_windows.report["num_images"] == 3
    assert by_windows.counts.num_images == by_chips.report["num_images"] == 3 * len(WINDOWS.cut(40, 34))
    assert np.array_equal(by_windows.thresholds, by_chips.thresholds)
    assert by_windows.report["num_pixels"] == by_chips.report["num_pixels"]
    assert by_windows.report["argmax"] == pytest.approx(by_chips.report["argmax"])
    assert np.array_equal(by_windows.drift_reference, by_chips.drift_reference)
    first = maskmill.evaluate(model, data / "maps", images=data / "scenes", calibration=by_windows, **options)
    second = maskmill.evaluate(model, data / "chip maps", images=chips(data), calibration=by_chips)
    assert np.array_equal(first.confusion, second.confusion)
    assert first.coverage is not None
    assert second.coverage is not None
    assert [row["coverage"] for row in first.coverage["rows"]] == [row["coverage"] for row in second.coverage["rows"]]
    assert {row["images"] for row in first.coverage["rows"]} == {3}


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve scenes of four windows that are copies of each other, and one window of each."""
    folder = tmp_path_factory.mktemp("copies")
    for seed in range(12):
        write_scene(folder, f"part {seed:02}", seed, height=16, width=16)
        values, label = (
            np.load(folder / "chips" / f"part {seed:02} 000.npy")[0],
            folder / "maps" / f"part {seed:02}.png",
        )
        write_tiff(folder / "fourfold" / f"scene {seed:02}.tif", np.tile(values, (1, 2, 2)))
        (folder / "fourfold maps").mkdir(exist_ok=True)
        Image.fromarray(np.tile(np.asarray(Image.open(label)), (2, 2))).save(
            folder / "fourfold maps" / f"scene {seed:02}.png"
        )
    band_bundle(folder, bands=BANDS, size=(16, 16))
    return folder


@pytest.mark.parametrize(
    "options",
    [
        {"alpha": 0.1, "unit": "image", "group": "class", "min_images": 1},
        {"alpha": 0.2, "unit": "image"},
        {"alpha": 0.1, "unit": "pixel", "rule": "single"},
        {"alpha": 0.3, "control": "false-label-rate"},
        {"alpha": 0.3, "control": "miss-rate"},
    ],
    ids=["class", "pooled", "pixel", "false-label-rate", "miss-rate"],
)
def test_a_scene_counts_as_one_image_however_many_windows_it_has(
    copies: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    single = maskmill.calibrate(copies / "bundle", copies / "scenes", copies / "maps", **options)
    fourfold = maskmill.calibrate(
        copies / "bundle", copies / "fourfold", copies / "fourfold maps", windows=16, **options
    )
    assert fourfold.counts.num_images == 4 * single.counts.num_images
    same = options.get("unit", "image") == "image"  # the rank of a pixel depends on the number of pixels
    assert fourfold.thresholds == pytest.approx(single.thresholds, rel=1e-6 if same else 0.02)
    expected = _figures(single.report)
    assert _figures(fourfold.report) == (pytest.approx(expected) if same else pytest.approx(expected, abs=0.01))
    assert fourfold.report["num_images"] == single.report["num_images"] == 12
    if same:
        assert "12 calibration images (all windows of a file count as one)" in fourfold.report["promise"]
        fourfold.save(tmp_path / "saved.json")
        assert Calibration.load(tmp_path / "saved.json").counts.scenes == fourfold.counts.scenes
    if "control" not in options:
        assert fourfold.at(0.25).thresholds == pytest.approx(single.at(0.25).thresholds, rel=1e-6 if same else 0.1)


def _figures(report: Mapping[str, Any]) -> dict[str, float]:
    """Coverage and labels overall, with intervals."""
    overall, labels = report["overall"], report["labels"]
    figures = {name: overall[name] for name in ("coverage", "mean_set_size", "singleton_share")}
    figures |= {name: labels[name] for name in ("kept", "accuracy_kept", "miou_kept")}
    low, high = overall["interval"]
    return {**figures, "low": low, "high": high, "mean": report["image_mean_coverage"]}


def test_choose_and_evaluate_count_scenes(copies: Path) -> None:
    model = copies / "bundle"
    first = maskmill.evaluate(model, copies / "maps", images=copies / "scenes").to_json()
    second = maskmill.evaluate(model, copies / "fourfold maps", images=copies / "fourfold", windows=16).to_json()
    for key in ("accuracy_all_interval", "miou_kept_interval"):
        assert second[key] == pytest.approx(first[key])
    assert (second["num_images"], first["notes"]) == (48, [])
    assert second["notes"] == [
        "48 windows of 12 files: intervals are over files, since windows of one file resemble each other"
    ]
    choice = maskmill.choose(model, copies / "fourfold", copies / "fourfold maps", windows=16)[0]
    assert choice.raw.accuracy_interval == pytest.approx(first["accuracy_kept_interval"])
    assert "48 windows of 12 files: each file counts as one image" in choice.notes[-1]


def test_one_scene_holds_nothing_out_and_positions_are_refused(copies: Path) -> None:
    scene = copies / "fourfold" / "scene 00.tif"
    calibration = maskmill.calibrate(copies / "bundle", scene, copies / "fourfold maps", alpha=0.1, windows=16)
    assert calibration.report["num_images"] == 1
    assert calibration.report["overall"] is None
    assert {row["threshold_from"] for row in calibration.report["classes"]} == {"foreground"}
    with pytest.raises(CalibrationError, match=r"needs at least 9 images and there is 1 .*4 windows of 1 file: each"):
        maskmill.calibrate(copies / "bundle", scene, copies / "fourfold maps", alpha=0.1, unit="image", windows=16)
    with pytest.raises(UsageError, match="there is only one image"):
        maskmill.choose(copies / "bundle", scene, copies / "fourfold maps", windows=16)
    with pytest.raises(UsageError, match="thresholds per position need whole images"):
        maskmill.calibrate(copies / "bundle", scene, copies / "fourfold maps", alpha=0.1, group="position", windows=16)


def test_pixels_without_data_are_ignored_by_calibrate_choose_and_evaluate(tmp_path: Path) -> None:
    values = np.full((3, 24, 24), 300, np.uint16)
    truth = np.zeros((24, 24), np.uint8)
    values[0, :, :12], values[1, :, 12:] = 9000, 9000
    truth[:, 12:] = 1
    values[:, :6] = 65535
    truth[:6] = 2  # the map says a class where the scene has no data
    (tmp_path / "maps").mkdir()
    for number in range(3):
        write_tiff(tmp_path / "scenes" / f"{number}.tif", values, nodata=65535)
        Image.fromarray(truth).save(tmp_path / "maps" / f"{number}.png")
    model = band_bundle(tmp_path, bands=(1, 2, 3), size=(24, 24)).path
    calibration = maskmill.calibrate(model, tmp_path / "scenes", tmp_path / "maps", alpha=0.3)
    quality = maskmill.evaluate(model, tmp_path / "maps", images=tmp_path / "scenes")
    assert quality.accuracy_all == quality.kept == calibration.report["argmax"]["accuracy"] == 1
    assert quality.source is not None
    assert quality.source.ignored_share == calibration.report["source"]["ignored_share"] == 0.25


@pytest.fixture(scope="module")
def numbered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("numbered")
    (folder / "maps").mkdir()
    for name in ("1", "2", "12", "21"):
        write_tiff(folder / "scenes" / f"{name}.tif", np.zeros((3, 32, 32), np.uint8))
        Image.fromarray(np.arange(1024, dtype=np.uint8).reshape(32, 32) % 3).save(folder / "maps" / f"{name}.png")
    return folder


ALL_OF = {name: [f"{name}.tif {place}" for place in ("0,0", "0,16", "16,0", "16,16")] for name in ("1", "21")}


@pytest.mark.parametrize(
    ("names", "windows"),
    [
        (["2.tif::window=0,0,16,16", "12.tif::window=16,16,16,16"], ["12.tif 16,16", "2.tif 0,0"]),
        (["1.tif::window=0,0,16,16", "21.tif"], ["1.tif 0,0", *ALL_OF["21"]]),
        (["1.tif::window=0,16,16,16", "1.tif"], ALL_OF["1"]),
        (["scenes/2::window=16,0,16,16"], ["2.tif 16,0"]),
    ],
)
def test_a_list_selects_the_windows_and_files_that_it_names(
    numbered: Path, names: list[str], windows: list[str]
) -> None:
    taxonomy = Taxonomy(targets=("a", "b", "c"), background=0, model=(0, 1, 2), labels={0: 0, 1: 1, 2: 2})
    source = open_source(numbered / "scenes", windows=Windows(side=16))
    labeled = pair_images(source, open_labels(numbered / "maps"), taxonomy, ids=names)
    parts = [split_window(uri) for uri in labeled.uris]
    assert sorted(f"{Path(part[0]).name} {part[1].row},{part[1].column}" for part in parts if part) == sorted(windows)


def test_a_listed_window_that_is_not_there_is_refused(numbered: Path) -> None:
    taxonomy = Taxonomy(targets=("a", "b", "c"), background=0, model=(0, 1, 2), labels={0: 0, 1: 1, 2: 2})
    source = open_source(numbered / "scenes", windows=Windows(side=16))
    with pytest.raises(UsageError, match=r"the listed window 2\.tif::window=0,0,32,32 is not there"):
        pair_images(source, open_labels(numbered / "maps"), taxonomy, ids=["2.tif::window=0,0,32,32"])


def test_windows_of_another_size_than_those_of_the_calibration_are_refused_or_named(data: Path, tmp_path: Path) -> None:
    model, scenes = data / "bundle", data / "scenes"
    calibration = maskmill.calibrate(model, scenes, data / "maps", alpha=0.1, windows=16, window_overlap=4)
    calibration.save(tmp_path / "windows.json")
    calibration = Calibration.load(tmp_path / "windows.json")
    maskmill.label(model, scenes, tmp_path / "same", calibration=calibration, windows=16, limit=1)
    assert not maskmill.label(model, scenes, tmp_path / "same", calibration=calibration, windows=16).warnings
    with pytest.raises(CalibrationMismatch, match="windows: calibrated with 16, labeling with 32"):
        maskmill.label(model, scenes, tmp_path / "other", calibration=calibration, windows=32)
    (warning,) = maskmill.label(model, scenes, tmp_path / "whole", calibration=calibration).warnings
    assert "made by windows of 16 px" in warning
    by_chips = maskmill.calibrate(model, chips(data), data / "chip maps", alpha=0.1)
    (warning,) = maskmill.label(model, scenes, tmp_path / "large", calibration=by_chips, windows=32).warnings
    assert "at most 16x16 labeled pixels" in warning
    assert "calibrate with --windows 32" in warning


def chips(data: Path) -> str:
    return str(data / "chips" / "*.npy")


def test_a_store_of_windows_is_measured_against_the_maps_of_its_scenes(data: Path, tmp_path: Path) -> None:
    maskmill.label(data / "bundle", data / "scenes", tmp_path / "store", windows=16, window_overlap=4)
    stored = maskmill.evaluate(tmp_path / "store", data / "maps")
    labeled = maskmill.evaluate(data / "bundle", data / "maps", images=data / "scenes", windows=16, window_overlap=4)
    assert np.array_equal(stored.confusion, labeled.confusion)
    with pytest.raises(UsageError, match="windows does not apply to a label store"):
        maskmill.evaluate(tmp_path / "store", data / "maps", windows=16)


def test_lists_name_scenes_or_their_windows(data: Path) -> None:
    classes = Taxonomy.of_model(Bundle.load(data / "bundle"))
    source = open_source(data / "scenes", windows=WINDOWS)
    labels = open_labels(data / "maps")
    uris = [item.uri for item in source]
    assert pair_images(source, labels, classes).uris == uris
    assert pair_images(source, labels, classes, ids=["scene 1.tif"]).uris == [uri for uri in uris if "scene 1" in uri]
    window = "scene 2.tif::window=12,0,16,16"
    both = pair_images(source, labels, classes, ids=["scene 0", window]).uris
    assert both == [uri for uri in uris if "scene 0" in uri or uri.endswith(window)]
    assert len(both) == len(WINDOWS.cut(40, 34)) + 1
    assert pair_uris(both, labels, classes).uris == both
    with pytest.raises(UsageError, match="scene 2.tif::window=1,0,16,16 is not there; give the same --windows"):
        pair_images(source, labels, classes, ids=["scene 2.tif::window=1,0,16,16"])


def test_a_map_of_another_size_than_its_scene_is_refused(data: Path, tmp_path: Path) -> None:
    classes = Taxonomy.of_model(Bundle.load(data / "bundle"))
    Image.fromarray(np.zeros((80, 68), np.uint8)).save(tmp_path / "scene 0.png")
    labeled = pair_images(open_source(data / "scenes", windows=WINDOWS), open_labels(tmp_path), classes)
    with pytest.raises(UsageError, match=r"scene 0.png is 68x80 px, and scene 0.tif, .*, 34x40; they must be"):
        labeled.read(labeled.uris[0])


def test_windows_read_labels_of_other_formats(data: Path, tmp_path: Path) -> None:
    """A COCO file of a scene gives each window its part."""
    import json

    polygon = [4, 8, 30, 8, 30, 36, 4, 36]
    (tmp_path / "coco.json").write_text(
        json.dumps(
            {
                "images": [{"id": 1, "file_name": "scene 0.tif", "width": 34, "height": 40}],
                "categories": [{"id": 1, "name": "band 1"}],
                "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "segmentation": [polygon]}],
            }
        )
    )
    (tmp_path / "classes.toml").write_text(
        'targets = ["rest", "band 1"]\nbackground = "rest"\n[model]\n"band 1" = "band 1"\n"band 5" = "rest"\n'
        '"band 4" = "rest"\n[labels]\nbackground = "rest"\n"band 1" = "band 1"\n'
    )
    classes = Taxonomy.load(tmp_path / "classes.toml", Bundle.load(data / "bundle"))
    labeled = pair_images(open_source(data / "scenes", windows=WINDOWS), open_labels(tmp_path / "coco.json"), classes)
    whole = np.full((40, 34), -1)
    for uri in labeled.uris:
        part = split_window(uri)
        assert part is not None
        row, column, height, width = part[1]
        whole[row : row + height, column : column + width] = labeled.read(uri)
    assert set(np.unique(whole[9:35, 5:29]).tolist()) == {1}
    assert 1 not in whole[:7]


def test_a_scene_is_known_by_its_content_under_any_path(data: Path, tmp_path: Path) -> None:
    for folder, name in (("first", "scene 0"), ("copy", "other"), ("link", "linked"), ("second", "scene 1")):
        (tmp_path / folder).mkdir()
        source, place = data / "scenes" / f"{name if folder == 'second' else 'scene 0'}.tif", tmp_path / folder
        target = place / f"{name}.tif"
        target.symlink_to(source) if folder == "link" else shutil.copy(source, target)
        shutil.copy(data / "maps" / f"{source.stem}.png", tmp_path / f"{name}.png")
    fit: dict[str, Any] = {"alpha": 0.5, "min_images": 1, "windows": 16, "window_overlap": 4}
    parts = {
        folder: maskmill.calibrate(data / "bundle", tmp_path / folder, tmp_path, **fit)
        for folder in ("first", "copy", "link", "second")
    }
    assert Calibration.merge([parts["first"], parts["second"]]).counts.num_draws == 2
    for folder in ("copy", "link"):
        with pytest.raises(CalibrationError, match="share images"):
            Calibration.merge([parts["first"], parts[folder]])
