"""S2C: each loss against its equation written out in NumPy, segment maps, and a run from labels to a student."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")

from maskmill.engine.inputs.labels import LabelFolder  # noqa: E402
from maskmill.errors import MaskmillError, TrainingError, UsageError  # noqa: E402
from maskmill.trainer.data.corpus import classes_taxonomy, open_corpus  # noqa: E402
from maskmill.trainer.data.parts import LabeledImages  # noqa: E402
from maskmill.trainer.data.weak_labels import WeakLabels  # noqa: E402
from maskmill.trainer.evaluate import score_images  # noqa: E402
from maskmill.trainer.objectives.s2c import classification, map_scores, segment_contrast  # noqa: E402
from maskmill.trainer.recipes import s2c, with_settings  # noqa: E402
from maskmill.trainer.students.models import build_model, load_run  # noqa: E402
from maskmill.trainer.students.prediction import label_image  # noqa: E402
from maskmill.trainer.train import train  # noqa: E402

from ...models import COLORS  # noqa: E402
from ..builders import TAXONOMY, blocks, make_store, write_labeled  # noqa: E402


def test_classification_is_the_mean_over_images_and_classes() -> None:
    logits, present = np.array([[2.0, -1.0, 0.5], [0.0, 3.0, -2.0]]), np.array([[1, 0, 1], [0, 0, 1]])
    sigmoid = 1 / (1 + np.exp(-logits))
    expected = -(present * np.log(sigmoid) + (1 - present) * np.log(1 - sigmoid)).mean()
    assert float(classification(torch.tensor(logits), torch.tensor(present))) == pytest.approx(expected)


# two features of four pixels each (2, 2 channels, 2, 2) at the size of the segment maps
FEATURES = np.array(
    [[[[3.0, 0.0], [1.0, 2.0]], [[0.0, 2.0], [1.0, 1.0]]], [[[1.0, 2.0], [0.5, 4.0]], [[2.0, 1.0], [1.0, 0.0]]]]
)
SEGMENTS = np.array([[[1, 2], [1, 0]], [[4, 4], [2, 2]]])


def unit(values: np.ndarray, axis: int) -> np.ndarray:
    return values / np.linalg.norm(values, axis=axis, keepdims=True)


def contrast_of_pixels(feature: np.ndarray, ids: np.ndarray, columns: list[int], factor: float) -> np.ndarray:
    """-log softmax of each pixel in a segment; a column's prototype is the mean of its pixels, 0 without any."""
    pixels, own = unit(feature.reshape(2, -1), 0).T, ids.ravel()
    means = [pixels[own == i].mean(0) if (own == i).any() else np.zeros(2) for i in columns]
    prototypes = np.array([unit(mean, 0) if mean.any() else mean for mean in means])
    logits = factor * pixels @ prototypes.T
    log_softmax = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    return np.array([-row[columns.index(i)] for row, i in zip(log_softmax, own, strict=True) if i])


def test_segment_contrast_compares_a_pixel_with_the_segments_of_its_image() -> None:
    first = contrast_of_pixels(FEATURES[0], SEGMENTS[0], [1, 2], 1 / 0.5)
    second = contrast_of_pixels(FEATURES[1], SEGMENTS[1], [2, 4], 1 / 0.5)
    found = segment_contrast(torch.tensor(FEATURES), torch.tensor(SEGMENTS), 4, temperature=0.5)
    assert float(found) == pytest.approx((first.mean() + second.mean()) / 2, rel=1e-6)


def test_segment_contrast_as_the_authors_code_counts_ids_that_are_not_there() -> None:
    columns = [0, 1, 2, 3, 4]
    pixels = [contrast_of_pixels(FEATURES[i], SEGMENTS[i], columns, 2.0) for i in (0, 1)]
    found = segment_contrast(torch.tensor(FEATURES), torch.tensor(SEGMENTS), 4, temperature=2.0, compat=True)
    assert float(found) == pytest.approx(np.concatenate(pixels).mean(), rel=1e-6)


