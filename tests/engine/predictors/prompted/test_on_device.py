"""Labeling with prompts on a device, as on the host: over the stand-in for CuPy, the CUDA sources run on the CPU."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maskmill.engine.backends import cuda
from maskmill.engine.backends.base import Backend
from maskmill.engine.backends.cuda import CudaBackend
from maskmill.engine.backends.host import HOST
from maskmill.engine.cli.labels import label as cli
from maskmill.engine.inputs.image_labels import ImageLabels
from maskmill.engine.inputs.sources import open_source
from maskmill.engine.labeling.label_run import label, segment
from maskmill.engine.labeling.selection import Selection
from maskmill.engine.model.bundle import Bundle
from maskmill.engine.model.taxonomy import Taxonomy
from maskmill.engine.predictors.open import ModelOptions, PromptedOptions, open_everything, open_prompted
from maskmill.engine.predictors.prompted.class_masks import MaskSettings
from maskmill.engine.predictors.prompted.embedding_cache import EmbeddingCache
from maskmill.engine.predictors.prompted.predictor import PromptedPredictor, PromptedSteps
from maskmill.engine.predictors.prompted.prompts import PromptSettings
from maskmill.engine.predictors.segment_everything import EverythingSettings, SegmentEverything, paint
from maskmill.engine.runtimes.onnx_runtime import OnnxSession
from maskmill.engine.store.label_store import LabelStore
from maskmill.export.build.engine_builder import BuildOptions, build_engine

from .... import cupy_fake
from ....models import COLORS, cam_bundle, color_image, sam_bundle
from ....test_cli import maskmill, ok
from ...corpus import write_photos
from .test_predictor import BLUE, GREEN, RED, SIZE, picture

# with the encoder's size and edges on even pixels, nothing is rounded on the way to a model's input
IMAGES = {
    "all": picture(RED, GREEN, BLUE),
    "two": picture(RED, GREEN),
    "none": picture(GREEN),
    "black": np.zeros((*SIZE, 3), np.uint8),
}
LABELS = ImageLabels(
    {"all": frozenset(COLORS), "two": frozenset({"red", "green"}), "none": frozenset(), "black": frozenset(COLORS)},
    "labels",
)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    folder = tmp_path_factory.mktemp("bundles")
    return {
        "cam": cam_bundle(folder),
        "batched": sam_bundle(folder, size=SIZE, name="batched"),
        "official": sam_bundle(folder, size=SIZE, name="official", signature="official"),
        "empty": sam_bundle(folder, size=SIZE, name="empty", thresholds=(-1.0,), scores=(0.9,)),
    }


class DeviceSession:
    """A session of the processor that looks like one of a device: CuPy arrays in, CuPy arrays out."""

    def __init__(self, session: OnnxSession, up: Callable[[Any], Any], down: Callable[[Any], Any]) -> None:
        self._session, self._up, self._down = session, up, down
        self.kind, self.artifact = session.kind, session.artifact
        self.max_batch, self.threads = session.max_batch, session.threads

    def run(self, inputs: Any) -> list[Any]:
        """Outputs on the device; the inputs must be there, too, float32 and in C order."""
        arrays = inputs.values() if isinstance(inputs, Mapping) else (inputs,)
        assert all(hasattr(array, "__cuda_array_interface__") for array in arrays)
        assert all(array.dtype == np.float32 and array.flags.c_contiguous for array in arrays)
        named = {key: self._down(value) for key, value in inputs.items()} if isinstance(inputs, Mapping) else None
        return [self._up(output) for output in self._session.run(named or self._down(inputs))]


def sessions(cam: Bundle | None, sam: Bundle, cupy: Any = None, down: Callable[[Any], Any] = np.asarray) -> list[Any]:
    """Of the classifier, where there is one, the encoder and the decoder; on the device with ``cupy``."""
    found = [OnnxSession(sam, role=role) for role in ("encoder", "decoder")]
    if cam is not None:
        found.insert(0, OnnxSession(cam))
    return found if cupy is None else [DeviceSession(one, cupy.asarray, down) for one in found]


def predictors(bundles: dict[str, Bundle], cupy: Any, *, sam: str = "batched", **options: Any) -> Iterator[Any]:
    """The same predictor on the host and on the device."""
    cam = bundles["cam"]
    options = {"class_threshold": 0.4, "scales": (1.0, 2.0), "batch": 4, **options}
    options.setdefault("prompts", PromptSettings(maximum=True, min_distance=3))
    for library, backend in ((None, HOST), (cupy, CudaBackend())):
        yield PromptedPredictor(cam, bundles[sam], *sessions(cam, bundles[sam], library), backend=backend, **options)


def steps(predictor: PromptedPredictor, names: tuple[str, ...] = tuple(IMAGES)) -> list[PromptedSteps]:
    return predictor.steps([predictor.prepare(IMAGES[name], name) for name in names])


def assert_same(host: list[PromptedSteps], device: list[PromptedSteps]) -> None:
    for expected, found in zip(host, device, strict=True):
        assert found.classes == expected.classes
        assert type(found.score_map.scores) is cupy_fake.CupyArray
        for name in ("image", "target", "group", "labels"):
            np.testing.assert_array_equal(getattr(found.prompts, name), getattr(expected.prompts, name))
        np.testing.assert_allclose(np.asarray(found.prompts.points), expected.prompts.points)
        assert [mask.target for mask in found.masks] == [mask.target for mask in expected.masks]
        scores = found.score_map.on_host()
        np.testing.assert_allclose(scores.scores, expected.score_map.scores, atol=1e-5)
        assert (scores.size, scores.region) == (expected.score_map.size, expected.score_map.region)


@pytest.mark.parametrize("sam", ["batched", "official"])
@pytest.mark.parametrize("mode", ["points", "peaks", "box", "box+points", "best"])
@pytest.mark.parametrize("peaks", ["paper", "official"])
def test_every_way_to_prompt_gives_the_hosts_scores(
    cupy: Any, bundles: dict[str, Bundle], sam: str, mode: Any, peaks: Any
) -> None:
    prompts = PromptSettings(maximum=True, min_distance=3, mode=mode, peaks=peaks)
    host, device = (steps(one) for one in predictors(bundles, cupy, sam=sam, prompts=prompts, labels=LABELS))
    assert [len(one.masks) for one in host] == [3, 2, 0, 0]
    assert_same(host, device)


@pytest.mark.parametrize("pick", ["score", "agreement", 1])
@pytest.mark.parametrize("labels", [LABELS, None], ids=["labels", "classifier"])
def test_every_choice_of_masks_gives_the_hosts_scores(
    cupy: Any, bundles: dict[str, Bundle], pick: Any, labels: ImageLabels | None
) -> None:
    options = {"prompts": PromptSettings(maximum=True, min_distance=3, mode="best"), "masks": MaskSettings(pick=pick)}
    host, device = (steps(one) for one in predictors(bundles, cupy, labels=labels, **options))
    assert any(one.masks for one in host)
    assert_same(host, device)


def test_masks_of_nothing_leave_the_background(cupy: Any, bundles: dict[str, Bundle]) -> None:
    host, device = (steps(one) for one in predictors(bundles, cupy, sam="empty", labels=LABELS))
    assert_same(host, device)
    assert (np.asarray(device[0].score_map.scores)[0] == 1).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1)])
def test_images_of_any_shape(cupy: Any, bundles: dict[str, Bundle], size: tuple[int, int]) -> None:
    labels = ImageLabels({"a": frozenset({"green"})}, "labels")
    _, predictor = predictors(bundles, cupy, labels=labels)
    score_map = predictor.predict(color_image(np.ones(size, np.int64)), "a").on_host()
    assert (score_map.scores.argmax(axis=0) == 2).all()


def downloads(work: Callable[[], Any]) -> tuple[list[tuple[int, ...]], int]:
    """Shapes of what comes down while ``work`` runs, and how often a thread waits for it."""
    cupy_fake.events.clear()
    work()
    shapes = [event[2] for event in cupy_fake.events if event[1] == "download"]
    return shapes, sum(event[1] == "synchronize" for event in cupy_fake.events)


@pytest.mark.parametrize("mode", ["points", "peaks"])
def test_of_points_only_counts_and_confidences_come_down(cupy: Any, bundles: dict[str, Bundle], mode: Any) -> None:
    prompts = PromptSettings(maximum=True, min_distance=40, mode=mode)
    _, predictor = predictors(bundles, cupy, labels=LABELS, prompts=prompts)
    prepared = [predictor.prepare(IMAGES[name], name) for name in IMAGES]
    shapes, waits = downloads(lambda: predictor.run(prepared))
    # peaks of each map of three images, confidences of each mask of two
    assert shapes == [(3,), (2,), (3,), (3,), (2,)]
    assert waits == 2, "once for all images of a batch"


def test_without_labels_the_probabilities_come_down_as_well(cupy: Any, bundles: dict[str, Bundle]) -> None:
    _, predictor = predictors(bundles, cupy, prompts=PromptSettings(maximum=True, min_distance=40))
    prepared = [predictor.prepare(IMAGES[name]) for name in ("all", "two")]
    shapes, waits = downloads(lambda: predictor.run(prepared))
    assert shapes[:2] == [(3,), (3,)]
    assert {len(shape) for shape in shapes} == {1}
    assert waits <= 3


def test_boxes_bring_the_maps_down_and_groups_their_agreements(cupy: Any, bundles: dict[str, Bundle]) -> None:
    prompts = PromptSettings(maximum=True, min_distance=40, mode="best")
    _, predictor = predictors(bundles, cupy, labels=LABELS, prompts=prompts)
    prepared = [predictor.prepare(IMAGES["two"], "two")]
    shapes, waits = downloads(lambda: predictor.run(prepared))
    counts, maps, peaks, confidences, agreements = shapes
    assert (counts, maps, peaks[::2]) == ((2,), (2, 16, 24), (2, 2))
    assert len(confidences) == len(agreements) == 1
    assert waits == 3


def test_a_photo_goes_up_once_and_may_lie_there_already(cupy: Any, bundles: dict[str, Bundle]) -> None:
    host, device = predictors(bundles, cupy, labels=LABELS)
    shapes, _ = downloads(lambda: device.prepare(IMAGES["all"], "all"))
    assert shapes == []
    uploads = [event for event in cupy_fake.events if event[1] == "upload"]
    assert len(uploads) == 1, "once for all models and scales"
    found = device.predict(cupy.asarray(IMAGES["all"]), "all").on_host()
    np.testing.assert_allclose(found.scores, host.predict(IMAGES["all"], "all").scores, atol=1e-5)


def test_kept_embeddings_come_down_once_and_go_up_again(cupy: Any, bundles: dict[str, Bundle], tmp_path: Path) -> None:
    (expected,) = steps(next(predictors(bundles, cupy, labels=LABELS)), ("two",))
    for encoded, shapes in ((1, [(2,), (3, 16, 24), (2,)]), (0, [(2,), (2,)])):
        cache = EmbeddingCache(tmp_path / "kept", encoder="e" * 64, max_bytes=1 << 20)
        _, predictor = predictors(bundles, cupy, labels=LABELS, cache=cache)
        prepared = [predictor.prepare(cupy.asarray(IMAGES["two"]), "two")]
        found: list[PromptedSteps] = []
        assert downloads(lambda: found.extend(predictor.steps(prepared)))[0] == shapes  # noqa: B023
        assert_same([expected], found)
        assert predictor.encoded == encoded


@pytest.mark.parametrize("limit", [1, 64])
def test_a_label_run_on_the_device_fills_the_same_store(
    cupy: Any, bundles: dict[str, Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    for name in ("MAX_STAGING", "MAX_TENSORS", "MAX_IMAGES"):  # with 1, streams wait for one another all the time
        monkeypatch.setattr(cuda, name, limit)
    photos = write_photos(tmp_path / "photos", 4, size=SIZE)
    stores = []
    for index, predictor in enumerate(predictors(bundles, cupy, batch=2, class_threshold=0.2, scales=(2.0,))):
        taxonomy, selection = Taxonomy.of_model(predictor.bundle), Selection(weight="confidence")
        label(predictor, open_source(str(tmp_path / "photos")), tmp_path / str(index), taxonomy, selection, workers=2)
        stores.append(LabelStore.open(tmp_path / str(index)))
    assert [store.run["kernels"] for store in stores] == ["cpu", "cuda"]
    for path in photos:
        (expected, _), (found, _) = (store.read(str(path)) for store in stores)
        np.testing.assert_array_equal(found, expected)
        assert len(np.unique(found)) > 1


def segmenters(bundles: dict[str, Bundle], cupy: Any, sam: str = "batched", **options: Any) -> list[SegmentEverything]:
    """The same on the host and on the device."""
    settings = EverythingSettings(**{"side": 8, "min_score": 0.6, **options})
    backends: list[tuple[Any, Backend]] = [(None, HOST), (cupy, CudaBackend())]
    return [
        SegmentEverything(
            bundles[sam], *sessions(None, bundles[sam], library), settings=settings, backend=backend
        )
        for library, backend in backends
    ]  # fmt: skip


@pytest.mark.parametrize("sam", ["batched", "official", "empty"])
@pytest.mark.parametrize("min_score", [0.6, 0.95])
def test_segments_are_those_of_the_host(cupy: Any, bundles: dict[str, Bundle], sam: str, min_score: float) -> None:
    host, device = segmenters(bundles, cupy, sam, min_score=min_score)
    for name, image in IMAGES.items():
        (expected,), (found,) = (one.run([one.prepare(image)]) for one in (host, device))
        assert type(found.logits) is cupy_fake.CupyArray
        np.testing.assert_array_equal(found.scores, expected.scores)
        np.testing.assert_array_equal(paint(found), paint(expected), err_msg=name)


def test_of_segments_what_decides_comes_down_and_the_map(cupy: Any, bundles: dict[str, Bundle]) -> None:
    _, device = segmenters(bundles, cupy)
    prepared = device.prepare(IMAGES["all"])
    shapes, waits = downloads(lambda: paint(device.run([prepared])[0]))
    scores, stable, areas, overlaps, painted = shapes
    assert scores == (8 * 8 * 3,)
    assert stable == areas == overlaps[:1] == overlaps[1:]
    assert painted == SIZE
    assert waits == 4
    _, strict = segmenters(bundles, cupy, min_score=0.95)
    shapes, _ = downloads(lambda: paint(strict.run([prepared])[0]))
    assert shapes == [scores, painted], "where no score is high enough nothing else is looked at"


def test_a_segment_run_on_the_device_fills_the_same_store(
    cupy: Any, bundles: dict[str, Bundle], tmp_path: Path
) -> None:
    photos = write_photos(tmp_path / "photos", 3, size=SIZE)
    stores = []
    for index, model in enumerate(segmenters(bundles, cupy, min_score=0.1, min_stability=0.1)):
        segment(model, open_source(str(tmp_path / "photos")), tmp_path / str(index), workers=2)
        stores.append(LabelStore.open(tmp_path / str(index)))
    for path in photos:
        (expected, _), (found, _) = (store.read(str(path)) for store in stores)
        np.testing.assert_array_equal(found, expected)
        assert len(np.unique(found)) > 1


def test_engines_are_opened_with_the_device_as_their_place(cupy: Any, tmp_path: Path) -> None:
    built = BuildOptions(batch=(1, 2, 4), points=(1, 2, 8))
    cam = build_engine(cam_bundle(tmp_path), options=built).bundle
    sam = sam_bundle(tmp_path, size=SIZE)
    for role in ("encoder", "decoder"):
        sam = build_engine(sam, role=role, options=built).bundle
    (tmp_path / "labels.csv").write_text("image,labels\ntwo,red;green\n")
    options = PromptedOptions(
        cam=cam.path, sam=sam.path, image_labels=tmp_path / "labels.csv", prompt=("min_distance=3",)
    )
    scores = []
    for provider in ("cpu", "engine"):
        predictor, _ = open_prompted(options, options=ModelOptions(provider=provider, allow_unverified=True))
        assert predictor.backend.form == {"cpu": "cpu", "engine": "cuda"}[provider]
        scores.append(predictor.predict(IMAGES["two"], "two").on_host().scores)
    np.testing.assert_allclose(scores[1], scores[0], atol=1e-4)
    alone = PromptedOptions(sam=sam.path, prompt=("min_score=0.5", "side=4"))
    labels = []
    for provider in ("cpu", "engine"):
        model = open_everything(alone, options=ModelOptions(provider=provider, allow_unverified=True))
        assert model.backend.form == {"cpu": "cpu", "engine": "cuda"}[provider]
        labels.append(paint(model.run([model.prepare(IMAGES["two"])])[0]))
    np.testing.assert_array_equal(labels[1], labels[0])


def test_everything_asked_of_cupy_is_in_the_true_one(cupy: Any, bundles: dict[str, Bundle]) -> None:
    cupy_fake.used.clear()
    _, predictor = predictors(
        bundles, cupy, prompts=PromptSettings(maximum=True, min_distance=3, mode="best", max_peaks=3)
    )
    steps(predictor)
    _, model = segmenters(bundles, cupy)
    paint(model.run([model.prepare(IMAGES["all"])])[0])
    assert len(cupy_fake.used) > 20
    cupy_fake.assert_in_cupy(cupy_fake.used)


OPENING = """
import os
from pathlib import Path

