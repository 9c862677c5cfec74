"""The order of work on a device: the race detector finds every fault of a list, and none in the code as it is."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maskmill.engine.backends import cuda
from maskmill.engine.backends.cuda import CudaBackend
from maskmill.engine.inputs.sources import open_source
from maskmill.engine.labeling.label_run import label
from maskmill.engine.labeling.selection import Selection, select
from maskmill.engine.model.bundle import Bundle
from maskmill.engine.model.taxonomy import Taxonomy
from maskmill.engine.predictors.semantic import SemanticPredictor
from maskmill.engine.runtimes.tensorrt_runtime import TensorRTSession
from maskmill.export.build.engine_builder import BuildOptions, build_engine
from maskmill.kernels.gpu import device as gpu_device

from ... import cupy_fake, race_detector
from ...builders import encoded, photo
from ...codec_fake import install
from ...models import color_bundle
from ..corpus import write_photos

Patch = pytest.MonkeyPatch


@pytest.fixture
def bundle(cupy: Any, tmp_path: Path, monkeypatch: Patch) -> Bundle:
    install(cupy, monkeypatch)
    bundle = color_bundle(tmp_path, gain=4.0, size=(12, 16))
    return build_engine(bundle, options=BuildOptions(batch=(1, 2, 4))).bundle


def work(cupy: Any, bundle: Bundle, folder: Path) -> None:
    """A label run, then single images of host and device, and calls of the engine from several streams."""
    photos = folder / "photos"
    if not photos.exists():
        write_photos(photos, 3)
        for seed in range(3):
            (photos / f"{seed}.jpg").write_bytes(encoded(photo(30, 40, seed=seed), "JPEG"))
    cupy_fake.machine.delay = 2
    session = TensorRTSession(bundle)
    predictor = SemanticPredictor(bundle, session, backend=CudaBackend())
    taxonomy, selection = Taxonomy.of_model(bundle), Selection(weight="pcos")
    label(predictor, open_source(str(photos)), folder / "store", taxonomy, selection, workers=2)
    for seed in range(4):  # images of several sizes: buffers are used again, and grow
        score_map = predictor.predict(photo(30 + 9 * seed, 40 - seed, seed=seed))
        select(score_map, taxonomy, selection)
        score_map = predictor.predict(cupy.asarray(photo(30 + 9 * seed, 40 - seed, seed=seed)))
        select(score_map, taxonomy, selection)
    for image in (photo(33, 44), encoded(photo(33, 44), "JPEG")):
        fresh = SemanticPredictor(bundle, session, backend=CudaBackend())
        for _ in range(3):  # what a call no longer needs is dropped while its work is queued
            decoded = [fresh.backend.decode(image) if isinstance(image, bytes) else image for _ in range(2)]
            prepared = [fresh.prepare(item) for item in decoded]
            del decoded
            score_maps = fresh.run(prepared)
            del prepared
        select(score_maps[0], taxonomy, selection)
    backends = (predictor.backend, CudaBackend())  # two that use the same constant tables
    tensors = [
        (backend, backend.preprocess(photo(31, 45, seed=seed), bundle.input)[0])
        for backend in backends
        for seed in range(3)
    ]
    for backend, tensor in tensors:
        backend.download(tensor)
    for number in (2, 3):
        session.run(np.zeros((number, 3, 12, 16), np.float32))
    streams = [cupy.cuda.Stream(non_blocking=True) for _ in range(3)]
    scores = []
    for stream in streams:
        with stream:
            scores.append(session.run(cupy.asarray(np.zeros((2, 3, 12, 16), np.float32)))[0])
    for stream, array in zip(streams, scores, strict=True):
        cupy.asnumpy(array, stream=stream)


# ---- the faults: each undoes one piece of order ------------------------------------------------------------------


def without_waits(stream: str) -> Callable[[Patch], None]:
    """A stream of the backend ignores events."""

    def seed(patch: Patch) -> None:
        create = CudaBackend.__init__

        def init(self: CudaBackend) -> None:
            create(self)
            real = getattr(self, stream)
            blind = _Blind(real)
            setattr(self, stream, blind)

        patch.setattr(CudaBackend, "__init__", init)

    return seed


class _Blind(cupy_fake.Stream):
    """A stream that waits for no event."""

    def __init__(self, stream: cupy_fake.Stream) -> None:
        self.__dict__.update(stream.__dict__)

    def wait_event(self, event: Any) -> None:
        pass


def staging_from_another_pool(patch: Patch) -> None:
    """Staging memory is allocated under the compute stream and written under the ingest stream (the race of old)."""
    staged = CudaBackend._staged

    def from_compute(self: CudaBackend, image: Any) -> Any:
        ingest = cupy_fake.get_current_stream()
        empty = self._cupy.empty

        def elsewhere(*args: Any) -> Any:
            with self._compute:
                return empty(*args)

        assert ingest is self._ingest
        self._cupy.empty = elsewhere
        try:
            return staged(self, image)
        finally:
            self._cupy.empty = empty

    patch.setattr(CudaBackend, "_staged", from_compute)


def staging_reused_at_once(patch: Patch) -> None:
    """A pinned buffer is written again while the device still copies from it."""
    take = cuda.Recycler.take

    def without_waiting(self: Any, wait: Any) -> Any:
        if self._dropped and isinstance(self._dropped[0][0], cuda._Staging):
            return self._dropped.popleft()[0]
        return take(self, wait)

    patch.setattr(cuda.Recycler, "take", without_waiting)


def staging_freed_early(patch: Patch) -> None:
    """Staging memory is dropped as soon as its copy is queued."""
    put = cuda.Recycler.put

    def drop(self: Any, buffer: Any, *events: Any) -> None:
        if not isinstance(buffer, cuda._Staging):
            put(self, buffer, *events)

    patch.setattr(cuda.Recycler, "put", drop)


def tensor_freed_early(patch: Patch) -> None:
    """A dropped model input goes back without an event of the work that reads it."""
    patch.setattr(cuda, "_drop_tensor", lambda buffer, recycler, compute: recycler.put(buffer))


def no_wait_for_the_download(patch: Patch) -> None:
    """The host reads labels before they are copied."""
    patch.setattr(cupy_fake.Event, "synchronize", lambda self: None)


def download_before_compute(patch: Patch) -> None:
    """The download stream does not wait for the kernels."""
    without_waits("_download")(patch)


def scratch_shared_without_order(patch: Patch) -> None:
    """Calls on two streams use one scratch memory at the same time."""
    create = TensorRTSession.__init__

    def init(self: TensorRTSession, *args: Any, **options: Any) -> None:
        create(self, *args, **options)
        self._done.record = lambda stream=None: None  # type: ignore[method-assign]

    patch.setattr(TensorRTSession, "__init__", init)


def graph_buffers_from_a_dropped_stream(patch: Patch) -> None:
    """New scratch memory is used without waiting for the stream of its pool."""
    reserve = TensorRTSession._reserve

    def elsewhere(self: TensorRTSession, num_bytes: int) -> None:
        if num_bytes > self._scratch.nbytes:
            with self._cupy.cuda.Stream(non_blocking=True) as other:
                other.wait_event(self._done)
                self._cupy.zeros(8, np.uint8)
                self._scratch = self._cupy.empty(num_bytes, np.uint8)
        else:
            reserve(self, num_bytes)

    patch.setattr(TensorRTSession, "_reserve", elsewhere)


def table_used_before_its_upload(patch: Patch) -> None:
    """A constant table is read on one stream while another one uploads it."""
    tables: dict[bytes, Any] = {}

    def constant(values: np.ndarray) -> Any:
        key = values.tobytes()
        if key not in tables:
            tables[key] = gpu_device.arrays().asarray(values)
        return tables[key]

    for name in ("pixels", "class_stats"):
        patch.setattr(importlib.import_module(f"maskmill.kernels.gpu.{name}"), "constant", constant)


def image_freed_early(patch: Patch) -> None:
    """An image on the device is freed as soon as its resize is queued."""
    patch.setattr(cuda, "_drop_image", lambda *_: None)


FAULTS: dict[str, Callable[[Patch], None]] = {
    "staging memory from the compute stream's pool": staging_from_another_pool,
    "pinned staging written again at once": staging_reused_at_once,
    "staging freed when its copy is queued": staging_freed_early,
    "model input recycled without an event": tensor_freed_early,
    "compute does not wait for ingest": without_waits("_compute"),
    "ingest does not wait for compute": without_waits("_ingest"),
    "download does not wait for compute": download_before_compute,
    "host does not wait for its events": no_wait_for_the_download,
    "engine calls on two streams are not ordered": scratch_shared_without_order,
    "scratch memory from a pool nobody waits for": graph_buffers_from_a_dropped_stream,
    "image freed when its resize is queued": image_freed_early,
    "constant table read before its upload": table_used_before_its_upload,
}


@contextlib.contextmanager
def seeded(fault: str) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        FAULTS[fault](patch)
        yield


@pytest.mark.parametrize("limit", [1, 64])
def test_the_code_as_it_is_has_no_race(
    cupy: Any, bundle: Bundle, tmp_path: Path, monkeypatch: Patch, limit: int
) -> None:
    for name in ("MAX_STAGING", "MAX_TENSORS", "MAX_IMAGES"):
        monkeypatch.setattr(cuda, name, limit)
    work(cupy, bundle, tmp_path)
    assert not race_detector.races


@pytest.mark.parametrize("fault", FAULTS)
def test_a_seeded_fault_of_order_is_found(
    cupy: Any, bundle: Bundle, tmp_path: Path, monkeypatch: Patch, fault: str
) -> None:
    monkeypatch.setattr(cuda, "MAX_TENSORS", 1)  # as if the decoding threads were far ahead of the device
    with seeded(fault), contextlib.suppress(race_detector.Race):
        work(cupy, bundle, tmp_path)
    assert race_detector.races
    race_detector.races.clear()
