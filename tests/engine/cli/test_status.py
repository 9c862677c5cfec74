"""``maskmill status`` of several stores, and after a limit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from maskmill.cli import app
from maskmill.engine.store.label_store import LabelStore

from ...models import color_bundle
from ...test_cli import maskmill


def test_stores_are_shown_before_the_error_about_another_folder(tmp_path: Path) -> None:
    for name in ("a", "c"):
        LabelStore.create(tmp_path / name, {})
    shown = maskmill("status", "a", "b", "c", cwd=tmp_path)
    assert shown.returncode == 2
    assert [line.split(":")[0] for line in shown.stdout.splitlines()] == ["a", "c"]
    assert "b is not a label store" in shown.stderr
    listed = maskmill("status", "a", "b", "--json", cwd=tmp_path)
    assert [entry["store"] for entry in json.loads(listed.stdout)] == ["a"]


@pytest.mark.parametrize("runner", ["local", "array"])
def test_inputs_that_a_limit_leaves_out_are_told(tmp_path: Path, runner: str) -> None:
    bundle = color_bundle(tmp_path).path
    (tmp_path / "photos").mkdir()
    for number in range(4):
        Image.new("RGB", (24, 16), (60 * number, 0, 0)).save(tmp_path / "photos" / f"{number}.png")
    command = ["label", str(bundle), str(tmp_path / "photos"), "-o", str(tmp_path / "store"), "--runner", runner]
    told = []
    for limit in ("3", "1"):
        assert CliRunner().invoke(app, [*command, "--limit", limit]).exit_code == 0
        told.append("--limit leaves more inputs out" in CliRunner().invoke(app, ["status", command[4]]).output)
    assert told == [True, False]
