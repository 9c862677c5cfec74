"""The stand-in device notices the faults that the tests of the kernels rely on it to notice."""

import ml_dtypes
import numpy as np
import pytest

from maskmill.kernels.gpu import device

from ..kernels.forms import gpu
from .harness import FORWARD, HERE, SCHEDULES, SimtKernel, library, on_device, simt_device

KERNELS = (
    "faultless",
    "two_sums",
    "neighbor_without_barrier",
    "blocks_that_overwrite",
    "barrier_for_some",
    "shuffle_for_some",
    "different_barriers",
    "write_past_the_end",
    "write_before_the_start",
    "read_past_the_end",
    "shared_memory_without_values",
    "branches",
    "typed",
)


def launch(name, *args, schedule=FORWARD, blocks=1):
    SimtKernel(HERE / "faults.cu", KERNELS, name, schedule)((blocks,), (64,), args)


def results(name, *inputs, blocks=1):
    """What a kernel without other complaint writes under each schedule."""
    found = []
    for schedule in SCHEDULES:
        out = on_device(np.zeros(70, np.int32))
        launch(name, *inputs, out, schedule=schedule, blocks=blocks)
        found.append(np.asarray(out).tolist())
    return found


def test_a_kernel_without_fault_gives_its_results_under_every_schedule():
    expected = [sum(range(64)), 16, 8, 5, 1, 10, *range(63, -1, -1)]
    assert results("faultless") == [expected] * 3


def test_sums_over_a_block_do_not_disturb_each_other():
    for schedule in SCHEDULES:
        out = on_device(np.zeros(128))
        launch("two_sums", out, schedule=schedule)
        assert np.asarray(out).tolist() == [2048.0] * 64 + [66048.0] * 64


@pytest.mark.parametrize(
    ("name", "blocks"),
    [("neighbor_without_barrier", 1), ("blocks_that_overwrite", 4), ("shared_memory_without_values", 1)],
)
def test_a_race_or_unwritten_shared_memory_changes_with_the_schedule(name, blocks):
    first, *others = results(name, blocks=blocks)
    assert any(other != first for other in others)


def test_a_read_past_the_end_changes_with_the_schedule():
    first, *others = results("read_past_the_end", on_device(np.arange(64, dtype=np.int32)))
    assert first[:63] == list(range(1, 64))
    assert all(other[63] != first[63] for other in others)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("barrier_for_some", "never come at __syncthreads: 40 at a barrier, 0 at a warp operation, 24 have left"),
        ("shuffle_for_some", "never come at __shfl_sync: 0 at a barrier, 31 at a warp operation, 33 have left"),
        ("different_barriers", "threads meet at different barriers: __syncthreads and __syncthreads_or"),
        ("write_past_the_end", "writes after its argument 0"),
        ("write_before_the_start", "writes before its argument 0"),
    ],
)
def test_a_fault_ends_the_launch(name, message):
    with pytest.raises(AssertionError, match=message):
        launch(name, on_device(np.zeros(64, np.int32)))
    # The next launch is not harmed.
    results("faultless")


FLOATS, OUT = on_device(np.ones(4, np.float32)), on_device(np.zeros(4, np.int32))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((FLOATS, np.int64(1), np.bool_(True)), "takes 4 arguments, got 3"),
        ((FLOATS.astype(np.float64), np.int64(1), np.bool_(True), OUT), "holds float64"),
        ((FLOATS, np.int32(1), np.bool_(True), OUT), "is int32 1"),
        ((FLOATS, 1, np.bool_(True), OUT), "is a int, not a NumPy scalar"),
        ((FLOATS, FLOATS, np.bool_(True), OUT), "is an array"),
        ((FLOATS, np.int64(1), np.uint8(1), OUT), "is uint8 1"),
        ((np.asarray(FLOATS), np.int64(1), np.bool_(True), OUT), "a host array for a device array"),
        ((FLOATS, np.int64(1), np.bool_(True), np.float32(0)), "is float32 0.0"),
        ((FLOATS[:2], np.int64(1), np.bool_(True), FLOATS[:1].view(np.int32)), "arguments overlap"),
    ],
)
def test_an_argument_that_is_not_the_parameter_s_is_refused(args, message):
    with pytest.raises(AssertionError, match=message):
        launch("typed", *args)


def test_fitting_arguments_are_taken():
    out = on_device(np.zeros(1, np.int32))
    launch("typed", on_device(np.full(1, 2.5, np.float32)), np.int64(4), np.bool_(True), out)
    assert np.asarray(out)[0] == 7


def test_an_input_that_cannot_be_written_is_not_written():
    out = on_device(np.zeros(70, np.int32))
    out.flags.writeable = False
    with pytest.raises(AssertionError, match="faultless writes its input 0"):
        launch("faultless", out)


def test_a_marked_branch_counts_once_per_warp_and_iteration():
    loaded, _ = library(HERE / "faults.cu", KERNELS)
    loaded.simt_visits(b"EVEN")
    launch("branches", on_device(np.zeros(4, np.int32)), blocks=3)
    assert loaded.simt_visits(b"EVEN") == 3 * 5
    assert loaded.simt_visits(b"EVEN") == 0


def test_approximate_instructions_are_off_by_what_the_device_s_may_be():
    out = on_device(np.zeros(4, np.int32))
    launch("branches", out)
    power, inverse, *zeros = np.asarray(out).view(np.float32).tolist()
    assert power == pytest.approx(8, rel=2.0**-22)
    assert inverse == pytest.approx(1 / 8, rel=2.0**-22)
    assert (power, inverse) != (8, 1 / 8)
    assert zeros == [0, 0]


@pytest.mark.parametrize("read", [bool, int, float, list, lambda a: a.item(), lambda a: a.tolist()])
def test_reading_a_device_array_on_the_host_is_an_error(read):
    with pytest.raises(AssertionError, match="read a device array on the host"):
        read(on_device(np.ones(1, np.int32)))


def test_launchers_outside_the_device_do_not_reach_it():
    with simt_device():
        gpu.quantize_weights(on_device(np.ones((2, 2), np.float32)))
    assert device.arrays.__module__ == device.__name__


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_every_16_bit_score_is_widened_exactly(dtype):
    values = np.arange(1 << 16, dtype=np.uint16).view(dtype)
    values = values[np.isfinite(values.astype(np.float32))].reshape(1, 1, -1)
    with simt_device():
        found = gpu.class_stats(on_device(values), values.shape[1:], activation="none", outputs=("confidence",))
    # CuPy compiles with subnormal numbers flushed to zero; a float16 has none once it is widened.
    expected = values[0].astype(np.float32)
    expected[np.abs(expected) < np.finfo(np.float32).tiny] = 0
    np.testing.assert_array_equal(np.asarray(found.confidence), expected)
