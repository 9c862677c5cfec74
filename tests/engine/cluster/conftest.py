"""Fixtures of tests with several processes."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from maskmill.engine.cluster import runner, worker
from maskmill.engine.cluster.calibration import collect
from maskmill.engine.cluster.calibration import worker as calibration_worker

OPENING = Path(__file__).parent / "opening"


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Poll for work and for the state of the run more often than long runs do."""
    monkeypatch.setattr(worker, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(runner, "TURN_SECONDS", 0.02)
    for module in (calibration_worker, collect):
        monkeypatch.setattr(module, "POLL_SECONDS", 0.02)


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Module of jobs that every process can import by name."""
    monkeypatch.syspath_prepend(OPENING)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(OPENING), os.environ.get("PYTHONPATH", "")]))
    import lease_jobs  # pyright: ignore[reportMissingImports]

    yield lease_jobs
    del sys.modules["lease_jobs"]


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """Ray cluster of this machine with three processors, for tests that need one."""
    import ray  # pyright: ignore[reportMissingImports]

    os.environ["RAY_AUTH_MODE"] = "disabled"
    paths = os.pathsep.join([str(OPENING), os.environ.get("PYTHONPATH", "")])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ray.init(
            address="local",  # do not connect to a cluster that already runs on this machine
            num_cpus=3,
            include_dashboard=False,
            log_to_driver=False,
            runtime_env={"env_vars": {"PYTHONPATH": paths}},
        )
    yield
    ray.shutdown()
