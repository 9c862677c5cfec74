"""Files of many bands: decoding, preprocessing, and a model over them from adoption to labels and pictures."""

from __future__ import annotations

import builtins
import io
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import maskmill
from maskmill.engine.inputs.images import decode_image, preprocess
from maskmill.engine.inputs.rasters.bands import decode_bands, display_of
from maskmill.engine.model.bundle import Bundle
from maskmill.engine.model.input_spec import BandSpec, InputSpec, SampleType
from maskmill.engine.model.png import decode_png, encode_png
from maskmill.engine.predictors.semantic import SemanticPredictor
from maskmill.engine.report.show import write_overlay
from maskmill.engine.runtimes.onnx_runtime import OnnxSession
from maskmill.engine.store.label_store import LabelStore
from maskmill.errors import BundleError, ImageError, MissingPackageError, StoreMismatch, UsageError
from maskmill.export.cli.import_model import parse_bands

from ....builders import encoded, hostile_files
from ....models import band_bundle

rasterio = pytest.importorskip("rasterio")

LIMIT = 10_000


def samples(bands: int, sample_type: SampleType, height: int = 6, width: int = 9) -> NDArray[Any]:
    """(bands, H, W) samples that all differ."""
    count = bands * height * width
    return (np.arange(count) % 251).astype(sample_type).reshape(bands, height, width)


def tiff(values: NDArray[Any], **options: Any) -> bytes:
    """A TIFF file's bytes with these (bands, H, W)."""
    count, height, width = values.shape
    with rasterio.MemoryFile() as memory:
        profile = {"driver": "GTiff", "count": count, "height": height, "width": width, "dtype": values.dtype}
        profile["transform"] = rasterio.Affine(10, 0, 500_000, 0, -10, 4_000_000)
        with memory.open(**profile | options) as file:
            file.write(values)
        return memory.read()


def npy(values: NDArray[Any]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, values)
    return stream.getvalue()


