"""Names come from files: nothing in them moves the cursor, changes colors or hides."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskmill.engine.report.terminal import PlainConsole, printable, say
from tests.models import color_bundle
from tests.test_cli import maskmill

HOSTILE = "\x1b[2J\x1b]0;title\x07[red]:smile:[/red]\r\x9b31m\u202egpj.\u2066\n\udce4"
HARMLESS = r"\x1b[2J\x1b]0;title\x07[red]:smile:[/red]\x0d\x9b31m\u202egpj.\u2066\n\udce4"


def test_control_characters_become_escapes() -> None:
    assert printable(HOSTILE) == HARMLESS
    assert printable("plain, ä 写真 😀\t[x]") == "plain, ä 写真 😀\t[x]"


def test_sentences_and_cells_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.table import Table

    say(HOSTILE)
    assert capsys.readouterr().out == f"{HARMLESS}\n"
    table = Table(box=None)
    table.add_column("[bold]class", no_wrap=True)
    table.add_row("\x1b[31m:cat:[/]")
    PlainConsole().print(table)
    assert capsys.readouterr().out.split() == ["[bold]class", r"\x1b[31m:cat:[/]"]


def test_hostile_names_of_classes_and_files_are_printed_as_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    name = "[red]:cat:"
    color_bundle(tmp_path, classes=(name, "green", "blue"))
    (tmp_path / "photos").mkdir()
    Image.fromarray(np.zeros((16, 24, 3), np.uint8)).save(tmp_path / "photos" / "a.png")
    (tmp_path / "photos" / "\x1b]0;owned\x07.png").write_bytes(b"no picture")

    def run(*arguments: str) -> str:
        result = maskmill(*arguments, cwd=tmp_path)
        assert "Traceback" not in result.stderr
        return result.stdout + result.stderr

    output = run("label", "bundle", "photos", "-o", "store") + run("show", "store")
    output += run("label", "bundle", "\x1b]0;owned\x07", "-o", "other")
    output += run("show", "store", "\x1b]0;owned\x07.png")
    assert "[red]:cat:" in output
    assert r"\x1b]0;owned\x07" in output
    assert "\x1b" not in output
    assert "\x07" not in output
