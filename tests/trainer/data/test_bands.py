"""Students of bands: from a model over twelve bands and scenes with label maps to label maps of new scenes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import maskmill
from maskmill.engine.inputs.label_maps import read_label_map
from maskmill.engine.inputs.rasters.bands import decode_bands
from maskmill.engine.model.png import encode_png
from maskmill.engine.reading.geotiff import Windows
from maskmill.errors import UsageError
from maskmill.trainer.data.augment import Move, move_image, recolor_bands
from maskmill.trainer.data.bands import decode_filled, measure_bands, pixels_of
from maskmill.trainer.data.corpus import open_corpus, training_images
from maskmill.trainer.data.datasets import Draw
from maskmill.trainer.data.parts import StoredImages
from maskmill.trainer.recipes import weighted
from maskmill.trainer.run import Run
from maskmill.trainer.students.models import build_model, load_run

from ...engine.inputs.rasters.test_geotiff import write_tiff
from ...models import band_bundle

rasterio = pytest.importorskip("rasterio")
torch = pytest.importorskip("torch")

BANDS = tuple(range(1, 13))
SIDE = 48
SETTINGS = {"model": "tiny", "steps": 50, "batch": 4, "crop": 32, "lr": 0.01, "model.width": 8, "log_every": 50}


def write_scene(folder: Path, name: str, seed: int, *, missing: bool = False) -> None:
    """A scene of twelve bands and its map: class i is where band i + 1 is strong."""
    chance = np.random.default_rng(seed)
    label = np.kron(chance.integers(0, 12, (SIDE // 8, SIDE // 8)), np.ones((8, 8), int)).astype(np.uint8)
    values = chance.integers(900, 1100, (12, SIDE, SIDE)).astype(np.uint16)
    values += ((np.arange(12)[:, None, None] == label) * 6000).astype(np.uint16)
    if missing:
        values[:, 8:16, 8:16] = 0
    write_tiff(folder / "images" / f"{name}.tif", values, nodata=0)
    (folder / "labels").mkdir(exist_ok=True)
    (folder / "labels" / f"{name}.png").write_bytes(encode_png(label))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher over twelve bands, its calibration and its labels of scenes, read by windows."""
    folder = tmp_path_factory.mktemp("home")
    for part, seeds in (("labeled", range(4)), ("scenes", range(4, 10)), ("new", range(10, 11))):
        (folder / part).mkdir()
        for seed in seeds:
            write_scene(folder / part, f"scene {seed}", seed, missing=part != "labeled")
    teacher = band_bundle(folder, bands=BANDS, size=(32, 32))
    labeled = folder / "labeled"
    calibration = maskmill.calibrate(
        teacher, labeled / "images", labeled / "labels", alpha=0.2, windows=32, min_images=1, unseen="pooled"
    )
    calibration.save(folder / "calibration.json")
    maskmill.label(
        teacher, folder / "scenes" / "images", folder / "store", calibration=folder / "calibration.json", windows=32
    )
    return folder


@pytest.fixture(scope="module")
def run(home: Path) -> Path:
    maskmill.train(
        home / "store", output=home / "run", labeled=home / "labeled", validation=home / "new", settings=SETTINGS,
        workers=0, device="cpu",
    )  # fmt: skip
    return home / "run"


def test_a_student_learns_twelve_bands(home: Path, run: Path) -> None:
    quality = maskmill.evaluate(run, home / "new" / "labels", images=home / "new" / "images")
    assert quality.accuracy_all > 0.5  # one class in twelve by chance
    record = Run.load(run)
    assert record.input.bands is not None
    assert record.input.bands.numbers == BANDS
    assert all(1000 < mean < 2500 for mean in record.input.mean)
    assert record.model_options["channels"] == 12


@pytest.mark.slow
def test_an_exported_student_labels_new_scenes_with_their_coordinates(home: Path, run: Path) -> None:
    scene = home / "new" / "images" / "scene 10.tif"
    maskmill.export_model(run, home / "student", gate_images=str(home / "scenes" / "images"))
    maskmill.label(home / "student", home / "new" / "images", home / "labels", windows=32, window_overlap=8)
    maskmill.export_labels(home / "labels", home / "maps", "geotiff")
    with rasterio.open(scene) as source, rasterio.open(home / "maps" / "scene 10.tif") as file:
        assert (file.crs, file.transform, file.shape) == (source.crs, source.transform, source.shape)
        label = file.read(1)
    truth = read_label_map(home / "new" / "labels" / "scene 10.png")
    missing = np.zeros(truth.shape, bool)
    missing[8:16, 8:16] = True
    assert (label[missing] == 255).all()
    assert (label == truth)[~missing].mean() > 0.5


def test_a_store_of_windows_gives_windows_to_train_on(home: Path) -> None:
    corpus = open_corpus(stores=[home / "store"], labeled=home / "labeled", validation=home / "new")
    assert corpus.normalization is not None
    assert corpus.num_channels == 12
    assert corpus.labeled is not None
    assert corpus.validation is not None
    assert len(corpus.labeled.uris) == 4 * len(Windows(side=32).cut(SIDE, SIDE))
    assert len(corpus.validation.uris) == len(Windows(side=32).cut(SIDE, SIDE))
    data = training_images(weighted(crop=32, model="tiny"), corpus)
    sample = data[Draw("union", 0, 0)]
    assert isinstance(sample, dict)
    assert sample["image"].shape == (12, 32, 32)
    assert sample["image"].dtype == torch.float32
    again = data[Draw("union", 0, 0)]
    assert isinstance(again, dict)
    assert torch.equal(sample["image"], again["image"])


