"""A few inputs per file format, always the same ones: accepted or refused, never a traceback."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.more_targets import ALL as TARGETS
from tests.fuzz.runner import Report, only_files_of, run_input


@pytest.mark.parametrize("name", TARGETS)
def test_changed_files_are_read_or_refused(name: str, tmp_path: Path) -> None:
    if name in ("checkpoint", "training-run", "recipe-settings"):
        pytest.importorskip("torch")
    if name in ("bands-tiff", "windows"):
        pytest.importorskip("rasterio")
    target = TARGETS[name](tmp_path)
    target.read(target.original)
    report = Report()

    @settings(
        max_examples=25,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )
    @given(seed=st.integers(0, 1 << 40))
    def attempt(seed: int) -> None:
        with only_files_of(tmp_path):
            run_input(target, seed, report)

    attempt()
    assert report.inputs >= 25
    assert report.accepted + report.refused.total() == report.inputs
