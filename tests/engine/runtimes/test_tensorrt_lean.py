"""TensorRT's lean runtime runs version-compatible engines: flow against the stand-in, surface against the real one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maskmill.engine.model.bundle import Bundle
from maskmill.engine.runtimes.open import open_session
from maskmill.engine.runtimes.tensorrt_runtime import TensorRTSession
from maskmill.errors import MissingPackageError, SessionError
from maskmill.export.build.engine_builder import BuildOptions, build_engine

from ...export import trt_fake
from ...models import color_bundle

SURFACE = Path(trt_fake.__file__).with_name("trt_surface.py")


def built(folder: Path, *, version_compatible: bool) -> Bundle:
    options = BuildOptions(batch=(1, 2, 4), version_compatible=version_compatible)
    return build_engine(color_bundle(folder), options=options).bundle


@pytest.fixture
def only_lean(cupy: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function after which TensorRT's full package is gone."""

    def remove_tensorrt() -> None:
        monkeypatch.setitem(sys.modules, "tensorrt", None)
        monkeypatch.setitem(sys.modules, "tensorrt_lean", trt_fake)
        trt_fake.log.clear()

    return remove_tensorrt


def images(num: int) -> np.ndarray:
    return np.random.default_rng(0).random((num, 3, 16, 24), dtype=np.float32)


def test_a_version_compatible_engine_runs_with_the_lean_runtime(only_lean: Any, tmp_path: Path) -> None:
    bundle = built(tmp_path, version_compatible=True)
    only_lean()
    session = open_session(bundle, provider="engine", allow_unverified=True)
    np.testing.assert_allclose(session.run(images(3))[0], images(3) * 10, rtol=1e-6)
    assert repr(session).startswith("TensorRT 11.4.0 (lean runtime) on NVIDIA H100")


def test_other_engines_need_the_full_package(only_lean: Any, tmp_path: Path) -> None:
    bundle = built(tmp_path, version_compatible=False)
    assert "lean" not in repr(TensorRTSession(bundle))
    only_lean()
    with pytest.raises(SessionError, match=r"the lean runtime runs engines of `maskmill build --version-compatible`"):
        TensorRTSession(bundle)


def test_building_needs_the_full_package(only_lean: Any, tmp_path: Path) -> None:
    only_lean()
    with pytest.raises(MissingPackageError, match=r"building TensorRT engines needs the package 'tensorrt'"):
        built(tmp_path, version_compatible=True)


def in_child(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python without a device: TensorRT's runtime must not be created then, it would crash the process."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_everything_the_session_uses_is_in_the_real_lean_runtime(only_lean: Any, tmp_path: Path) -> None:
    bundle = built(tmp_path, version_compatible=True)
    only_lean()
    session = TensorRTSession(bundle)
    for _ in range(3):  # the last ones as a CUDA graph
        session.run(images(2))
    with pytest.raises(SessionError):
        session.run(np.zeros((2, 3, 9, 9), np.float32))
    log = [entry for entry in trt_fake.log if entry["owner"] != "ITensor"]  # a part of the stand-in's engine
    assert len(log) > 15
    (tmp_path / "log.json").write_text(json.dumps(log))
    result = in_child(SURFACE, tmp_path / "log.json", "tensorrt_lean")
    assert (result.returncode, result.stdout) == (0, ""), result.stderr


def test_the_real_lean_runtime_has_no_builder(tmp_path: Path) -> None:
    builder = {
        "owner": "Builder",
        "member": "create_network",
        "kind": "call",
        "args": 1,
        "options": [],
        "returns": None,
    }
    (tmp_path / "log.json").write_text(json.dumps([builder]))
    result = in_child(SURFACE, tmp_path / "log.json", "tensorrt_lean")
    assert result.returncode == 0, result.stderr
    assert "no such class" in result.stdout


def test_without_a_device_the_real_lean_runtime_is_not_started(cupy: Any, tmp_path: Path) -> None:
    bundle = built(tmp_path, version_compatible=True)
    script = (
        "import sys\n"
        "sys.modules['tensorrt'] = None\n"
        "from maskmill.engine.model.bundle import Bundle\n"
        "from maskmill.engine.runtimes.tensorrt_runtime import TensorRTSession\n"
        "from maskmill.errors import SessionError\n"
        "try: TensorRTSession(Bundle.load(sys.argv[1]))\n"
        "except SessionError as error: print(error)\n"
        "assert 'tensorrt_lean_bindings' in sys.modules\n"
    )
    result = in_child("-c", script, bundle.path)
    assert result.returncode == 0, f"{result.returncode} {result.stderr}"
    assert result.stdout.startswith("no usable NVIDIA GPU")
