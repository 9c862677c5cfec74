from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from maskmill.engine.calibration.calibrate import calibrate
from maskmill.engine.calibration.calibration import Calibration
from maskmill.engine.calibration.candidates import recommend
from maskmill.engine.calibration.choose import choose
from maskmill.engine.calibration.thresholds import alpha_text
from maskmill.engine.inputs.labels import LabelFolder
from maskmill.engine.inputs.sources import open_source
from maskmill.engine.labeling.selection import Selection
from maskmill.engine.model.bundle import Bundle
from maskmill.engine.model.taxonomy import Taxonomy
from maskmill.engine.predictors.semantic import SemanticPredictor
from maskmill.engine.report.display import print_calibration
from maskmill.engine.report.evaluate import evaluate_predictor
from maskmill.engine.runtimes.onnx_runtime import OnnxSession
from maskmill.errors import CalibrationError, CalibrationMismatch, TaxonomyError, UsageError

from ...models import color_bundle, color_image

SIZE = (16, 24)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return color_bundle(tmp_path_factory.mktemp("model"), size=SIZE, gain=6.0)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty noisy photos of vertical stripes with their label maps; the outer rows are void."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "images").mkdir()
    (folder / "labels").mkdir()
    rng = np.random.default_rng(0)
    for index in range(30):
        label = np.broadcast_to((np.arange(SIZE[1]) // 6 + index) % (3 if index % 3 else 2), SIZE).copy()
        noise = rng.normal(0, 90, (*SIZE, 3))
        photo = np.clip(color_image(label, strength=150) + 50 + noise, 0, 255).astype(np.uint8)
        truth = label.astype(np.uint8)
        truth[[0, -1]] = 255
        Image.fromarray(photo).save(folder / "images" / f"{index}.png")
        Image.fromarray(truth).save(folder / "labels" / f"{index}.png")
    return folder


def run(bundle: Bundle, photos: Path, **options: Any) -> Calibration:
    predictor = SemanticPredictor(bundle, OnnxSession(bundle))
    taxonomy = options.pop("taxonomy", Taxonomy.of_model(bundle))
    source = open_source(options.pop("images", photos / "images"))
    group = options.get("group", "class" if options.get("unit", "pixel") == "pixel" else "pooled")
    of_classes = group not in ("pooled", "position") and options.get("control", "miscoverage") == "miscoverage"
    defaults = {"alpha": "0.1", "min_images": 5 if of_classes else None}
    return calibrate(predictor, source, LabelFolder(photos / "labels"), taxonomy, **{**defaults, **options})


def softmax_scores(photos: Path, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Nonconformity scores of one photo in float64: the model's output is 6 times the color."""
    with Image.open(photos / "images" / f"{index}.png") as image:
        logits = np.asarray(image) / 255.0 * 6.0
    exponentials = np.exp(logits - logits.max(axis=2, keepdims=True))
    with Image.open(photos / "labels" / f"{index}.png") as image:
        truth = np.asarray(image)
    valid = truth != 255
    probabilities = exponentials / exponentials.sum(axis=2, keepdims=True)
    return 1 - probabilities[valid, truth[valid]], truth[valid]


@pytest.mark.parametrize("group", ["pooled", "class"])
def test_thresholds_are_order_statistics_of_the_models_scores(bundle: Bundle, photos: Path, group: str) -> None:
    calibration = run(bundle, photos, group=group)
    scores, truth = (np.concatenate(part) for part in zip(*(softmax_scores(photos, i) for i in range(30)), strict=True))
    for target in range(3):
        chosen = np.sort(scores if group == "pooled" else scores[truth == target])
        rank = int(np.ceil((len(chosen) + 1) * 9 / 10))
        assert calibration.thresholds[target] == pytest.approx(chosen[rank - 1], rel=1e-5)


def test_the_number_of_workers_changes_nothing(bundle: Bundle, photos: Path) -> None:
    one, four = run(bundle, photos, workers=1), run(bundle, photos, workers=4)
    np.testing.assert_array_equal(one.thresholds, four.thresholds)
    assert one.report == four.report


def test_the_report_counts_pixels_images_and_held_out_coverage(bundle: Bundle, photos: Path) -> None:
    report = run(bundle, photos).report
    assert report["num_images"] == 30
    assert report["num_pixels"] == 30 * (SIZE[0] - 2) * SIZE[1]
    rows = {row["class"]: row for row in report["classes"]}
    assert rows["red"]["images"] == 30
    assert rows["blue"]["images"] == 20
    assert sum(row["pixels"] for row in rows.values()) == report["num_pixels"]
    overall = report["overall"]
    assert overall["coverage"] == pytest.approx(0.9, abs=0.03)
    assert overall["interval"][0] <= overall["coverage"] <= overall["interval"][1]
    assert 0 < overall["singleton_share"] <= 1
    assert overall["mean_set_size"] >= overall["singleton_share"]


def test_a_class_seen_in_few_images_shares_the_threshold_of_the_foreground(bundle: Bundle, photos: Path) -> None:
    calibration = run(bundle, photos, min_images=25)
    sources = {row["class"]: row["threshold_from"] for row in calibration.report["classes"]}
    assert sources == {"red": "own", "green": "own", "blue": "foreground"}
    both = [softmax_scores(photos, index) for index in range(30)]
    scores, truth = (np.concatenate(part) for part in zip(*both, strict=True))
    foreground = np.sort(scores[truth > 0]) if bundle.background == 0 else np.sort(scores)
    rank = int(np.ceil((len(foreground) + 1) * 9 / 10))
    assert calibration.thresholds[2] == pytest.approx(foreground[rank - 1], rel=1e-5)
    default = run(bundle, photos, min_images=None, alpha="0.02")
    assert default.report["min_images"] == 49  # ceil(1 / alpha) - 1


def test_a_class_that_calibration_never_saw_is_not_emitted(bundle: Bundle, photos: Path) -> None:
    two = frozenset({"0", "3", "6", "9", "12", "15", "18", "21", "24", "27"})  # red and green alone
    calibration = run(bundle, photos, ids=two)
    assert np.isneginf(calibration.thresholds[2])
    assert "blue: not in the calibration images, so it is never emitted" in " ".join(calibration.report["warnings"])
    pooled = run(bundle, photos, ids=two, unseen="pooled")
    assert pooled.thresholds[2] == np.float32(pooled.pooled)


def test_the_report_says_how_good_the_labels_of_the_rule_are(bundle: Bundle, photos: Path) -> None:
    report = run(bundle, photos, rule="agree").report
    labels, argmax = report["labels"], report["argmax"]
    hits = total = 0
    for index in range(30):
        scores, truth = softmax_scores(photos, index)
        with Image.open(photos / "images" / f"{index}.png") as image:
            top = np.asarray(image).argmax(axis=2)[1:-1].ravel()
        hits, total = hits + (top == truth).sum(), total + len(truth)
    assert argmax["accuracy"] == pytest.approx(hits / total, abs=1e-3)  # ties of colors are left to chance
    assert 0 < labels["kept"] < 1
    assert labels["kept_interval"][0] <= labels["kept"] <= labels["kept_interval"][1]
    assert labels["accuracy_kept"] > argmax["accuracy"]
    assert report["overall"]["kept"] == pytest.approx(labels["kept"])


def test_labels_worse_than_the_raw_ones_are_warned_of(bundle: Bundle, photos: Path) -> None:
    # a label for every pixel whose set holds a foreground class loses most of the background
    taxonomy = dataclasses.replace(Taxonomy.of_model(bundle), background=0)
    report = run(bundle, photos, taxonomy=taxonomy, rule="foreground", alpha="0.02", min_images=1).report
    assert report["labels"]["accuracy_kept"] < report["argmax"]["accuracy"]
    assert any("below" in warning and "maskmill choose" in warning for warning in report["warnings"])


def test_labels_that_do_not_fit_the_models_classes_are_warned_of(bundle: Bundle, photos: Path) -> None:
    shifted = dataclasses.replace(Taxonomy.of_model(bundle), labels={0: 1, 1: 2, 2: 0})
    assert "label i was assumed to be class i of the" in run(bundle, photos, taxonomy=shifted).report["warnings"][0]
    stated = dataclasses.replace(shifted, assumed=False)
    assert "label i" not in str(run(bundle, photos, taxonomy=stated).report["warnings"])
    source, labels = open_source(photos / "images"), LabelFolder(photos / "labels")
    choice, _ = choose(SemanticPredictor(bundle, OnnxSession(bundle)), source, labels, shifted)
    assert "label i was assumed to be class i of the model" in choice.warnings[0]


def test_the_top_class_means_the_same_to_calibrate_and_choose(bundle: Bundle, photos: Path) -> None:
    taxonomy = Taxonomy(targets=("red", "blue"), background=None, model=(0, -1, 1), labels={0: 0, 1: -1, 2: 1})
    argmax = run(bundle, photos, taxonomy=taxonomy).report["argmax"]
    source, labels = open_source(photos / "images"), LabelFolder(photos / "labels")
    choice, _ = choose(SemanticPredictor(bundle, OnnxSession(bundle)), source, labels, taxonomy)
    assert 0 < argmax["kept"] < 1
    # every pixel is sampled; ties of colors are left to chance
    assert (choice.raw.kept, choice.raw.accuracy) == pytest.approx((argmax["kept"], argmax["accuracy"]), abs=1e-3)
    assert any("have a dropped model class as their top class" in note for note in choice.notes)


def test_a_class_that_is_seen_where_it_is_not_is_warned_of(bundle: Bundle, tmp_path: Path) -> None:
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    for index in range(12):
        photo = np.zeros(SIZE, np.int64)
        photo[:, 14:19], photo[:, 19:] = 2, 1
        truth = photo.astype(np.uint8)
        truth[:, 15:19] = 0  # four of the five blue columns are red things
        Image.fromarray(color_image(photo, strength=200 + index)).save(tmp_path / "images" / f"{index}.png")
        Image.fromarray(truth).save(tmp_path / "labels" / f"{index}.png")
    report = run(bundle, tmp_path, alpha="0.3").report
    (warning,) = [text for text in report["warnings"] if "confident" in text]
    assert warning.startswith("blue (0.20): fewer than half of the pixels with this label are of this class")


def test_positions_have_thresholds_of_their_own(bundle: Bundle, photos: Path) -> None:
    calibration = run(bundle, photos, group="position", grid=(8, 12), alpha="0.2")
    assert calibration.thresholds.shape == (8, 12)
    assert "infinite_positions" in calibration.report
    assert calibration.report["overall"]["coverage"] == pytest.approx(0.8, abs=0.06)


def test_clusters_of_positions_share_a_threshold(bundle: Bundle, photos: Path, tmp_path: Path) -> None:
    calibration = run(bundle, photos, group="position", grid=(8, 12), alpha="0.2", clusters=3)
    assert calibration.thresholds.shape == (8, 12)
    # a row of the grid has no label in any image, and takes the pooled threshold
    assert len(np.unique(calibration.thresholds)) == 4
    assert calibration.report["position_clusters"] == 3
    assert calibration.report["overall"]["coverage"] == pytest.approx(0.8, abs=0.06)
    calibration.save(tmp_path / "calibration.json")
    assert (Calibration.load(tmp_path / "calibration.json").thresholds == calibration.thresholds).all()


def test_the_image_unit_promises_coverage_on_average_over_images(bundle: Bundle, photos: Path) -> None:
    calibration = run(bundle, photos, unit="image", group="pooled")
    misses = [(softmax_scores(photos, i)[0] > calibration.thresholds[0] * (1 + 1e-5)).mean() for i in range(30)]
    assert (sum(misses) + 1) / 31 <= 0.1


@pytest.mark.parametrize("group", ["class", "position"])
def test_a_saved_calibration_loads_equal(bundle: Bundle, photos: Path, tmp_path: Path, group: str) -> None:
    calibration = run(bundle, photos, group=group, grid=(4, 4), alpha="0.01", on_small_n="inf")
    calibration.save(tmp_path / "calibration.json")
    again = Calibration.load(tmp_path / "calibration.json")
    np.testing.assert_array_equal(again.thresholds, calibration.thresholds)
    for name in ("true", "hits", "wrong", "image", "target"):
        np.testing.assert_array_equal(getattr(again.counts, name), getattr(calibration.counts, name))
    assert again.counts.ids == calibration.counts.ids
    same = {field.name for field in dataclasses.fields(Calibration)} - {"thresholds", "counts"}
    assert all(getattr(again, name) == getattr(calibration, name) for name in same)


@pytest.mark.parametrize("value", [0.5, float("nan"), -1.0, "inf"])
def test_a_calibration_edited_by_hand_is_refused(bundle: Bundle, photos: Path, tmp_path: Path, value: Any) -> None:
    path = tmp_path / "calibration.json"
    run(bundle, photos).save(path)
    raw = json.loads(path.read_text())
    raw["thresholds"][1] = value
    path.write_text(json.dumps(raw))
    with pytest.raises(CalibrationError, match="was edited or damaged after it was made"):
        Calibration.load(path)


@pytest.mark.parametrize("unit", ["pixel", "image"])
def test_thresholds_at_another_alpha_follow_from_the_file_alone(
    bundle: Bundle, photos: Path, tmp_path: Path, unit: str
) -> None:
    run(bundle, photos, alpha="0.3", group="class", unit=unit).save(tmp_path / "calibration.json")
    at = Calibration.load(tmp_path / "calibration.json").at("0.1")
    exact = run(bundle, photos, alpha="0.1", group="class", unit=unit, min_images=None)
    odds, exact_odds = (values / (1 - values) for values in (at.thresholds, exact.thresholds))
    assert (odds >= exact_odds * (1 - 1e-5)).all()
    assert (odds <= exact_odds * 1.07).all()
    with pytest.raises(UsageError, match="need the images"):
        run(bundle, photos, group="position", grid=(4, 4)).at("0.2")


def test_calibrations_of_different_images_merge(bundle: Bundle, photos: Path) -> None:
    parts = [run(bundle, photos, ids=frozenset(map(str, range(start, 30, 2)))) for start in (0, 1)]
    merged, together = Calibration.merge(parts), run(bundle, photos).at("0.1")
    np.testing.assert_array_equal(merged.thresholds, together.thresholds)
    assert merged.report["num_images"] == 30
    with pytest.raises(CalibrationError, match=r"b\.json and c\.json share images \(15 of 15"):
        Calibration.merge([parts[1], parts[0], parts[0]], names=["a.json", "b.json", "c.json"])
    with pytest.raises(CalibrationError, match=r"1 and calibration 2 differ \(rule: agree and single\)"):
        Calibration.merge([parts[0], run(bundle, photos, rule="single")])
    other = dataclasses.replace(parts[1], made_with={**parts[1].made_with, "batch": 4})
    with pytest.raises(CalibrationError, match=r"differ \(batch: 1 and 4\)"):
        Calibration.merge([parts[0], other])


@pytest.mark.parametrize(
    ("settings", "names", "alpha", "message"),
    [
        ({"unit": "image"}, ["1"], "0.2", "alpha 0.2 needs at least 4 images and there is 1 image,"),
        ({"unit": "image"}, ["0", "1", "2"], "0.1", "alpha 0.1 needs at least 9 images and there are 3 images,"),
        (
            {"unit": "image", "group": "class", "min_images": 2},
            ["1", "2", "3", "6"],
            "0.2",
            "there are 2 images of blue",
        ),
        ({"unit": "pixel", "group": "pooled"}, ["1"], "0.001", "alpha 0.001 needs at least 999 pixels"),
    ],
)
def test_another_alpha_is_refused_as_by_a_new_fit(
    bundle: Bundle, photos: Path, settings: dict[str, Any], names: list[str], alpha: str, message: str
) -> None:
    images = {**settings, "ids": frozenset(names)}
    with pytest.raises(CalibrationError, match=message):
        run(bundle, photos, **images, alpha=alpha)
    calibration = run(bundle, photos, **images, alpha="0.5")
    with pytest.raises(CalibrationError, match=message):
        calibration.at(alpha)
    with pytest.raises(CalibrationError, match=message):
        Calibration.merge([calibration]).at(alpha)


def test_as_many_images_as_an_alpha_needs_are_enough(bundle: Bundle, photos: Path) -> None:
    calibration = run(bundle, photos, unit="image", alpha="0.5", ids=frozenset("0124"))
    direct = run(bundle, photos, unit="image", alpha="0.2", ids=frozenset("0124"))
    assert direct.thresholds[0] <= calibration.at("0.2").thresholds[0] < 1
    together = Calibration.merge(
        [run(bundle, photos, unit="image", alpha="0.5", ids=frozenset(name)) for name in "0124"]
    )
    np.testing.assert_array_equal(together.at("0.2").thresholds, calibration.at("0.2").thresholds)


def test_equal_windows_of_different_scenes_merge(bundle: Bundle, photos: Path) -> None:
    parts = [run(bundle, photos, ids=frozenset("01"), alpha="0.5", min_images=1) for _ in range(2)]
    first, second, again = (
        dataclasses.replace(part, counts=dataclasses.replace(part.counts, scenes=(scene, scene)))
        for part, scene in zip([*parts, parts[0]], ["scene a", "scene b", "scene a"], strict=True)
    )
    assert Calibration.merge([first, second]).counts.num_draws == 2
    with pytest.raises(CalibrationError, match="share images"):
        Calibration.merge([first, again])


@pytest.mark.parametrize(
    "alpha", ["1e-400", "1e-999999999", "1e999999999", "0", "1", "nan", "x", "1/0", "0." + "9" * 99]
)
def test_an_alpha_outside_the_range_is_refused_in_a_line(alpha: str) -> None:
    with pytest.raises(UsageError, match="alpha must be") as caught:
        alpha_text(alpha)
    assert len(str(caught.value)) < 150


@pytest.mark.parametrize("settings", [{}, {"control": "miss-rate"}, {"control": "false-label-rate"}])
def test_a_fraction_is_an_alpha_everywhere(
    bundle: Bundle, photos: Path, capsys: pytest.CaptureFixture[str], settings: dict[str, Any]
) -> None:
    calibration = run(bundle, photos, alpha="1/3", **settings)
    predictor, taxonomy = SemanticPredictor(bundle, OnnxSession(bundle)), Taxonomy.of_model(bundle)
    measured = evaluate_predictor(
        predictor, open_source(photos / "images"), LabelFolder(photos / "labels"), taxonomy,
        Selection.conformal(calibration), ids=frozenset("012"),
    )  # fmt: skip
    assert measured.coverage is not None
    assert measured.coverage["target"] == pytest.approx(2 / 3)
    print_calibration(calibration, photos / "calibration.json")
    assert "alpha 1/3" in capsys.readouterr().out


def test_the_default_group_of_the_image_unit_holds_for_all_pixels(bundle: Bundle, photos: Path) -> None:
    calibration = run(bundle, photos, unit="image")
    assert calibration.group == "pooled"
    assert (
        "on average over new images at most 0.1 of an image's pixels have a prediction set without their class"
        in calibration.report["promise"]
    )
    assert "no guarantee" in run(bundle, photos).report["promise"]


def test_a_calibration_is_refused_under_other_conditions(bundle: Bundle, photos: Path) -> None:
    calibration = run(bundle, photos)
    taxonomy = Taxonomy.of_model(bundle)
    calibration.check(SemanticPredictor(bundle, OnnxSession(bundle)), taxonomy)
    with pytest.raises(CalibrationMismatch, match="calibrated with none, labeling with 64.; give the same --tile"):
        calibration.check(SemanticPredictor(bundle, OnnxSession(bundle), tile=64), taxonomy)
    with pytest.raises(CalibrationMismatch, match="another class mapping .*other model classes.*same --taxonomy FILE"):
        calibration.check(
            SemanticPredictor(bundle, OnnxSession(bundle)), dataclasses.replace(taxonomy, model=(0, 1, -1))
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": "0"}, "above 0 and below 1"),
        ({"alpha": "1"}, "above 0 and below 1"),
        ({"alpha": "ten"}, "alpha must be a number"),
        ({"group": "galaxy"}, "group must be one of"),
        ({"unit": "video"}, "unit must be one of"),
        ({"rule": "best"}, "rule must be one of"),
        ({"on_small_n": "perhaps"}, "on_small_n must be one of"),
        ({"group": "position", "unit": "image"}, "work with --unit pixel only"),
        ({"clusters": 4}, "clusters must be at least 1 and need the group position; got 4 with the group class"),
        ({"group": "position", "clusters": 0}, "clusters must be at least 1 and need the group position; got 0"),
        ({"ids": frozenset({"0", "900"})}, "1 of the 2 listed images are not there: 900"),
    ],
)
def test_impossible_options_are_refused(bundle: Bundle, photos: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        run(bundle, photos, **options)


def test_chosen_images_are_the_only_ones_used(bundle: Bundle, photos: Path) -> None:
    report = run(bundle, photos, ids=frozenset(str(index) for index in range(12))).report
    assert report["num_images"] == 12


def edited(photos: Path, folder: Path) -> Path:
    for kind in ("images", "labels"):
        (folder / kind).mkdir()
        for name in ("0.png", "1.png"):
            (folder / kind / name).write_bytes((photos / kind / name).read_bytes())
    return folder


def test_images_without_labels_of_another_size_or_damaged_are_errors(
    bundle: Bundle, photos: Path, tmp_path: Path
) -> None:
    few = edited(photos, tmp_path)
    Image.fromarray(np.zeros((3, 5), np.uint8)).save(few / "labels" / "1.png")
    with pytest.raises(CalibrationError, match=r"1\.png is 5x3 px and its image .* is 24x16 px"):
        run(bundle, few)
    (few / "labels" / "1.png").unlink()
    source = run(bundle, few, min_images=1).report["source"]
    assert (source["images"], source["without_map"]) == (1, [str(few / "images" / "1.png")])
    with pytest.raises(UsageError, match="1 of the listed images have no label map in"):
        run(bundle, few, ids=frozenset({"0.png", "1.png"}))
    (few / "images" / "1.png").unlink()
    (few / "images" / "0.png").write_bytes(b"")
    with pytest.raises(CalibrationError, match="cannot calibrate on .*0.png"):
        run(bundle, few)


def test_unknown_labels_and_nothing_but_void_are_errors(bundle: Bundle, photos: Path, tmp_path: Path) -> None:
    few = edited(photos, tmp_path)
    Image.fromarray(np.full(SIZE, 9, np.uint8)).save(few / "labels" / "1.png")
    with pytest.raises(TaxonomyError, match=r"1\.png holds the label 9"):
        run(bundle, few)
    for name in ("0.png", "1.png"):
        Image.fromarray(np.full(SIZE, 255, np.uint8)).save(few / "labels" / name)
    with pytest.raises(CalibrationError, match="no pixel of the label maps has a target class"):
        run(bundle, few)


def test_one_image_calibrates_without_a_coverage_report(bundle: Bundle, photos: Path) -> None:
    calibration = run(bundle, photos, ids=frozenset({"0"}), min_images=1)
    assert calibration.report["overall"] is None
    assert calibration.report["labels"] is None
    assert np.isfinite(calibration.thresholds[0])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot read"),
        ("[]", "must hold a JSON object"),
        ('{"format_version": 1}', "is not a calibration of format"),
    ],
)
def test_what_is_not_a_calibration_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "calibration.json"
    path.write_text(text)
    with pytest.raises(CalibrationError, match=message):
        Calibration.load(path)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("targets", ["red", "green"], "scores do not fit 2 targets"),
        ("alpha", "", "alpha must be a number"),
        ("alpha", "2", "alpha must be above 0"),
        ("alpha", "inf", "alpha must be above 0"),
        ("delta", "x", "alpha must be a number"),
        ("thresholds", [0.5, 3.0, 0.5], "a threshold is 3; expected 0 to 1"),
        ("thresholds", [0.5] * 6, "it has 6 thresholds, 3 or 4 are expected"),
        ("pooled", -0.5, "a threshold is -0.5"),
        ("group", "position", "not those of the group position"),
        ("made_with", {"batch": "x"}, "made_with.batch must be a valid integer"),
        ("made_with", {"windows": -3}, "made_with.windows must be greater"),
        ("min_images", 10**30, "min_images must be"),
        ("weighting", {"values": [1.0] * 29}, "its weights are not those of 30 images"),
        ("weighting", {"values": [0.0] * 30}, "its weights are not those of 30 images"),
        ("weighting", {"statistics": ""}, "damaged"),
        ("weighting", {"images": 4}, "it lacks the statistics of the 4 images"),
    ],
)
def test_a_file_with_impossible_values_is_refused_where_it_is_read(
    bundle: Bundle, photos: Path, tmp_path: Path, place: str, value: Any, message: str
) -> None:
    path, calibration = tmp_path / "calibration.json", run(bundle, photos, unit="image")
    if place == "weighting":
        calibration = calibration.resembling(calibration.counts.statistics, "photos", alpha="0.3")
    calibration.save(path)
    Calibration.load(path)
    raw = json.loads(path.read_text())
    raw[place] = {**raw[place], **value} if isinstance(value, dict) else value
    del raw["seal"]
    raw["seal"] = hashlib.sha256(json.dumps(raw, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    path.write_text(json.dumps(raw))
    with pytest.raises(CalibrationError, match=message) as caught:
        Calibration.load(path)
    assert "\n" not in str(caught.value)


def test_the_file_is_plain_json(bundle: Bundle, photos: Path, tmp_path: Path) -> None:
    run(bundle, photos, alpha="0.0001", on_small_n="inf").save(tmp_path / "calibration.json")
    raw = json.loads((tmp_path / "calibration.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert raw["thresholds"] == ["inf"] * 3
    assert set(raw["made_with"]) == {
        "bundle",
        "session",
        "artifact",
        "tile",
        "overlap",
        "taxonomy",
        "kernels",
        "bit_depth",
        "batch",
    }


def test_given_thresholds_are_measured_on_other_labeled_images(bundle: Bundle, photos: Path) -> None:
    half = frozenset(map(str, range(0, 30, 2)))
    calibration = run(bundle, photos, ids=half, rule="single")
    predictor, taxonomy = SemanticPredictor(bundle, OnnxSession(bundle)), Taxonomy.of_model(bundle)
    measured = evaluate_predictor(
        predictor, open_source(photos / "images"), LabelFolder(photos / "labels"), taxonomy,
        Selection.conformal(calibration), ids=frozenset(map(str, range(1, 30, 2))),
    )  # fmt: skip
    assert measured.coverage is not None
    rows = {row["class"]: row for row in measured.coverage["rows"]}
    inside = [softmax_scores(photos, index) for index in range(1, 30, 2)]
    expected = np.concatenate([scores <= calibration.thresholds[truth] * (1 + 1e-5) for scores, truth in inside])
    assert rows["all"]["coverage"] == pytest.approx(expected.mean(), abs=1e-3)
    assert rows["all"]["images"] == 15
    assert rows["all"]["interval"][0] <= rows["all"]["coverage"] <= rows["all"]["interval"][1]
    assert measured.kept < 1
    with pytest.raises(CalibrationMismatch, match="tile"):
        evaluate_predictor(
            SemanticPredictor(bundle, OnnxSession(bundle), tile=16), open_source(photos / "images"),
            LabelFolder(photos / "labels"), taxonomy, Selection.conformal(calibration),
        )  # fmt: skip


def test_the_rule_can_be_chosen_on_held_out_images(bundle: Bundle, photos: Path) -> None:
    chosen = run(bundle, photos, rule="auto")
    reports = {rule: run(bundle, photos, rule=rule).report for rule in ("argmax", "foreground", "single", "agree")}
    accurate = {
        rule: report["labels"]["miou_kept"]
        for rule, report in reports.items()
        if report["labels"]["accuracy_kept"] >= report["argmax"]["accuracy"]
    }
    assert chosen.rule == max(accurate, key=accurate.__getitem__)
    assert chosen.report == reports[chosen.rule]


def test_the_false_label_rate_is_controlled_per_image(bundle: Bundle, photos: Path) -> None:
    calibration = run(bundle, photos, control="false-label-rate", alpha="0.2")
    assert (calibration.rule, calibration.group, calibration.unit) == ("argmax", "pooled", "image")
    assert len(set(calibration.thresholds.tolist())) == 1
    rates = calibration.report["false_labels"]
    assert rates["risk"] <= 0.2
    assert 0 < rates["kept"] < 1
    assert "at most 0.2 of an image's labeled pixels are wrong" in calibration.report["promise"]
    tested = run(bundle, photos, control="false-label-rate", alpha="0.2", delta="0.1")
    assert tested.thresholds[0] <= calibration.thresholds[0]
    assert "except with probability 0.1" in tested.report["promise"]


def test_the_miss_rate_is_controlled_per_class(bundle: Bundle, photos: Path) -> None:
    calibration = run(bundle, photos, control="miss-rate", alpha="0.45")
    assert len(set(calibration.thresholds.tolist())) > 1
    rates = calibration.report["guaranteed_miss_rates"]
    kept = [row["held_out"]["kept"] for row in calibration.report["classes"]]
    assert all(rate >= 0.45 and share > 0.3 for rate, share in zip(rates, kept, strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"control": "miss-rate", "rule": "single"}, "can remove labels"),
        ({"control": "false-label-rate", "group": "class"}, "works with the group pooled"),
        ({"control": "miss-rate", "delta": "0.1"}, "delta applies to the false-label rate only"),
        ({"control": "speed"}, "control must be one of"),
    ],
)
def test_controls_that_promise_nothing_are_refused(
    bundle: Bundle, photos: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        run(bundle, photos, **options)


@pytest.mark.parametrize(
    ("alpha", "text"),
    [("0.20", "0.2"), (0.2, "0.2"), ("1/5", "0.2"), ("2e-1", "0.2"), ("1/3", "1/3"), ("0.05", "0.05")],
)
def test_an_alpha_has_one_form_in_records(alpha: str | float, text: str) -> None:
    assert alpha_text(alpha) == text


def test_a_recommended_calibration_gives_thresholds_at_another_alpha(
    bundle: Bundle, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def first_conformal(points: Sequence[Any], goal: Any) -> Any:
        wanted = next(point for point in points if point.candidate.method == "conformal")
        return dataclasses.replace(recommend(points, goal), recommended=wanted)

    monkeypatch.setattr("maskmill.engine.calibration.choose.recommend", first_conformal)
    source, labels = open_source(photos / "images"), LabelFolder(photos / "labels")
    predictor = SemanticPredictor(bundle, OnnxSession(bundle))
    _, calibration = choose(predictor, source, labels, Taxonomy.of_model(bundle))
    assert calibration is not None
    assert calibration.on_small_n == "refuse"
    assert calibration.at("0.4").alpha == "0.4"
