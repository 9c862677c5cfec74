"""Fixtures of tests with several processes."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

OPENING = Path(__file__).parent / "opening"


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Module of jobs that every process can import by name."""
    monkeypatch.syspath_prepend(OPENING)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(OPENING), os.environ.get("PYTHONPATH", "")]))
    import lease_jobs  # pyright: ignore[reportMissingImports]

    yield lease_jobs
    del sys.modules["lease_jobs"]
