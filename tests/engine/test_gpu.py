"""Sessions and stages on a real device against the host; skipped where there is none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from maskmill.engine.backends.cuda import CudaBackend
from maskmill.engine.backends.host import HOST
from maskmill.engine.inputs.image_labels import ImageLabels
from maskmill.engine.inputs.images import decode_image, preprocess
from maskmill.engine.inputs.sources import open_source
from maskmill.engine.labeling.label_run import label
from maskmill.engine.labeling.selection import Selection, select
from maskmill.engine.model.bundle import Bundle
from maskmill.engine.model.input_spec import InputSpec
from maskmill.engine.model.taxonomy import Taxonomy
from maskmill.engine.predictors.base import ScoreMap
from maskmill.engine.predictors.prompted.predictor import PromptedPredictor
from maskmill.engine.predictors.prompted.prompts import PromptSettings
from maskmill.engine.predictors.segment_everything import EverythingSettings, SegmentEverything, paint
from maskmill.engine.predictors.semantic import SemanticPredictor
from maskmill.engine.runtimes.open import open_session
from maskmill.engine.store.label_store import LabelStore

from ..builders import encoded, photo
from ..models import COLORS, cam_bundle, color_bundle, sam_bundle
from .corpus import label_folder, write_photos
from .predictors.prompted.test_on_device import sessions
from .predictors.prompted.test_predictor import BLUE, GREEN, RED, SIZE, picture

pytestmark = pytest.mark.gpu


@pytest.fixture
def cupy():
    return pytest.importorskip("cupy")


def built(folder: Path, **options) -> Bundle:
    pytest.importorskip("tensorrt")
    from maskmill.export.build.engine_builder import BuildOptions, build_engine

    return build_engine(color_bundle(folder, **options), options=BuildOptions(batch=(1, 2, 4))).bundle


def images(num: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((num, 3, 16, 24), dtype=np.float32)


@pytest.mark.parametrize("resize", ["stretch", "longest-side"])
def test_photos_become_the_same_input(cupy, resize) -> None:
    spec = InputSpec(name="image", height=96, width=128, resize=resize, channels="BGR", std=(0.2, 0.2, 0.2))
    backend = CudaBackend()
    for seed in range(20):  # the staging memory is used again, and grows
        image = photo(100 + 7 * seed, 90 + 11 * seed, seed=seed)
        with backend.queue():
            tensor, _ = backend.preprocess(image, spec)
            (found,) = backend.download(tensor)
        np.testing.assert_allclose(found, preprocess(image, spec)[0], atol=1 / 255 / 0.2)


@pytest.mark.parametrize("weight", ["none", "confidence", "pcos"])
def test_labels_and_weights_are_those_of_the_host(cupy, tmp_path: Path, weight) -> None:
    taxonomy = Taxonomy.of_model(color_bundle(tmp_path))
    scores = np.random.default_rng(0).normal(0, 2, (3, 33, 47)).astype(np.float32)
    backend = CudaBackend()
    with backend.queue():
        on_device = cupy.asarray(scores)
    shared = {"layout": "CHW", "activation": "softmax", "size": (240, 320), "region": (0.0, 0.0, 33.0, 47.0)}
    selection = Selection(method="conformal", rule="agree", thresholds=np.full(3, 0.4, np.float32), weight=weight)
    found = select(ScoreMap(scores=on_device, backend=backend, **shared), taxonomy, selection)
    expected = select(ScoreMap(scores=scores, **shared), taxonomy, selection)
    assert (found.label != expected.label).mean() < 1e-3
    assert (np.abs(found.weight.astype(int) - expected.weight) > 1).mean() < 1e-3
    assert found.confidence == pytest.approx(expected.confidence, abs=1e-4)


def test_an_engine_gives_the_graphs_outputs(cupy, tmp_path: Path) -> None:
    session = open_session(built(tmp_path), provider="engine", allow_unverified=True)
    for seed in range(6):  # from the second call on as a CUDA graph
        np.testing.assert_allclose(session.run(images(2, seed))[0], images(2, seed) * 10, rtol=1e-5)
        batch = cupy.asarray(images(3, seed))
        np.testing.assert_allclose(cupy.asnumpy(session.run(batch)[0]), images(3, seed) * 10, rtol=1e-5)
    np.testing.assert_allclose(session.run(images(11))[0], images(11) * 10, rtol=1e-5)


def test_calls_on_many_streams_do_not_mix(cupy, tmp_path: Path) -> None:
    session = open_session(built(tmp_path), provider="engine", allow_unverified=True)
    batches = [cupy.asarray(images(4, seed)) for seed in range(32)]
    cupy.cuda.Device().synchronize()
    streams = [cupy.cuda.Stream(non_blocking=True) for _ in range(4)]
    scores = []
    for index, batch in enumerate(batches):
        with streams[index % 4]:
            scores.append(session.run(batch)[0])
    cupy.cuda.Device().synchronize()
    for seed, found in enumerate(scores):
        np.testing.assert_allclose(cupy.asnumpy(found), images(4, seed) * 10, rtol=1e-5)


@pytest.mark.parametrize("batch", [1, 4])
def test_a_label_run_fills_the_same_store(cupy, tmp_path: Path, batch: int) -> None:
    bundle = built(tmp_path, size=(12, 16), gain=4.0)
    photos = tmp_path / "photos"
    paths = write_photos(photos, 40)
    label_folder(bundle, str(photos), tmp_path / "host")
    session = open_session(bundle, provider="engine", allow_unverified=True)
    predictor = SemanticPredictor(bundle, session, backend=CudaBackend(), batch=batch)
    label(predictor, open_source(str(photos)), tmp_path / "device", Taxonomy.of_model(bundle), Selection(weight="pcos"))
    host, device = (LabelStore.open(tmp_path / name) for name in ("host", "device"))
    for path in paths:
        (expected, weights), (found, found_weights) = (store.read(str(path)) for store in (host, device))
        assert (found != expected).mean() < 0.01
        assert (np.abs(found_weights.astype(int) - weights) > 1).mean() < 0.02


@pytest.mark.parametrize("mode", ["points", "peaks", "box+points", "best"])
def test_prompted_labels_and_segments_are_those_of_the_host(cupy, tmp_path: Path, mode) -> None:
    cam, sam = cam_bundle(tmp_path), sam_bundle(tmp_path, size=SIZE)
    labels = ImageLabels({"a": frozenset(COLORS), "b": frozenset({"red"}), "c": frozenset()}, "labels")
    images = {"a": picture(RED, GREEN, BLUE), "b": picture(RED, GREEN), "c": picture(RED)}
    found, segments = [], []
    for library, backend in ((None, HOST), (cupy, CudaBackend())):
        # the models run on the processor, so that everything else is compared
        given = sessions(cam, sam, library, down=cupy.asnumpy)
        settings = PromptSettings(maximum=True, min_distance=3, mode=mode)
        predictor = PromptedPredictor(cam, sam, *given, prompts=settings, labels=labels, batch=3, backend=backend)
        maps = predictor.run([predictor.prepare(image, name) for name, image in images.items()])
        found.append([one.on_host().scores for one in maps])
        everything = EverythingSettings(side=8, min_score=0.6)
        model = SegmentEverything(sam, *given[1:], settings=everything, backend=backend)
        segments.append(paint(model.run([model.prepare(images["a"])])[0]))
    for expected, scores in zip(*found, strict=True):
        np.testing.assert_allclose(scores, expected, atol=1e-4)
    assert (segments[0] != segments[1]).mean() < 1e-3


def test_onnx_runtime_takes_arrays_on_the_device(cupy, tmp_path: Path) -> None:
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this installation of ONNX Runtime has no CUDA provider")
    session = open_session(color_bundle(tmp_path), provider="cuda")
    (scores,) = session.run(cupy.asarray(images(3)))
    np.testing.assert_allclose(cupy.asnumpy(scores), images(3) * 10, rtol=1e-5)


def test_jpeg_decoded_on_the_device_is_the_hosts_within_a_few_levels(cupy) -> None:
    pytest.importorskip("nvidia.nvimgcodec")
    backend = CudaBackend()
    data = encoded(photo(120, 160), "JPEG", quality=95, subsampling=0)
    image = backend.decode(data)
    assert isinstance(image, cupy.ndarray)
    assert np.abs(cupy.asnumpy(image).astype(int) - decode_image(data)).max() <= 3
