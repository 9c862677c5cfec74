"""OpenVINO runs what ONNX Runtime runs."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from maskmill.engine.runtimes.open import open_session
from maskmill.errors import SessionError, UsageError
from maskmill.export.adopt.semantic import bundle_from_onnx

from ...models import color_bundle

# An import here, before the session's, would send a usage report from a forked process in the middle of other tests.
if importlib.util.find_spec("openvino") is None:
    pytest.skip("OpenVINO is not installed", allow_module_level=True)

FORKS = """
import os, sys, time
forks = []
os.register_at_fork(before=lambda: forks.append(1))
from maskmill.engine.model.bundle import Bundle
from maskmill.engine.runtimes.open import open_session
open_session(Bundle.load(sys.argv[1]), provider="openvino")
time.sleep(1)
print(len(forks), "forks")
"""


def test_a_session_forks_no_process(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FORKS, str(color_bundle(tmp_path).path)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout == "0 forks\n"


@pytest.mark.parametrize(("layout", "batch"), [("NCHW", "N"), ("NHWC", "N"), ("NCHW", 4)])
def test_scores_are_those_of_onnx_runtime(tmp_path: Path, layout: str, batch: int | str) -> None:
    bundle = color_bundle(tmp_path, layout=layout, batch=batch)
    shape = (4, 3, 16, 24) if layout == "NCHW" else (4, 16, 24, 3)
    images = np.random.default_rng(0).random(shape, dtype=np.float32)
    session = open_session(bundle, provider="openvino")
    (expected,) = open_session(bundle).run(images)
    (found,) = session.run(images)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert (found.dtype, session.max_batch) == (np.float32, 4 if batch == 4 else None)
    assert session.kind == "openvino/cpu/fp32"
    assert session.artifact == bundle.file().sha256


def test_several_threads_may_call(tmp_path: Path) -> None:
    session = open_session(color_bundle(tmp_path), provider="openvino")
    images = np.random.default_rng(0).random((16, 1, 3, 16, 24), dtype=np.float32)
    with ThreadPoolExecutor(4) as pool:
        scores = list(pool.map(lambda image: session.run(image)[0], images))
    np.testing.assert_allclose(np.stack(scores), images * 10, rtol=1e-6)


def test_a_batch_may_differ_from_call_to_call(tmp_path: Path) -> None:
    session = open_session(color_bundle(tmp_path), provider="openvino", threads=2)
    for num in (1, 3, 2):
        assert session.run(np.zeros((num, 3, 16, 24), np.float32))[0].shape == (num, 3, 16, 24)


def test_what_it_cannot_do_is_said(tmp_path: Path) -> None:
    bundle = color_bundle(tmp_path)
    session = open_session(bundle, provider="openvino")
    with pytest.raises(SessionError, match=r"failed on its input 'image' of shape \(1, 3, 5, 5\)"):
        session.run(np.zeros((1, 3, 5, 5), np.float32))
    with pytest.raises(UsageError, match="threads must be a whole number of at least 1"):
        open_session(bundle, provider="openvino", threads=0)
    bundle.model_path().write_bytes(b"no graph")
    with pytest.raises(SessionError, match="OpenVINO cannot load"):
        open_session(bundle, provider="openvino")


def test_a_real_model_gives_the_same_scores(data: Path, tmp_path: Path) -> None:
    model = data / "models" / "deeplabv3-257"
    bundle = bundle_from_onnx(
        model / "model.onnx",
        tmp_path / "bundle",
        classes=[str(index) for index in range(21)],
        layout="NHWC",
        scale=1 / 127.5,
        mean=(1, 1, 1),
    )
    image = np.random.default_rng(0).random((1, 257, 257, 3), dtype=np.float32) * 2 - 1
    (expected,), (found,) = (open_session(bundle, provider=name).run(image) for name in ("cpu", "openvino"))
    np.testing.assert_allclose(found, expected, atol=1e-3)
    assert (found.argmax(-1) == expected.argmax(-1)).mean() > 0.999
