"""Opening a session by the name of its provider, and ONNX Runtime's sessions."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import onnxruntime
import pytest

from maskmill.engine.model.bundle import Bundle
from maskmill.engine.runtimes.onnx_device import DeviceRunner, new_stream
from maskmill.engine.runtimes.onnx_runtime import OnnxSession, operators_on_cpu
from maskmill.engine.runtimes.open import Provider, open_session
from maskmill.errors import GateError, MissingPackageError, SessionError, UsageError

from ... import cupy_fake, race_detector
from ...cupy_fake import CupyArray
from ...models import color_bundle


@pytest.mark.parametrize("provider", ["cpu", "openvino"])
def test_the_same_call_opens_every_runtime(tmp_path: Path, provider: str) -> None:
    session = open_session(color_bundle(tmp_path), provider=provider, threads=2)
    assert session.threads == 2
    assert session.run(np.ones((1, 3, 16, 24), np.float32))[0].mean() == 10


def test_an_unknown_provider_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=", ".join(get_args(Provider))):
        open_session(color_bundle(tmp_path), provider="quantum")


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = color_bundle(tmp_path)
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingPackageError, match=r"pip install .*\[openvino\]"):
        open_session(bundle, provider="openvino")


def test_a_provider_that_this_installation_lacks_is_no_other_one(tmp_path: Path) -> None:
    if "TensorrtExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("ONNX Runtime here has TensorRT")
    with pytest.raises(SessionError, match="no tensorrt provider"):
        open_session(color_bundle(tmp_path), provider="tensorrt")


def test_the_nodes_on_the_processor_are_read_back(tmp_path: Path) -> None:
    bundle = color_bundle(tmp_path, stride=2)
    recording = onnxruntime.SessionOptions()
    recording.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    recording.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    session = onnxruntime.InferenceSession(str(bundle.model_path()), recording, providers=["CPUExecutionProvider"])
    assert operators_on_cpu(session) == {"AveragePool": 1, "Conv": 1, "Identity": 1}
    assert operators_on_cpu(object()) == {}


class OnCpu:
    """An ONNX Runtime session whose bindings take "cuda" for main memory, where the stand-in's arrays reside.

    It works on a stream of the stand-in, and its own output memory is of that stream.
    """

    def __init__(self, session: onnxruntime.InferenceSession, stream: cupy_fake.Stream) -> None:
        self._session, self._stream, self.waited = session, stream, 0

    def io_binding(self) -> Any:
        binding = self._session.io_binding()
        bind_input, bind_output, get_outputs = binding.bind_input, binding.bind_output, binding.get_outputs
        binding.accesses, binding.own, binding.unbound = [], [], False

        def bound(bind: Any, write: bool) -> Any:
            def call(name: str, device: str, id: int, *rest: Any) -> None:
                bind(name, {"cuda": "cpu"}[device], id, *rest)
                binding.unbound |= not rest
                if rest:
                    dtype, shape, pointer = rest
                    num_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
                    binding.accesses.append((pointer, pointer + num_bytes, write))

            return call

        binding.values = get_outputs
        binding.bind_input, binding.bind_output = bound(bind_input, False), bound(bind_output, True)
        binding.get_outputs = lambda: binding.own
        return binding

    def run_with_iobinding(self, binding: Any, options: onnxruntime.RunOptions) -> None:
        assert options.get_run_config_entry("disable_synchronize_execution_providers") == "1"

        def work(timeline: race_detector.Timeline) -> None:
            for low, high, write in binding.accesses:
                race_detector.touch(timeline, low, high, write=write, what="ONNX Runtime")
            self._session.run_with_iobinding(binding)

        self._stream.do("session", work)
        if binding.unbound:
            with self._stream:
                binding.own = [self._in_own_memory(value) for value in binding.values()]

    @staticmethod
    def _in_own_memory(value: Any) -> Any:
        array = sys.modules["cupy"].asarray(value.numpy())
        return SimpleNamespace(shape=value.shape, data_type=value.data_type, data_ptr=lambda: array.ctypes.data)


def on_stand_in(bundle: Bundle) -> OnnxSession:
    """A session that runs on the processor, and believes that this is a device."""
    session = OnnxSession(bundle)
    stream = new_stream()
    assert stream is not None
    session._device = DeviceRunner(OnCpu(session._session, stream), session._outputs, stream)
    return session


def test_arrays_on_a_device_go_through_onnx_runtime_without_copies(cupy: Any, tmp_path: Path) -> None:
    session = on_stand_in(color_bundle(tmp_path))
    images = np.random.default_rng(0).random((3, 3, 16, 24), dtype=np.float32)
    turned = cupy.asarray(images.transpose(0, 3, 2, 1)).transpose(0, 3, 2, 1)
    for batch in (cupy.asarray(images), turned, cupy.asarray(images)):
        (scores,) = session.run(batch)
        assert type(scores) is CupyArray
        np.testing.assert_allclose(cupy.asnumpy(scores), images * 10, rtol=1e-6)
    with pytest.raises(SessionError, match=r"failed on its input 'image' of shape \(1, 3, 5, 5\)"):
        session.run(cupy.zeros((1, 3, 5, 5), np.float32))


def test_onnx_runtime_is_ordered_with_the_callers_stream_and_nothing_waits(cupy: Any, tmp_path: Path) -> None:
    session = on_stand_in(color_bundle(tmp_path))
    streams = [cupy.cuda.Stream(non_blocking=True) for _ in range(2)]
    images = np.random.default_rng(0).random((3, 3, 16, 24), dtype=np.float32)
    scores = []
    for index in range(6):
        if index == 1:
            cupy_fake.events.clear()  # the first call finds the shapes of the outputs
        with streams[index % 2]:
            scores.append(session.run(cupy.asarray(images + index))[0])
    assert not [event for event in cupy_fake.events if event[1] == "synchronize"]
    for index, array in enumerate(scores):
        found = cupy.asnumpy(array, stream=streams[index % 2])
        np.testing.assert_allclose(found, (images + index) * 10, rtol=1e-6)


def test_tensorrt_in_onnx_runtime_keeps_its_engines_in_the_bundle(
    cupy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    class Inference:
        def __init__(self, path: str, sess_options: Any, providers: list[Any]) -> None:
            asked["providers"] = providers

        def get_providers(self) -> list[str]:
            return ["TensorrtExecutionProvider"]

        def get_inputs(self) -> list[Any]:
            return [SimpleNamespace(shape=["N", 3, 16, 24])]

    bundle = color_bundle(tmp_path)
    names = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: names)
    monkeypatch.setattr(onnxruntime, "InferenceSession", Inference)
    assert open_session(bundle, provider="tensorrt").kind == "onnxruntime/tensorrt/fp32"
    (name, options), (second, shared) = asked["providers"]
    assert (name, second) == tuple(names[:2]), "what TensorRT does not support runs on the same device"
    assert int(options["user_compute_stream"]) > 0
    assert shared == {"user_compute_stream": options["user_compute_stream"]}
    folder = bundle.path / "engines" / "onnxruntime"
    assert folder.is_dir()
    assert options["trt_engine_cache_path"] == options["trt_timing_cache_path"] == str(folder)


def test_a_converted_file_needs_a_verdict_wherever_it_runs(tmp_path: Path) -> None:
    bundle = color_bundle(tmp_path)
    half = dataclasses.replace(
        bundle.files[0], path="half.onnx", precision="fp16", sha256="2" * 64, derived_from=bundle.files[0].sha256
    )
    (bundle.path / half.path).write_bytes(bundle.model_path().read_bytes())
    bundle = dataclasses.replace(bundle, files=(*bundle.files, half))
    for provider in ("cpu", "openvino"):
        with pytest.raises(GateError, match="maskmill gate"):
            open_session(bundle, provider=provider, precision="fp16")
        assert open_session(bundle, provider=provider, precision="fp16", allow_unverified=True)
        assert open_session(bundle, provider=provider)
