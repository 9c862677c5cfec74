"""The report and the queue of stores whose images have bands, or are windows of larger files."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import maskmill
from maskmill.cli import app
from maskmill.engine.model.taxonomy import Taxonomy
from maskmill.engine.report.page.gallery import Reader
from maskmill.engine.report.page.model_view import open_model, read_scores, view_model
from maskmill.engine.report.page.overview import read_overview
from maskmill.engine.store.label_store import LabelStore
from maskmill.errors import CalibrationError, UsageError

from ...models import band_bundle
from ..inputs.rasters.test_geotiff import write_tiff

rasterio = pytest.importorskip("rasterio")

BANDS = (3, 1, 2)
NODATA = 65535


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes of four windows, whose first rows have no data at the left: four to label, eight labeled by hand."""
    folder = tmp_path_factory.mktemp("scenes")
    model = band_bundle(folder, bands=BANDS, size=(32, 32)).path
    (folder / "maps").mkdir()
    chance = np.random.default_rng(0)
    for number in range(12):
        label = chance.integers(0, 3, (8, 8)).repeat(8, 0).repeat(8, 1)
        values = chance.integers(0, 2500, (3, 64, 64)).astype(np.uint16)
        for index, band in enumerate(BANDS):
            values[band - 1] += ((label == index) * 3000).astype(np.uint16)
        values[:, :8, :32] = NODATA
        write_tiff(folder / ("scenes" if number < 4 else "labeled") / f"{number:02}.tif", values, nodata=NODATA)
        Image.fromarray(label.astype(np.uint8)).save(folder / "maps" / f"{number:02}.png")
    calibration = maskmill.calibrate(model, folder / "labeled", folder / "maps", alpha=0.2, windows=32)
    calibration.save(folder / "calibration.json")
    maskmill.label(model, folder / "scenes", folder / "store", calibration=calibration, windows=32, weight="pcos")
    return folder


def test_figures_of_the_model_are_those_of_its_labels_and_of_pixels_with_data(home: Path) -> None:
    store = LabelStore.open(home / "store")
    overview, classes = read_overview(store), Taxonomy.from_json(store.classes)
    reader, predictor = Reader(store, overview), open_model(store, home / "bundle")
    ids = list(overview.ids)
    view = view_model(predictor, reader, ids, ids, classes, maskmill.Calibration.load(home / "calibration.json"))
    assert view is not None
    assert view.num_images == 16
    with_data = 4 * (64 * 64 - 8 * 32)
    raw = np.zeros(3, np.int64)
    for id in ids:
        label, _ = reader.maps(id)
        kept = label < 3
        assert np.array_equal(view.maps[id][kept], label[kept]), "agree keeps the top class or nothing"
        raw += np.bincount(view.maps[id].ravel(), minlength=256)[:3]
    assert view.raw.tolist() == raw.tolist()
    assert view.raw.sum() == with_data
    assert view.set_sizes is not None
    assert view.set_sizes.sum() == with_data
    assert view.plane.sum() == with_data, "every window has fewer pixels than are sampled"
    shares, doubt = read_scores(predictor, reader, ids, classes, None)
    assert shares.sum(axis=1) == pytest.approx(np.ones(16))
    assert ((doubt > 0) & (doubt < 1)).all()


def test_the_report_and_the_queue_run_the_model_over_bands(home: Path, tmp_path: Path) -> None:
    store, model = str(home / "store"), str(home / "bundle")
    command = ["report", store, "--model", model, "--calibration", str(home / "calibration.json")]
    result = CliRunner().invoke(app, [*command, "--labels", str(home / "maps"), "-o", str(tmp_path / "page.html")])
    assert result.exit_code == 0, result.output
    plain = re.sub(r"<[^>]*>|\s+", " ", (tmp_path / "page.html").read_text())
    assert "before selection, 16 images" in plain
    command = ["rank", store, "--model", model, "--budget", "4", "-o", str(tmp_path / "queue.json")]
    result = CliRunner().invoke(app, [*command, "--images", str(home / "labeled"), "--labels", str(home / "maps")])
    assert result.exit_code == 0, result.output
    queue = json.loads((tmp_path / "queue.json").read_text())
    assert queue["basis"] == "model"
    assert len(queue["label_errors"]) == 32, "images of a store of windows are read by its windows"
    assert all("::window=" in doubt["uri"] for doubt in queue["label_errors"])


def test_a_wrong_label_of_a_scene_comes_first(home: Path, tmp_path: Path) -> None:
    (tmp_path / "maps").mkdir()
    for path in (home / "maps").iterdir():
        label = np.array(Image.open(path))
        if path.stem == "07":
            label[32:, :32] = (label[32:, :32] + 1) % 3
        Image.fromarray(label).save(tmp_path / "maps" / path.name)
    queue = maskmill.rank(home / "store", 0, images=home / "labeled", labels=tmp_path / "maps", model=home / "bundle")
    assert queue.label_errors[0].uri.endswith("07.tif::window=32,0,32,32")


def test_windows_without_data_are_passed_over_and_counted(home: Path, tmp_path: Path) -> None:
    values = np.empty(0)
    for number in (4, 5, 6, 7):
        with rasterio.open(home / "labeled" / f"{number:02}.tif") as file:
            values = file.read()
        values[:, :32, 32:] = NODATA
        write_tiff(tmp_path / "scenes" / f"{number:02}.tif", values, nodata=NODATA)
    nothing = np.full_like(values, NODATA)
    images, model, maps = tmp_path / "scenes", home / "bundle", home / "maps"
    calibration = maskmill.calibrate(model, images, maps, alpha=0.2, windows=32)
    assert calibration.counts.num_images == 12
    assert calibration.report["source"]["without_data"] == 4
    calibration.save(tmp_path / "calibration.json")
    quality = maskmill.evaluate(model, maps, images=images, windows=32, calibration=tmp_path / "calibration.json")
    assert quality.num_images == 12
    assert quality.source is not None
    assert quality.source.line().startswith("12 images used; 4 without data")
    queue = maskmill.rank(home / "store", 4, images=images, labels=maps, model=model)
    assert len(queue.label_errors) == 12
    for number in (4, 5, 6, 7):
        write_tiff(images / f"{number:02}.tif", nothing, nodata=NODATA)
    with pytest.raises(CalibrationError, match="no pixel of the labeled images has data"):
        maskmill.calibrate(model, images, maps, alpha=0.2, windows=32)
    with pytest.raises(UsageError, match="no pixel of the labeled images has data"):
        maskmill.evaluate(model, maps, images=images, windows=32)
