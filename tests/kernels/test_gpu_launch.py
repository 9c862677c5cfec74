"""What the CUDA launchers ask of CuPy, and what they do without it."""

import inspect
import subprocess
import sys

import numpy as np
import pytest

from maskmill.errors import MissingPackageError
from maskmill.kernels.gpu import device

from ..simt import harness


def test_importing_the_launchers_imports_no_cupy():
    program = "import sys, maskmill.kernels.gpu; assert 'cupy' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_without_cupy_the_message_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(MissingPackageError, match=r"pip install .*\[gpu\]'"):
        device.arrays()


def test_the_stand_in_takes_what_cupy_takes():
    cupy = pytest.importorskip("cupy", reason="CuPy is made for Linux and Windows")
    for name, function in inspect.getmembers(harness._Cupy, inspect.isfunction):
        if name.startswith("_"):
            continue
        asked = [parameter for parameter in inspect.signature(function).parameters if parameter != "self"]
        taken = list(inspect.signature(getattr(cupy, name)).parameters)
        # By position or by name, dtype comes second wherever it is asked for.
        assert ("dtype" in asked) <= (taken[1] == "dtype"), name
        assert len(taken) >= len(asked), name


def test_every_source_is_listed():
    assert {path.stem for path in device.SOURCES.glob("*.cu")} == set(device.INSTANTIATIONS)


def test_an_empty_grid_launches_nothing():
    with harness.simt_device():
        harness.launched.clear()
        device.launch("quantize", "quantize_weights<1>", (0,), (256,), ())
        device.launch("cover", "perturbation_cover<1>", (3, 2, 0), (32, 8), ())
    assert harness.launched == []


@pytest.mark.parametrize(
    ("start", "pack", "expected"), [(0, 4, True), (1, 4, False), (2, 2, True), (1, 1, True), (4, 4, True)]
)
def test_alignment_is_that_of_the_first_element(start, pack, expected):
    memory = np.zeros(16, np.float32)
    with harness.simt_device():
        array = harness.on_device(memory[(-memory.ctypes.data // 4) % 4 :][start : start + 4])
        assert device.aligned(pack, array, device.NULL) is expected
