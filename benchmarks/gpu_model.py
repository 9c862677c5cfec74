"""The model of a GPU session: one stack of convolutions as an ONNX bundle, as a session in torch, and in training."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from maskmill.engine.model.bundle import Bundle, ModelFile, OutputSpec
from maskmill.engine.model.files import sha256
from maskmill.engine.model.input_spec import InputSpec

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
