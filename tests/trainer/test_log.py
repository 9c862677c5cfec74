from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("tensorboard")

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # noqa: E402

from maskmill.errors import TrainingError  # noqa: E402
from maskmill.trainer.log import EVENTS, RunLog, read_log  # noqa: E402


def test_rows_after_the_checkpoint_are_dropped_and_written_anew(tmp_path: Path) -> None:
    with RunLog(tmp_path, step=0) as log:
        for step in (2, 4, 6):
            log.add(step, {"loss": step / 3})
    with RunLog(tmp_path, step=4) as log:
        log.add(6, {"loss": 0.5})
    assert [(row["step"], float(row["loss"])) for row in read_log(tmp_path)] == [("2", 2 / 3), ("4", 4 / 3), ("6", 0.5)]


def test_a_new_stage_adds_its_columns(tmp_path: Path) -> None:
    with RunLog(tmp_path, step=0) as log:
        log.add(1, {"loss": 1.0})
        log.add(2, {"loss": 2.0, "lambda": 0.5})
        log.add(3, {"loss": 3.0, "lambda": 0.25})
    assert read_log(tmp_path) == [
        {"step": "1", "loss": "1.0", "lambda": ""},
        {"step": "2", "loss": "2.0", "lambda": "0.5"},
        {"step": "3", "loss": "3.0", "lambda": "0.25"},
    ]


def test_tensorboard_gets_the_same_figures(tmp_path: Path) -> None:
    with RunLog(tmp_path, step=0) as log:
        log.add(5, {"loss": 0.25})
    events = EventAccumulator(str(tmp_path / EVENTS))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(5, 0.25)]


def test_a_folder_without_a_log_has_no_rows(tmp_path: Path) -> None:
    assert read_log(tmp_path) == []


@pytest.mark.parametrize(
    "text",
    [
        "step,lr\nx,1\n",
        "lr\n1\n",
        "step,=1+1\n1,2\n",
        "step,lr\n1,=1+1\n",
        "step,lr\n1,2,3\n",
        "step\n1\0\n",
        "step,\n1,2\n",
    ],
)
def test_a_damaged_log_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "log.csv").write_text(text)
    with pytest.raises(TrainingError, match="damaged"):
        read_log(tmp_path)


def test_a_part_of_a_row_that_a_killed_run_left_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("step,lr\n1,0.5\n2,0.2")
    assert [row["step"] for row in read_log(tmp_path)] == ["1"]
