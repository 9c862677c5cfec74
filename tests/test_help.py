"""Help texts: complete, within 80 columns, and with every default that the source names."""

from __future__ import annotations

import re
from typing import Any

import pytest
import typer
from typer.core import TyperOption
from typer.testing import CliRunner

from maskmill.cli import app

ROOT_COMMAND = typer.main.get_command(app)
PANELS = {"Models", "Calibration", "Labels", "Looking", "Exchange", "Students", "Setup"}


def commands() -> list[tuple[str, Any]]:
    return sorted(ROOT_COMMAND.commands.items())  # type: ignore[attr-defined]


def help_of(*name: str) -> str:
    result = CliRunner().invoke(app, [*name, "--help"], env={"COLUMNS": "80", "TERMINAL_WIDTH": "80"})
    assert result.exit_code == 0
    return result.output


def flat(text: str) -> str:
    """The text without frames and line breaks."""
    return re.sub(r"\s+", "", re.sub(r"[│╭╮╰╯─]", "", text))


@pytest.mark.parametrize(("name", "command"), commands(), ids=lambda value: value if isinstance(value, str) else "")
def test_help_shows_every_option_with_its_default(name: str, command: Any) -> None:
    text = help_of(name)
    assert max(map(len, text.splitlines())) <= 80
    assert command.help
    assert not re.search(r"<[\w ]+>|list\[|Usage:.*(\{|\[\[)", text), "types of Python and brackets of Typer"
    compact = flat(text)
    for parameter in command.params:
        if parameter.name == "help":
            continue
        written = (
            parameter.opts[0] if isinstance(parameter, TyperOption) else (parameter.metavar or parameter.name.upper())
        )
        assert flat(written) in compact, written
        if not isinstance(parameter, TyperOption) or parameter.required:
            continue
        words = re.sub(r"\\", "", parameter.help or "")
        assert words, f"{written} has no help"
        for word in words.split():
            assert word in text, f"{written} lost {word!r} of its help"
        if isinstance(parameter.show_default, str):
            assert flat(f"[default:({parameter.show_default})]") in compact, written
        elif parameter.default not in (None, False, "", ()) and parameter.show_default is not False:
            value = str(parameter.default)
            if parameter.is_flag and parameter.secondary_opts:
                value = parameter.opts[0].removeprefix("--")
            assert flat(f"[default:{value}]") in compact, f"{written} does not show its default {value}"


def test_the_root_help_groups_every_command_by_its_job() -> None:
    text = help_of()
    assert max(map(len, text.splitlines())) <= 80
    for name, _ in commands():
        assert re.search(rf"^│ {name} ", text, re.MULTILINE), name
    assert {panel for panel in PANELS if f" {panel} " in text} == PANELS


def test_an_option_with_one_name_has_one_default() -> None:
    # num_images of a sample and --images, of labeled images or of images to compare on, differ by purpose
    seen: dict[str, tuple[object, str]] = {}
    for name, command in commands():
        if name == "reselect":  # its defaults are the options of the store
            continue
        for parameter in command.params:
            if not isinstance(parameter, TyperOption) or parameter.required:
                continue
            key = (parameter.default, name)
            first = seen.setdefault(parameter.opts[0], key)
            if parameter.opts[0] in {"--images", "--workers", "--min-images", "--output", "-o"}:
                continue
            assert (key[0] or None) == (first[0] or None), f"{parameter.opts[0]}: {first} and {key}"
