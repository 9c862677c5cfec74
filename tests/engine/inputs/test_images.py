from __future__ import annotations

import re
import struct
import subprocess
import sys
import time
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from maskmill.engine.inputs.image_formats import optional_formats, readable_endings
from maskmill.engine.inputs.images import decode_image, image_size, preprocess
from maskmill.engine.inputs.sources import open_source
from maskmill.engine.model.input_spec import InputSpec
from maskmill.errors import ImageError, UsageError

from ...builders import encoded, hostile_files, hostile_paths, photo


def spec(**options: object) -> InputSpec:
    return InputSpec(**({"name": "x", "height": 12, "width": 20, "layout": "NHWC", "scale": 1.0} | options))  # type: ignore[arg-type]


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "PPM", "GIF"])
def test_lossless_formats_decode_to_the_pixels(format: str) -> None:
    pixels = photo() // 64 * 64
    if format == "GIF":
        pixels = np.repeat(pixels[:, :, :1], 3, axis=2)
    np.testing.assert_array_equal(decode_image(encoded(pixels, format)), pixels)


@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("JPEG", {"quality": 95}),
        ("JPEG", {"quality": 95, "progressive": True}),
        ("WEBP", {"quality": 95}),
        ("AVIF", {"quality": 95}),
        ("JPEG2000", {}),
        ("TIFF", {"compression": "jpeg", "quality": 95}),
    ],
)
def test_lossy_formats_decode_to_nearly_the_pixels(format: str, options: dict[str, object]) -> None:
    pixels = photo(48, 64)
    decoded = decode_image(encoded(pixels, format, **options))
    assert decoded.shape == pixels.shape
    assert np.abs(decoded.astype(int) - pixels).mean() < 4


def test_the_array_is_writable_contiguous_uint8() -> None:
    decoded = decode_image(encoded(photo(), "JPEG"))
    assert decoded.dtype == np.uint8
    assert decoded.flags.writeable
    assert decoded.flags.c_contiguous


def test_cmyk_becomes_rgb() -> None:
    pixels = np.full((8, 8, 3), (200, 100, 50), dtype=np.uint8)
    decoded = decode_image(encoded(Image.fromarray(pixels).convert("CMYK"), "JPEG", quality=95))
    assert np.abs(decoded.astype(int) - pixels).max() < 6


def test_gray_is_repeated_and_16_bits_keep_the_high_byte() -> None:
    gray = np.array([[0, 300, 65535], [255, 256, 511]], dtype=np.uint16)
    for format in ("PNG", "TIFF"):
        decoded = decode_image(encoded(gray, format))
        np.testing.assert_array_equal(decoded[:, :, 0], [[0, 1, 255], [0, 1, 1]])
        np.testing.assert_array_equal(decoded[:, :, 0], decoded[:, :, 2])


def tiff(
    samples: NDArray[Any],
    *,
    photometric: int,
    planar: int = 1,
    orientation: int = 1,
    compress: bool = False,
    differences: bool = False,
) -> bytes:
    """A TIFF of one strip per plane, in any type; Pillow writes few of them."""
    planes = samples.shape[2] if samples.ndim == 3 else 1
    height, width = samples.shape[:2]
    parts = [samples.transpose(2, 0, 1)[plane] for plane in range(planes)] if planar == 2 else [samples]
    if differences:
        parts = [np.diff(part, axis=1, prepend=part.dtype.type(0)) for part in parts]
    strips = [part.astype(samples.dtype.newbyteorder("<")).tobytes() for part in parts]
    if compress:
        strips = [zlib.compress(strip) for strip in strips]
    kind = {"u": 1, "i": 2, "f": 3}[samples.dtype.kind]
    lists = {258: [8 * samples.dtype.itemsize] * planes, 339: [kind] * planes}
    lists |= {256: [width], 257: [height], 259: [8 if compress else 1], 262: [photometric], 274: [orientation]}
    lists |= {277: [planes], 278: [height], 284: [planar], 317: [1 + differences]}
    data = b"II*\0" + bytes(4)
    starts = []
    for strip in strips:
        starts.append(len(data))
        data += strip + bytes(len(strip) % 2)
    longs = {273: starts, 279: [len(strip) for strip in strips]}
    entries = []
    for tag, values in sorted((lists | longs).items()):
        code = "I" if tag in longs else "H"
        packed = struct.pack(f"<{len(values)}{code}", *values)
        if len(packed) > 4:
            place, data = len(data), data + packed
            packed = struct.pack("<I", place)
        entries.append(struct.pack("<HHI", tag, 4 if code == "I" else 3, len(values)) + packed.ljust(4, b"\0"))
    directory = struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)
    return data[:4] + struct.pack("<I", len(data)) + data[8:] + directory


