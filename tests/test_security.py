"""No code of ours runs code that comes in a file."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import ROOT

MODULES = sorted(
    [path for name in ("engine", "export", "kernels", "trainer") for path in (ROOT / name).rglob("*.py")]
    + list(ROOT.glob("*.py"))
)
FORBIDDEN = {"pickle.load", "pickle.loads", "marshal.loads", "yaml.load", "eval", "exec", "os.system"}
REQUIRED = {
    "torch.load": ("weights_only", True),
    ".from_pretrained": ("trust_remote_code", False),
}
"""Calls, by their full or last name, and the keyword that they must have with this value."""


def calls(path: Path) -> list[ast.Call]:
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_nothing_that_runs_code_from_a_file_is_called(path: Path) -> None:
    for call in calls(path):
        name = ast.unparse(call.func)
        assert name not in FORBIDDEN, f"line {call.lineno}"
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert keywords.get("allow_pickle") != "True", f"line {call.lineno}"
        assert keywords.get("trust_remote_code", "False") == "False", f"line {call.lineno}"
        for suffix, (keyword, value) in REQUIRED.items():
            if name == suffix or suffix.startswith(".") and name.endswith(suffix):
                assert keywords.get(keyword) == str(value), f"line {call.lineno}: {name} needs {keyword}={value}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_pillow_reads_named_formats_only(path: Path) -> None:
    # among the others is one that runs Ghostscript
    for call in calls(path):
        if ast.unparse(call.func) == "Image.open" and "demo" not in path.parts:
            assert "formats" in {keyword.arg for keyword in call.keywords}, f"line {call.lineno}"


PRINTERS = {"typer.echo", "click.echo", "print", "Console", "rich.print"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_text_reaches_the_terminal_by_the_printer_that_escapes_names(path: Path) -> None:
    allowed = {"typer.echo"} if path.name in ("cli.py", "options.py") else set()
    allowed |= {"Console"} if path.name == "terminal.py" else set()
    for call in calls(path):
        name = ast.unparse(call.func)
        is_json = bool(call.args) and ast.unparse(call.args[0]).startswith("json.dumps(")
        assert name not in PRINTERS - allowed or is_json, f"line {call.lineno}: print with engine.report.terminal.say"


@pytest.mark.parametrize(("name", "value"), [("ORT_DISABLE_TELEMETRY", "1"), ("RAY_USAGE_STATS_ENABLED", "0")])
def test_packages_that_send_usage_data_are_told_not_to(name: str, value: str) -> None:
    code = f"import maskmill, os; print(os.environ[{name!r}])"
    for before, after in ((None, value), ("chosen", "chosen")):
        environment = {key: text for key, text in os.environ.items() if key != name} | (
            {name: before} if before else {}
        )
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
        assert result.stdout.strip() == after
