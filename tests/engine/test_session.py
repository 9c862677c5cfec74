"""The one place where a runtime is chosen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from maskmill.engine.session import RUNTIMES, open_session
from maskmill.errors import MissingPackageError, SessionError, UsageError

from ..models import color_bundle


@pytest.mark.parametrize("provider", ["cpu", "openvino"])
def test_the_same_call_opens_every_runtime(tmp_path: Path, provider: str) -> None:
    session = open_session(color_bundle(tmp_path), provider=provider, threads=2)
    assert session.threads == 2
    assert session.run(np.ones((1, 3, 16, 24), np.float32))[0].mean() == 10


def test_an_unknown_provider_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=", ".join(RUNTIMES)):
        open_session(color_bundle(tmp_path), provider="quantum")


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = color_bundle(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'maskmill\[openvino\]'"):
        open_session(bundle, provider="openvino")


def test_a_provider_that_this_installation_lacks_is_no_other_one(tmp_path: Path) -> None:
    if "TensorrtExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("ONNX Runtime here has TensorRT")
    with pytest.raises(SessionError, match="no tensorrt provider"):
        open_session(color_bundle(tmp_path), provider="tensorrt")
