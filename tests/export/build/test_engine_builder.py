"""TensorRT engines are built through the real API: flow against a stand-in, surface against the true bindings."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from maskmill.engine.backends.cuda import CudaBackend
from maskmill.engine.model.bundle import Bundle, ModelFile
from maskmill.engine.runtimes.tensorrt_runtime import TensorRTSession
from maskmill.errors import ExportError, MissingPackageError, SessionError, UsageError
from maskmill.export.build.engine_builder import BuildOptions, build_engine

from ... import cupy_fake
from ...builders import photo
from ...models import color_bundle, color_graph
from .. import trt_fake


def plan_of(bundle: Bundle, number: int = -1) -> dict[str, Any]:
    """What the stand-in was asked to build."""
    data = (bundle.path / bundle.engines[number]["path"]).read_bytes()
    return json.loads(data.partition(b"\0")[0])


class Phases:
    def __init__(self) -> None:
        self.seen: list[tuple[Any, ...]] = []

    def start(self, phase: str, parent: str | None, steps: int) -> None:
        self.seen.append(("start", phase, parent, steps))

    def step(self, phase: str, done: int) -> None:
        self.seen.append(("step", phase, done))

    def finish(self, phase: str) -> None:
        self.seen.append(("finish", phase))


def test_an_engine_is_built_and_listed_in_the_bundle(cupy: Any, tmp_path: Path) -> None:
    options = BuildOptions(batch=(1, 8, 32), workspace=1 << 30, hardware_compatible=True, version_compatible=True)
    built = build_engine(color_bundle(tmp_path), options=options)
    (entry,) = Bundle.load(built.bundle.path).engines
    assert entry["profile"] == {"image": [[1, 3, 16, 24], [8, 3, 16, 24], [32, 3, 16, 24]]}
    assert (entry["gpu"], entry["capability"], entry["tensorrt"]) == ("NVIDIA H100 80GB HBM3", 90, "11.4.0")
    assert entry["path"].startswith("engines/model-fp32-sm_90-")
    plan = plan_of(built.bundle)
    assert plan["profile"] == entry["profile"]
    assert plan["flags"] == ["VERSION_COMPATIBLE"], "float32 is not rounded to TF32"
    assert (plan["level"], plan["workspace"]) == ("AMPERE_PLUS", 1 << 30)


def test_height_and_width_have_ranges_where_the_graph_leaves_them_open(cupy: Any, tmp_path: Path) -> None:
    bundle = color_bundle(tmp_path)
    onnx.save(color_graph(size=("H", "W")), bundle.model_path())
    bundle = dataclasses.replace(bundle, input=dataclasses.replace(bundle.input, dynamic=True))
    built = build_engine(bundle, options=BuildOptions(batch=(1, 1, 2), height=(8, 16, 32), width=(24, 24, 48)))
    assert built.engine.profile == {"image": [[1, 3, 8, 24], [1, 3, 16, 24], [2, 3, 32, 48]]}


def test_the_same_request_is_not_built_twice(cupy: Any, tmp_path: Path) -> None:
    bundle = color_bundle(tmp_path)
    first = build_engine(bundle)
    trt_fake.log.clear()
    again = build_engine(first.bundle)
    assert again.reused
    assert again.engine == first.engine
    assert not [entry for entry in trt_fake.log if entry["member"] == "build_serialized_network"]


@pytest.mark.parametrize("change", ["options", "gpu", "tensorrt", "model", "damage"])
def test_whatever_decides_an_engine_makes_a_new_one(cupy: Any, tmp_path: Path, change: str) -> None:
    bundle = build_engine(color_bundle(tmp_path)).bundle
    options = BuildOptions()
    if change == "options":
        options = BuildOptions(batch=(1, 2, 4))
    elif change == "gpu":
        cupy_fake.machine.capability = "100"
    elif change == "tensorrt":
        trt_fake.world.version = "11.5.0"
    elif change == "model":
        file = dataclasses.replace(bundle.files[0], sha256="1" * 64)
        dataclasses.replace(bundle, files=(file,)).save()
        bundle = Bundle.load(bundle.path)
    else:
        (bundle.path / bundle.engines[0]["path"]).write_bytes(b"")
    built = build_engine(bundle, options=options)
    assert not built.reused
    assert len(built.bundle.engines) == (1 if change == "damage" else 2)


def test_precision_is_that_of_the_file(cupy: Any, tmp_path: Path) -> None:
    bundle = color_bundle(tmp_path)
    half = ModelFile(
        path="model-fp16.onnx", sha256="2" * 64, bytes=1, precision="fp16", derived_from=bundle.files[0].sha256
    )
    shutil.copy(bundle.model_path(), bundle.path / half.path)
    dataclasses.replace(bundle, files=(*bundle.files, half)).save()
    built = build_engine(Bundle.load(bundle.path), precision="fp16")
    assert (built.engine.precision, built.engine.onnx) == ("fp16", "2" * 64)
    with pytest.raises(Exception, match="has no model in int8"):
        build_engine(built.bundle, precision="int8")


def test_out_of_memory_half_the_batch_is_tried_and_said(cupy: Any, tmp_path: Path) -> None:
    trt_fake.world.memory_for = 10
    said: list[str] = []
    built = build_engine(color_bundle(tmp_path), say=said.append)
    assert built.engine.profile["image"][2][0] == 8
    assert built.engine.profile["image"][1][0] == 8
    assert [line.partition(" (")[0] + line.rpartition(")")[2] for line in said] == [
        "out of memory with batches of up to 32; trying 16",
        "out of memory with batches of up to 16; trying 8",
    ]
    assert build_engine(built.bundle, say=said.append).reused, "what was asked for is found again"


def test_not_enough_memory_for_one_image_is_an_error(cupy: Any, tmp_path: Path) -> None:
    trt_fake.world.memory_for = 0
    with pytest.raises(ExportError, match="too little memory to build model.onnx: Skipping tactic"):
        build_engine(color_bundle(tmp_path), say=lambda _: None)
    with pytest.raises(ExportError, match="too little memory"):
        build_engine(color_bundle(tmp_path, batch=4, name="fixed"), say=pytest.fail)


def test_a_failed_build_leaves_nothing_and_says_why(cupy: Any, tmp_path: Path) -> None:
    bundle = color_bundle(tmp_path)
    trt_fake.world.build_error = "Error Code 4: Internal Error (node Conv_3: bad weights)"
    with pytest.raises(ExportError, match=r"cannot build model\.onnx: Error Code 4: Internal Error \(node Conv_3"):
        build_engine(bundle)
    assert not list(bundle.path.rglob("*.engine"))
    assert not Bundle.load(bundle.path).engines


def test_every_error_of_the_parser_is_shown(cupy: Any, tmp_path: Path) -> None:
    bundle = color_bundle(tmp_path)
    graph = onnx.load(bundle.model_path())
    graph.graph.node[0].domain = "unknown"
    onnx.save(graph, bundle.model_path())
    with pytest.raises(ExportError, match=r"node 0 '' \(Conv\): No importer registered"):
        build_engine(bundle)


def test_an_axis_nobody_gave_a_range_is_named(cupy: Any, tmp_path: Path) -> None:
    bundle = color_bundle(tmp_path)
    graph = onnx.load(bundle.model_path())
    graph.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "channels"
    onnx.save(graph, bundle.model_path())
    with pytest.raises(ExportError, match="axis 1 of the input 'image'"):
        build_engine(bundle)


def test_phases_reach_the_observer(cupy: Any, tmp_path: Path) -> None:
    phases = Phases()
    build_engine(color_bundle(tmp_path), observer=phases)
    assert phases.seen[0] == ("start", "Building Engine", None, 2)
    assert ("start", "Tactic selection", "Building Engine", 2) in phases.seen
    assert ("step", "Tactic selection", 2) in phases.seen
    assert phases.seen[-1] == ("finish", "Building Engine")


def test_an_interrupt_stops_the_build_and_leaves_nothing(cupy: Any, tmp_path: Path) -> None:
    bundle = color_bundle(tmp_path)
    trt_fake.world.interrupt_at = "Tactic selection"
    with pytest.raises(KeyboardInterrupt):
        build_engine(bundle, observer=Phases())
    assert not list(bundle.path.rglob("*.engine"))


def test_timings_are_kept_for_the_next_build(cupy: Any, tmp_path: Path) -> None:
    bundle = build_engine(color_bundle(tmp_path)).bundle
    (cache,) = (bundle.path / "engines").glob("timing-*.cache")
    assert cache.name == "timing-sm_90-11.4.0.cache"
    assert cache.read_bytes() == b"timing;"
    build_engine(bundle, options=BuildOptions(batch=(1, 2, 4)))
    assert cache.read_bytes() == b"timing;timing;"
    cache.write_bytes(b"other driver")
    build_engine(bundle, options=BuildOptions(batch=(1, 2, 3)))
    assert cache.read_bytes() == b"timing;", "timings that do not belong here are left out"


def test_what_another_command_added_meanwhile_stays(cupy: Any, tmp_path: Path) -> None:
    stale = color_bundle(tmp_path)
    dataclasses.replace(stale, verdicts=({"passed": True},)).save()
    assert build_engine(stale).bundle.verdicts == ({"passed": True},)


@pytest.mark.parametrize("batch", [(0, 1, 2), (4, 2, 8), (1, 9, 8)])
def test_ranges_must_rise(batch: tuple[int, int, int]) -> None:
    with pytest.raises(UsageError, match="smallest, best, largest"):
        BuildOptions(batch=batch)


def test_what_is_missing_is_named(cupy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = color_bundle(tmp_path)
    trt_fake.world.starts = False
    with pytest.raises(ExportError, match="TensorRT cannot start"):
        build_engine(bundle)
    cupy_fake.machine.devices = 0
    with pytest.raises(SessionError, match="no usable NVIDIA GPU"):
        build_engine(bundle)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingPackageError, match=r"\[tensorrt\]"):
        build_engine(bundle)


SYMBOLS = (
    "createInferBuilder_INTERNAL", "createInferRuntime_INTERNAL", "createInferRefitter_INTERNAL",
    "getBuilderPluginRegistry", "getPluginRegistry", "createNvOnnxParser_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL", "getNvOnnxParserVersion", "initLibNvInferPlugins",
)  # fmt: skip
"""What the true bindings need from TensorRT's libraries so that they can be imported."""


