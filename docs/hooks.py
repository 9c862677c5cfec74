"""Hooks of MkDocs: the notebook as a page, links out of the documents, and the package for the API page."""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
_FOLDERS: list[tempfile.TemporaryDirectory[str]] = []


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Let mkdocstrings read the checkout as the package maskmill, whatever its folder is called."""
    folder = tempfile.TemporaryDirectory()
    _FOLDERS.append(folder)
    (Path(folder.name) / "maskmill").symlink_to(ROOT)
    config.plugins["mkdocstrings"].config.handlers["python"]["paths"] = [folder.name]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the notebook as a page."""
    notebook = json.loads((ROOT / "docs" / "photos-to-student.ipynb").read_text(encoding="utf-8"))
    files.append(File.generated(config, "photos-to-student.md", content=page_of(notebook)))
    return files


def page_of(notebook: dict[str, Any]) -> str:
    """Write a notebook's cells as Markdown."""
    parts = []
    for cell in notebook["cells"]:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
    return "\n\n".join(parts) + "\n"


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Replace links to files of the repository, which the site does not hold, by their names."""
    markdown = re.sub(
        r"\[([^\]]+)\]\((?:\.\./)+(?!calibration|data|formats|prompted|report|tensorrt)[^)]*\)", r"\1", markdown
    )
    return markdown.replace("(photos-to-student.ipynb)", "(photos-to-student.md)")