def test_unassigned_pixels_have_a_prototype_in_the_authors_code() -> None:
    # as torch_scatter.scatter_mean over all ids, 0 included, then cross-entropy that ignores the target 0
    rng = np.random.default_rng(3)
    feature, ids = rng.normal(size=(1, 5, 6, 7)), rng.integers(0, 4, (1, 6, 7))
    pixels = unit(feature[0].reshape(5, -1), 0)
    scattered = np.zeros((4, 5))
    np.add.at(scattered, ids.ravel(), pixels.T)
    prototypes = unit(scattered / np.bincount(ids.ravel())[:, None], 1)
    logits = pixels.T @ prototypes.T
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(42), ids.ravel()]
    found = segment_contrast(torch.tensor(feature), torch.tensor(ids), 3, compat=True)
    assert float(found) == pytest.approx(losses[ids.ravel() > 0].mean(), rel=1e-6)
    prototypes[0] = 0
    without = np.log(np.exp(pixels.T @ prototypes.T).sum(1)) - logits[np.arange(42), ids.ravel()]
    assert abs(without[ids.ravel() > 0].mean() - float(found)) > 0.01


def test_segment_contrast_has_no_gradient_through_the_prototypes() -> None:
    features = torch.tensor(FEATURES[:1], requires_grad=True)
    segment_contrast(features, torch.tensor(SEGMENTS[:1]), 4).backward()
    pixels = torch.nn.functional.normalize(torch.tensor(FEATURES[0]).reshape(2, 4), dim=0).T
    prototypes = torch.nn.functional.normalize(torch.stack([pixels[[0, 2]].mean(0), pixels[1]]), dim=1)
    alone = torch.tensor(FEATURES[:1], requires_grad=True)
    logits = torch.nn.functional.normalize(alone[0].reshape(2, 4), dim=0).T[:3] @ prototypes.T
    torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1, 0])).backward()
    assert torch.allclose(features.grad, alone.grad)


def test_features_are_enlarged_to_the_segment_map_and_an_image_without_segments_counts_nothing() -> None:
    features = torch.tensor(FEATURES, dtype=torch.float32)
    large = torch.nn.functional.interpolate(features, size=(5, 6), mode="bilinear", align_corners=False)
    ids = torch.tensor(np.random.default_rng(0).integers(0, 4, (2, 5, 6)))
    assert float(segment_contrast(features, ids, 3)) == pytest.approx(float(segment_contrast(large, ids, 3)))
    ids[1] = 0
    assert float(segment_contrast(features, ids, 3)) == pytest.approx(
        float(segment_contrast(features[:1], ids[:1], 3)) / 2
    )


@pytest.mark.parametrize("background", [None, 0, 1, 2])
def test_map_scores_are_maps_of_the_classes_shown_and_what_they_leave_to_the_background(background: int | None) -> None:
    maps = np.array([[[[2.0, -1.0], [4.0, 0.0]], [[-1.0, -2.0], [-3.0, -4.0]]]])
    present = np.array([[1, 0]])
    first = np.array([[2.0, 0.0], [4.0, 0.0]]) / (4 + 1e-5)
    channels = [first, np.zeros((2, 2))]
    if background is not None:
        channels.insert(background, 1 - first)
    found = map_scores(torch.tensor(maps), torch.tensor(present), (2, 2), background)
    assert found[0].numpy() == pytest.approx(np.array(channels), abs=1e-7)


def test_a_classifier_labels_by_its_maps() -> None:
    model = build_model("cam:tiny", 3, background=1, features=6, pretrained=False).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        features, maps = model.decoder.maps(model.encode(images))
        scores = model(images)
    assert (features.shape, maps.shape, scores.shape) == ((2, 6, 16, 16), (2, 2, 16, 16), (2, 3, 16, 16))
    assert float(features.min()) >= 0
    assert (scores[:, 1] == scores[0, 1, 0, 0]).all()
    shown = maps.mean(dim=(2, 3)) > 0
    assert ((scores[:, [0, 2]].amax(dim=(2, 3)) > 0) == shown).all()
    assert model.options == {"width": 16, "features": 6}


