from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import maskmill
from maskmill.cli import app
from maskmill.engine.calibration.calibration import Calibration
from maskmill.engine.report.page.gallery import choose_groups
from maskmill.engine.report.page.overview import read_overview
from maskmill.engine.report.page.palette import class_palette
from maskmill.engine.store.label_store import LabelStore, ReviewRow
from maskmill.errors import UsageError

from ...models import color_bundle, color_image
from ..labeling.test_export_labels import TAXONOMY, make_store


def page_data(page: Path) -> dict[str, Any]:
    """The data that the page's scripts read."""
    (text,) = re.findall(r'<script type="application/json" id="page-data">(.*?)</script>', page.read_text(), re.DOTALL)
    return json.loads(text)


@pytest.fixture(scope="module")
def labeled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A calibrated store with truth, and one input that cannot be read."""
    home = tmp_path_factory.mktemp("report")
    bundle = color_bundle(home, size=(16, 24), gain=6.0).path
    rng = np.random.default_rng(0)
    for images, labels, indices in (("data/images", "data/labels", range(6, 30)), ("photos", "truth", range(6))):
        for name in (images, labels):
            (home / name).mkdir(parents=True)
        for index in indices:
            label = np.broadcast_to((np.arange(24) // 8 + index) % 3, (16, 24))
            noisy = color_image(label, strength=140) + rng.integers(0, 100, (16, 24, 3))
            Image.fromarray(noisy.astype(np.uint8)).save(home / images / f"{index} <i>&.png")
            Image.fromarray(label.astype(np.uint8)).save(home / labels / f"{index} <i>&.png")
    (home / "photos" / "broken.png").write_bytes(b"not a picture")
    calibration = maskmill.calibrate(bundle, home / "data/images", home / "data/labels", alpha=0.1)
    calibration.save(home / "calibration.json")
    maskmill.label(bundle, home / "photos", home / "store", calibration=calibration, weight="pcos")
    return {name: home / name for name in ("store", "truth", "bundle", "calibration.json", "photos", "data/images")}


def write_page(labeled: dict[str, Path], page: Path) -> Path:
    """The page with everything it can show."""
    return maskmill.report(
        labeled["store"],
        page,
        labels=labeled["truth"],
        calibration=labeled["calibration.json"],
        model=labeled["bundle"],
    )


def test_the_page_tells_the_run_in_words_and_figures(labeled: dict[str, Path], tmp_path: Path) -> None:
    text = write_page(labeled, tmp_path / "page.html").read_text()
    plain = re.sub(r"<[^>]*>|\s+", " ", text)
    plain = re.sub(" +", " ", plain).replace("&#8239;", " ")
    quality = maskmill.evaluate(labeled["store"], labels=str(labeled["truth"]))
    assert "6 images" in plain
    assert f"{100 * quality.accuracy_kept:.1f}" in plain
    assert "the target is 90 %" in plain
    assert "1 of 7 inputs could not be read" in plain
    for section in ("coverage", "kept", "balance", "truth", "drift", "rejects", "speed", "record", "gallery"):
        assert f'<section id="{section}">' in text, section
    assert "images per second" in plain


def test_the_page_loads_nothing_and_allows_its_own_script_alone(labeled: dict[str, Path], tmp_path: Path) -> None:
    text = write_page(labeled, tmp_path / "page.html").read_text()
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    assert policy is not None
    assert "default-src &#39;none&#39;" in policy[1]
    assert "unsafe-inline" not in policy[1]
    assert not re.search(r"(?:src|href)=\"(?!#)|@import|url\(|style=\"", text)


def test_names_are_escaped(labeled: dict[str, Path], tmp_path: Path) -> None:
    page = write_page(labeled, tmp_path / "page.html")
    assert "<i>&.png" not in page.read_text()
    assert any(picture["name"].endswith("<i>&.png") for picture in page_data(page)["images"])


def test_pictures_carry_labels_weights_and_raw_labels(labeled: dict[str, Path], tmp_path: Path) -> None:
    data = page_data(write_page(labeled, tmp_path / "page.html"))
    assert data["classes"] == ["red", "green", "blue"]
    assert {group["key"] for group in data["groups"]} >= {"random", "doubtful", "worst", "best", "unlike", "classes"}
    for picture in data["images"]:
        assert picture["photo"].startswith("data:image/jpeg")
        assert all(picture[name].startswith("data:image/png") for name in ("label", "weight", "raw"))
        assert 0 <= picture["accuracy"] <= 1


def test_without_truth_calibration_and_model_the_page_says_what_is_missing(tmp_path: Path) -> None:
    store = make_store(tmp_path, 4)
    text = maskmill.report(store, tmp_path / "page.html").read_text()
    assert "neither a calibration nor true labels were given" in text
    assert '<section id="coverage">' not in text
    assert "--calibration FILE" in text


def test_the_page_of_a_calibrated_store_knows_its_calibration(labeled: dict[str, Path], tmp_path: Path) -> None:
    text = maskmill.report(labeled["store"], tmp_path / "page.html").read_text()
    alpha = Calibration.load(labeled["calibration.json"]).alpha
    assert f"selected with a calibration at alpha {alpha}" in text
    assert "no calibration" not in text


def test_a_photo_that_is_gone_leaves_its_labels(tmp_path: Path) -> None:
    store = make_store(tmp_path, 3)
    (tmp_path / "photos" / "1.png").unlink()
    pictures = page_data(maskmill.report(store, tmp_path / "page.html"))["images"]
    assert {picture["name"]: picture["photo"] is None for picture in pictures}["1.png"]


def test_reviews_are_shown(tmp_path: Path) -> None:
    store = make_store(tmp_path, 3)
    store.commit_reviews([ReviewRow(id=store.ids()[0], reviewer="ana", time=1, verdict="accepted")])
    page = maskmill.report(store, tmp_path / "page.html")
    assert "Reviewed by people" in page.read_text()
    assert {picture["review"] for picture in page_data(page)["images"]} == {None, "accepted"}


def test_doubtful_images_come_first_in_their_group(tmp_path: Path) -> None:
    store = make_store(tmp_path, 9)
    overview = read_overview(store)
    groups = {group.key: group for group in choose_groups(overview, TAXONOMY, size=3)}
    worst = groups["worst"].images
    assert len(worst) == 3
    assert overview.kept[list(worst)].max() <= np.sort(overview.kept)[2]
    best = groups["best"].images[0]
    assert overview.kept[best] == overview.kept.max()


def test_another_calibration_or_model_is_refused(labeled: dict[str, Path], tmp_path: Path) -> None:
    other = Calibration.load(labeled["calibration.json"]).at("0.3")
    with pytest.raises(UsageError, match="not the one"):
        maskmill.report(labeled["store"], tmp_path / "page.html", calibration=other)
    bundle = color_bundle(tmp_path, size=(16, 24), gain=5.0).path
    with pytest.raises(UsageError, match="another model"):
        maskmill.report(labeled["store"], tmp_path / "page.html", model=bundle)


def test_an_empty_store_and_segments_are_refused(tmp_path: Path) -> None:
    empty = LabelStore.create(tmp_path / "empty", {"classes": TAXONOMY.to_json(), "select": "argmax"})
    with pytest.raises(UsageError, match="no labeled image"):
        maskmill.report(empty, tmp_path / "page.html")
    segments = LabelStore.create(tmp_path / "segments", {"maps": "segments"})
    with pytest.raises(maskmill.MaskmillError, match="segments without classes"):
        maskmill.report(segments, tmp_path / "page.html")


def test_the_command_writes_the_page_and_refuses_other_endings(labeled: dict[str, Path], tmp_path: Path) -> None:
    page = tmp_path / "a page.html"
    result = CliRunner().invoke(app, ["report", str(labeled["store"]), "-o", str(page), "--pictures", "2"])
    assert result.exit_code == 0, result.output
    assert page.is_file()
    result = CliRunner().invoke(app, ["report", str(labeled["store"]), "-o", str(tmp_path / "page.pdf")])
    assert isinstance(result.exception, UsageError)


def test_the_first_sixteen_colors_differ_for_every_color_vision() -> None:
    linear = np.array([[int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)] for color in class_palette(16)]) ** 2.2
    deficiencies = (  # Machado et al. 2009, severity 1: none, protanopia, deuteranopia
        np.eye(3),
        np.array([[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]]),
        np.array([[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]]),
    )
    for matrix in deficiencies:
        seen = np.clip(linear @ matrix.T, 0, 1) ** (1 / 2.2)
        distance = np.linalg.norm(seen[:, None] - seen[None], axis=-1) + np.eye(16)
        assert distance.min() > 0.1


@pytest.mark.parametrize(
    "options",
    [
        {"unit": "image"},
        {"control": "false-label-rate"},
        {"control": "miss-rate"},
        {"group": "pooled", "rule": "single"},
        {"group": "position"},
    ],
    ids=lambda options: " ".join(options.values()),
)
def test_every_kind_of_calibration_is_described(
    labeled: dict[str, Path], tmp_path: Path, options: dict[str, Any]
) -> None:
    images = labeled["data/images"]
    calibration = maskmill.calibrate(labeled["bundle"], images, images.parent / "labels", alpha=0.2, **options)
    maskmill.label(labeled["bundle"], labeled["photos"], tmp_path / "store", calibration=calibration)
    text = maskmill.report(
        tmp_path / "store", tmp_path / "page.html", calibration=calibration, model=labeled["bundle"]
    ).read_text()
    assert '<section id="coverage">' in text
    assert ("the target is" in text) == (options.get("control") != "miss-rate")
