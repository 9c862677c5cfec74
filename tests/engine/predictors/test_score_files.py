"""Scores that another program has written: in every form, for the whole path from scores to calibrated labels."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from maskmill.cli import app
from maskmill.engine.model.bundle import Bundle
from maskmill.engine.predictors.open import ModelOptions, open_predictor
from maskmill.engine.predictors.score_files import ScoreFiles, write_score_bundle
from maskmill.engine.store.label_store import LabelStore
from maskmill.errors import BundleError, ImageError, UsageError

CLASSES = ["background", "cat", "dog"]
SCORES = np.random.default_rng(0).random((3, 5, 7)).astype(np.float32)
PHOTO = np.zeros((10, 14, 3), np.uint8)


def predictor(folder: Path, **options: object) -> ScoreFiles:
    write_score_bundle(folder / "bundle", scores=folder / "scores", classes=CLASSES, **options)  # type: ignore[arg-type]
    return ScoreFiles.open(folder / "bundle")


def write_npy(folder: Path, name: str, scores: np.ndarray) -> None:
    path = folder / "scores" / f"{name}.npy"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, scores)


def test_arrays_are_score_maps_at_their_own_resolution(tmp_path: Path) -> None:
    write_npy(tmp_path, "a/1", SCORES)
    found = predictor(tmp_path, background="background").predict(PHOTO, "/photos/a/1.jpg")
    np.testing.assert_array_equal(found.scores, SCORES)
    assert (found.layout, found.size, found.region, found.activation) == ("CHW", (10, 14), (0, 0, 5, 7), "none")


def test_zarr_arrays_are_read_like_npy_files(tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    array = zarr.create_array(tmp_path / "scores" / "1.zarr", shape=SCORES.shape, dtype="float32")
    array[:] = SCORES
    np.testing.assert_array_equal(predictor(tmp_path).predict(PHOTO, "1.jpg").scores, SCORES)


def test_a_missing_background_is_what_the_best_class_leaves(tmp_path: Path) -> None:
    write_npy(tmp_path, "1", SCORES[1:] * 1.5)
    found = predictor(tmp_path, background="background").predict(PHOTO, "1.jpg")
    np.testing.assert_allclose(found.scores[0], np.maximum(0, 1 - 1.5 * SCORES[1:].max(axis=0)), rtol=1e-6)
    np.testing.assert_array_equal(found.scores[1:], SCORES[1:] * np.float32(1.5))


@pytest.mark.parametrize(("dtype", "largest"), [(np.uint8, 255), (np.uint16, 65535)])
def test_a_gray_image_per_class_is_a_stack(tmp_path: Path, dtype: type, largest: int) -> None:
    folder = tmp_path / "scores" / "1"
    folder.mkdir(parents=True)
    values = np.array([[0, largest], [largest // 2, 10]], dtype)
    Image.fromarray(values).save(folder / "cat.png")
    found = predictor(tmp_path, background="background").predict(PHOTO, "1.jpg")
    np.testing.assert_allclose(found.scores[1], values / largest, rtol=1e-6)
    assert not found.scores[2].any()
    np.testing.assert_allclose(found.scores[0], 1 - values / largest, atol=1e-6)


def test_masks_have_the_confidence_of_their_class(tmp_path: Path) -> None:
    folder = tmp_path / "scores" / "1"
    folder.mkdir(parents=True)
    Image.fromarray(np.array([[255, 0, 0], [255, 255, 0]], np.uint8)).save(folder / "cat.png")
    Image.fromarray(np.array([[0, 0, 0], [0, 255, 0]], np.uint8)).save(folder / "dog.png")
    (folder / "scores.json").write_text(json.dumps({"cat": 0.75, "dog": 0.5}))
    scores = predictor(tmp_path, background="background").predict(PHOTO, "1.jpg").scores
    assert scores.tolist() == [
        [[0.25, 1, 1], [0.25, 0.25, 1]],
        [[0.75, 0, 0], [0.75, 0.75, 0]],
        [[0, 0, 0], [0, 0.5, 0]],
    ]


def test_other_files_make_other_settings(tmp_path: Path) -> None:
    write_npy(tmp_path, "1", SCORES)
    before = predictor(tmp_path).settings
    assert predictor(tmp_path).settings == before
    write_npy(tmp_path, "2", SCORES)
    assert predictor(tmp_path).settings != before


@pytest.mark.parametrize(
    ("scores", "message"),
    [(SCORES[0], "expected \\(classes, height, width\\)"), (SCORES[:1], "1 score maps for 3 classes")],
)
def test_scores_of_another_shape_are_rejected(tmp_path: Path, scores: np.ndarray, message: str) -> None:
    write_npy(tmp_path, "1", scores)
    with pytest.raises(ImageError, match=message):
        predictor(tmp_path).predict(PHOTO, "1.jpg")


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        predictor(tmp_path)
    (tmp_path / "scores").mkdir()
    with pytest.raises(UsageError, match="holds no scores"):
        predictor(tmp_path)
    write_npy(tmp_path, "1", SCORES)
    with pytest.raises(UsageError, match="not one of the classes"):
        predictor(tmp_path, background="sky")
    with pytest.raises(ImageError, match="names must match"):
        predictor(tmp_path).predict(PHOTO, "2.jpg")
    with pytest.raises(UsageError, match="leave --tile and --provider out"):
        open_predictor(tmp_path / "bundle", options=ModelOptions(tile=64))


def test_a_folder_of_scores_is_imported_calibrated_and_labeled(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    for name in ("photos", "labels"):
        (tmp_path / name).mkdir()
    for number in range(25):
        truth = rng.integers(0, 3, (10, 14)).astype(np.uint8)
        scores = rng.random((3, 10, 14)).astype(np.float32) + 2 * (np.arange(3)[:, None, None] == truth)
        write_npy(tmp_path, str(number), scores / scores.sum(axis=0))
        Image.fromarray(PHOTO + np.uint8(number)).save(tmp_path / "photos" / f"{number}.png")
        Image.fromarray(truth).save(tmp_path / "labels" / f"{number}.png")
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES))

    def run(*arguments: str) -> None:
        result = CliRunner().invoke(app, [argument.replace("@", f"{tmp_path}/") for argument in arguments])
        assert result.exit_code == 0, result.output or result.exception

    run("import", "@scores", "--classes", "@classes.txt", "--background", "background", "-o", "@bundle")
    assert Bundle.load(tmp_path / "bundle").classes == tuple(CLASSES)
    run(
        "calibrate",
        "@bundle",
        "--images",
        "@photos",
        "--labels",
        "@labels",
        "--alpha",
        "0.1",
        "-o",
        "@calibration.json",
    )
    run("label", "@bundle", "@photos", "-o", "@store", "--select", "conformal", "--calibration", "@calibration.json")
    store = LabelStore.open(tmp_path / "store")
    assert len(store.ids()) == 25


RECORDS = [
    ("[]", "JSON object"),
    ("{", "cannot read"),
    ("[" * 100_000, "recursion"),
    ('{"scores": 3, "digest": ""}', "scores must be a valid string"),
    ('{"scores": "x"}', "digest is missing"),
    ('{"scores": "SCORES", "digest": "", "rescaling": {"scale": 1}}', "rescaling.activation is missing"),
    ('{"scores": "SCORES", "digest": "", "rescaling": {"activation": "none", "scale": 1, "offsets": [1]}}', "offsets"),
]


@pytest.mark.parametrize(("text", "message"), RECORDS, ids=range(len(RECORDS)))
def test_a_damaged_record_is_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    write_npy(tmp_path, "1", SCORES)
    predictor(tmp_path)
    (tmp_path / "bundle" / "scores.json").write_text(text.replace("SCORES", str(tmp_path / "scores")))
    with pytest.raises(BundleError, match=message):
        ScoreFiles.open(tmp_path / "bundle")


def npy(shape: str, kind: str = "<f4", content: bytes = b"x" * 100) -> bytes:
    header = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + content


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (npy("(3, 1000000, 1000000)"), "too-large"),
        (npy("(3, 1000, 1000)"), "no-scores"),
        (npy("(3, 2, 2)", "|O", b"cos\nsystem\n"), "no-scores"),
        (npy("(3, 2, 2)", "<U9"), "no-scores"),
        (npy("(3," * 3000), "no-scores"),
        (b"PK\x03\x04", "no-scores"),
    ],
    ids=["huge", "cut", "objects", "text", "brackets", "npz"],
)
def test_a_hostile_array_is_one_reject(tmp_path: Path, data: bytes, kind: str) -> None:
    (tmp_path / "scores").mkdir()
    (tmp_path / "scores" / "1.npy").write_bytes(data)
    with pytest.raises(ImageError) as caught:
        predictor(tmp_path).predict(PHOTO, "1.jpg")
    assert caught.value.kind == kind


@pytest.mark.parametrize("text", ["[1]", "[" * 100_000, '{"cat": "high"}', '{"dog": 1}'])
def test_hostile_confidences_are_one_reject(tmp_path: Path, text: str) -> None:
    folder = tmp_path / "scores" / "1"
    folder.mkdir(parents=True)
    (folder / "scores.json").write_text(text)
    Image.fromarray(np.ones((2, 2), np.uint8)).save(folder / "cat.png")
    with pytest.raises(ImageError) as caught:
        predictor(tmp_path, background="background").predict(PHOTO, "1.jpg")
    assert caught.value.kind == "no-scores"


def test_maps_of_different_sizes_are_one_reject(tmp_path: Path) -> None:
    folder = tmp_path / "scores" / "1"
    folder.mkdir(parents=True)
    for name, side in (("cat", 2), ("dog", 3)):
        Image.fromarray(np.ones((side, side), np.uint8)).save(folder / f"{name}.png")
    with pytest.raises(ImageError, match="shape"):
        predictor(tmp_path).predict(PHOTO, "1.jpg")


@pytest.mark.parametrize("name", ["pickle", "vlen-utf8", "unknown"])
def test_a_zarr_array_with_a_codec_that_may_run_code_is_refused(tmp_path: Path, name: str) -> None:
    pytest.importorskip("zarr")
    folder = tmp_path / "scores" / "1.zarr"
    folder.mkdir(parents=True)
    array = {"zarr_format": 2, "shape": [3, 5, 7], "chunks": [3, 5, 7], "dtype": "<f4", "fill_value": 0, "order": "C"}
    (folder / ".zarray").write_text(json.dumps({**array, "compressor": None, "filters": [{"id": name}]}))
    (folder / "0.0.0").write_bytes(SCORES.tobytes())
    with pytest.raises(ImageError, match="codec"):
        predictor(tmp_path).predict(PHOTO, "1.jpg")


def test_an_endless_zarr_array_without_chunks_is_refused(tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    zarr.create_array(tmp_path / "scores" / "1.zarr", shape=(3, 10**6, 10**6), chunks=(1, 64, 64), dtype="float32")
    with pytest.raises(ImageError) as caught:
        predictor(tmp_path).predict(PHOTO, "1.jpg")
    assert caught.value.kind == "too-large"
