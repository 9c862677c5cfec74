"""TensorRT engines built, stored, loaded and run, against the stand-ins for TensorRT and CuPy."""

from __future__ import annotations

import dataclasses
import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maskmill.engine.model.bundle import Bundle
from maskmill.engine.predictors.prompted.mask_decoder import PromptDecoder
from maskmill.engine.predictors.prompted.prompts import Prompts
from maskmill.engine.runtimes.onnx_runtime import OnnxSession
from maskmill.engine.runtimes.open import open_session
from maskmill.engine.runtimes.tensorrt_runtime import TensorRTSession
from maskmill.errors import MissingPackageError, SessionError
from maskmill.export.build.engine_builder import BuildOptions, build_engine

from ... import cupy_fake
from ...export import trt_fake
from ...models import color_bundle, sam_bundle


def built(folder: Path, *, batch: tuple[int, int, int] = (1, 4, 8), **options: Any) -> Bundle:
    made = {key: options.pop(key) for key in ("hardware_compatible", "version_compatible") if key in options}
    bundle = color_bundle(folder, **options)
    return build_engine(bundle, options=BuildOptions(batch=batch, **made)).bundle


def images(num: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((num, 3, 16, 24), dtype=np.float32)


def on_device(cupy: Any, array: np.ndarray) -> Any:
    """The array on the device, ready for any stream."""
    uploaded = cupy.asarray(array)
    cupy.cuda.get_current_stream().synchronize()
    return uploaded


def test_numpy_arrays_go_in_and_come_out(cupy: Any, tmp_path: Path) -> None:
    session = TensorRTSession(built(tmp_path))
    (scores,) = session.run(images(2))
    assert type(scores) is np.ndarray
    np.testing.assert_allclose(scores, images(2) * 10, rtol=1e-6)
    assert session.kind == "tensorrt/NVIDIA H100 80GB HBM3 sm_90/fp32"
    assert (session.max_batch, session.threads) == (4, 1)
    assert "batches of 4" in repr(session)


def test_arrays_on_the_device_are_read_and_written_in_place(cupy: Any, tmp_path: Path) -> None:
    session = TensorRTSession(built(tmp_path))
    batch = on_device(cupy, images(3))
    cupy_fake.events.clear()
    with cupy.cuda.Stream(non_blocking=True) as stream:
        (scores,) = session.run(batch)
        found = cupy.asnumpy(scores)
    assert type(scores) is cupy_fake.CupyArray
    np.testing.assert_allclose(found, images(3) * 10, rtol=1e-6)
    used = [event for event in cupy_fake.events if event[0] is stream]
    assert {event[1] for event in used} == {"wait", "engine", "record", "download"}


def test_calls_on_two_streams_are_ordered(cupy: Any, tmp_path: Path) -> None:
    session = TensorRTSession(built(tmp_path), graphs=False)
    batch = on_device(cupy, images(1))
    cupy_fake.events.clear()
    for _ in range(2):
        with cupy.cuda.Stream(non_blocking=True):
            session.run(batch)
    first, second = (
        [event for event in cupy_fake.events if event[0] is stream]
        for stream in dict.fromkeys(event[0] for event in cupy_fake.events if event[1] in ("engine", "graph"))
    )
    assert first[-1][1:] == ("record", second[0][2]), "the second stream waits for what the first one recorded"
    assert second[0][1] == "wait"


def test_shapes_that_come_again_are_replayed_as_a_graph(cupy: Any, tmp_path: Path) -> None:
    session = TensorRTSession(built(tmp_path))
    kept = []
    for seed in range(4):
        cupy_fake.events.clear()
        (scores,) = session.run(on_device(cupy, images(2, seed)))
        kept.append(scores)
        launched = [event[1] for event in cupy_fake.events if event[0] is cupy.cuda.get_current_stream()]
        assert ("graph" in launched) == (seed > 0)
    for seed, scores in enumerate(kept):
        np.testing.assert_allclose(cupy.asnumpy(scores), images(2, seed) * 10, rtol=1e-6)


def test_without_room_for_a_graph_the_engine_runs_as_before(
    cupy: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    session = TensorRTSession(built(tmp_path))
    trt_fake.world.contexts = 0
    with caplog.at_level(logging.WARNING):
        for seed in range(3):
            (scores,) = session.run(on_device(cupy, images(2, seed)))
            np.testing.assert_allclose(cupy.asnumpy(scores), images(2, seed) * 10, rtol=1e-6)
    (record,) = caplog.records
    assert "runs without a CUDA graph" in record.getMessage()


@pytest.mark.parametrize("num", [1, 7, 8, 9, 21])
def test_any_batch_is_cut_or_filled_to_what_the_engine_takes(cupy: Any, tmp_path: Path, num: int) -> None:
    session = TensorRTSession(built(tmp_path, batch=(2, 4, 8)))
    (scores,) = session.run(images(num))
    np.testing.assert_allclose(scores, images(num) * 10, rtol=1e-6)


def test_an_engine_for_one_batch_says_so(cupy: Any, tmp_path: Path) -> None:
    assert TensorRTSession(built(tmp_path, batch=(4, 4, 4))).max_batch == 4


def test_out_of_memory_a_smaller_batch_is_tried_and_said(
    cupy: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    session = TensorRTSession(built(tmp_path), graphs=False)
    batch = on_device(cupy, images(8))
    cupy_fake.machine.memory_for = batch.nbytes // 3
    with caplog.at_level(logging.WARNING):
        (scores,) = session.run(batch)
    np.testing.assert_allclose(cupy.asnumpy(scores), images(8) * 10, rtol=1e-6)
    assert [record.getMessage().rpartition("out of memory")[2] for record in caplog.records] == [
        " with a batch of 4; trying 2",
    ]
    cupy_fake.machine.memory_for = 0
    with pytest.raises(SessionError, match="too little memory for a batch of 1"):
        session.run(batch)


def test_an_engine_for_another_gpu_is_refused(cupy: Any, tmp_path: Path) -> None:
    bundle = built(tmp_path)
    cupy_fake.machine.capability, cupy_fake.machine.name = "86", "NVIDIA A10"
    with pytest.raises(SessionError, match=r"built for sm_90 \(NVIDIA H100 80GB HBM3\), this is NVIDIA A10 sm_86"):
        TensorRTSession(bundle)


def test_a_hardware_compatible_engine_runs_from_ampere_on(cupy: Any, tmp_path: Path) -> None:
    bundle = built(tmp_path, hardware_compatible=True)
    cupy_fake.machine.capability = "86"
    assert TensorRTSession(bundle).run(images(1))
    cupy_fake.machine.capability = "75"
    with pytest.raises(SessionError, match="needs sm_80 or newer"):
        TensorRTSession(bundle)


def test_an_engine_of_another_tensorrt_is_refused(cupy: Any, tmp_path: Path) -> None:
    bundle = built(tmp_path)
    trt_fake.world.version = "11.5.0"
    with pytest.raises(SessionError, match=r"built by TensorRT 11\.4\.0, this is 11\.5\.0"):
        TensorRTSession(bundle)


def test_a_version_compatible_engine_runs_with_later_versions(cupy: Any, tmp_path: Path) -> None:
    bundle = built(tmp_path, version_compatible=True)
    trt_fake.world.version = "11.10.0"
    assert TensorRTSession(bundle).run(images(1))
    for version in ("11.3.9", "12.0.0"):
        trt_fake.world.version = version
        with pytest.raises(SessionError, match="built by TensorRT"):
            TensorRTSession(bundle)


def test_a_truncated_engine_is_refused(cupy: Any, tmp_path: Path) -> None:
    bundle = built(tmp_path)
    path = bundle.path / bundle.engines[0]["path"]
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(SessionError, match=r"cut short: 100 of [\d,]+ bytes; run `maskmill build"):
        TensorRTSession(bundle)


def test_an_engine_with_another_hash_never_reaches_tensorrt(cupy: Any, tmp_path: Path) -> None:
    bundle = built(tmp_path)
    path = bundle.path / bundle.engines[0]["path"]
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    trt_fake.log.clear()
    with pytest.raises(SessionError, match="its hash differs"):
        TensorRTSession(bundle)
    assert not [entry for entry in trt_fake.log if entry["member"] == "deserialize_cuda_engine"]


def test_an_engine_that_is_gone_or_was_never_built_is_named(cupy: Any, tmp_path: Path) -> None:
    bundle = built(tmp_path)
    (bundle.path / bundle.engines[0]["path"]).unlink()
    with pytest.raises(SessionError, match="cannot read the engine .*No such file"):
        TensorRTSession(bundle)
    with pytest.raises(SessionError, match="has no engine for its model"):
        TensorRTSession(dataclasses.replace(bundle, engines=()))
    outside = dataclasses.replace(bundle, engines=({**bundle.engines[0], "path": "../../x"},))
    with pytest.raises(Exception, match="outside its own folder"):
        TensorRTSession(outside)


def test_an_engine_of_an_earlier_model_file_is_refused(cupy: Any, tmp_path: Path) -> None:
    bundle = built(tmp_path)
    changed = dataclasses.replace(bundle, files=(dataclasses.replace(bundle.files[0], sha256="0" * 64),))
    with pytest.raises(SessionError, match="were built from other files"):
        TensorRTSession(changed)


def test_what_tensorrt_says_is_passed_on(cupy: Any, tmp_path: Path) -> None:
    bundle = built(tmp_path)
    trt_fake.world.contexts = 0
    with pytest.raises(SessionError, match="execution context; free some device memory: Error Code 2"):
        TensorRTSession(bundle)
    trt_fake.world.starts = False
    with pytest.raises(SessionError, match="TensorRT cannot start"):
        TensorRTSession(bundle)


def test_inputs_the_engine_was_not_built_for_are_refused(cupy: Any, tmp_path: Path) -> None:
    session = TensorRTSession(built(tmp_path))
    with pytest.raises(SessionError, match=r"takes 'image' from \(1, 3, 16, 24\) to \(8, 3, 16, 24\), got"):
        session.run(np.zeros((1, 3, 9, 9), np.float32))
    with pytest.raises(SessionError, match="takes image, got photo"):
        session.run({"photo": images(1)})


def test_without_a_device_or_the_packages_the_reason_is_said(
    cupy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = built(tmp_path)
    cupy_fake.machine.devices = 0
    with pytest.raises(SessionError, match="no usable NVIDIA GPU"):
        TensorRTSession(bundle)
    for name in ("cupy", "tensorrt"):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(MissingPackageError, match=r"\[(gpu|tensorrt)\]"):
            TensorRTSession(bundle)


@pytest.mark.parametrize("signature", ["batched", "official"])
def test_encoder_and_decoder_run_as_engines(cupy: Any, tmp_path: Path, signature: str) -> None:
    bundle = sam_bundle(tmp_path, signature=signature)
    for role in ("encoder", "decoder"):
        bundle = build_engine(bundle, role=role, options=BuildOptions(batch=(1, 2, 4), points=(1, 2, 6))).bundle
    image = np.random.default_rng(0).random((1, 3, 32, 48), dtype=np.float32)
    prompts = Prompts(
        image=np.zeros(7, np.int64),
        target=np.zeros(7, np.int64),
        group=np.zeros(7, np.int64),
        points=np.random.default_rng(1).uniform(0, 32, (7, 3, 2)).astype(np.float32),
        labels=np.ones((7, 3), np.float32),
    )
    found, expected = (
        PromptDecoder(bundle, opened("decoder")).run(opened("encoder").run(image), prompts)
        for opened in (lambda role: TensorRTSession(bundle, role=role), lambda role: OnnxSession(bundle, role=role))
    )
    for left, right in zip(found, expected, strict=True):
        np.testing.assert_allclose(left, right, atol=1e-4)


def test_an_engine_without_a_verdict_is_refused_unless_allowed(cupy: Any, tmp_path: Path) -> None:
    bundle = built(tmp_path)
    with pytest.raises(Exception, match="--allow-unverified"):
        open_session(bundle, provider="engine")
    assert open_session(bundle, provider="engine", allow_unverified=True).run(images(1))