def npy_header(shape: tuple[int, ...]) -> bytes:
    """The start of a file of this shape, without its samples."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return stream.getvalue()


def spec_of(*numbers: int, sample_type: SampleType = "uint16", **options: Any) -> BandSpec:
    return BandSpec(numbers=numbers, sample_type=sample_type, display=(numbers[0],) * 3, **options)


@pytest.mark.parametrize("sample_type", ["uint8", "uint16", "int16", "float32"])
@pytest.mark.parametrize("layout", ["tiff", "deflate", "planes", "chw", "hwc", "fortran", "big-endian"])
def test_bands_come_in_the_order_that_the_model_takes_them(sample_type: SampleType, layout: str) -> None:
    values = samples(7, sample_type, height=18, width=17)
    data = {
        "tiff": lambda: tiff(values, interleave="pixel"),
        "deflate": lambda: tiff(values, compress="deflate", tiled=True, blockxsize=16, blockysize=16),
        "planes": lambda: tiff(values, interleave="band", compress="lzw"),
        "chw": lambda: npy(values),
        "hwc": lambda: npy(values.transpose(1, 2, 0).copy()),
        "fortran": lambda: npy(np.asfortranarray(values)),
        "big-endian": lambda: npy(values.astype(values.dtype.newbyteorder(">"))),
    }[layout]()
    image = decode_bands(data, spec_of(6, 1, 4, sample_type=sample_type), max_pixels=LIMIT)
    assert image.dtype == sample_type
    assert np.array_equal(image, values[[5, 0, 3]].transpose(1, 2, 0))


def band_count(values: NDArray[Any], highest: int) -> tuple[int, int]:
    """(H, W) of the image that a model which takes the bands 1 and ``highest`` reads."""
    height, width, _ = decode_bands(npy(values), spec_of(1, highest), max_pixels=LIMIT).shape
    return height, width


@pytest.mark.parametrize(
    ("shape", "highest", "size"),
    [
        ((5, 60, 60), 5, (60, 60)),
        ((60, 60, 5), 5, (60, 60)),
        ((4, 5, 60), 4, (5, 60)),
        ((60, 5, 4), 4, (60, 5)),
        ((12, 60, 5), 12, (60, 5)),
        ((12, 60, 5), 5, (12, 60)),
        ((12, 60, 60), 4, (60, 60)),
        ((60, 61, 12), 4, (60, 61)),
        ((1, 12, 60, 5), 4, (60, 5)),
        ((1, 5, 12, 60), 4, (12, 60)),
        ((1, 4, 1, 1), 4, (1, 1)),
    ],
)
def test_the_bands_of_the_model_decide_which_axis_of_an_array_holds_bands(
    shape: tuple[int, ...], highest: int, size: tuple[int, int]
) -> None:
    assert band_count(np.zeros(shape, np.uint16), highest) == size


@pytest.mark.parametrize("shape", [(12, 60, 13), (4, 60, 4), (12, 60, 5), (60, 40, 50), (3, 9, 12)])
def test_an_array_whose_bands_may_be_on_either_axis_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ImageError, match=r"may be \d+ bands of \d+x\d+ or \d+ bands .* save it as \(1, bands, rows"):
        band_count(np.zeros(shape, np.uint16), 4)


@pytest.mark.parametrize(("shape", "size"), [((3, 60, 2), (60, 2)), ((60, 2, 3), (60, 2)), ((60, 60, 1), (60, 60))])
def test_an_array_with_the_channels_of_a_photo_is_one(shape: tuple[int, ...], size: tuple[int, int]) -> None:
    assert decode_image(npy(np.zeros(shape, np.uint8))).shape == (*size, 3)
    with pytest.raises(ImageError, match="may be"):
        decode_image(npy(np.zeros((3, 60, 4), np.uint8)))


def test_bands_of_a_photo_are_its_channels() -> None:
    rgba = samples(4, "uint8").transpose(1, 2, 0).copy()
    image = decode_bands(encoded(rgba, "PNG"), spec_of(4, 2, sample_type="uint8"), max_pixels=LIMIT)
    assert np.array_equal(image, rgba[..., [3, 1]])
    gray = samples(1, "uint16")[0]
    image = decode_bands(encoded(gray, "PNG"), spec_of(1), max_pixels=LIMIT)
    assert np.array_equal(image[..., 0], gray)


@pytest.mark.parametrize(
    ("data", "kind", "text"),
    [
        (b"", "empty", "0 bytes"),
        (tiff(samples(4, "uint16"))[:200], "truncated", "damaged"),
        (b"II*\0" + bytes(100), "truncated", "damaged"),
        (npy(samples(4, "uint16"))[:-1], "truncated", "cut short"),
        (b"\x93NUMPY\x01\0\xff\xff{", "truncated", "damaged"),
        (npy(samples(4, "uint16")).replace(b"}", b"("), "truncated", "damaged"),
        (npy(np.array([None] * 4)), "unsupported", "numbers"),
        (npy(np.zeros((4, 4, 4, 4), np.uint16)), "unsupported", "axes"),
        (tiff(samples(3, "uint16")), "unsupported", "3 band"),
        (npy(samples(3, "uint16")), "unsupported", "3 band"),
        (tiff(samples(4, "uint8")), "unsupported", "uint8, and the model takes uint16"),
        (npy(samples(4, "float32")), "unsupported", "float32, and the model takes uint16"),
        (tiff(samples(4, "uint16", 101, 100)), "too-large", "--windows"),
        (npy(samples(4, "uint16", 101, 100)), "too-large", "--max-pixels"),
        (encoded(np.zeros((4, 4, 3), np.uint8), "JPEG"), "unsupported", "band"),
        (b"no image at all", "not-an-image", "no image format"),
    ],
)
def test_files_without_the_bands_are_rejected_with_the_reason(data: bytes, kind: str, text: str) -> None:
    with pytest.raises(ImageError, match=text) as caught:
        decode_bands(data, spec_of(4, 1), max_pixels=LIMIT)
    assert caught.value.kind == kind


def test_hostile_files_are_decoded_or_rejected_and_nothing_else() -> None:
    files = [*hostile_files(), ("npy of 2e9 x 2e9", npy_header((2 * 10**9, 2 * 10**9))), ("npy", npy_header((0, 4, 4)))]
    kinds = set()
    for name, data in files:
        try:
            image = decode_bands(data, spec_of(1, sample_type="uint8"), max_pixels=10**6)
        except ImageError as error:
            kinds.add(error.kind)
        else:
            assert image.dtype == np.uint8, name
            assert image.shape[2] == 1, name
    assert kinds == {"empty", "not-an-image", "truncated", "too-large", "unsupported"}


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_each_band_has_its_own_normalization(layout: Any) -> None:
    bands = BandSpec(numbers=(1, 2, 3, 4), sample_type="int16", display=(1, 2, 3))
    spec = InputSpec(
        name="x", height=4, width=6, layout=layout, bands=bands, scale=0.5, mean=(0, 1, 2, 3), std=(1, 2, 4, 8),
        resize="longest-side", pad_value=(2, 4, 6, 8),
    )  # fmt: skip
    image = np.full((4, 4, 4), (10, 20, -30, 40), np.int16)
    tensor, covers = preprocess(image, spec)
    planes = tensor if layout == "NCHW" else tensor.transpose(2, 0, 1)
    assert covers == (1.0, 4 / 6)
    assert planes[:, 0, 0].tolist() == [5.0, 4.5, -4.25, 2.125]
    assert planes[:, 3, 5].tolist() == [1.0, 0.5, 0.25, 0.125]


def test_samples_are_resized_without_rounding() -> None:
    bands = BandSpec(numbers=(1, 2), sample_type="uint16", display=(1, 2, 2))
    spec = InputSpec(name="x", height=1, width=1, bands=bands, scale=1.0, mean=(0, 0), std=(1, 1))
    image = np.array([[[0, 5], [1, 8]]], np.uint16)
    assert preprocess(image, spec)[0].ravel().tolist() == [0.5, 6.5]


def test_samples_that_are_not_finite_become_the_mean_of_the_others_or_the_padding_value() -> None:
    bands = BandSpec(numbers=(1,), sample_type="float32", display=(1, 1, 1))
    spec = InputSpec(name="x", height=1, width=3, bands=bands, scale=1.0, mean=(0,), std=(1,), pad_value=0.25)
    image = np.array([[[np.nan], [np.inf], [3.0]]], np.float32)
    assert preprocess(image, spec)[0].ravel().tolist() == [3.0, 3.0, 3.0]
    assert preprocess(np.full_like(image, np.nan), spec)[0].ravel().tolist() == [0.25, 0.25, 0.25]


def test_pictures_show_three_bands_in_one_range_for_all_images() -> None:
    bands = BandSpec(numbers=(7, 2, 5), sample_type="uint16", display=(5, 7, 2), display_range=(1000, 3000))
    image = np.array([[[1000, 2000, 3000], [0, 1500, 9999]]], np.uint16)
    assert display_of(image, bands).tolist() == [[[255, 0, 128], [255, 0, 64]]]


def scene(label: NDArray[np.intp], bands: tuple[int, ...], count: int = 6) -> NDArray[np.uint16]:
    """(count, H, W) samples whose strongest band of ``bands`` is that at ``label``."""
    values = np.full((count, *label.shape), 300, np.uint16)
    for index, band in enumerate(bands):
        values[band - 1][label == index] = 9000
    return values


LABEL = np.repeat(np.repeat(np.array([[0, 1, 2], [3, 0, 1]]), 8, axis=0), 8, axis=1)


def test_a_model_over_bands_goes_from_its_graph_to_labels_and_pictures(tmp_path: Path) -> None:
    bands = (5, 1, 4, 2)
    bundle = band_bundle(tmp_path, bands=bands, size=(16, 24))
    assert bundle.input.bands is not None
    assert bundle.input.bands.display == (5, 1, 4)
    assert bundle.input.bands.display_range == (0, 10_000)
    photos, truth = tmp_path / "photos", tmp_path / "truth"
    photos.mkdir(), truth.mkdir()
    for index in range(12):
        label = np.roll(LABEL, index, axis=1)
        (photos / f"{index}.tif").write_bytes(tiff(scene(label, bands)))
        (truth / f"{index}.png").write_bytes(encode_png(label.astype(np.uint8)))
    (photos / "photo.jpg").write_bytes(encoded(np.zeros((16, 24, 3), np.uint8), "JPEG"))
    calibration = maskmill.calibrate(bundle.path, photos, truth, alpha=0.2)
    assert calibration.made_with["bands"]["numbers"] == list(bands)
    progress = maskmill.label(bundle.path, photos, tmp_path / "labels", calibration=calibration)
    assert dict(progress.rejects) == {"unsupported": 1}
    store = LabelStore.open(tmp_path / "labels")
    label, _ = store.read(str(photos / "3.tif"))
    assert (label == np.roll(LABEL, 3, axis=1)).mean() > 0.9
    quality = maskmill.evaluate(bundle, truth, images=photos)
    assert quality.accuracy_all == 1.0
    picture = write_overlay(store, str(photos / "3.tif"), tmp_path / "picture.png")
    with Image.open(picture) as image:
        assert image.size[0] == 24
    report = maskmill.report(store, tmp_path / "report.html", model=bundle.path)
    assert "before selection" in report.read_text()


def test_a_store_of_other_bands_is_refused(tmp_path: Path) -> None:
    bundle = band_bundle(tmp_path, bands=(5, 1, 4, 2))
    (tmp_path / "photos").mkdir()
    np.save(tmp_path / "photos" / "a.npy", scene(LABEL, (5, 1, 4, 2)))
    source = str(tmp_path / "photos" / "a.npy")
    maskmill.label(bundle.path, source, tmp_path / "labels")
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(StoreMismatch, match="bands"):
        maskmill.label(band_bundle(other, bands=(1, 5, 4, 2)).path, source, tmp_path / "labels")


def test_the_predictor_takes_the_samples_of_its_bands(tmp_path: Path) -> None:
    bundle = band_bundle(tmp_path, layout="NHWC", sample_type="float32", scale=1.0, mean=0.5, std=(0.5, 0.5, 0.5, 0.5))
    predictor = SemanticPredictor(bundle, OnnxSession(bundle))
    image = np.zeros((16, 24, 4), np.float32)
    image[..., 2] = 1.0
    scores = predictor.predict(image).scores  # type: ignore[arg-type]
    assert scores[:, 0, 0].tolist() == [-10, -10, 10, -10]
    with pytest.raises(UsageError, match=r"must be \(H, W, 4\) float32"):
        predictor.predict(np.zeros((16, 24, 3), np.uint8))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"bands": (1, 2, 3)}, "takes 4 channels, and you named 3 bands; name its 4 bands"),
        ({"bands": (1, 2, 3, 4), "sample_type": "uint16"}, "need a scale"),
        ({"bands": (1, 2, 2, 4)}, "different numbers"),
        ({"bands": (0, 1, 2, 3)}, "counted from 1"),
        ({"bands": (1, 2, 3, 4), "display_bands": (1, 2, 7)}, "three of the model's bands"),
        ({"bands": (1, 2, 3, 4), "mean": (1.0, 2.0)}, "mean must be 4 finite numbers"),
        ({"bands": (1, 2, 3, 4), "channels": "BGR"}, "order of their own"),
        ({}, "name its 4 bands with --bands"),
        ({"sample_type": "uint16"}, "apply to bands"),
    ],
)
def test_bands_that_do_not_fit_the_graph_are_refused(tmp_path: Path, options: dict[str, Any], text: str) -> None:
    band_bundle(tmp_path)
    with pytest.raises(UsageError, match=text):
        maskmill.adopt(tmp_path / "bands.onnx", tmp_path / "refused", classes=["a", "b", "c", "d"], **options)
    assert not (tmp_path / "refused").exists()


def test_a_manifest_keeps_the_bands(tmp_path: Path) -> None:
    bundle = band_bundle(tmp_path)
    assert Bundle.load(bundle.path).input == bundle.input
    manifest = bundle.path / "bundle.json"
    raw = json.loads(manifest.read_text())
    raw["input"]["bands"]["numbers"] = [1, "2"]
    manifest.write_text(json.dumps(raw))
    with pytest.raises(BundleError, match=r"bands.numbers\[1\] must be a valid integer"):
        Bundle.load(bundle.path)


def test_without_rasterio_tiff_names_the_extra_and_numpy_files_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    data, whole_import = tiff(samples(4, "uint16")), builtins.__import__

    def without(name: str, *rest: Any, **options: Any) -> Any:
        if name == "rasterio":
            raise ImportError(name)
        return whole_import(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingPackageError, match=r"rasterio.*install.*geo"):
        decode_bands(data, spec_of(4, 1), max_pixels=LIMIT)
    assert decode_bands(npy(samples(4, "uint16")), spec_of(4, 1), max_pixels=LIMIT).shape == (6, 9, 2)


def test_pixels_without_data_are_ignored_and_do_not_change_their_neighbors(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    values = np.full((3, 16, 24), 4000, np.int16)
    values[1] = 5000
    missing = np.zeros((16, 24), bool)
    missing[4:8, 6:12] = True
    values[0, missing] = -9999
    (photos / "nodata.tif").write_bytes(tiff(values, nodata=-9999))
    (photos / "none.tif").write_bytes(tiff(np.full_like(values, -9999), nodata=-9999))
    large = np.full((3, 32, 24), 4000, np.int16)
    large[1] = 5000
    large[:, 16:] = -9999
    (photos / "scene.tif").write_bytes(tiff(large, nodata=-9999))
    bundle = band_bundle(tmp_path, bands=(1, 2, 3), sample_type="int16", size=(16, 24))
    progress = maskmill.label(bundle.path, photos, tmp_path / "labels", windows=24)
    assert dict(progress.rejects) == {"no-data": 2}  # a file, and a window of another
    store = LabelStore.open(tmp_path / "labels")
    maps = {row.uri.rsplit("/", 1)[-1]: store.maps(store.take([row.id])[0]) for row in store.inputs() if row.id}
    label, weight = maps["nodata.tif"]
    assert np.array_equal(label, np.where(missing, 255, 1))
    assert np.array_equal(weight, np.where(missing, 0, 255))
    label, _ = maps["scene.tif::window=0,0,24,24"]
    assert (label[:16] == 1).all()
    assert (label[16:] == 255).all()
    image = decode_bands((photos / "nodata.tif").read_bytes(), bundle.input.bands, max_pixels=LIMIT)
    assert np.ptp(preprocess(image, bundle.input)[0], axis=(1, 2)).max() < 1e-6


def test_samples_that_are_not_finite_are_ignored_and_a_file_of_them_is_rejected(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    values = np.full((8, 9, 2), 0.25, np.float32)
    values[..., 1], values[2, 3, 0], values[5, 6, 1] = 1e36, np.nan, np.inf
    (photos / "some.tif").write_bytes(tiff(values.transpose(2, 0, 1)))
    (photos / "none.tif").write_bytes(tiff(np.full((2, 8, 9), np.nan, np.float32)))
    bundle = band_bundle(tmp_path, bands=(1, 2), sample_type="float32", scale=1.0, size=(8, 9))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        progress = maskmill.label(bundle.path, photos, tmp_path / "labels")
        assert display_of(values * np.float32(100), bundle.input.bands).dtype == np.uint8
    assert dict(progress.rejects) == {"no-data": 1}
    (row,) = LabelStore.open(tmp_path / "labels").iter_rows()
    label = decode_png(row.label)
    assert np.argwhere(label == 255).tolist() == [[2, 3], [5, 6]]


@pytest.mark.parametrize(("text", "numbers"), [("3,1", (3, 1)), ("1-3", (1, 2, 3)), ("8, 2-3,5", (8, 2, 3, 5))])
def test_bands_are_named_by_numbers_and_ranges(text: str, numbers: tuple[int, ...]) -> None:
    assert parse_bands(text, "--bands") == numbers


@pytest.mark.parametrize("text", ["", "1-", "3-1", "1-2-3", "a", "-1", "1,,2"])
def test_other_texts_name_no_bands(text: str) -> None:
    with pytest.raises(UsageError, match="--bands must be band numbers or ranges"):
        parse_bands(text, "--bands")


@pytest.mark.parametrize(("count", "sample_type"), [(4, "uint16"), (2, "float32")])
def test_a_photo_model_says_which_bands_a_file_has_instead(count: int, sample_type: SampleType) -> None:
    with pytest.raises(ImageError, match=f"{count} bands of {sample_type}; the model takes 3 colors; see --bands"):
        decode_image(tiff(samples(count, sample_type)), max_pixels=LIMIT)
