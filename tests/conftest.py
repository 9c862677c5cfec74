"""Fixtures for every test: the folder of real data, and stand-ins for a device."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# spinning OpenMP threads would make tests minutes longer on a busy machine; read when PyTorch is loaded
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

ROOT = Path(__file__).resolve().parents[1]

# the same inputs in every run, however slow it is and whatever an earlier one left; `make test-long` draws new ones
settings.register_profile(
    "search", deadline=None, database=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("suite", settings.get_profile("search"), derandomize=True)
settings.load_profile("suite")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # a shell starts background jobs with interrupts ignored, and the tests of interrupts would wait for ever
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def data() -> Path:
    """Return the folder of the real photos and models; the test is skipped with a reason if it is absent."""
    folder = Path(os.environ.get("MASKMILL_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "msrc").is_dir():
        pytest.skip(f"no photos at {folder}; set MASKMILL_DATA")
    return folder


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A stand-in for CuPy, with one for TensorRT beside it and no other decoder of JPEG files."""
    from . import cupy_fake
    from .export import trt_fake

    trt_fake.reset()
    monkeypatch.setitem(sys.modules, "tensorrt", trt_fake)
    for name in ("tensorrt_lean", "nvidia.nvimgcodec"):
        monkeypatch.setitem(sys.modules, name, None)
    with cupy_fake.fake_cupy(monkeypatch) as module:
        yield module


def _device_count() -> int:
    try:
        import cupy

        return cupy.cuda.runtime.getDeviceCount()
    except Exception:
        return 0


LONG_FILES = (
    "tests/test_examples.py",
    "tests/engine/cli/test_interrupts.py",
    "tests/engine/cluster/test_takeover.py",
    "tests/export/pretrained/test_families.py",
    "tests/engine/store/test_exactly_once.py",
    "tests/trainer/test_train.py",
    "tests/engine/cluster/test_array.py",
    "tests/test_cli.py",
    "tests/test_documents.py",
    "tests/trainer/data/test_moving_rows.py",
)
"""Files that take more than 15 s; they run first, so that no process runs one of them alone at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {file: position for position, file in enumerate(LONG_FILES)}
    items.sort(key=lambda item: order.get(item.nodeid.partition("::")[0], len(order)))
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked and os.environ.get("MASKMILL_REQUIRE_GPU") != "1" and _device_count() == 0:
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="no NVIDIA device; MASKMILL_REQUIRE_GPU=1 makes this a failure"))
