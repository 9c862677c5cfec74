"""No command overwrites its own input, or takes one of two values of an option in silence."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from maskmill.engine.model.files import refuse_overwriting
from maskmill.engine.model.storage import location_of
from maskmill.errors import UsageError

from ...models import color_bundle
from ..corpus import label_folder, write_photos
from .test_storage_options import fault


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a bundle, photos and their labels, and files of other kinds."""
    folder = tmp_path_factory.mktemp("place")
    bundle = color_bundle(folder)
    write_photos(folder / "photos", 2)
    label_folder(bundle, folder / "photos", folder / "store")
    (folder / "empty").mkdir()
    for name in ("scene.tif", "labels.json", "map.toml", "list.txt", "photos.parquet"):
        (folder / name).write_bytes(b"precious")
    os.link(folder / "scene.tif", folder / "linked.tif")
    return folder


@pytest.fixture
def home(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder, as the current one."""
    monkeypatch.chdir(place)
    return place


@pytest.mark.parametrize(
    ("words", "path"),
    [
        (("predict", "run", "scene.tif", "-o", "scene.tif"), "scene.tif"),
        (("predict", "run", "photos/00000.png", "-o", "./photos/../photos/00000.png"), "photos/00000.png"),
        (("predict", "run", "scene.tif", "-o", "linked.tif"), "scene.tif"),
        (("manifest", "photos.parquet", "-o", "photos.parquet"), "photos.parquet"),
        (("taxonomy", "bundle", "--labels", "map.toml", "-o", "map.toml"), "map.toml"),
        (("calibrate", "--alpha", "0.2", "--calibration", "labels.json", "-o", "labels.json"), "labels.json"),
        (("rank", "store", "--budget", "1", "--ids", "labels.json", "-o", "labels.json"), "labels.json"),
        (("export-labels", "store", "--format", "png", "-o", "store"), "store/run.json"),
        (("merge", "store", "-o", "store"), "store/run.json"),
        (("reselect", "store", "-o", "store"), "store/run.json"),
        (("report", "store", "--calibration", "labels.json", "-o", "labels.json"), "labels.json"),
        (("show", "bundle", "photos/00000.png", "-o", "photos/00000.png"), "photos/00000.png"),
        (("show", "store", "00000", "-o", "photos/00000.png"), "photos/00000.png"),
        (("label", "bundle", "list.txt", "-o", "new", "--log", "list.txt"), "list.txt"),
        (("train", "store", "-o", "store"), "store/run.json"),
    ],
    ids=lambda words: words[0] if isinstance(words, tuple) else "",
)
def test_no_command_overwrites_its_input(home: Path, words: tuple[str, ...], path: str) -> None:
    before = (home / path).read_bytes()
    assert "is an input and would be overwritten" in fault(*words)
    assert (home / path).read_bytes() == before


def test_files_are_the_same_by_their_place_or_their_content(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    refuse_overwriting(tmp_path / "c", [tmp_path / "a", "https://server/c", "\0", tmp_path / "d"])
    for output, source in (("a", "b"), ("new", "x/../new")):
        with pytest.raises(UsageError, match="is an input"):
            refuse_overwriting(tmp_path / output, [f"{tmp_path}/{source}"])


def test_an_option_of_one_value_is_given_once(home: Path) -> None:
    words = ("label", "bundle", "photos", "-o", "new", "--calibration", "a", "--calibration", "b")
    assert fault(*words).startswith("--calibration is given 2 times, and takes one value")
    assert fault("show", "store", "00000", "-o", "a.png", "--output", "b.png").startswith("--output is given 2 times")


def test_a_second_name_that_is_neither_image_nor_store_is_refused_as_both(home: Path) -> None:
    for name in ("nowhere", "empty"):
        assert fault("show", "store", name).startswith(f"store holds no image {name}, and {name} is no label store;")


def test_evaluating_nothing_says_so(home: Path) -> None:
    message = fault("evaluate", "nowhere", "--images", "photos", "--labels", "photos")
    assert message == "nowhere does not exist; give a label store, a training run or a model bundle"


def test_urls_are_compared_as_they_are(home: Path) -> None:
    pytest.importorskip("obstore")
    store = location_of("s3://bucket/store", {})
    refuse_overwriting(store, ["photos", Path("bundle"), "s3://bucket/photos"])
    refuse_overwriting(Path("store"), ["s3://bucket/store"])
    with pytest.raises(UsageError, match="s3://bucket/store is an input"):
        refuse_overwriting(store, ["s3://bucket/store"])
