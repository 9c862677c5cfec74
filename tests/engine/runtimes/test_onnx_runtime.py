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

from maskmill.engine.runtimes.onnx_runtime import OnnxSession
from maskmill.engine.runtimes.open import Provider, open_session
from maskmill.errors import GateError, MissingPackageError, SessionError, UsageError

from ...cupy_fake import CupyArray, fake_cupy
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


class OnCpu:
    """An ONNX Runtime session whose bindings take "cuda" for main memory, where the stand-in's arrays lie."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self._session = session

    def io_binding(self) -> Any:
        binding = self._session.io_binding()
        bind_input, bind_output = binding.bind_input, binding.bind_output
        binding.bind_input = lambda name, device, *rest: bind_input(name, {"cuda": "cpu"}[device], *rest)
        binding.bind_output = lambda name, device, *rest: bind_output(name, {"cuda": "cpu"}[device], *rest)
        return binding

    def run_with_iobinding(self, binding: Any) -> None:
        self._session.run_with_iobinding(binding)


def test_arrays_on_a_device_go_through_onnx_runtime_without_copies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = color_bundle(tmp_path)
    with fake_cupy(monkeypatch) as cupy:
        session = OnnxSession(bundle)
        monkeypatch.setattr(session, "_session", OnCpu(session._session))
        images = np.random.default_rng(0).random((3, 3, 16, 24), dtype=np.float32)
        turned = cupy.asarray(images.transpose(0, 3, 2, 1)).transpose(0, 3, 2, 1)
        for batch in (cupy.asarray(images), turned):
            (scores,) = session.run(batch)
            assert type(scores) is CupyArray
            np.testing.assert_allclose(np.asarray(scores), images * 10, rtol=1e-6)
        with pytest.raises(SessionError, match=r"failed on its input 'image' of shape \(1, 3, 5, 5\)"):
            session.run(cupy.zeros((1, 3, 5, 5), np.float32))


def test_tensorrt_in_onnx_runtime_keeps_its_engines_in_the_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
    (name, options), second = asked["providers"]
    assert (name, second) == tuple(names[:2]), "what TensorRT does not take runs on the same device"
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