DEEP = (np.arange(4 * 6 * 3).reshape(4, 6, 3) * 900).astype(np.uint16)


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("planar", [1, 2])
def test_16_bit_color_tiff_is_read_plane_by_plane(planar: int, compress: bool) -> None:
    data = tiff(DEEP, photometric=2, planar=planar, compress=compress)
    np.testing.assert_array_equal(decode_image(data), DEEP >> 8)
    np.testing.assert_array_equal(decode_image(data, bit_depth=14), np.minimum(DEEP >> 6, 255))


def test_16_bit_planes_of_another_compression_keep_8_bits_or_say_so() -> None:
    data = tiff(DEEP, photometric=2, planar=2, compress=True, differences=True)
    np.testing.assert_array_equal(decode_image(data, bit_depth=14), np.minimum(DEEP >> 6, 255))
    packed = data.replace(struct.pack("<HHIHH", 259, 3, 1, 8, 0), struct.pack("<HHIHH", 259, 3, 1, 32773, 0))
    with pytest.raises(ImageError):
        decode_image(packed, bit_depth=14)


def test_a_progressive_jpeg_of_countless_scans_is_refused_soon() -> None:
    data = encoded(np.full((3000, 3000, 3), 128, np.uint8), "JPEG", progressive=True)
    last_scan = data[data.rindex(b"\xff\xda") : -2]
    bomb = data[:-2] + 5000 * last_scan + data[-2:]
    started = time.process_time()
    with pytest.raises(ImageError, match=r"progressive JPEG of 5,0\d\d scans, and at most 30 are read") as caught:
        decode_image(bomb)
    assert caught.value.kind == "too-large"
    assert time.process_time() - started < 1
    assert decode_image(data[:-2] + 15 * last_scan + data[-2:]).shape == (3000, 3000, 3)


@pytest.mark.parametrize("planar", [1, 2])
@pytest.mark.parametrize("orientation", [3, 6])
def test_deep_tiff_is_turned_upright_once(planar: int, orientation: int) -> None:
    data = tiff(DEEP, photometric=2, planar=planar, orientation=orientation)
    upright = (DEEP >> 8)[::-1, ::-1] if orientation == 3 else (DEEP >> 8).transpose(1, 0, 2)[:, ::-1]
    np.testing.assert_array_equal(decode_image(data), upright)
    gray = tiff(DEEP[..., 0], photometric=1, orientation=orientation)
    np.testing.assert_array_equal(decode_image(gray)[..., 0], upright[..., 0])


@pytest.mark.parametrize(
    ("samples", "photometric", "levels"),
    [
        (np.array([[0, 256, 65535]], np.uint16), 0, [255, 254, 0]),
        (np.array([[0, 256, 65535]], np.uint16), 1, [0, 1, 255]),
        (np.array([[0, 1 << 24, (1 << 32) - 1]], np.uint32), 1, [0, 1, 255]),
        (np.array([[-5, 128, 32767]], np.int16), 1, [0, 1, 255]),
        (np.array([[-5, 1 << 23, (1 << 31) - 1]], np.int32), 1, [0, 1, 255]),
        (np.array([[0, 255, 7]], np.uint8), 0, [255, 0, 248]),
    ],
)
def test_gray_tiff_keeps_the_highest_8_bits_of_its_type(
    samples: NDArray[Any], photometric: int, levels: list[int]
) -> None:
    decoded = decode_image(tiff(samples, photometric=photometric))
    np.testing.assert_array_equal(decoded[0, :, 0], levels)
    np.testing.assert_array_equal(decoded[..., 0], decoded[..., 2])


