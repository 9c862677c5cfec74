"""The sixteen lanes of the CPU kernels, for this processor and for what LLVM knows of lesser ones."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import textwrap

import pytest
from llvmlite.binding import get_host_cpu_features

PROCESSORS = {"native": {}, "generic": {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}}
if platform.machine() == "x86_64" and get_host_cpu_features().get("avx2"):
    PROCESSORS["avx2"] = {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx,+avx2,+fma"}


@pytest.mark.parametrize("processor", PROCESSORS)
def test_lanes_move_as_they_should(processor, tmp_path):
    program = """
        import numpy as np
        from numba import njit
        from maskmill.kernels.cpu.decode.simd import (
            as_ints, gather_scores, in_every_lane, load, load_first_scores, load_ints, look_up, permute, splat, store,
            store_first, transpose,
        )

        @njit
        def move(values, lanes, half, grid, found, turned, small):
            store(found, 0, permute(load(values, 16), load_ints(lanes, 0)))
            store(found, 16, gather_scores(values, 5, load_ints(lanes, 0), False))
            store(found, 32, look_up(values, load(grid, 0)))
            store(found, 48, load_first_scores(half, 3, 4, False))
            transpose(turned, 0, 16, grid, 0, 17, False)
            store_first(small, 1, 3, load(grid, 0))
            store_first(small, 6, 99, load(grid, 0))
            store(found, 64, permute(load(values, 32), as_ints(load(grid, 0))))
            return in_every_lane(load(grid, 1) > load(grid, 0)), in_every_lane(load(grid, 0) > splat(np.float32(0)))

        rng = np.random.default_rng(0)
        values = rng.normal(size=64).astype(np.float32)
        lanes = rng.integers(0, 16, 16).astype(np.int32)
        half = np.array([9, 9, 9, 1.5, -np.inf, 6e-8, -65504, 9], np.float16)
        grid = np.arange(17 * 16, dtype=np.float32)
        found, turned = np.empty(80, np.float32), np.empty(256, np.float32)
        small = np.full(24, 77, np.uint8)
        every = move(values, lanes, half.view(np.uint16), grid, found, turned, small)

        np.testing.assert_array_equal(found[:16], values[16:32][lanes])
        np.testing.assert_array_equal(found[16:32], values[5:21][lanes])
        np.testing.assert_array_equal(found[32:48], values[:16])
        np.testing.assert_array_equal(found[48:64], [*half[3:7].astype(np.float32), *[0] * 12])
        np.testing.assert_array_equal(found[64:], values[32:48])
        assert every == (True, False)
        np.testing.assert_array_equal(turned.reshape(16, 16), grid.reshape(16, 17)[:, :16].T)
        np.testing.assert_array_equal(small, [77, 0, 1, 2, 77, 77, *range(16), 77, 77])
        print("as they should")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env=os.environ | PROCESSORS[processor] | {"NUMBA_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "as they should", "")
