"""Text on terminals and in logs: control characters and markup in names from files have no effect."""

from __future__ import annotations

import re
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

_CONTROL = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")
"""Characters that move the cursor, change colors or the direction of writing, or are invisible."""


def printable(text: str) -> str:
    r"""Return text on one line in which control characters are escapes, such as ``\x1b``; tabs stay as they are."""
    return _without_controls(text).replace("\n", "\\n")


def _without_controls(text: str) -> str:
    return text if text.isprintable() else _CONTROL.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


class PlainConsole(Console):
    """Console that prints text as it is: no markup, no emoji codes, no control characters."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False, highlight=False)

    def render_str(self, text: str, **options: Any) -> Text:
        """Render a string, such as a cell of a table."""
        return super().render_str(_without_controls(text), **options)


def say(text: str, *, stderr: bool = False) -> None:
    """Print a sentence on one line, so that a log can be searched."""
    PlainConsole(stderr=stderr).print(printable(text), soft_wrap=True)


def figures_table(first: str, *others: str, mark: bool = False, note: str | None = None) -> Table:
    """Return a table of names and figures: if the terminal is narrow, names wrap, and figures are never cut.

    ``mark`` adds an untitled column of one character before the names, ``note`` a last column of text, which wraps.
    """
    table = Table(box=None)
    if mark:
        table.add_column("", no_wrap=True, min_width=1)
    table.add_column(first, overflow="fold")
    for name in others:
        table.add_column(name, justify="right", no_wrap=True, overflow="fold")
    if note is not None:
        table.add_column(note, overflow="fold")
    return table
