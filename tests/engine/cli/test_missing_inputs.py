"""Whatever a command names and that does not exist is a fault of the call: the command line exits with 2."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from maskmill.engine.calibration.calibration import Calibration
from maskmill.engine.inputs.labels import open_labels
from maskmill.engine.inputs.names import read_ids
from maskmill.engine.inputs.sources import open_source
from maskmill.engine.model.bundle import Bundle
from maskmill.engine.model.taxonomy import read_taxonomy
from maskmill.engine.store.label_store import LabelStore
from maskmill.errors import MaskmillError


@pytest.mark.parametrize(
    "read", [Bundle.load, LabelStore.open, Calibration.load, open_source, open_labels, read_ids, read_taxonomy]
)
def test_a_missing_input_is_a_fault_of_the_call(read: Callable[[Path], object], tmp_path: Path) -> None:
    with pytest.raises(MaskmillError) as caught:
        read(tmp_path / "missing")
    assert caught.value.exit_code == 2
    assert "missing" in str(caught.value)


def test_a_missing_training_run_is_a_fault_of_the_call(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from maskmill.trainer.run import Run

    with pytest.raises(MaskmillError) as caught:
        Run.load(tmp_path / "missing")
    assert caught.value.exit_code == 2


def test_a_damaged_input_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "bundle.json").write_text("{")
    with pytest.raises(MaskmillError) as caught:
        Bundle.load(tmp_path)
    assert caught.value.exit_code == 1
