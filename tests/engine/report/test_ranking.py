from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner

import maskmill
from maskmill.cli import app
from maskmill.engine.inputs.names import read_ids
from maskmill.engine.report.ranking.label_errors import doubt_image, softmin
from maskmill.engine.report.ranking.near_duplicates import Prints, pairs_between, pairs_within, photo_print
from maskmill.engine.report.ranking.queue import Candidates, plan_queue
from maskmill.engine.store.label_store import ReviewRow
from maskmill.errors import UsageError

from ...models import color_bundle, color_image
from ..labeling.test_export_labels import make_store


def scene(seed: int, height: int = 96, width: int = 128) -> NDArray[np.uint8]:
    """A photo of smooth shapes (H, W, 3); other seeds show something else."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC))


def jpeg(photo: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    return np.asarray(cv2.imdecode(cv2.imencode(".jpg", photo, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], 1))


@pytest.mark.parametrize(
    "change",
    [
        lambda photo: cv2.resize(photo, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA),
        lambda photo: cv2.resize(photo, None, fx=1.7, fy=1.7, interpolation=cv2.INTER_CUBIC),
        lambda photo: jpeg(photo, 40),
        lambda photo: np.clip(photo * 0.8 + 20, 0, 255).astype(np.uint8),
    ],
    ids=["half", "larger", "jpeg", "brighter"],
)
def test_changed_copies_are_near_duplicates_and_other_photos_are_not(change) -> None:
    originals = Prints.gather([photo_print(scene(seed)) for seed in range(12)])
    copies = Prints.gather([photo_print(change(scene(seed))) for seed in range(12)])
    assert pairs_between(originals, copies) == [(seed, seed) for seed in range(12)]
    assert pairs_within(originals) == []


def test_the_queue_prefers_doubt_then_classes_that_are_missing_then_new_sights() -> None:
    shares = np.zeros((4, 2))
    shares[:, 0] = 1
    alike = np.zeros((4, 3), np.float32)
    doubt = np.array([0.1, 0.9, 0.5, 0.3])
    order = plan_queue(
        Candidates(doubt=doubt, shares=shares, descriptors=alike), 4, calibrated=np.array([99, 0]), enough=10
    )
    assert [pick.image for pick in order] == [1, 2, 3, 0]
    shares[0, 1] = 0.2  # the only image of a class without a calibration image
    order = plan_queue(
        Candidates(doubt=doubt, shares=shares, descriptors=alike), 1, calibrated=np.array([99, 0]), enough=10
    )
    assert (order[0].image, order[0].classes, order[0].need) == (0, (1,), 1.0)


def test_images_that_look_like_earlier_ones_come_later() -> None:
    descriptors = np.array([[0, 0], [0, 0], [9, 9], [0, 0]], np.float32)
    order = plan_queue(
        Candidates(doubt=np.array([0.9, 0.8, 0.7, 0.1]), shares=np.ones((4, 1)), descriptors=descriptors),
        3,
        calibrated=np.array([99]),
        enough=1,
    )
    assert [pick.image for pick in order] == [0, 2, 1]


def test_of_near_duplicates_one_is_taken() -> None:
    candidates = Candidates(doubt=np.array([0.9, 0.8, 0.1]), shares=np.ones((3, 1)), descriptors=np.zeros((3, 1)))
    order = plan_queue(candidates, 3, calibrated=np.array([99]), enough=1, twins=[(0, 1)])
    assert [pick.image for pick in order] == [0, 2]


def test_softmin_is_that_of_cleanlab() -> None:
    scores = np.array([0.9, 0.2, 0.7, 1.0], np.float32)
    weights = np.exp((1 - scores) / 0.1) / np.exp((1 - scores) / 0.1).sum()
    assert softmin(scores) == pytest.approx(float((weights * scores).sum()), rel=1e-6)
    assert softmin(np.empty(0, np.float32)) == 1.0


def test_a_doubted_label_names_what_the_model_sees() -> None:
    doubt = doubt_image(
        "a.png", np.array([0.9, 0.1, 0.1], np.float32), np.array([0, 1, 1]), np.array([0, 2, 2]), ("sky", "cow", "dog")
    )
    assert (doubt.given, doubt.suggested, doubt.doubted) == ("cow", "dog", pytest.approx(2 / 3))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of twelve photos, of which two are near-duplicates and one is a calibration image."""
    home = tmp_path_factory.mktemp("rank")
    bundle = color_bundle(home, size=(32, 48), gain=6.0)
    rng = np.random.default_rng(0)
    (home / "classes.txt").write_text("red\ngreen\nblue\n")
    for name in ("data/images", "data/labels", "photos"):
        (home / name).mkdir(parents=True)
    for index in range(24):
        label = np.broadcast_to((np.arange(48) // 16 + index) % 2, (32, 48))
        photo = color_image(label, strength=140) + (scene(index, 32, 48) * 0.4).astype(np.uint8)
        Image.fromarray(photo).save(home / "data/images" / f"{index}.png")
        Image.fromarray(label.astype(np.uint8)).save(home / "data/labels" / f"{index}.png")
    for index in range(10):
        label = np.broadcast_to((rng.permutation(3)[np.arange(48) // 16]), (32, 48))
        photo = color_image(label, strength=140) + (scene(100 + index, 32, 48) * 0.4).astype(np.uint8)
        Image.fromarray(photo).save(home / "photos" / f"{index}.png")
    Image.fromarray(photo).save(home / "photos" / "copy of 9.jpg", quality=95)
    (home / "photos" / "known.png").write_bytes((home / "data/images/3.png").read_bytes())
    calibration = maskmill.calibrate(bundle, home / "data/images", home / "data/labels", alpha=0.1)
    calibration.save(home / "calibration.json")
    maskmill.label(bundle, home / "photos", home / "store", calibration=calibration)
    return home


def test_near_duplicates_are_left_out_and_those_of_the_calibration_named(home: Path) -> None:
    queue = maskmill.rank(
        home / "store", 12, calibration=home / "calibration.json", images=home / "data/images", model=home / "bundle"
    )
    names = [Path(image.uri).name for image in queue.images]
    assert "known.png" not in names
    assert len({"9.png", "copy of 9.jpg"} & set(names)) == 1
    assert [tuple(Path(uri).name for uri in pair) for pair in queue.twins] in (
        [("9.png", "copy of 9.jpg")],
        [("copy of 9.jpg", "9.png")],
    )
    assert [tuple(Path(uri).name for uri in pair) for pair in queue.calibration_twins] == [("3.png", "known.png")]
    assert "blue" in queue.images[0].classes  # no calibration image shows it
    # every rule of this store labels a pixel only if its prediction set holds one class
    assert all(image.doubt == pytest.approx(1 - image.kept, abs=1e-6) for image in queue.images)
    assert {image.doubt_rank for image in queue.images} <= {rank / (len(queue.images)) for rank in range(12)}


def test_without_scores_the_queue_is_random_and_says_so(home: Path, tmp_path: Path) -> None:
    queue = maskmill.rank(home / "store", 12, calibration=home / "calibration.json")
    assert queue.basis == "random"
    assert [image.id for image in queue.images] == sorted((image.id for image in queue.images), reverse=True)
    command = ["rank", str(home / "store"), "-o", str(tmp_path / "queue.json")]
    assert "drawn at random" in CliRunner().invoke(app, command).output


def test_kept_scores_show_the_classes_that_the_calibration_lacks(home: Path, tmp_path: Path) -> None:
    maskmill.label(
        home / "bundle", home / "photos", tmp_path / "store", calibration=home / "calibration.json", keep_scores=0.1
    )
    queue = maskmill.rank(tmp_path / "store", 3, calibration=home / "calibration.json")
    assert queue.basis == "scores"
    assert "blue" in queue.images[0].classes


def test_reviewed_images_are_not_queued_again(tmp_path: Path) -> None:
    store = make_store(tmp_path, 4)
    store.commit_reviews([ReviewRow(id=store.ids()[0], reviewer="ana", time=1, verdict="accepted")])
    queue = maskmill.rank(store, 4)
    assert {image.id for image in queue.images} <= set(store.ids()[1:])
    store.commit_reviews([ReviewRow(id=id, reviewer="ana", time=1, verdict="accepted") for id in store.ids()])
    with pytest.raises(UsageError, match="neither reviewed"):
        maskmill.rank(store, 4)


def test_a_wrong_label_comes_first(home: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels"
    labels.mkdir()
    for path in (home / "data/labels").iterdir():
        label = np.array(Image.open(path))
        if path.stem == "7":
            label[:, 16:32] = 1 - label[:, 16:32]
        Image.fromarray(label).save(labels / path.name)
    queue = maskmill.rank(home / "store", 0, images=home / "data/images", labels=labels, model=home / "bundle")
    assert not queue.images
    first = queue.label_errors[0]
    assert Path(first.uri).stem == "7"
    assert first.doubted == pytest.approx(1 / 3, abs=0.1)
    assert {first.given, first.suggested} == {"red", "green"}


def test_the_queue_is_exported_for_people_with_its_labels(home: Path, tmp_path: Path) -> None:
    queue = tmp_path / "queue.json"
    result = CliRunner().invoke(app, ["rank", str(home / "store"), "--budget", "3", "-o", str(queue)])
    assert result.exit_code == 0, result.output
    assert "3 of 12 candidates" in result.output
    assert read_ids(queue) == {image["uri"] for image in json.loads(queue.read_text())["images"]}
    for format in ("cvat", "label-studio"):
        output = tmp_path / format
        command = ["export-labels", str(home / "store"), "--format", format, "--ids", str(queue), "--ignored", "drop"]
        result = CliRunner().invoke(app, [*command, "-o", str(output)])
        assert result.exit_code == 0, result.output
        assert "labels of 3 images written" in result.output


def test_options_that_need_others_are_refused(home: Path) -> None:
    runner = CliRunner()
    for options, text in (
        (["--labels", "x"], "--images"),
        (["--pairing", "*=*_gt"], "--labels"),
        (["-o", "queue.txt"], ".json"),
    ):
        result = runner.invoke(app, ["rank", str(home / "store"), *options])
        assert isinstance(result.exception, UsageError)
        assert text in str(result.exception)


def test_a_json_file_that_is_no_queue_is_refused_as_a_list(tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    for text in ("{", "[]", '{"images": [1]}', '{"images": []}'):
        path.write_text(text)
        with pytest.raises(UsageError, match="queue"):
            read_ids(path)
