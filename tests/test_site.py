"""The documentation site: it builds without a warning, and its pages say what the code says."""

from __future__ import annotations

import ast
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import maskmill
from maskmill import errors
from maskmill.engine.cli import COMMANDS as ENGINE
from maskmill.export.cli import COMMANDS as EXPORT
from maskmill.trainer.cli import COMMANDS as TRAINER

from .conftest import ROOT
from .test_help import help_of

DOCS = ROOT / "docs"
TROUBLESHOOTING = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
COMMANDS = sorted(name for part in (ENGINE, EXPORT, TRAINER) for panel in part.values() for name in panel)
ERRORS = [name for name in errors.__all__ if inspect.isclass(getattr(errors, name))]


def messages() -> str:
    """Every string of the source, one per line; a gap stands for what an f-string fills in."""
    texts = []
    for folder in ("engine", "export", "kernels", "trainer"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    texts.append(
                        "".join(str(part.value) if isinstance(part, ast.Constant) else "\0" for part in node.values)
                    )
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    texts.append(node.value)
    return "\n".join(texts)


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)
    assert built.returncode == 0, built.stderr
    page = (tmp_path / "site" / "api" / "index.html").read_text(encoding="utf-8")
    assert "Choose" in page or "Compute" in page
    assert ":class:" not in page
    assert (tmp_path / "site" / "photos-to-student" / "index.html").is_file()


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    assert {page for page in pages if f": {page}" not in navigation} == set()


def test_every_public_name_is_on_the_api_page() -> None:
    text = (DOCS / "api.md").read_text(encoding="utf-8")
    for name in maskmill.__all__:
        module = getattr(getattr(maskmill, name), "__module__", None)
        assert module in (None, "maskmill.errors") or f"::: {module}.{name}\n" in text, name


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_section_with_its_current_help(command: str) -> None:
    pages = "\n".join(path.read_text(encoding="utf-8") for path in (DOCS / "commands").glob("*.md"))
    section = re.search(rf"^## maskmill {command}\n(.*?)(?=^## |\Z)", pages, re.MULTILINE | re.DOTALL)
    assert section, f"run make docs-commands: no section on maskmill {command}"
    for line in help_of(command).splitlines():
        assert line.rstrip() in section[1] or "Usage:" in line, f"run make docs-commands: {line}"


@pytest.mark.parametrize("name", [name for name in ERRORS if name != "MaskmillError"])
def test_every_error_has_a_section_in_troubleshooting(name: str) -> None:
    assert f"\n## {name}\n" in TROUBLESHOOTING


def test_the_messages_in_troubleshooting_are_those_of_the_code() -> None:
    source = messages()
    for cell in re.findall(r"^\| (`[^|]*) \|", TROUBLESHOOTING, re.MULTILINE):
        for fragment in re.findall(r"`([^`]+)`", cell):
            assert fragment in source, fragment


@pytest.mark.parametrize("question", ["My labels are COCO", "I have no GPU", "Which alpha?"])
def test_the_first_page_answers_the_first_questions(question: str) -> None:
    first = (DOCS / "index.md").read_text(encoding="utf-8")
    link = re.search(rf"\[{re.escape(question)}\]\(([\w-]+\.md)(?:#[\w-]+)?\)", first)
    assert link
    assert (DOCS / link[1]).is_file()
