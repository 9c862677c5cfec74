"""The device path of a GPU session: runtimes, JPEG files to label maps, a label run, and the device's busy time."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from gpu_model import TorchSession, Weights

from maskmill.engine.backends.cuda import CudaBackend
from maskmill.engine.labeling.selection import Selection, select_batch
from maskmill.engine.model.bundle import Bundle
from maskmill.engine.model.taxonomy import Taxonomy
from maskmill.engine.predictors.semantic import SemanticPredictor
from maskmill.kernels.processors import usable_processors


def open_runtime(bundle: Bundle, weights: Weights, batch: int) -> tuple[Any, list[str]]:
    """Open the best runtime of this machine; returns the session and the reasons against those before it."""
    reasons = []
    if find_spec("tensorrt") is not None:
        from maskmill.engine.runtimes.tensorrt_runtime import TensorRTSession
        from maskmill.export.build.engine_builder import BuildOptions, build_engine

        try:
            built = build_engine(bundle, options=BuildOptions(batch=(1, batch, batch))).bundle
            return TensorRTSession(built), reasons
        except Exception as error:
            reasons.append(f"TensorRT: {error}")
    else:
        reasons.append("TensorRT is not installed")
    if find_spec("onnxruntime") is not None:
        from maskmill.engine.runtimes.onnx_runtime import OnnxSession

        try:
            return OnnxSession(bundle, provider="cuda"), reasons
        except Exception as error:
            reasons.append(f"ONNX Runtime: {error}")
    else:
        reasons.append("ONNX Runtime is not installed")
    return TorchSession(weights, batch), reasons


def photos(num: int, size: tuple[int, int]) -> list[bytes]:
    """Generate JPEG files of smooth noise."""
    from PIL import Image

    files = []
    for seed in range(num):
        coarse = np.random.default_rng(seed).integers(0, 256, (size[0] // 16, size[1] // 16, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
        files.append(buffer.getvalue())
    return files


class Spans:
    """Pairs of events around pieces of work, by stream; their union is the time in which the device was busy."""

    def __init__(self, cupy: Any, backend: CudaBackend) -> None:
        self._cupy, self._streams, self._lock = cupy, backend.streams, threading.Lock()
        self._base = self._event("compute")
        self._pairs: list[tuple[str, Any, Any]] = []

    def _event(self, stream: str) -> Any:
        event = self._cupy.cuda.Event()
        event.record(self._streams[stream])
        return event

    def around(self, stream: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function with its work on ``stream`` timed."""

        def call(*args: Any, **options: Any) -> Any:
            start = self._event(stream)
            result = function(*args, **options)
            with self._lock:
                self._pairs.append((stream, start, self._event(stream)))
            return result

        return call

    def report(self, wall: float) -> dict[str, Any]:
        """Compute seconds of work per stream, the idle share of ``wall`` seconds, and the share of work in parallel."""
        self._cupy.cuda.Device().synchronize()
        elapsed = self._cupy.cuda.get_elapsed_time
        intervals = sorted(
            (elapsed(self._base, start) / 1000, elapsed(self._base, stop) / 1000, stream)
            for stream, start, stop in self._pairs
        )
        busy, end = 0.0, -np.inf
        totals = dict.fromkeys(self._streams, 0.0)
        for low, high, stream in intervals:
            totals[stream] += high - low
            busy += max(0.0, high - max(low, end))
            end = max(end, high)
        total = sum(totals.values())
        return {
            "busy_s_by_stream": {name: round(value, 4) for name, value in totals.items()},
            "idle_share": round(max(0.0, 1 - busy / wall), 4),
            "overlap_share": round(max(0.0, total - busy) / total, 4) if total else 0.0,
        }


def bare_loop(cupy: Any, session: Any, weights: Weights, batch: int, seconds: float) -> float:
    """Measure images/s of the session alone, on one batch that is on the device."""
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        inputs = cupy.zeros((batch, 3, weights.side, weights.side), np.float32)
        for _ in range(3):
            session.run(inputs)
        stream.synchronize()
        calls, started = 0, time.perf_counter()
        while calls < 2 or time.perf_counter() - started < seconds:
            session.run(inputs)
            calls += 1
            if calls % 16 == 0:
                stream.synchronize()
        stream.synchronize()
    return calls * batch / (time.perf_counter() - started)


def device_path(
    cupy: Any, bundle: Bundle, session: Any, files: list[bytes], batch: int, seconds: float
) -> dict[str, Any]:
    """Measure JPEG file to label map without a store: images/s, idle share and overlap."""
    backend = CudaBackend()
    predictor = SemanticPredictor(bundle, session, backend=backend, batch=batch)
    taxonomy, selection = Taxonomy.of_model(bundle), Selection(weight="pcos")
    spans = Spans(cupy, backend)
    backend.preprocess = spans.around("ingest", backend.preprocess)  # type: ignore[method-assign]
    backend.download = spans.around("download", backend.download)  # type: ignore[method-assign]
    run = spans.around("compute", predictor.run)
    select = spans.around("compute", select_batch)
    done = 0

    def prepare(data: bytes) -> Any:
        return predictor.prepare(backend.decode(data))

    select_batch(predictor.run([prepare(data) for data in files[:batch]]), taxonomy, selection)  # kernels compile
    started = time.perf_counter()
    with ThreadPoolExecutor(usable_processors()) as decoders, ThreadPoolExecutor(2) as selectors:
        pending: list[Any] = []
        while done == 0 or time.perf_counter() - started < seconds:
            ready = [decoders.submit(prepare, files[(done + index) % len(files)]) for index in range(batch)]
            maps = run([item.result() for item in ready])
            pending.append(selectors.submit(select, maps, taxonomy, selection))
            done += len(maps)
            if len(pending) > 2:
                pending.pop(0).result()
        for item in pending:
            item.result()
    wall = time.perf_counter() - started
    return {"images_per_s": round(done / wall, 2), "images": done, **spans.report(wall)}


def label_run(bundle: Bundle, session: Any, files: list[bytes], batch: int, num: int, folder: Path) -> dict[str, Any]:
    """Label ``num`` copies of generated photos into a store; returns images/s."""
    from maskmill.engine.inputs.sources import open_source
    from maskmill.engine.labeling.label_run import label

    images = folder / "photos"
    images.mkdir()
    for index in range(num):
        # bytes after the end of a JPEG file make copies different images
        (images / f"{index:06}.jpg").write_bytes(files[index % len(files)] + b"\0" * (index // len(files)))
    predictor = SemanticPredictor(bundle, session, backend=CudaBackend(), batch=batch)
    started = time.perf_counter()
    selection = Selection(weight="pcos")
    progress = label(predictor, open_source(str(images)), folder / "store", Taxonomy.of_model(bundle), selection)
    seconds = time.perf_counter() - started
    return {"images_per_s": round(progress.images / seconds, 2), "images": progress.images}
