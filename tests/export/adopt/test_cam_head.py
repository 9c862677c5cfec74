from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from maskmill.engine.inputs.image_labels import ImageLabels
from maskmill.engine.inputs.sources import open_source
from maskmill.engine.model.bundle import Bundle
from maskmill.engine.runtimes.onnx_runtime import OnnxSession
from maskmill.errors import BundleError, UsageError
from maskmill.export.adopt import cam_head
from maskmill.export.adopt.cam_head import fit_cam_head, fit_logistic
from maskmill.export.adopt.classifier import cam_from_onnx

from ...models import COLORS, cam_bundle, color_cam_graph, color_graph


def write_photos(folder: Path) -> ImageLabels:
    """Thirty-six photos of all combinations of three colors; yellow is red and green, so it must be learned."""
    folder.mkdir()
    names = {}
    rng = np.random.default_rng(0)
    for index, shown in enumerate(itertools.islice(itertools.cycle(itertools.product((0, 1), repeat=3)), 36)):
        image = rng.integers(0, 40, (16, 24, 3)).astype(np.uint8)
        for number, present in enumerate(shown):
            if present:
                image[:, 8 * number : 8 * number + 6] = ((255, 255, 0), (0, 0, 255), (0, 255, 0))[number]
        Image.fromarray(image).save(folder / f"{index}.png")
        present = frozenset(itertools.compress(("yellow", "blue", "green"), shown))
        names[f"{index}.png"] = present
    return ImageLabels(names, "labels")


def run(bundle: Bundle, image: np.ndarray) -> dict[str, np.ndarray]:
    tensor = (image / 255).astype(np.float32).transpose(2, 0, 1)[None]
    return dict(zip([output.kind for output in bundle.outputs], OnnxSession(bundle).run(tensor), strict=True))


def test_a_head_learns_classes_that_the_classifier_does_not_have(tmp_path: Path) -> None:
    labels = write_photos(tmp_path / "photos")
    bundle, report = fit_cam_head(
        cam_bundle(tmp_path), open_source(str(tmp_path / "photos")), labels, tmp_path / "head", regularization=1e-3
    )
    assert bundle.classes == ("blue", "green", "yellow")
    assert report.num_images == 36
    assert report.counts["yellow"] == 16
    assert report.mean_precision > 0.9
    image = np.zeros((16, 24, 3), np.uint8)
    image[:, 8:14] = (0, 0, 255)
    found = run(bundle, image)
    assert found["logits"][0].argmax() == 0
    assert found["cam"][0, 0, :, 4:7].min() > found["cam"][0, 0, :, :3].max()


def test_the_new_head_sits_on_the_features_of_the_old_bundle(tmp_path: Path) -> None:
    labels = write_photos(tmp_path / "photos")
    base = cam_bundle(tmp_path)
    bundle, _ = fit_cam_head(base, open_source(str(tmp_path / "photos")), labels, tmp_path / "head")
    image = np.random.default_rng(1).integers(0, 256, (16, 24, 3))
    old, new = run(base, image), run(bundle, image)
    np.testing.assert_allclose(new["features"], old["features"], atol=1e-6)
    assert bundle.input == base.input
    assert [output.activation for output in bundle.outputs if output.kind == "logits"] == ["sigmoid"]
    bundle.verify()


def test_images_that_are_not_listed_are_left_out_and_counted(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos")
    labels = ImageLabels({f"{index}.png": frozenset({"a", "b"} if index % 2 else {"a"}) for index in range(20)}, "x")
    _, report = fit_cam_head(cam_bundle(tmp_path), open_source(str(tmp_path / "photos")), labels, tmp_path / "head")
    assert (report.num_images, report.skipped) == (20, 16)


def test_labels_of_other_images_are_refused(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos")
    with pytest.raises(UsageError, match="names no class of an image of .*photos; names must match"):
        fit_cam_head(
            cam_bundle(tmp_path),
            open_source(str(tmp_path / "photos")),
            ImageLabels({"other.png": frozenset({"a"})}, "labels.csv"),
            tmp_path / "head",
        )


@pytest.mark.parametrize("final", ["", "Sigmoid"])
def test_an_ordinary_classifier_gets_its_maps_from_its_head(tmp_path: Path, final: str) -> None:
    onnx.save(color_cam_graph(logits_only=True, final=final), tmp_path / "model.onnx")
    bundle = cam_from_onnx(tmp_path / "model.onnx", tmp_path / "cam", classes=COLORS, activation="sigmoid")
    image = np.random.default_rng(0).integers(0, 256, (16, 24, 3))
    plain, expected = run(bundle, image), run(cam_bundle(tmp_path, name="expected"), image)
    np.testing.assert_allclose(plain["logits"], expected["logits"], atol=1e-5)
    # the bias belongs to the logits, not to the maps
    np.testing.assert_allclose(plain["cam"] - 1, expected["cam"], atol=1e-5)
    np.testing.assert_allclose(plain["features"], expected["features"], atol=1e-6)


def test_a_head_that_is_not_linear_on_the_mean_is_refused(tmp_path: Path) -> None:
    graph = color_cam_graph(logits_only=True)
    next(node for node in graph.graph.node if node.op_type == "GlobalAveragePool").op_type = "GlobalMaxPool"
    onnx.save(graph, tmp_path / "model.onnx")
    with pytest.raises(BundleError, match="not a mean over all positions .*it has GlobalMaxPool.*export the model"):
        cam_from_onnx(tmp_path / "model.onnx", tmp_path / "cam", classes=COLORS)


def test_a_model_that_is_no_classifier_is_refused(tmp_path: Path) -> None:
    onnx.save(color_graph(), tmp_path / "model.onnx")
    with pytest.raises(UsageError, match=r"a classifier gives logits \(N, 3\)"):
        cam_from_onnx(tmp_path / "model.onnx", tmp_path / "cam", classes=COLORS)


def test_a_bundle_without_features_is_refused(tmp_path: Path) -> None:
    graph = color_cam_graph()
    del graph.graph.output[2]
    onnx.save(graph, tmp_path / "model.onnx")
    bundle = cam_from_onnx(tmp_path / "model.onnx", tmp_path / "cam", classes=COLORS)
    with pytest.raises(UsageError, match="gives cam, logits; fitting a head needs a cam bundle with features"):
        fit_cam_head(bundle, open_source(str(tmp_path)), ImageLabels({}, "labels"), tmp_path / "head")


@pytest.mark.parametrize(("worth", "expected"), [(1 << 28, 1), (1, 3)], ids=["small", "large"])
def test_a_small_fit_runs_on_one_thread_and_a_large_one_on_all_processors(
    monkeypatch: pytest.MonkeyPatch, worth: int, expected: int
) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(cam_head, "usable_processors", lambda: 3)
    monkeypatch.setattr(cam_head, "WORTH_THREADS", worth)
    threads = []
    step = torch.optim.LBFGS.step
    monkeypatch.setattr(
        torch.optim.LBFGS, "step", lambda *args: (threads.append(torch.get_num_threads()), step(*args))[1]
    )
    before = torch.get_num_threads()
    rng = np.random.default_rng(0)
    fit_logistic(rng.normal(size=(20, 5)), rng.random((20, 2)) < 0.5, 1e-2)
    assert threads == [expected]
    assert torch.get_num_threads() == before, "torch is left as it was"
