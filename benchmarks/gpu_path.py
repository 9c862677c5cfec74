"""The device path of a GPU session: a model of its own, the runtimes that run it, and what keeps the device busy."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from maskmill.engine.backends.cuda import CudaBackend
from maskmill.engine.labeling.selection import Selection, select_batch
from maskmill.engine.model.bundle import Bundle, InputSpec, ModelFile, OutputSpec
from maskmill.engine.model.files import sha256
from maskmill.engine.model.taxonomy import Taxonomy
from maskmill.engine.predictors.semantic import SemanticPredictor
from maskmill.kernels.processors import usable_processors

CLASSES = 21
STRIDE = 8


class Weights:
    """A stack of convolutions from an image to scores at an eighth of its size, the same for every runtime."""

    def __init__(self, side: int, width: int, depth: int) -> None:
        rng = np.random.default_rng(0)
        self.side = side
        channels = [3, *[width] * (depth - 1), CLASSES]
        self.layers = [
            (
                rng.normal(0, (2 / (9 * before)) ** 0.5, (after, before, 3, 3)).astype(np.float32),
                2 if index < 3 else 1,
                index < depth - 1,
            )
            for index, (before, after) in enumerate(zip(channels, channels[1:], strict=False))
        ]
        """(weight, stride, whether a ReLU follows) of each convolution."""

    def flops(self) -> float:
        """Count multiplications and additions per image."""
        total, side = 0.0, self.side
        for weight, stride, _ in self.layers:
            side //= stride
            total += 2 * weight.size * side * side
        return total

    def bundle(self, folder: Path) -> Bundle:
        """Write the graph as a bundle; no runtime is needed for it."""
        import onnx
        from onnx import TensorProto, helper, numpy_helper

        nodes, tensors, name = [], [], "image"
        for index, (weight, stride, relu) in enumerate(self.layers):
            tensors.append(numpy_helper.from_array(weight, f"weight{index}"))
            last = index == len(self.layers) - 1
            inputs, name = [name, f"weight{index}"], "scores" if last else f"conv{index}"
            nodes.append(helper.make_node("Conv", inputs, [name], strides=[stride] * 2, pads=[1] * 4))
            if relu:
                nodes.append(helper.make_node("Relu", [name], [f"relu{index}"]))
                name = f"relu{index}"
        cells = self.side // STRIDE
        graph = helper.make_graph(
            nodes,
            "convolutions",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, self.side, self.side])],
            [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", CLASSES, cells, cells])],
            tensors,
        )
        folder.mkdir(parents=True)
        path = folder / "model.onnx"
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
        spec = InputSpec(name="image", height=self.side, width=self.side, scale=1 / 255)
        file = ModelFile(path=path.name, sha256=sha256(path), bytes=path.stat().st_size)
        names = tuple(f"class{index}" for index in range(CLASSES))
        bundle = Bundle(
            path=folder, task="semantic", files=(file,), input=spec, outputs=(OutputSpec(name="scores"),), classes=names
        )
        bundle.save()
        return bundle


class TorchSession:
    """The weights in torch as a session for CuPy arrays, for machines without TensorRT and ONNX Runtime's CUDA."""

    kind, artifact, threads = "torch/cuda/fp32", "", 1

    def __init__(self, weights: Weights, batch: int) -> None:
        import torch

        self._torch, self.max_batch = torch, batch
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._layers = [
            (torch.from_numpy(weight).to(self._device), stride, relu) for weight, stride, relu in weights.layers
        ]

    def run(self, inputs: Any) -> list[Any]:
        """Queue the convolutions on CuPy's current stream."""
        import cupy

        stream = cupy.cuda.get_current_stream()
        with self._on(stream.ptr), self._torch.inference_mode():
            tensor = self._torch.from_dlpack(inputs)
            for weight, stride, relu in self._layers:
                tensor = self._torch.nn.functional.conv2d(tensor, weight, stride=stride, padding=1)
                tensor = tensor.relu() if relu else tensor
            return [cupy.from_dlpack(tensor) if self._device.type == "cuda" else cupy.asarray(tensor.numpy())]

    @contextmanager
    def _on(self, pointer: int) -> Iterator[None]:
        """Make torch work on CuPy's stream."""
        if self._device.type != "cuda":
            yield
            return
        with self._torch.cuda.stream(self._torch.cuda.ExternalStream(pointer)):
            yield

    def __repr__(self) -> str:
        return f"torch {self._torch.__version__} on {self._device}"


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


def training_step(weights: Weights, batch: int, seconds: float) -> dict[str, Any]:
    """Time a step with the trainer's weighted loss and a step of plain PyTorch, alternating, on the same network."""
    import torch

    from maskmill.trainer.objectives import losses

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    modules: list[Any] = []
    for weight, stride, relu in weights.layers:
        modules.append(torch.nn.Conv2d(weight.shape[1], weight.shape[0], 3, stride, 1))
        if relu:
            modules.append(torch.nn.ReLU(inplace=True))
    network = torch.nn.Sequential(*modules).to(device)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9)
    images = torch.rand(batch, 3, weights.side, weights.side, device=device)
    target = torch.randint(0, CLASSES, (batch, weights.side, weights.side), device=device)
    trust = torch.rand(batch, weights.side, weights.side, device=device)

    def step(loss: Callable[[Any], Any]) -> float:
        started = time.perf_counter()
        logits = torch.nn.functional.interpolate(network(images), target.shape[-2:], mode="bilinear")
        loss(logits).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    def plain(logits: Any) -> Any:
        return (torch.nn.functional.cross_entropy(logits, target, reduction="none") * trust).mean()

    def ours(logits: Any) -> Any:
        return losses.cross_entropy(logits, target, trust, ignore=255)

    times: dict[str, list[float]] = {"plain": [], "ours": []}
    for loss in (plain, ours):
        step(loss)
    started = time.perf_counter()
    while len(times["ours"]) < 2 or time.perf_counter() - started < seconds:
        times["plain"].append(step(plain))
        times["ours"].append(step(ours))
    medians = {name: float(np.median(values)) for name, values in times.items()}
    return {
        "device": str(device),
        "plain_ms": round(1000 * medians["plain"], 3),
        "ours_ms": round(1000 * medians["ours"], 3),
        "ratio": round(medians["ours"] / medians["plain"], 3),
    }
