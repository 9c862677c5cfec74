"""The array contract of maskmill.kernels: the caller's library and device, no copies, no silent moves."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from contextlib import nullcontext
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from maskmill import kernels
from maskmill.errors import UsageError
from maskmill.kernels.types import ClassStats

from .forms import reference

LOGITS = np.random.default_rng(0).normal(0, 3, (4, 5, 6)).astype(np.float32)
OUTPUTS = ("label", "top", "confidence", "dispersion")


def run(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_loads_no_array_library_but_numpy():
    found = run("""
        import sys
        import maskmill.kernels
        print([name for name in ("torch", "cupy", "numba", "ml_dtypes", "scipy") if name in sys.modules])
    """)
    assert found == "[]"


def test_numpy_call_loads_neither_torch_nor_cupy():
    found = run("""
        import sys
        import numpy as np
        from maskmill import kernels
        kernels.class_stats(np.zeros((2, 3, 3), np.float32), (4, 4))
        print([name for name in ("torch", "cupy", "numba.cuda", "ml_dtypes") if name in sys.modules])
    """)
    assert found == "[]"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_torch_tensors_give_torch_tensors(dtype):
    tensor = torch.from_numpy(LOGITS).to(dtype)
    found = kernels.class_stats(tensor, (9, 9), outputs=OUTPUTS)
    expected = kernels.class_stats(tensor.float().numpy(), (9, 9), outputs=OUTPUTS)
    dtypes = (torch.uint8, torch.uint16, torch.float32, torch.float32)
    for name, kind in zip(OUTPUTS, dtypes, strict=True):
        assert isinstance(getattr(found, name), torch.Tensor)
        assert getattr(found, name).dtype == kind
        np.testing.assert_array_equal(getattr(found, name).numpy(), getattr(expected, name))


def test_tensor_that_requires_grad_is_detached():
    tensor = torch.from_numpy(LOGITS).requires_grad_()
    found = kernels.class_stats(tensor, (9, 9)).confidence
    assert not found.requires_grad
    np.testing.assert_array_equal(found.numpy(), kernels.class_stats(LOGITS, (9, 9)).confidence)


def test_strided_tensor():
    tensor = torch.from_numpy(LOGITS).permute(1, 2, 0).contiguous().permute(2, 0, 1)
    assert not tensor.is_contiguous()
    found = kernels.class_stats(tensor, (9, 9)).confidence
    np.testing.assert_array_equal(found.numpy(), kernels.class_stats(LOGITS, (9, 9)).confidence)


def test_out_gives_back_the_caller_s_own_arrays():
    tensor = torch.from_numpy(LOGITS)
    out = ClassStats(label=torch.empty((9, 9), dtype=torch.uint8), confidence=torch.empty((9, 9)))
    found = kernels.class_stats(tensor, (9, 9), out=out)
    assert found.label is out.label
    assert found.confidence is out.confidence
    np.testing.assert_array_equal(out.confidence.numpy(), kernels.class_stats(LOGITS, (9, 9)).confidence)


def test_out_array_of_a_plain_result():
    scores = torch.rand(50)
    counts = kernels.score_counts(scores)
    assert isinstance(counts, torch.Tensor)
    assert kernels.score_counts(scores, out=counts) is counts
    assert int(counts.to(torch.int64).sum()) == 100


def test_tuples_of_arrays_are_the_caller_s_kind():
    counts = kernels.score_counts(torch.rand(50))
    assert [type(array) for array in kernels.select_prefix(counts, 10)] == [torch.Tensor, torch.Tensor]


def test_first_array_decides_the_library():
    thresholds = np.full(4, 0.5, np.float32)
    assert isinstance(kernels.class_stats(torch.from_numpy(LOGITS), (9, 9), thresholds=thresholds).label, torch.Tensor)
    found = kernels.class_stats(LOGITS, (9, 9), thresholds=torch.from_numpy(thresholds))
    assert isinstance(found.label, np.ndarray)


@pytest.mark.parametrize("groups", [[0, 1, 1, -1], np.array([0, 1, 1, -1]), torch.tensor([0, 1, 1, -1])])
def test_groups_of_any_kind_on_the_host(groups):
    found = kernels.class_stats(LOGITS, (9, 9), groups=groups, outputs=("top",)).top
    expected = reference.class_stats(LOGITS, (9, 9), groups=[0, 1, 1, -1], outputs=("top",)).top
    np.testing.assert_array_equal(found, expected)


def test_lists_are_refused():
    with pytest.raises(UsageError, match="class_stats takes NumPy, CuPy or torch arrays, got list"):
        kernels.class_stats(LOGITS.tolist(), (9, 9))


def test_tensor_on_another_kind_of_device_is_refused():
    with pytest.raises(UsageError, match="tensor on meta"):
        kernels.class_stats(torch.empty((4, 5, 6), device="meta"), (9, 9))


class DeviceArray:
    """As much of a CuPy array as the dispatch looks at."""

    def __init__(self, device: int = 0) -> None:
        self.device = nullcontext()
        self.device.id = device


@pytest.fixture
def device_calls(monkeypatch):
    """Calls that reach the GPU form, with a stand-in for CuPy in its backend."""
    cupy = ModuleType("cupy")
    cupy.ndarray = DeviceArray
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    calls = []
    form = SimpleNamespace(class_stats=lambda *arguments, **options: calls.append((arguments, options)))
    monkeypatch.setattr("maskmill.kernels.arrays._form", lambda name: form)
    return calls


def test_device_arrays_go_to_the_gpu_form_as_they_are(device_calls):
    scores, thresholds = DeviceArray(), DeviceArray()
    kernels.class_stats(scores, (9, 9), groups=[0, 1, -1], thresholds=thresholds)
    arguments, options = device_calls[0]
    assert arguments[0] is scores
    assert options["thresholds"] is thresholds
    assert options["options"].groups.tolist() == [0, 1, -1]


def test_arrays_on_different_devices_are_refused(device_calls):
    with pytest.raises(UsageError, match="the arrays of class_stats are on cpu and cuda:0: move them"):
        kernels.class_stats(DeviceArray(), (9, 9), thresholds=np.zeros(4, np.float32))
    with pytest.raises(UsageError, match="on cuda:0 and cuda:1"):
        kernels.class_stats(DeviceArray(0), (9, 9), out=ClassStats(label=DeviceArray(1)))
    assert device_calls == []


def test_groups_on_a_device_are_refused(device_calls):
    with pytest.raises(UsageError, match="groups is read on the host"):
        kernels.class_stats(DeviceArray(), (9, 9), groups=DeviceArray())