@pytest.mark.parametrize("color", [False, True])
def test_data_of_12_bits_in_16_is_warned_about_and_can_be_stated(color: bool) -> None:
    samples = (np.arange(12).reshape(1, 4, 3) * 341).astype(np.uint16)
    samples = samples if color else samples[..., 0]
    data = cv2.imencode(".png", samples[..., ::-1] if color else samples)[1].tobytes()
    warnings: list[str] = []
    dark = decode_image(data, warn=warnings.append)
    assert dark.max() < 16
    (text,) = warnings
    assert text.startswith("it uses 5.7% of its type's range") if color else text.startswith("it uses 4.7%")
    assert "--bit-depth" in text
    decoded = decode_image(data, bit_depth=12, warn=warnings.append)
    np.testing.assert_array_equal(decoded[..., 0], (samples[..., 0] if color else samples) >> 4)
    assert len(warnings) == 1
    decode_image(encoded(photo(), "JPEG"), warn=warnings.append)
    decode_image(encoded(np.full((2, 2), 5000, np.uint16), "PNG"), warn=warnings.append)
    assert len(warnings) == 1


@pytest.mark.parametrize("bits", [8, 33, 0])
def test_other_bit_depths_are_refused(bits: int) -> None:
    with pytest.raises(UsageError, match="the bit depth must be from 9 to 32"):
        decode_image(encoded(photo(), "PNG"), bit_depth=bits)


@pytest.mark.parametrize(
    "data",
    [
        tiff(np.zeros((2, 2), np.float16), photometric=1),
        tiff(np.zeros((2, 2), np.uint64), photometric=1),
        encoded(photo(), "TIFF").replace(
            struct.pack("<HHIHH", 259, 3, 1, 1, 0), struct.pack("<HHIHH", 259, 3, 1, 4242, 0)
        ),
        tiff(np.zeros((2, 2, 255), np.uint8), photometric=2),
        encoded(photo(), "JPEG").replace(b"\xff\xc0\x00\x11\x08", b"\xff\xc1\x00\x11\x0c"),
    ],
    ids=["half floats", "64 bits", "compression", "255 samples", "12-bit JPEG"],
)
def test_sound_files_of_kinds_that_are_not_read_are_called_unsupported(data: bytes) -> None:
    with pytest.raises(ImageError) as caught:
        decode_image(data)
    assert caught.value.kind == "unsupported", caught.value
    assert "damaged" not in str(caught.value)


def test_libraries_write_nothing_of_their_own(capfd: pytest.CaptureFixture[str]) -> None:
    for _, data in hostile_files():
        _outcome(data)
    assert capfd.readouterr() == ("", "")


def test_decoding_takes_little_more_memory_than_the_pixels() -> None:
    script = (
        "import resource, sys\n"
        "from maskmill.engine.inputs.images import decode_image\n"
        "data = sys.stdin.buffer.read()\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "shape = decode_image(data).shape\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / (shape[0] * shape[1]))\n"
    )
    exif = Image.Exif()
    exif[0x112] = 6
    for image in (Image.new("I;16", (4000, 2500)), Image.new("RGBA", (4000, 2500)), Image.new("1", (4000, 2500))):
        data = encoded(image, "PNG", exif=exif)
        bytes_per_pixel = float(subprocess.run([sys.executable, "-c", script], input=data, capture_output=True).stdout)
        assert bytes_per_pixel < 16, image.mode
    deep = cv2.imencode(".png", np.zeros((4000, 2500, 4), np.uint16))[1].tobytes()
    bytes_per_pixel = float(subprocess.run([sys.executable, "-c", script], input=deep, capture_output=True).stdout)
    assert bytes_per_pixel < 22


def test_16_bit_color_keeps_the_high_byte() -> None:
    pixels = np.array([[[0, 300, 65535]]], dtype=np.uint16)
    data = cv2.imencode(".png", pixels[:, :, ::-1])[1].tobytes()
    np.testing.assert_array_equal(decode_image(data), [[[0, 1, 255]]])


