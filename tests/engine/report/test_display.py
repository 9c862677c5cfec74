"""Tables at 80 columns, as in a pipe or a log of CI: names wrap, and no figure is cut."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from maskmill.engine.calibration.candidates import Candidate, Choice, Measured
from maskmill.engine.calibration.goal import Goal
from maskmill.engine.calibration.scores.score_counts import ScoreCounts
from maskmill.engine.report import display
from maskmill.engine.report.terminal import PlainConsole, figures_table
from maskmill.export.gate.bench import Row, print_rows

NAME = "a class with a name that is much longer than any column of a table, and_one_word_of_forty_letters_____"


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def output_of(capsys: pytest.CaptureFixture[str]) -> str:
    text = capsys.readouterr().out
    assert "…" not in text
    return text


def test_the_selections_of_choose_wrap_and_their_figures_stay_whole(capsys: pytest.CaptureFixture[str]) -> None:
    candidate = Candidate(
        method="conformal",
        rule="foreground",
        group="cluster",
        unit="image",
        alpha="0.05",
        fallback="pooled",
        unseen="confident",
    )
    raw = Measured(
        candidate=Candidate(method="argmax"),
        kept=0.987,
        accuracy=0.876,
        miou=0.765,
        kept_interval=None,
        accuracy_interval=(0.81, 0.91),
    )
    best = replace(raw, candidate=candidate, kept=0.654, accuracy=0.943, miou=0.832)
    display.print_choice(Choice(goal=Goal.parse("miou"), points=(raw, best), recommended=best, notes=()), None)
    text = output_of(capsys)
    for figure in ("selection", "accuracy", "95 %", "0.987", "0.876", "0.765", "0.81–0.91", "0.654", "0.943", "0.832"):
        assert figure in text.split("→ for the goal")[0]


def test_classes_of_a_calibration_wrap_and_their_figures_stay_whole(capsys: pytest.CaptureFixture[str]) -> None:
    held_out: dict[str, Any] = {
        "coverage": 0.174,
        "missed": True,
        "interval": (0.01, 0.58),
        "mean_set_size": 12.3,
        "kept": 0.25,
        "accuracy_kept": 0.812,
        "iou_kept": 0.115,
    }
    row = {
        "class": NAME,
        "images": 12345,
        "pixels": 9,
        "threshold": "0.000123",
        "threshold_from": "pooled",
        "held_out": held_out,
        "argmax": {"iou": 0.456},
    }
    report = {
        "classes": [row],
        "overall": held_out,
        "labels": {"miou_kept": 0.789},
        "argmax": {"miou": 0.456, "accuracy": 0.901, "kept": 1},
        "num_images": 12345,
        "image_mean_coverage": 0.9,
        "promise": "none",
        "min_images": 5,
        "warnings": [],
    }
    calibration = SimpleNamespace(
        report=report,
        group="class",
        alpha="0.05",
        unit="pixel",
        rule="agree",
        pooled=0.123,
        fallback="pooled",
        counts=ScoreCounts.empty(),
    )
    display.print_calibration(cast(Any, calibration), Path("c.json"))
    text = output_of(capsys)
    for figure in ("12345", "0.000123*", "0.174!", "0.01–0.58", "12.3", "0.25", "0.812", "0.115", "0.456", "thresh"):
        assert figure in text
    assert "[red]" not in text


def test_the_reasons_of_bench_wrap_and_its_figures_stay_whole(capsys: pytest.CaptureFixture[str]) -> None:
    print_rows([Row(provider="tensorrt", precision="int8", images_per_second=12345.6, ratio=123.45, gate=NAME)])
    text = output_of(capsys)
    for figure in ("tensorrt", "int8", "12345.6", "123.45x", "images/s", "mean IoU", "agreement"):
        assert figure in text


@pytest.mark.parametrize(
    "titles",
    [
        ("pixels kept", "share of kept"),
        ("images", "coverage", "95 %"),
        ("pixels", "kept", "IoU of kept", "IoU of all"),
        ("predictions", "sampling", "accuracy", "recall"),
    ],
    ids=["label", "coverage", "evaluate", "student"],
)
def test_long_names_wrap_and_figures_stay_whole(titles: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    table = figures_table("class", *titles)
    figures = [f"{10**6 + number:,}" for number in range(len(titles))]
    table.add_row(NAME, *figures)
    PlainConsole().print(table)
    text = output_of(capsys)
    assert all(word in text for word in (*titles, *figures))