def weak(folder: Path, values: np.ndarray, **options: object) -> WeakLabels:
    folder.mkdir()
    Image.fromarray(values.astype(np.uint8)).save(folder / "7.png")
    return WeakLabels(maps=LabelFolder(folder), image_labels=None, taxonomy=TAXONOMY, **options)  # type: ignore[arg-type]


def test_segments_are_numbered_from_one_with_zero_for_none(tmp_path: Path) -> None:
    label = np.array([[0, 2], [255, 2]], np.uint8)
    some, _ = weak(tmp_path / "some", np.array([[0, 9], [4, 9]])).read("a/7.jpg", label)
    everywhere, present = weak(tmp_path / "all", np.array([[3, 9], [4, 9]])).read("a/7.jpg", label)
    assert some.tolist() == [[0, 2], [1, 2]]
    assert everywhere.tolist() == [[1, 3], [2, 3]]
    assert present.tolist() == [True, False, True]


def test_the_authors_numbering_loses_a_segment_where_every_pixel_is_in_one(tmp_path: Path) -> None:
    label = np.zeros((2, 2), np.uint8)
    some, _ = weak(tmp_path / "some", np.array([[0, 9], [4, 9]]), compat=True).read("7.jpg", label)
    everywhere, _ = weak(tmp_path / "all", np.array([[3, 9], [4, 9]]), compat=True).read("7.jpg", label)
    assert some.tolist() == [[0, 2], [1, 2]]
    assert everywhere.tolist() == [[0, 2], [1, 2]]


def test_segments_come_from_a_store_as_well(tmp_path: Path) -> None:
    photos = write_labeled(tmp_path / "photos", range(1))
    make_store(tmp_path / "segments", photos, range(1), label=lambda seed: 4 * blocks(seed))
    found = WeakLabels.open(tmp_path / "segments", TAXONOMY)
    segments, _ = found.read(str(photos / "images" / "0.png"), blocks(0))
    assert (segments == blocks(0)).all()


def test_segments_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    found = weak(tmp_path / "segments", np.ones((2, 2)))
    with pytest.raises(TrainingError, match="2x2 px, but the image is 3x2"):
        found.read("7.jpg", np.zeros((2, 3), np.uint8))
    with pytest.raises(TrainingError, match="holds no segment map"):
        found.read("8.jpg", np.zeros((2, 2), np.uint8))


def test_image_level_labels_say_what_an_image_shows(tmp_path: Path) -> None:
    weak(tmp_path / "segments", np.ones((2, 2)))
    listed = tmp_path / "labels.csv"
    listed.write_text("image,labels\n7.jpg,blue;green\n")
    found = WeakLabels.open(tmp_path / "segments", TAXONOMY, image_labels=listed)
    assert found.read("7.jpg", np.zeros((2, 2), np.uint8))[1].tolist() == [False, True, True]
    listed.write_text("image,labels\n9.jpg,blue\n")
    found = WeakLabels.open(tmp_path / "segments", TAXONOMY, image_labels=listed)
    with pytest.raises(MaskmillError, match="does not list 7.jpg"):
        found.read("7.jpg", np.zeros((2, 2), np.uint8))
    listed.write_text("image,labels\n7.jpg,purple\n")
    with pytest.raises(UsageError, match="purple"):
        WeakLabels.open(tmp_path / "segments", TAXONOMY, image_labels=listed)