@pytest.mark.parametrize(
    ("values", "levels"), [([0.0, 0.5, 1.0], [0, 128, 255]), ([-9.0, 127.6, 999.0], [0, 128, 255]), ([np.nan], [0])]
)
def test_float_samples_are_shares_or_levels(values: list[float], levels: list[int]) -> None:
    decoded = decode_image(encoded(np.array([values], dtype=np.float32), "TIFF"))
    np.testing.assert_array_equal(decoded[0, :, 0], levels)


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_alpha_is_dropped_and_hidden_colors_are_kept(format: str) -> None:
    rgba = np.array([[[10, 20, 30, 255], [40, 50, 60, 0]]], dtype=np.uint8)
    data = encoded(rgba, format, **({"lossless": True, "exact": True} if format == "WEBP" else {}))
    np.testing.assert_array_equal(decode_image(data), rgba[:, :, :3])


def test_palettes_give_their_colors() -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([1, 2, 3, 200, 100, 50])
    palette.putpixel((1, 0), 1)
    expected = [[[1, 2, 3], [200, 100, 50]]]
    np.testing.assert_array_equal(decode_image(encoded(palette, "PNG")), expected)
    np.testing.assert_array_equal(decode_image(encoded(palette, "PNG", transparency=b"\x00\x80")), expected)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_an_animation_gives_its_first_frame(format: str) -> None:
    frames = [Image.new("RGB", (4, 3), color) for color in ("red", "blue")]
    options = {"lossless": True} if format == "WEBP" else {}
    data = encoded(frames[0], format, save_all=True, append_images=frames[1:], **options)
    np.testing.assert_array_equal(decode_image(data), np.asarray(frames[0]))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_the_image_upright(format: str, orientation: int) -> None:
    upright = np.zeros((16, 32, 3), dtype=np.uint8)
    upright[:8, :16], upright[:8, 16:], upright[8:, :16] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: upright.transpose(1, 0, 2)[::-1],
        7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: upright.transpose(1, 0, 2)[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(np.ascontiguousarray(stored), format, exif=exif, **({"quality": 95} if format != "TIFF" else {}))
    decoded = decode_image(data)
    assert image_size(data) == decoded.shape[:2] == (16, 32)
    assert np.abs(decoded[4::8, 8::16].astype(int) - upright[4::8, 8::16]).max() < 40


@pytest.mark.parametrize("format", ["HEIF", "JXL"])
def test_formats_of_other_packages_are_read_if_these_are_installed(format: str, tmp_path: Path) -> None:
    optional_formats()
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = photo(48, 64)
    data = encoded(pixels, format, quality=95, exif=exif.tobytes())
    decoded = decode_image(data)
    # the orientation of JPEG XL is its decoder's, EXIF does not count
    upright = pixels if format == "JXL" else pixels.transpose(1, 0, 2)[:, ::-1]
    assert image_size(data) == decoded.shape[:2] == upright.shape[:2]
    assert np.abs(decoded.astype(int) - upright).mean() < 6
    ending = {"HEIF": ".HEIC", "JXL": ".jxl"}[format]
    (tmp_path / f"a{ending}").write_bytes(data)
    assert len(list(open_source(tmp_path))) == 1


@pytest.mark.parametrize(("format", "name", "ending"), [("HEIF", "HEIC", ".heic"), ("JXL", "JPEG XL", ".jxl")])
def test_without_their_packages_they_are_counted_and_refused_by_name(
    format: str, name: str, ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    optional_formats()
    data = encoded(photo(), format)
    (tmp_path / f"a{ending}").write_bytes(data)
    (tmp_path / "b.png").write_bytes(encoded(photo(), "PNG"))
    for package in ("pillow_heif", "pillow_jxl"):
        monkeypatch.setitem(sys.modules, package, None)
    for function in (optional_formats, readable_endings):
        function.cache_clear()
    try:
        with pytest.raises(
            ImageError, match=rf"{name} files need another package; install it with: .*\[heif\]"
        ) as caught:
            decode_image(data)
        source = open_source(tmp_path)
        assert len(list(source)) == 1
        assert source.skipped == {ending: 1}
    finally:
        for function in (optional_formats, readable_endings):
            function.cache_clear()
    assert caught.value.kind == "unsupported"


def test_the_size_limit_is_checked_in_the_header() -> None:
    data = encoded(photo(10, 20), "PNG")
    assert decode_image(data, max_pixels=200).shape == (10, 20, 3)
    with pytest.raises(
        ImageError, match=re.escape("20x10 pixels, 200 in all; at most 199 are read (--max-pixels)")
    ) as caught:
        decode_image(data, max_pixels=199)
    assert caught.value.kind == "too-large"


def test_a_limit_above_pillows_own_is_honored() -> None:
    # 180 million pixels: Pillow's Image.open refuses, and warns from half of it on
    header = encoded(Image.new("1", (60_000, 3000)), "PNG")
    assert image_size(header, max_pixels=200_000_000) == (3000, 60_000)
    assert image_size(encoded(Image.new("1", (50_000, 2000)), "PNG")) == (2000, 50_000)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"", "empty"),
        (b"<html>not found</html>", "not-an-image"),
        (encoded(photo(), "JPEG")[:200], "truncated"),
        (encoded(photo(48, 64), "JPEG")[:-80], "truncated"),
    ],
)
def test_what_cannot_be_decoded_says_why(data: bytes, kind: str) -> None:
    with pytest.raises(ImageError) as caught:
        decode_image(data)
    assert caught.value.kind == kind
    assert str(caught.value)


