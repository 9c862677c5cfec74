"""The number of usable processors respects the affinity mask and CPU quotas."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from maskmill.kernels import processors
from maskmill.kernels.processors import let_idle_threads_sleep, limit_torch_threads, usable_processors


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 16 processors and no control groups."""
    monkeypatch.setattr(processors.os, "sched_getaffinity", lambda _: set(range(16)))
    return tmp_path


def write(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("limits", "expected"),
    [("max 100000", 16), ("400000 100000", 4), ("150000 100000", 2), ("10000 100000", 1), ("3200000 100000", 16)],
)
def test_a_quota_of_version_2_limits_the_number(root: Path, limits: str, expected: int) -> None:
    write(root, "proc/self/cgroup", "0::/job\n")
    write(root, "sys/fs/cgroup/job/cpu.max", limits)
    assert usable_processors(root) == expected


def test_the_smallest_quota_of_all_groups_around_a_process_applies(root: Path) -> None:
    write(root, "proc/self/cgroup", "0::/pod/container\n")
    write(root, "sys/fs/cgroup/pod/container/cpu.max", "800000 100000")
    write(root, "sys/fs/cgroup/pod/cpu.max", "300000 100000")
    assert usable_processors(root) == 3


@pytest.mark.parametrize("folder", ["cpu,cpuacct/docker/1234", "cpu/docker/1234", "cpu"])
@pytest.mark.parametrize(("quota", "expected"), [("-1", 16), ("200000", 2), ("50000", 1)])
def test_a_quota_of_version_1_limits_the_number(root: Path, folder: str, quota: str, expected: int) -> None:
    write(root, "proc/self/cgroup", "5:memory:/docker/1234\n3:cpu,cpuacct:/docker/1234\n0::/\n")
    write(root, f"sys/fs/cgroup/{folder}/cpu.cfs_quota_us", quota + "\n")
    write(root, f"sys/fs/cgroup/{folder}/cpu.cfs_period_us", "100000\n")
    assert usable_processors(root) == expected


def test_without_control_groups_the_affinity_mask_decides(root: Path) -> None:
    assert usable_processors(root) == 16


def test_numba_uses_no_more_threads_than_there_are_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    from maskmill.kernels.cpu import threads

    monkeypatch.delenv("NUMBA_NUM_THREADS", raising=False)
    monkeypatch.setattr(threads.config, "NUMBA_NUM_THREADS", 16)
    monkeypatch.setattr(threads, "usable_processors", lambda: 3)
    threads._most_threads.cache_clear()
    assert threads.num_threads(2, worth=1) == 3
    monkeypatch.setenv("NUMBA_NUM_THREADS", "16")
    threads._most_threads.cache_clear()
    assert threads.num_threads(2, worth=1) == 16, "a number that the user sets is respected"
    threads._most_threads.cache_clear()


def test_this_process_may_use_what_its_affinity_mask_says() -> None:
    script = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from maskmill.kernels.processors import usable_processors; print(usable_processors())"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert result.stdout.strip() == "1"


def test_idle_threads_sleep_unless_the_user_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    let_idle_threads_sleep()
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    let_idle_threads_sleep()
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"


def test_networks_of_torch_use_no_more_threads_than_there_are_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    from maskmill.trainer.students.models import build_model

    before = torch.get_num_threads()
    monkeypatch.setattr(processors, "usable_processors", lambda: 1)
    try:
        torch.set_num_threads(2)
        build_model("tiny", 2)
        assert torch.get_num_threads() == 1
        monkeypatch.setattr(processors, "usable_processors", lambda: 8)
        limit_torch_threads()
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
