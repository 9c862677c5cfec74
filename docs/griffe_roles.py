"""Extension of griffe: roles and code blocks of the docstrings as Markdown."""

from __future__ import annotations

import re
from typing import Any

import griffe


class Roles(griffe.Extension):
    """Convert ``:class:`Name``` to `Name`, double to single backquotes, and ``::`` to a block of code."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Convert the docstring of an object."""
        if obj.docstring is not None:
            obj.docstring.value = converted(obj.docstring.value)


def converted(text: str) -> str:
    """Convert one docstring."""
    text = re.sub(r":\w+:`~?\.*(?:[\w.]*\.)?(\w+)`", r"`\1`", text)
    text = text.replace("``", "`")
    text = re.sub(r"::\n\n((?:    .*\n?|\n)+)", lambda block: f"\n\n{block[1]}", text)
    return prose_first(text)


def prose_first(text: str) -> str:
    """Move paragraphs behind the list of parameters before it, where the NumPy style expects them."""
    head, title, rest = text.partition("\nParameters\n----------\n")
    if not title:
        return text
    entries, prose = [], []
    for block in re.split(r"\n\n(?=\S)", rest):
        has_entries = re.match(r"[\w*, ]+(?: *:.*)?\n    ", block) or re.match(r"\w+\n-+\n", block)
        (entries if has_entries else prose).append(block)
    return "\n\n".join([head.rstrip(), *prose, "Parameters\n----------\n" + "\n\n".join(entries)])