def test_a_hundred_hostile_files_decode_or_are_refused() -> None:
    outcomes = set()
    files = list(hostile_files())
    assert len(files) > 100
    for name, data in files:
        try:
            decoded = decode_image(data)
        except ImageError as error:
            outcomes.add(error.kind)
            continue
        assert decoded.dtype == np.uint8, name
        assert decoded.ndim == 3, name
        assert decoded.shape == (*image_size(data), 3), name
        outcomes.add("decoded")
    assert outcomes == {"decoded", "empty", "not-an-image", "truncated", "too-large", "unsupported"}


def test_hostile_names_are_read_or_refused(tmp_path: Path) -> None:
    hostile_paths(tmp_path)
    (tmp_path / "good.jpg").write_bytes(encoded(photo(), "PNG"))
    source = open_source(tmp_path)
    kinds = {}
    for item in source:
        try:
            decode_image(source.read(item))
            kinds[Path(item.uri).name] = "decoded"
        except ImageError as error:
            kinds[Path(item.uri).name] = error.kind
    assert kinds == {
        "good.jpg": "decoded",
        "dangling.jpg": "unreadable",
        "loop.jpg": "unreadable",
        "pipe.jpg": "unreadable",
        "huge.jpg": "too-large",
        "it's \n 1.jpg": "empty",
        "caf\\xe9.jpg": "empty",
    }


def test_decoding_in_threads_leaves_the_warning_filters_alone() -> None:
    files = [data for name, data in hostile_files() if "exif" in name or "text" in name]
    before = list(warnings.filters)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda data: [_outcome(data) for _ in range(20)], files))
    assert list(warnings.filters) == before


def _outcome(data: bytes) -> str:
    try:
        decode_image(data)
    except ImageError as error:
        return error.kind
    return "decoded"


def test_pillows_process_wide_settings_are_untouched() -> None:
    from PIL import ImageFile

    before = Image.MAX_IMAGE_PIXELS
    decode_image(encoded(photo(), "JPEG"))
    assert before == Image.MAX_IMAGE_PIXELS
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


def test_values_are_scaled_shifted_and_divided() -> None:
    pixels = np.array([[[0, 51, 255]]], dtype=np.uint8)
    tensor, region = preprocess(
        pixels, spec(height=1, width=1, scale=1 / 255, mean=(0.5, 0.2, 0.0), std=(0.5, 0.1, 2.0))
    )
    np.testing.assert_allclose(tensor, [[[-1.0, 0.0, 0.5]]], atol=1e-7)
    assert tensor.dtype == np.float32
    assert region == (1.0, 1.0)