from maskmill.engine.predictors import open as opening


def _seen(options):
    (options.sam.parent / "seen" / os.environ["CUDA_VISIBLE_DEVICES"]).touch()


def open_prompted(prompted, taxonomy, **more):
    _seen(prompted)
    return opening.open_prompted(prompted, taxonomy, **{**more, "options": opening.ModelOptions()})


def open_everything(prompted, **more):
    _seen(prompted)
    return opening.open_everything(prompted, **{**more, "options": opening.ModelOptions()})
"""
"""What each device's process calls: notes which device it was given, and works on the processor."""


@pytest.mark.parametrize("command", ["cam and sam", "sam alone"])
def test_a_process_a_device_labels_with_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    (tmp_path / "seen").mkdir()
    (tmp_path / "opening_prompted.py").write_text(OPENING)
    monkeypatch.syspath_prepend(tmp_path)
    opening = importlib.import_module("opening_prompted")
    write_photos(tmp_path / "photos", 8, size=SIZE)
    models = ["--sam", str(sam_bundle(tmp_path, size=SIZE).path)]
    if command == "cam and sam":
        models += ["--cam", str(cam_bundle(tmp_path).path), "--set", "class_threshold=0.2"]
    verb = "label-prompted" if command == "cam and sam" else "segment"
    monkeypatch.setattr(cli, "open_prompted", opening.open_prompted)
    monkeypatch.setattr(cli, "open_everything", opening.open_everything)
    gpus = ("--provider", "engine", "--device", "3,5")
    ok(verb, *models, "photos", "-o", "store", *gpus, cwd=tmp_path)
    assert {path.name for path in (tmp_path / "seen").iterdir()} == {"3", "5"}
    assert len(LabelStore.open(tmp_path / "store")) == 8
    refused = maskmill(verb, *models, "photos", "--device", "0,1", "-o", "store", cwd=tmp_path)
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    del sys.modules["opening_prompted"]
