"""Large GeoTIFF files: windows in, label maps with coordinates out."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import maskmill
from maskmill.engine.inputs.images import decode_image
from maskmill.engine.inputs.label_maps import read_label_map
from maskmill.engine.inputs.rasters.bands import decode_bands
from maskmill.engine.inputs.sources import open_source, read_uri
from maskmill.engine.model.input_spec import BandSpec
from maskmill.engine.reading.geotiff import Window, Windows, split_window
from maskmill.engine.report.display import print_store
from maskmill.engine.store.label_store import LabelStore
from maskmill.errors import ImageError, MissingPackageError, StoreMismatch, UsageError

from ....models import band_bundle, color_bundle, color_image

rasterio = pytest.importorskip("rasterio")

TRANSFORM = rasterio.Affine(10, 0, 500_000, 0, -10, 4_000_000)


def write_tiff(path: Path, values: NDArray[Any], *, crs: str | None = "EPSG:32633", **options: Any) -> Path:
    """A GeoTIFF file of (bands, H, W)."""
    count, height, width = values.shape
    profile = {"driver": "GTiff", "count": count, "height": height, "width": width, "dtype": values.dtype, "crs": crs}
    path.parent.mkdir(exist_ok=True)
    with rasterio.open(path, "w", transform=TRANSFORM, **profile, **options) as file:
        file.write(values)
    return path


def colors(height: int, width: int) -> NDArray[np.intp]:
    """Labels (H, W), 0 to 2, in stripes that no window's border follows."""
    rows, columns = np.indices((height, width))
    return (rows // 7 + columns // 5) % 3


@pytest.mark.parametrize(
    ("height", "width", "windows"),
    [
        (40, 50, Windows(side=16)),
        (40, 50, Windows(side=20, overlap=6)),
        (17, 16, Windows(side=16)),
        (64, 64, Windows(side=32, overlap=16)),
    ],
)
def test_windows_cover_a_file_and_none_is_inside_another(height: int, width: int, windows: Windows) -> None:
    cut = windows.cut(height, width)
    covered = np.zeros((height, width), int)
    for window in cut:
        assert window.height > 0
        assert window.width > 0
        assert window.row + window.height <= height
        assert window.column + window.width <= width
        covered[window.row : window.row + window.height, window.column : window.column + window.width] += 1
    assert covered.min() >= 1
    if not windows.overlap:
        assert covered.max() == 1
    assert len({(window.row, window.column) for window in cut}) == len(cut)


@pytest.mark.parametrize(("side", "overlap"), [(8, 0), (32, 17), (32, -1)])
def test_windows_of_other_sizes_are_refused(side: int, overlap: int) -> None:
    with pytest.raises(UsageError, match="windows must be"):
        Windows(side=side, overlap=overlap)


def test_the_name_of_a_window_says_where_it_is() -> None:
    assert split_window("/a/b.tif" + Window(0, 16, 32, 8).text()) == ("/a/b.tif", Window(0, 16, 32, 8))
    for uri in ("/a/b.tif", "/a/b.tif::window=1,2,3", "/a/b.tif::window=-1,2,3,4", "a.tar::b.jpg"):
        assert split_window(uri) is None


def test_a_window_is_an_image_of_its_own_and_the_file_is_not_decoded(tmp_path: Path) -> None:
    values = np.arange(3 * 40 * 50, dtype=np.uint8).reshape(3, 40, 50)
    path = write_tiff(tmp_path / "photos" / "scene 1.tif", values, tiled=True, blockxsize=16, blockysize=16)
    write_tiff(tmp_path / "photos" / "small.tif", values[:, :9, :9])
    items = list(open_source(tmp_path / "photos", windows=Windows(side=32)))
    names = [item.uri.removeprefix(f"{tmp_path}/photos/") for item in items]
    assert names == [
        f"scene 1.tif::window={text}" for text in ("0,0,32,32", "0,32,32,18", "32,0,8,32", "32,32,8,18")
    ] + ["small.tif"]
    window = decode_image(read_uri(items[1].uri))
    assert np.array_equal(window, values[:, :32, 32:].transpose(1, 2, 0))
    damaged = path.read_bytes()
    path.write_bytes(damaged[: len(damaged) // 2])
    with pytest.raises(ImageError):
        read_uri(items[3].uri)


def test_a_damaged_file_is_one_input_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "scene.tif").write_bytes(b"II*\0" + bytes(40))
    (item,) = open_source(tmp_path, windows=Windows(side=32))
    with pytest.raises(ImageError, match="not a readable TIFF file"):
        open_source(tmp_path).read(item)


@pytest.mark.parametrize("overlap", [0, 8])
def test_labels_of_windows_become_one_map_with_the_coordinates_of_the_file(tmp_path: Path, overlap: int) -> None:
    label = colors(48, 61)
    values = color_image(label).transpose(2, 0, 1).copy()
    values[:, 20:24, 30:40] = 0
    path = write_tiff(tmp_path / "photos" / "scene.tif", values, nodata=0)
    bundle = color_bundle(tmp_path, size=(32, 32))
    progress = maskmill.label(
        bundle.path, tmp_path / "photos", tmp_path / "labels", windows=32, window_overlap=overlap, tile=32
    )
    assert progress.planned == (4 if overlap == 0 else 6)
    summary = maskmill.export_labels(tmp_path / "labels", tmp_path / "out", "geotiff")
    assert (summary.num_images, summary.num_files) == (progress.planned, 1)
    with pytest.raises(UsageError, match=r"scene.tif as \d windows.*such as scene.tif::window=0,0,32,32, scene.tif::w"):
        LabelStore.open(tmp_path / "labels").find("scene.tif")
    with rasterio.open(tmp_path / "out" / "scene.tif") as file:
        assert file.crs.to_epsg() == 32633
        assert file.transform == TRANSFORM
        assert file.nodata == 255
        assert file.tags(1)["class_1"] == "green"
        assert file.colormap(1)[1] == (128, 0, 0, 255)
        result = file.read(1)
    missing = np.zeros(label.shape, bool)
    missing[20:24, 30:40] = True
    # the value 0 is "no data" in each band, and a pixel has data if one band has
    assert (result[missing] == 255).all()
    assert (result[~missing] == label[~missing]).mean() > 0.97
    assert np.array_equal(read_label_map(tmp_path / "out" / "scene.tif"), result)
    assert (tmp_path / "out" / "classes.txt").read_text().split() == ["red", "green", "blue"]
    assert path.exists()


def test_windows_without_labels_have_no_data(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "photos" / "scene.tif", color_image(colors(40, 48)).transpose(2, 0, 1))
    bundle = color_bundle(tmp_path, size=(16, 16))
    maskmill.label(bundle.path, path.parent, tmp_path / "labels", windows=16, limit=4)
    maskmill.export_labels(tmp_path / "labels", tmp_path / "out", "geotiff")
    with rasterio.open(tmp_path / "out" / "scene.tif") as file:
        result = file.read(1)
    assert (result[:16] < 3).all()
    assert (result[16:32, :16] < 3).all()
    assert (result[16:, 16:] == 255).all()
    assert (result[32:] == 255).all()


def test_a_window_narrower_than_its_number_of_bands_is_read(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 9000, (12, 40, 34), dtype=np.uint16)
    path = write_tiff(tmp_path / "scene.tif", values)
    bands = BandSpec(numbers=(4, 3, 2), sample_type="uint16", display=(4, 3, 2))
    items = list(open_source(path, windows=Windows(side=32)))
    assert [item.uri.rsplit("=")[1] for item in items] == ["0,0,32,32", "0,32,32,2", "32,0,8,32", "32,32,8,2"]
    for item in items:
        window = split_window(item.uri)
        assert window is not None
        rows, columns = (slice(start, start + size) for start, size in (window[1][::2], window[1][1::2]))
        image = decode_bands(read_uri(item.uri), bands, max_pixels=10_000)
        assert np.array_equal(image, values[[3, 2, 1], rows, columns].transpose(1, 2, 0))


def test_windows_of_bands_are_labeled(tmp_path: Path) -> None:
    label = colors(40, 48)
    values = np.full((5, 40, 48), 200, np.uint16)
    for index, band in enumerate((5, 1, 4)):
        values[band - 1][label == index] = 9000
    path = write_tiff(tmp_path / "photos" / "scene.tif", values, compress="deflate")
    bundle = band_bundle(tmp_path, bands=(5, 1, 4, 2), size=(16, 16))
    maskmill.label(bundle.path, path, tmp_path / "labels", windows=16)
    maskmill.export_labels(tmp_path / "labels", tmp_path / "out", "geotiff")
    with rasterio.open(tmp_path / "out" / "scene.tif") as file:
        assert (file.read(1) == label).mean() > 0.99


def test_images_without_coordinates_have_no_geotiff(tmp_path: Path) -> None:
    bundle = color_bundle(tmp_path, size=(16, 16))
    path = write_tiff(tmp_path / "photos" / "scene.tif", color_image(colors(16, 16)).transpose(2, 0, 1), crs=None)
    maskmill.label(bundle.path, path.parent, tmp_path / "labels")
    with pytest.raises(UsageError, match="no coordinate reference system; use --format png"):
        maskmill.export_labels(tmp_path / "labels", tmp_path / "out", "geotiff")


def test_without_rasterio_windows_name_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tiff(tmp_path / "scene.tif", color_image(colors(40, 40)).transpose(2, 0, 1))
    whole_import = builtins.__import__

    def without(name: str, *rest: Any, **options: Any) -> Any:
        if name.startswith("rasterio"):
            raise ImportError(name)
        return whole_import(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingPackageError, match=r"rasterio.*install.*geo"):
        list(open_source(tmp_path, windows=Windows(side=16)))


def test_other_windows_are_refused_and_windows_of_one_file_share_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_tiff(tmp_path / "photos" / "scene.tif", np.zeros((4, 40, 40), np.uint16))
    write_tiff(tmp_path / "photos" / "small.tif", np.zeros((3, 16, 16), np.uint8))
    bundle = color_bundle(tmp_path)
    maskmill.label(bundle.path, tmp_path / "photos", tmp_path / "labels", windows=32)
    for windows in (16, None):
        with pytest.raises(StoreMismatch, match="windows"):
            maskmill.label(bundle.path, tmp_path / "photos", tmp_path / "labels", windows=windows)
    print_store(LabelStore.open(tmp_path / "labels"))
    lines = [line for line in capsys.readouterr().out.splitlines() if "rejected" in line]
    assert len(lines) == 1
    assert lines[0].startswith(f"  rejected {path} (4 windows): unsupported: its samples are uint16")