def exercise(tmp_path: Path) -> None:
    """Every path of builder, session and device that asks TensorRT or CuPy for something."""
    for number, options in enumerate(
        (
            BuildOptions(batch=(1, 2, 4), workspace=1 << 30, hardware_compatible=True),
            BuildOptions(batch=(1, 2, 4), version_compatible=True),
        )
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        bundle = build_engine(color_bundle(folder), options=options, observer=Phases()).bundle
        session = TensorRTSession(bundle)
        for _ in range(3):
            session.run(np.zeros((2, 3, 16, 24), np.float32))
        with pytest.raises(SessionError):
            session.run(np.zeros((2, 3, 9, 9), np.float32))
    backend = CudaBackend()
    with backend.queue():
        for seed in range(2):
            backend.download(backend.preprocess(photo(20, 30, seed=seed), bundle.input)[0])
    graph = onnx.load(bundle.model_path())
    graph.graph.node[0].domain = "unknown"
    onnx.save(graph, bundle.model_path())
    with pytest.raises(ExportError):
        build_engine(Bundle.load(bundle.path), options=BuildOptions(batch=(1, 1, 1)))


def faults(folder: Path, log: list[dict[str, Any]]) -> list[str]:
    """What in ``log`` the true bindings do not have, or declare otherwise."""
    (folder / "stub.c").write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in SYMBOLS))
    for library in ("nvinfer", "nvinfer_plugin", "nvonnxparser"):
        name = f"lib{library}.so.11"
        subprocess.run(
            ["cc", "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", folder / name, folder / "stub.c"], check=True
        )
    (folder / "log.json").write_text(json.dumps(log))
    command = [sys.executable, Path(__file__).parents[1] / "trt_surface.py", folder / "log.json", "tensorrt_bindings"]
    result = subprocess.run(command, env={"LD_LIBRARY_PATH": str(folder)}, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def test_everything_asked_of_tensorrt_is_in_the_true_bindings(cupy: Any, tmp_path: Path) -> None:
    exercise(tmp_path)
    asked = {(entry["owner"], entry["member"]) for entry in trt_fake.log if entry["member"] != "__init__"}
    assert len(asked) > 40
    assert faults(tmp_path, trt_fake.log) == []


def test_what_the_true_bindings_lack_is_found(tmp_path: Path) -> None:
    call = {"kind": "call", "options": [], "returns": "bool"}
    log: list[dict[str, Any]] = [
        {"owner": "BuilderFlag", "member": "FP16", "kind": "constant"},
        {"owner": "IBuilderConfig", "member": "set_timing_cache", "args": 1, **call},
        {"owner": "IBuilderConfig", "member": "add_optimization_profile", "args": 1, **call},
        {"owner": "IExecutionContext", "member": "enqueueV3", "args": 1, **call},
        {"owner": "ICudaEngine", "member": "num_io_tensors", "kind": "write"},
        {"owner": "ILogger", "member": "log", "kind": "override", "parameters": ["level", "msg"]},
    ]
    assert len(faults(tmp_path, log)) == len(log)


def test_everything_asked_of_cupy_is_in_the_true_one(cupy: Any, tmp_path: Path, monkeypatch: Any) -> None:
    cupy_fake.used.clear()
    exercise(tmp_path)
    assert len(cupy_fake.used) > 15
    cupy_fake.assert_in_cupy(cupy_fake.used)
