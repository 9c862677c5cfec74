"""Every command with stores, models, calibrations, labels and photos in a bucket, as a user calls it."""

from __future__ import annotations

import json
import os
import socket
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

pytest.importorskip("moto.server")
pytest.importorskip("obstore")

from maskmill.cli import app  # noqa: E402
from maskmill.engine.store.label_store import LabelStore  # noqa: E402

from ...models import cam_bundle, sam_bundle  # noqa: E402
from ..cli.test_reselect import label_home  # noqa: E402
from ..corpus import write_damaged_shards  # noqa: E402
from .bucket_server import serve_bucket, upload  # noqa: E402
from .prompted_jobs import write_scenes  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")

BUCKET = "s3://bucket"
CONFORMAL = ("--select", "conformal", "--calibration", f"{BUCKET}/c.json")
STORES = (f"{BUCKET}/a", f"{BUCKET}/b")
Call = Callable[..., str]


@pytest.fixture(scope="module")
def options() -> Iterator[dict[str, str]]:
    with serve_bucket() as server:
        yield server.options


@pytest.fixture(scope="module")
def fails(options: dict[str, str]) -> Call:
    """Call of a command that ends with an error; returns its message."""

    def call(*words: object) -> str:
        result = run(words, options)
        assert result.exit_code != 0, result.output
        return str(result.exception)

    return call


@pytest.fixture(scope="module")
def call(options: dict[str, str]) -> Call:
    """Call of a command that succeeds; returns what it prints."""

    def call(*words: object) -> str:
        result = run(words, options)
        assert result.exit_code == 0, f"{result.exception!r}\n{result.output}"
        return result.output

    return call


def run(words: tuple[object, ...], options: dict[str, str]) -> Any:
    storage = [word for name, value in options.items() for word in ("--storage-option", f"{name}={value}")]
    return CliRunner().invoke(app, [str(word) for word in words] + storage, env={"COLUMNS": "300"})


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, options: dict[str, str], call: Call) -> Iterator[Path]:
    """A folder to write into; the bucket holds two stores and everything that they were made of."""
    folder = tmp_path_factory.mktemp("home")
    before = Path.cwd()
    os.chdir(folder)
    label_home(folder, {})
    (folder / "my photos").rename(folder / "photos")
    (folder / "ids.txt").write_text("".join(f"{number}.png\n" for number in range(8)))
    for name in ("photos", "labels", "bundle", "c.json", "ids.txt"):
        upload(folder / name, f"{BUCKET}/{name}", options)
    for number, store in enumerate(STORES):
        call("label", f"{BUCKET}/bundle", f"{BUCKET}/photos", "-o", store, "--shard", f"{number}/2", *CONFORMAL,
             "--keep-scores", "0.1")  # fmt: skip
    yield folder
    os.chdir(before)


def num_images(store: str | Path, options: dict[str, str]) -> int:
    return len(LabelStore.open(store, storage_options=options))


def test_stores_are_counted_verified_and_shown(call: Call, home: Path, options: dict[str, str]) -> None:
    assert sum(num_images(store, options) for store in STORES) == 12
    progress = call("status", *STORES)
    assert all(f"{store}: " in progress for store in STORES)
    checks = call("verify", *STORES)
    assert checks.count("nothing is damaged") == 2
    assert "s3://bucket/a" in call("show", *STORES)
    assert call("show", *STORES, "3.png", "-o", "3-labels.png") == "wrote 3-labels.png\n"
    assert call("show", f"{BUCKET}/bundle", f"{BUCKET}/photos/3.png", "-o", "preview.png") == "wrote preview.png\n"
    assert (home / "3-labels.png").is_file()
    assert (home / "preview.png").is_file()


def test_stores_are_reported_ranked_and_measured(call: Call, home: Path) -> None:
    call("report", *STORES, "--model", f"{BUCKET}/bundle", "--labels", f"{BUCKET}/labels", "--calibration",
         f"{BUCKET}/c.json")  # fmt: skip
    assert "s3:/b" not in (home / "report.html").read_text()
    call("rank", *STORES, "--budget", "3", "--model", f"{BUCKET}/bundle", "-o", "queue.json")
    assert len(json.loads((home / "queue.json").read_text())["images"]) == 3
    measured = json.loads(call("evaluate", *STORES, "--labels", f"{BUCKET}/labels", "--json"))
    assert measured["num_images"] == 12
    model = ("evaluate", f"{BUCKET}/bundle", "--images", f"{BUCKET}/photos", "--labels", f"{BUCKET}/labels")
    assert json.loads(call(*model, "--ids", f"{BUCKET}/ids.txt", "--json"))["num_images"] == 8


def test_corrected_labels_come_back_and_calibrate(call: Call, home: Path, options: dict[str, str]) -> None:
    call("export-labels", *STORES, "--format", "png", "-o", "files", "--images", "copy", "--calibration",
         f"{BUCKET}/c.json")  # fmt: skip
    corrected = 0
    for path in (home / "files").rglob("*.png"):
        label = np.array(Image.open(path))
        if label.ndim == 2:
            label[:2] = 1
            Image.fromarray(label).save(path)
            corrected += 1
    assert corrected == 12
    upload(home / "files", f"{BUCKET}/files", options)
    assert "s3:/b" not in call("import-labels", *STORES, f"{BUCKET}/files", "--reviewer", "ana")
    assert "12 images used" in call("evaluate", *STORES, "--reviewed")
    reviewed = [word for store in STORES for word in ("--reviewed", store)]
    assert "12 images used" in call("calibrate", f"{BUCKET}/bundle", *reviewed, "--alpha", "0.2", "-o", "r.json")
    output = call("import-labels", *STORES, "--withdraw")
    assert f"{STORES[0]}, {STORES[1]}: 12 reviews withdrawn" in output