def test_layouts_and_channel_orders_hold_the_same_values() -> None:
    pixels = photo()
    rgb, _ = preprocess(pixels, spec(mean=(1, 2, 3)))
    np.testing.assert_array_equal(preprocess(pixels, spec(mean=(1, 2, 3), layout="NCHW"))[0], rgb.transpose(2, 0, 1))
    bgr, _ = preprocess(pixels, spec(mean=(3, 2, 1), channels="BGR"))
    np.testing.assert_array_equal(bgr, rgb[:, :, ::-1])
    planes, _ = preprocess(pixels, spec(mean=(3, 2, 1), channels="BGR", layout="NCHW"))
    np.testing.assert_array_equal(planes, rgb[:, :, ::-1].transpose(2, 0, 1))


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
@pytest.mark.parametrize(("shape", "covered"), [((8, 40), (4, 20)), ((60, 30), (20, 10)), ((5, 20), (5, 20))])
def test_longest_side_pads_at_the_right_and_the_bottom(
    layout: str, shape: tuple[int, int], covered: tuple[int, int]
) -> None:
    pixels = np.full((*shape, 3), 100, dtype=np.uint8)
    chosen = spec(height=20, width=20, resize="longest-side", pad_value=7.5, mean=(1, 2, 3), layout=layout)
    tensor, region = preprocess(pixels, chosen)
    if layout == "NCHW":
        tensor = tensor.transpose(1, 2, 0)
    rows, columns = covered
    assert region == (rows / 20, columns / 20)
    np.testing.assert_array_equal(tensor[:rows, :columns], np.broadcast_to([99, 98, 97], (rows, columns, 3)))
    padding = np.ones((20, 20), dtype=bool)
    padding[:rows, :columns] = False
    np.testing.assert_array_equal(tensor[padding], np.broadcast_to([6.5, 5.5, 4.5], (padding.sum(), 3)))


@pytest.mark.parametrize(("channels", "value"), [("RGB", (1, 2, 3)), ("BGR", (3, 2, 1))])
def test_padding_with_the_mean_of_each_channel_is_zero_after_normalizing(
    channels: str, value: tuple[int, int, int]
) -> None:
    chosen = spec(height=8, width=8, resize="longest-side", channels=channels, pad_value=value, mean=value)
    tensor, _ = preprocess(np.full((4, 8, 3), 200, dtype=np.uint8), chosen)
    np.testing.assert_array_equal(tensor[4:], np.zeros((4, 8, 3)))
    np.testing.assert_array_equal(tensor[0, 0], 200 - np.array(value))


def test_antialiasing_averages_what_shrinks() -> None:
    stripes = np.tile(np.array([0, 255], dtype=np.uint8)[None, :, None], (40, 40, 3))
    smooth, _ = preprocess(stripes, spec(height=10, width=10))
    assert np.abs(smooth[:, 1:-1] - 127.5).max() < 5
    area, _ = preprocess(stripes, spec(height=10, width=10, resize_filter="area"))
    assert np.abs(area - 127.5).max() <= 0.5


@pytest.mark.parametrize(("filter", "method"), [("bilinear", cv2.INTER_LINEAR), ("bicubic", cv2.INTER_CUBIC)])
def test_without_antialiasing_the_resize_is_opencvs(filter: str, method: int) -> None:
    pixels = photo(33, 47)
    tensor, _ = preprocess(pixels, spec(resize_filter=filter, antialias=False))
    np.testing.assert_array_equal(tensor, cv2.resize(pixels, (20, 12), interpolation=method).astype(np.float32))


def test_bilinear_enlarging_interpolates_between_pixel_centers() -> None:
    pixels = np.repeat(np.array([[[0], [100]]], dtype=np.uint8), 3, axis=2)
    for antialias in (True, False):
        tensor, _ = preprocess(pixels, spec(height=1, width=4, antialias=antialias))
        np.testing.assert_array_equal(tensor[0, :, 0], [0, 25, 75, 100])


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
@pytest.mark.parametrize("resize", ["stretch", "longest-side"])
def test_out_is_filled_and_returned(layout: str, resize: str) -> None:
    chosen = spec(layout=layout, resize=resize)
    expected, _ = preprocess(photo(9, 30), chosen)
    out = np.full(expected.shape, np.nan, dtype=np.float32)
    tensor, _ = preprocess(photo(9, 30), chosen, out=out)
    assert tensor is out
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8)]
)
def test_other_arrays_are_refused(image: NDArray[np.uint8]) -> None:
    with pytest.raises(UsageError, match=r"\(H, W, 3\) uint8"):
        preprocess(image, spec())
    with pytest.raises(UsageError, match="out must be"):
        preprocess(photo(), spec(), out=np.zeros((3, 3, 3), np.float32))
