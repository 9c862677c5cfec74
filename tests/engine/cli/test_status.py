"""``maskmill status`` of several stores."""

from __future__ import annotations

import json
from pathlib import Path

from maskmill.engine.store.label_store import LabelStore

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