def test_photos_and_label_maps_calibrate(call: Call, fails: Call) -> None:
    model = (f"{BUCKET}/bundle", "--images", f"{BUCKET}/photos", "--labels", f"{BUCKET}/labels")
    assert "8 images used" in call("calibrate", *model, "--ids", f"{BUCKET}/ids.txt", "--alpha", "0.2", "-o", "r2.json")
    call("calibrate", "--calibration", f"{BUCKET}/c.json", "--like", STORES[1], "--alpha", "0.2", "-o", "r3.json")
    call("choose", *model, "-o", "r4.json")
    message = fails("taxonomy", f"{BUCKET}/bundle", "-o", "t.toml", "--labels", f"{BUCKET}/labels")
    assert "the label maps in s3://bucket/labels hold 0, 1, 2, and no name is known for them" in message


def test_stores_are_selected_again_and_merged(call: Call, fails: Call, home: Path, options: dict[str, str]) -> None:
    call("reselect", *STORES, "-o", f"{BUCKET}/again", "--alpha", "0.2")
    assert num_images(f"{BUCKET}/again", options) == 12
    call("reselect", STORES[1], "-o", "again", "--alpha", "0.2", "--calibration", f"{BUCKET}/c.json")
    assert num_images(home / "again", options) == num_images(STORES[1], options)
    assert call("merge", *STORES, "-o", f"{BUCKET}/merged").startswith("s3://bucket/merged: 12 images")
    call("merge", *STORES, "-o", "merged")
    assert num_images(home / "merged", options) == 12
    assert "s3://bucket/a is one of the stores to merge" in fails("merge", STORES[0], "-o", STORES[0])


def test_a_manifest_is_labeled_by_a_process_of_an_array(call: Call, options: dict[str, str]) -> None:
    assert "12 images" in call("manifest", f"{BUCKET}/photos", "-o", "photos.parquet")
    upload(Path("photos.parquet"), f"{BUCKET}/photos.parquet", options)
    call("label", f"{BUCKET}/bundle", f"{BUCKET}/photos.parquet", "-o", f"{BUCKET}/array", "--runner", "array",
         *CONFORMAL)  # fmt: skip
    assert num_images(f"{BUCKET}/array", options) == 12


def test_what_is_sound_in_damaged_archives_is_labeled(home: Path, options: dict[str, str]) -> None:
    write_damaged_shards(home / "shards")
    upload(home / "shards", f"{BUCKET}/shards", options)
    words = ("label", f"{BUCKET}/bundle", f"{BUCKET}/shards/s-*.tar", "-o", f"{BUCKET}/from-shards")
    assert run(words, options).exit_code == 1  # there are rejects
    store = LabelStore.open(f"{BUCKET}/from-shards", storage_options=options)
    rejects = sorted(row.uri.removeprefix(f"{BUCKET}/shards/") for row in store.rejects())
    assert (len(store), rejects) == (12, ["s-1.tar", "s-2.tar::1.png", "s-3.tar"])


def test_a_model_is_timed(call: Call) -> None:
    call("bench", f"{BUCKET}/bundle", "--images", f"{BUCKET}/photos", "--num-images", "2", "--seconds", "0.1")


def test_a_page_is_served(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    uvicorn: Any = pytest.importorskip("uvicorn")
    run = uvicorn.Server.run
    answers = []

    def answer_once(server: Any, sockets: Any) -> None:
        thread = threading.Thread(target=run, args=(server, sockets))
        thread.start()
        port = sockets[0].getsockname()[1]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/images") as answer:
            answers.append(json.load(answer))
        server.should_exit = True
        thread.join()

    monkeypatch.setattr(uvicorn.Server, "run", answer_once)
    port = str(free_port())
    output = call("serve", *STORES, "--calibration", f"{BUCKET}/c.json", "--port", port)
    assert output.startswith(f"{STORES[0]}, {STORES[1]}: http://127.0.0.1:{port}/ ")
    assert len(answers[0]["images"]) == 12


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def test_prompted_models_and_image_labels_label(call: Call, home: Path, options: dict[str, str]) -> None:
    cam_bundle(home)
    sam_bundle(home)
    write_scenes(home / "scenes", 3)
    Path("scenes.csv").write_text("image,labels\n" + "".join(f"{number}.png,red;green\n" for number in range(3)))
    for name in ("cam", "sam", "scenes", "scenes.csv"):
        upload(home / name, f"{BUCKET}/{name}", options)
    models = ("--sam", f"{BUCKET}/sam", "--set", "min_distance=3", "--set", "mode=peaks")
    models += ("--cam", f"{BUCKET}/cam", "--image-labels", f"{BUCKET}/scenes.csv")
    call("label-prompted", *models, f"{BUCKET}/scenes", "-o", f"{BUCKET}/prompted", "--select", "argmax")
    assert num_images(f"{BUCKET}/prompted", options) == 3
    call("segment", "--sam", f"{BUCKET}/sam", "--set", "side=4", f"{BUCKET}/scenes", "-o", f"{BUCKET}/segments")
    assert num_images(f"{BUCKET}/segments", options) == 3


def test_a_student_is_trained_from_stores(call: Call) -> None:
    pytest.importorskip("torch")
    tiny = [f"--set={setting}" for setting in ("model=tiny", "model.width=4", "crop=16", "batch=4", "steps=2")]
    output = call("train", *STORES, "--recipe", "weighted", "--device", "cpu", "--workers", "0", "-o", "student", *tiny)
    assert "2 of 2 steps" in output
    student = ("evaluate", "student", "--images", f"{BUCKET}/photos", "--labels", f"{BUCKET}/labels", "--json")
    assert json.loads(call(*student))["num_images"] == 12
