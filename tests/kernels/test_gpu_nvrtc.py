"""Every CUDA kernel compiles for every architecture it may meet, without spilling a register. Needs no device."""

import pytest

from maskmill.kernels.gpu.device import INSTANTIATIONS
from maskmill.kernels.gpu.resources import ARCHITECTURES, compiled_resources

pytest.importorskip("cupy", reason="compiling the CUDA sources needs NVRTC, which comes with CuPy (Linux only)")

IN_EVERY_RUN = (75, 90)
EVERY_NTH, MOST_IN_EVERY_RUN = 13, 16
"""Of a file with many instantiations, every run compiles a sample."""


def assert_fit(source, architecture, names):
    resources = compiled_resources(source, architecture, names)
    assert set(resources) == set(names)
    for name, kernel in resources.items():
        assert 0 < kernel.registers <= 255, name
        assert kernel.spilled == 0, name
        assert kernel.stack == 0, name
        assert kernel.shared <= 48 * 1024, name


@pytest.mark.parametrize("source", INSTANTIATIONS)
@pytest.mark.parametrize("architecture", IN_EVERY_RUN)
def test_kernels_compile_without_spills(source, architecture):
    names = INSTANTIATIONS[source]
    assert_fit(source, architecture, names if len(names) <= MOST_IN_EVERY_RUN else names[::EVERY_NTH])


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("source", INSTANTIATIONS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_kernel_compiles_without_spills(source, architecture):
    assert_fit(source, architecture, INSTANTIATIONS[source])


def test_a_spill_is_reported(tmp_path, monkeypatch):
    source = """
    __global__ void __launch_bounds__(1024, 2) crowded(float* values) {
        float held[96];
        for (int i = 0; i < 96; ++i) held[i] = values[i * 1024 + threadIdx.x];
        __syncthreads();
        for (int i = 0; i < 96; ++i) values[i * 1024 + threadIdx.x] = held[i] * held[(i * 7 + 5) % 96];
    }
    """
    (tmp_path / "crowded.cu").write_text(source)
    monkeypatch.setattr("maskmill.kernels.gpu.resources.SOURCES", tmp_path)
    assert compiled_resources("crowded", 75, ("crowded",))["crowded"].spilled > 0


def test_a_fault_is_reported_with_the_compiler_s_words(tmp_path, monkeypatch):
    (tmp_path / "faulty.cu").write_text("__global__ void faulty() { missing(); }")
    monkeypatch.setattr("maskmill.kernels.gpu.resources.SOURCES", tmp_path)
    with pytest.raises(RuntimeError, match=r'faulty.cu does not compile for sm_75:\n(.|\n)*"missing" is undefined'):
        compiled_resources("faulty", 75, ("faulty",))