def test_a_run_is_resumed_with_the_same_statistics(home: Path, run: Path) -> None:
    progress = maskmill.train(
        home / "store", output=run, labeled=home / "labeled", validation=home / "new", settings=SETTINGS, workers=0,
        device="cpu",
    )  # fmt: skip
    assert progress.step == 50


def test_missing_samples_are_their_bands_mean_and_are_not_trained_on(home: Path) -> None:
    store = StoredImages.open(home / "store")
    pixels, windows = pixels_of(store.store.run), store.store.windows
    bands = pixels.bands
    assert bands is not None
    assert windows == Windows(side=32)
    path = home / "scenes" / "images" / "scene 4.tif"
    masked = decode_bands(path.read_bytes(), bands, max_pixels=10_000)
    image, with_data = decode_filled(path.read_bytes(), pixels)
    assert with_data is not None
    assert not with_data[8:16, 8:16].any()
    assert np.allclose(image[10, 10], masked.mean(axis=(0, 1)), atol=1)
    (index,) = (i for i, uri in enumerate(store.uris) if uri.endswith("scene 4.tif::window=0,0,32,32"))
    sample = store.read(index)
    assert (sample.label[8:16, 8:16] == 255).all()
    assert (sample.weight[8:16, 8:16] == 0).all()
    normalization = measure_bands([store], bands)
    assert 1000 < normalization.mean[0] < 2500
    assert 500 < normalization.std[0] < 3000


def test_stores_of_other_bands_are_not_mixed(home: Path, tmp_path: Path) -> None:
    other = band_bundle(tmp_path, bands=(*BANDS[1:], 1), size=(32, 32))
    maskmill.label(other, home / "scenes" / "images", tmp_path / "store", windows=32)
    with pytest.raises(UsageError, match=r"must have the same classes|of other bands or windows"):
        open_corpus(stores=[home / "store", tmp_path / "store"])


def test_bands_are_moved_as_colors_are() -> None:
    image = np.random.default_rng(0).random((20, 30, 5), np.float32)
    move = Move(size=(40, 60), top=3, left=9, crop=24, flip=True)
    moved = move_image(image, move, fill=(0.0,) * 5)
    for band in range(5):
        alone = move_image(image[..., [band] * 3].copy(), move, fill=(0.0,) * 3)
        assert np.allclose(moved[..., band], alone[..., 0], atol=1e-5)
    padded = move_image(image, Move(size=(20, 30), top=0, left=0, crop=32, flip=False), fill=(1.0, 2.0, 3.0, 4.0, 5.0))
    assert padded[31, 31].tolist() == [1.0, 2.0, 3.0, 4.0, 5.0]


def test_recolored_bands_keep_their_order_and_differ() -> None:
    image = np.random.default_rng(0).normal(1000, 50, (16, 16, 6)).astype(np.float32)
    views = [recolor_bands(image, np.random.default_rng(seed)) for seed in range(20)]
    assert all(view.shape == image.shape and view.dtype == np.float32 for view in views)
    assert sum(not np.array_equal(view, image) for view in views) >= 15
    again = recolor_bands(image, np.random.default_rng(3))
    assert np.array_equal(again, views[3])


@pytest.mark.parametrize("name", ["tiny", "lite0", "cam:tiny"])
@pytest.mark.parametrize("channels", [1, 4, 12])
def test_networks_take_bands_and_are_built_again(name: str, channels: int) -> None:
    network = build_model(name, 5, pretrained=False, channels=channels).eval()
    images = torch.randn(2, channels, 64, 64)
    with torch.no_grad():
        logits = network(images)
        again = build_model(name, 5, pretrained=False, **network.options).eval()
        again.load_state_dict(network.state_dict())
        assert torch.equal(again(images), logits)
    assert logits.shape[:2] == (2, 5)


def test_pretrained_weights_of_colors_are_shared_by_the_bands() -> None:
    colors = build_model("lite0", 5).eval()
    bands = build_model("lite0", 5, channels=6).eval()
    gray = torch.randn(1, 1, 64, 64)
    with torch.no_grad():
        first = colors.encode(gray.expand(1, 3, 64, 64))[-1]
        second = bands.encode(gray.expand(1, 6, 64, 64))[-1]
    assert torch.allclose(first, second, atol=1e-3)


def test_prediction_writes_a_picture_or_a_map_with_coordinates(home: Path, run: Path) -> None:
    from typer.testing import CliRunner

    from maskmill.cli import app

    scene = home / "new" / "images" / "scene 10.tif"
    for target in ("map.tif", "picture.png"):
        result = CliRunner().invoke(app, ["predict", str(run), str(scene), "-o", str(home / target)])
        assert result.exit_code == 0, result.output
    with rasterio.open(scene) as source, rasterio.open(home / "map.tif") as file:
        assert (file.crs, file.transform) == (source.crs, source.transform)
        label = file.read(1)
        assert file.tags(1)["class_3"] == "band 4"
    assert (label[8:16, 8:16] == 255).all()
    assert (label == read_label_map(home / "new" / "labels" / "scene 10.png")).mean() > 0.5
    result = CliRunner().invoke(app, ["predict", str(run), str(home / "picture.png"), "-o", str(home / "other.tif")])
    assert isinstance(result.exception, UsageError)
    assert load_run(run).input.num_channels == 12
