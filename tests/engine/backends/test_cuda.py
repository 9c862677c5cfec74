"""The stages on a device, as on the host: executed over a stand-in for CuPy, with the CUDA sources run on the CPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from maskmill.engine.backends.cuda import CudaBackend
from maskmill.engine.backends.host import HOST
from maskmill.engine.calibration.calibrate import calibrate
from maskmill.engine.calibration.calibration import conditions
from maskmill.engine.calibration.drift.statistics import STATISTICS
from maskmill.engine.calibration.scores.observe import true_scores
from maskmill.engine.calibration.scores.score_spill import ScoreSpill
from maskmill.engine.inputs.images import decode_image, preprocess
from maskmill.engine.inputs.labels import LabelFolder
from maskmill.engine.inputs.sources import open_source
from maskmill.engine.labeling.label_run import label
from maskmill.engine.labeling.selection import Selection, select
from maskmill.engine.model.bundle import Bundle
from maskmill.engine.model.input_spec import InputSpec
from maskmill.engine.model.taxonomy import Taxonomy
from maskmill.engine.predictors.semantic import SemanticPredictor
from maskmill.engine.runtimes.open import open_session
from maskmill.engine.runtimes.tensorrt_runtime import TensorRTSession
from maskmill.engine.store.label_store import LabelStore
from maskmill.errors import CalibrationMismatch, ImageError, SessionError
from maskmill.export.build.engine_builder import BuildOptions, build_engine

from ... import cupy_fake
from ...builders import encoded, photo
from ...codec_fake import Codec, install
from ...models import color_bundle
from ...simt import harness
from ..corpus import write_photos


def built(folder: Path, **options: Any) -> Bundle:
    return build_engine(color_bundle(folder, **options), options=BuildOptions(batch=(1, 2, 4))).bundle


def on_device(bundle: Bundle, **options: Any) -> SemanticPredictor:
    return SemanticPredictor(bundle, TensorRTSession(bundle), backend=CudaBackend(), **options)


def on_host(bundle: Bundle, **options: Any) -> SemanticPredictor:
    return SemanticPredictor(bundle, open_session(bundle), **options)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("resize", ["stretch", "longest-side"])
def test_photos_become_the_same_input(cupy: Any, layout: Any, resize: Any) -> None:
    spec = InputSpec(
        name="image", layout=layout, height=24, width=32, resize=resize, channels="BGR", pad_value=(9, 99, 199),
        mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4),
    )  # fmt: skip
    backend = CudaBackend()
    for image in (photo(40, 30), photo(20, 70, seed=1), photo(9, 9, seed=2)):
        expected, covers = preprocess(image, spec)
        with backend.queue():
            tensor, found_covers = backend.preprocess(image, spec)
            (found,) = backend.download(tensor)
        # Pillow rounds to whole levels after each pass, the kernel does not: less than a level apart
        np.testing.assert_allclose(found, expected, atol=1 / 255 / 0.2)
        assert found_covers == covers


@pytest.mark.parametrize(
    "selection",
    [
        Selection(),
        Selection(weight="confidence", weight_levels=16),
        Selection(weight="pcos"),
        Selection(method="conformal", rule="agree", thresholds=np.array([0.4, 0.5, 0.6], np.float32), weight="pcos"),
        Selection(method="conformal", rule="single", thresholds=np.full((7, 9), 0.5, np.float32)),
    ],
    ids=["argmax", "confidence", "pcos", "by class", "by position"],
)
@pytest.mark.parametrize("tile", [None, 16])
def test_labels_and_weights_are_those_of_the_host(
    cupy: Any, tmp_path: Path, selection: Selection, tile: int | None
) -> None:
    bundle = built(tmp_path, gain=4.0, size=(16, 16), stride=4)
    taxonomy = Taxonomy.of_model(bundle)
    image = photo(16, 16) if tile is None else photo(30, 42)  # photo and tiles have the input's size
    expected = select(on_host(bundle, tile=tile, overlap=4 if tile else 0).predict(image), taxonomy, selection)
    score_map = on_device(bundle, tile=tile, overlap=4 if tile else 0).predict(image)
    assert type(score_map.scores) is cupy_fake.CupyArray
    select(score_map, taxonomy, selection)  # the first time, constant tables are uploaded
    cupy_fake.events.clear()
    found = select(score_map, taxonomy, selection)
    np.testing.assert_array_equal(found.label, expected.label)
    np.testing.assert_allclose(found.weight.astype(int), expected.weight, atol=1)
    np.testing.assert_array_equal(found.counts, expected.counts)
    assert (found.kept, found.confidence) == pytest.approx((expected.kept, expected.confidence))
    downloads = [event for event in cupy_fake.events if event[1] == "download"]
    assert [event[2] for event in downloads] == [image.shape[:2], image.shape[:2], (2,)], "two maps and two numbers"
    assert {event[3] for event in downloads} == {False}, "without holding up the thread"
    waits = [event for event in cupy_fake.events if event[1] == "synchronize"]
    assert len(waits) == 1, "a thread waits once, for its results"


@pytest.mark.parametrize("batch", [1, 3])
def test_a_label_run_on_the_device_fills_the_same_store(cupy: Any, tmp_path: Path, batch: int) -> None:
    bundle = built(tmp_path, gain=4.0, size=(12, 16))
    photos = tmp_path / "photos"
    write_photos(photos, 5)
    (photos / "broken.jpg").write_bytes(encoded(photo(), "JPEG")[:200])
    taxonomy, stores = Taxonomy.of_model(bundle), []
    for name, predictor in (("host", on_host(bundle)), ("device", on_device(bundle, batch=batch))):
        selection = Selection(weight="pcos")
        progress = label(predictor, open_source(str(photos)), tmp_path / name, taxonomy, selection, workers=2)
        assert (progress.images, progress.rejects.total()) == (5, 1)
        stores.append(LabelStore.open(tmp_path / name))
    host, device = stores
    assert device.run["kernels"] == "cuda"
    for path in photos.glob("*.png"):
        (expected, weights), (found, found_weights) = (store.read(str(path)) for store in (host, device))
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_allclose(found_weights.astype(int), weights, atol=1)


def write_labels(folder: Path, images: Path) -> Path:
    """A map of the strongest channel of each image; some pixels have no class."""
    from PIL import Image

    folder.mkdir()
    for number, path in enumerate(sorted(images.iterdir())):
        truth = np.asarray(Image.open(path)).argmax(2).astype(np.uint8)
        truth[:2, number] = 255
        Image.fromarray(truth).save(folder / path.name)
    return folder


def test_a_calibration_made_on_the_device_holds_there_only(cupy: Any, tmp_path: Path) -> None:
    bundle = built(tmp_path, gain=4.0)
    taxonomy = Taxonomy.of_model(bundle)
    images = tmp_path / "images"
    write_photos(images, 4)
    labels = LabelFolder(write_labels(tmp_path / "labels", images))
    predictor = on_device(bundle)
    made = calibrate(predictor, open_source(str(images)), labels, taxonomy, alpha="0.2", workers=2)
    assert made.made_with["kernels"] == "cuda"
    made.check(predictor, taxonomy)
    with pytest.raises(CalibrationMismatch, match="kernels: calibrated with cuda, labeling with cpu"):
        made.check(on_host(bundle), taxonomy)


@pytest.mark.parametrize(
    "options",
    [
        {"group": "class"},
        {"group": "pooled", "on_small_n": "max"},
        {"group": "class", "unit": "image", "on_small_n": "max"},
        {"group": "position", "on_small_n": "max", "grid": (6, 8)},
    ],
    ids=["class", "pooled", "by image", "by position"],
)
def test_thresholds_counted_on_the_device_are_those_of_the_files(
    cupy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    bundle = built(tmp_path, gain=2.0, size=(12, 16))
    taxonomy = Taxonomy.of_model(bundle)
    images = tmp_path / "images"
    write_photos(images, 5)
    labels = LabelFolder(write_labels(tmp_path / "labels", images))
    calibrations, launched = [], []
    # all scores stay on the device, none do, or the first images do until there is no more room
    for limit in (1 << 30, 0, 700):
        monkeypatch.setattr(CudaBackend, "keep_limit", limit)
        harness.launched.clear()
        predictor = on_device(bundle, batch=2)
        calibrations.append(calibrate(predictor, open_source(str(images)), labels, taxonomy, alpha="0.2", **options))
        launched.append(set(harness.launched))
    counted, *others = calibrations
    for other in others:
        np.testing.assert_array_equal(counted.thresholds, other.thresholds)
        assert counted.pooled == other.pooled
        assert counted.report == other.report
        assert counted.counts.to_json() == other.counts.to_json()
    used = {"position_quantiles"} if options["group"] == "position" else {"score_counts<true>", "weighted_score_counts"}
    assert used & launched[0]
    assert not used & launched[1], "files are counted on the host"


def test_scores_of_several_windows_are_one_image_wherever_they_are(
    cupy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = on_device(built(tmp_path)).backend
    chance, expected = np.random.default_rng(0), []
    for limit in (1 << 30, 0, 300):  # 300 bytes: the files take over amid the second image
        monkeypatch.setattr(CudaBackend, "keep_limit", limit)
        (tmp_path / str(limit)).mkdir()
        with ScoreSpill(tmp_path / str(limit)) as spill:
            expected = []
            for _ in range(3):
                parts = [(chance.random(20, np.float32), chance.integers(0, 3, 20).astype(np.uint16)) for _ in "123"]
                for number, (scores, classes) in enumerate(parts):
                    with backend.queue():
                        arrays = backend.xp.asarray(scores), backend.xp.asarray(classes)
                        spill.append(*arrays, backend, joined=number > 0)
                expected.append([np.concatenate(arrays) for arrays in zip(*parts, strict=True)])
            spill.finish()
            assert len(spill) == 3
            for index, (scores, classes) in enumerate(expected):
                with spill.backend.queue():
                    found = spill.backend.download(*spill.image(index))
                assert np.array_equal(found[0], scores)
                assert np.array_equal(found[1], classes)


def test_calibrating_downloads_no_score_map(cupy: Any, tmp_path: Path) -> None:
    bundle = built(tmp_path, size=(12, 16))
    taxonomy = Taxonomy.of_model(bundle)
    images = tmp_path / "images"
    write_photos(images, 3)
    labels = LabelFolder(write_labels(tmp_path / "labels", images))
    cupy_fake.events.clear()
    calibrate(on_device(bundle), open_source(str(images)), labels, taxonomy, alpha="0.2", on_small_n="max")
    shapes = {event[2] for event in cupy_fake.events if event[1] == "download"}
    assert not [shape for shape in shapes if shape[-2:] == (12, 16)], "neither maps of classes nor of scores"


def test_true_scores_are_those_of_the_host(cupy: Any, tmp_path: Path) -> None:
    bundle = built(tmp_path, gain=4.0)
    taxonomy = Taxonomy.of_model(bundle)
    image = photo(16, 24)  # the input's size: nothing is resized
    truth = np.random.default_rng(0).choice([0, 1, 2, 255], (16, 24)).astype(np.uint8)
    found, expected = (
        true_scores(predictor.predict(image), truth, taxonomy) for predictor in (on_device(bundle), on_host(bundle))
    )
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("batch", [1, 3])
def test_a_calibrated_run_describes_images_as_on_the_host(
    cupy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    install(cupy, monkeypatch)
    bundle = built(tmp_path, gain=4.0, size=(12, 16))
    images, labels = tmp_path / "images", tmp_path / "labels"
    images.mkdir()
    labels.mkdir()
    for seed in range(6):
        kind = "JPEG" if seed % 2 else "PNG"
        (images / f"{seed}.{kind.lower()}").write_bytes(encoded(photo(30, 40, seed=seed), kind))
        Image.fromarray(np.zeros((30, 40), np.uint8)).save(labels / f"{seed}.png")
    taxonomy, rows = Taxonomy.of_model(bundle), []
    for name, predictor in (("host", on_host(bundle)), ("device", on_device(bundle, batch=batch))):
        made = calibrate(predictor, open_source(str(images)), LabelFolder(labels), taxonomy, alpha="0.5")
        selection = Selection.conformal(made)
        label(predictor, open_source(str(images)), tmp_path / name, taxonomy, selection, workers=2)
        stored_rows = LabelStore.open(tmp_path / name).iter_rows(extras=True)
        stored = {row.id: json.loads(row.statistics or "") for row in stored_rows}
        rows.append(stored)
        assert sorted(map(str, stored.values())) == sorted(
            str(dict(zip(STATISTICS, row, strict=True))) for row in made.counts.statistics.tolist()
        )
    # the device resizes to within a level of the host: the top class differs at a few points
    assert rows[0] == {id: pytest.approx(numbers, abs=0.01) for id, numbers in rows[1].items()}


@pytest.fixture
def codec(cupy: Any, monkeypatch: pytest.MonkeyPatch) -> Codec:
    return install(cupy, monkeypatch)


def test_jpeg_files_are_decoded_together(codec: Codec) -> None:
    backend = CudaBackend()
    files = [encoded(photo(20, 30), "JPEG"), encoded(photo(9, 9), "PNG"), b"no image", encoded(photo(8, 9), "JPEG")]
    files.append(encoded(photo(20, 30), "JPEG", progressive=True))
    images = backend.decode_batch(files)
    assert codec.decoded == [2]
    assert [type(image) for image in images] == [
        cupy_fake.CupyArray, np.ndarray, ImageError, cupy_fake.CupyArray, np.ndarray,
    ]  # fmt: skip
    np.testing.assert_array_equal(backend.download(images[0])[0], decode_image(files[0]))
    np.testing.assert_array_equal(images[1], decode_image(files[1]))


def test_jpeg_is_decoded_on_the_device_where_the_codec_is_installed(codec: Codec, tmp_path: Path) -> None:
    predictor = on_device(built(tmp_path))
    backend = predictor.backend
    jpeg = encoded(photo(20, 30), "JPEG")
    image = backend.decode(jpeg)
    assert type(image) is cupy_fake.CupyArray
    assert (codec.decoded, backend.form) == ([1], "cuda, nvImageCodec")
    assert "JPEG decoded by nvImageCodec" in repr(backend)
    assert predictor.predict(image).on_host().backend is HOST


def test_what_the_codec_does_not_take_is_decoded_on_the_host(codec: Codec) -> None:
    backend = CudaBackend()
    for name, data in (
        ("progressive", encoded(photo(20, 30), "JPEG", progressive=True)),
        ("png", encoded(photo(20, 30), "PNG")),
    ):
        np.testing.assert_array_equal(backend.decode(data), decode_image(data), err_msg=name)
    assert sum(codec.decoded) == 0


def test_hostile_jpegs_are_refused_as_on_the_host(codec: Codec) -> None:
    backend, jpeg = CudaBackend(), encoded(photo(20, 30), "JPEG")
    with pytest.raises(ImageError, match="cut short"):
        backend.decode(jpeg[: len(jpeg) // 2])
    with pytest.raises(ImageError, match="at most 100 are read"):
        backend.decode(jpeg, max_pixels=100)
    assert not codec.decoded


def test_without_a_device_there_is_no_such_place(cupy: Any) -> None:
    cupy_fake.machine.devices = 0
    with pytest.raises(SessionError, match="no usable NVIDIA GPU"):
        CudaBackend()


def test_the_first_line_says_what_works_where(cupy: Any) -> None:
    assert repr(CudaBackend()) == (
        "images and kernels on NVIDIA H100 80GB HBM3 sm_90 (CUDA), JPEG decoded on the CPU "
        "(nvImageCodec is not installed)"
    )


def test_conditions_name_the_kernels_of_the_place(cupy: Any, tmp_path: Path) -> None:
    bundle = built(tmp_path)
    taxonomy = Taxonomy.of_model(bundle)
    assert conditions(on_host(bundle), taxonomy)["kernels"] == "cpu"
    assert conditions(on_device(bundle), taxonomy)["kernels"] == "cuda"