def test_a_run_trains_a_classifier_that_labels(tmp_path: Path) -> None:
    photos = write_labeled(tmp_path / "photos", range(6))
    for seed in range(6):
        (tmp_path / "segments").mkdir(exist_ok=True)
        ids = np.arange(30, dtype=np.uint8).reshape(5, 6).repeat(8, 0).repeat(8, 1)
        Image.fromarray(ids).save(tmp_path / "segments" / f"{seed}.png")
    make_store(tmp_path / "labels", photos, range(6))
    settings = [
        "model=cam:tiny",
        "model.features=16",
        "model.freeze_batchnorm=false",
        "head_lr=10",
        "colors=none",
        "steps=60",
        "batch=6",
        "crop=32",
        "scale=1,1",
        "scaling=factor",
        "lr=0.02",
    ]
    corpus = open_corpus(stores=[tmp_path / "labels"], segments=tmp_path / "segments")
    recipe = with_settings(s2c(log_every=1), [*settings, "method.warmup=0.1"])
    train(tmp_path / "run", recipe, corpus, device="cpu", workers=0)
    header, *rows = [line.split(",") for line in (tmp_path / "run" / "log.csv").read_text().splitlines()]
    logged = [dict(zip(header, row, strict=True)) for row in rows]
    losses = {name: [float(row[name]) for row in logged if row[name]] for name in ("segments", "prompted")}
    assert (len(losses["segments"]), len(losses["prompted"])) == (60, 54)
    assert all(np.mean(values[-5:]) < np.mean(values[:5]) for values in losses.values())
    student = load_run(tmp_path / "run")
    assert student.classes == COLORS
    image = np.asarray(Image.open(photos / "images" / "0.png"))
    assert (label_image(student.module, image, student.run) == blocks(0)).mean() > 0.5


def test_a_classifier_leaves_as_a_cam_bundle_of_the_classes_that_have_maps(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    from maskmill.engine.runtimes.onnx_runtime import OnnxSession
    from maskmill.trainer.bundle import bundle_from_run

    photos = write_labeled(tmp_path / "photos", range(2))
    classes = classes_taxonomy(COLORS, background="green")
    corpus = open_corpus(labeled=photos, taxonomy=classes, segments=photos / "labels")
    recipe = s2c(model="cam:tiny", model_options={"features": 6}, steps=1, batch=2, crop=32)
    train(tmp_path / "run", recipe, corpus, device="cpu", workers=0)
    bundle = bundle_from_run(tmp_path / "run", tmp_path / "bundle")
    assert (bundle.task, bundle.classes, bundle.background) == ("cam", ("red", "blue"), None)
    assert [output.kind for output in bundle.outputs] == ["cam", "logits", "features"]
    images = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)
    maps, logits, features = OnnxSession(bundle).run(images)
    network = load_run(tmp_path / "run").module
    with torch.no_grad():
        expected = network.decoder.maps(network.encode(torch.from_numpy(images)))
    assert features == pytest.approx(expected[0].numpy(), abs=1e-5)
    assert maps == pytest.approx(expected[1].numpy(), abs=1e-5)
    assert logits == pytest.approx(maps.mean(axis=(2, 3)), abs=1e-5)


def test_a_run_without_segments_is_refused(tmp_path: Path) -> None:
    corpus = open_corpus(labeled=write_labeled(tmp_path / "photos", range(2)), taxonomy=TAXONOMY)
    with pytest.raises(UsageError, match="--segments"):
        train(tmp_path / "run", s2c(model="cam:tiny", steps=1, batch=2, crop=32), corpus, device="cpu", workers=0)


def test_validation_searches_the_background_score_of_a_classifier(tmp_path: Path) -> None:
    photos = write_labeled(tmp_path / "photos", range(4))
    classes = classes_taxonomy(COLORS, background="green")
    corpus = open_corpus(labeled=photos, validation=photos, ids=["0", "1"], validation_ids=["2", "3"],
                         taxonomy=classes, segments=photos / "labels")  # fmt: skip
    recipe = with_settings(s2c(steps=2, batch=2, crop=32), ["model=cam:tiny", "model.features=6", "lr=0.01"])
    train(tmp_path / "run", recipe, corpus, device="cpu", workers=0)
    student = load_run(tmp_path / "run")
    module, chosen = student.module, float(student.module.decoder.background_score)
    assert chosen in [pytest.approx(number / 100, abs=1e-6) for number in range(50)]
    images = LabeledImages.open(photos, classes, ids=["2", "3"])
    mious = {}
    for number in (0.0, 0.1, 0.25, 0.49, chosen):
        module.decoder.background_score.fill_(number)
        mious[number] = score_images(module, images, student.run).miou
    assert mious[chosen] == max(mious.values())
