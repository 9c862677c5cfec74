"""``maskmill verify`` as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path

from maskmill.engine.store.label_store import LabelStore, ReviewRow

from ...builders import input_row, label_row
from ...test_cli import maskmill, ok


def test_damage_is_named_and_removed(tmp_path: Path) -> None:
    store = LabelStore.create(tmp_path / "store", {"select": "argmax"})
    store.commit([label_row("a")], [input_row("a")])
    assert ok("verify", "store", cwd=tmp_path) == "store: nothing is damaged (1 labels, 1 inputs, 0 reviews)\n"
    (file,) = (store.path / "labels.lance" / "data").iterdir()
    data = file.read_bytes()
    file.write_bytes(data.replace(b"IDAT", b"IDAU", 1))
    found = maskmill("verify", "store", cwd=tmp_path)
    assert found.returncode == 1
    assert "its content does not match its hash" in found.stdout
    assert "2 damaged rows or files; remove them with --repair" in found.stdout
    assert json.loads(ok("verify", "store", "--repair", "--json", cwd=tmp_path))["num_damages"] == 2
    assert ok("verify", "store", cwd=tmp_path) == "store: nothing is damaged (0 labels, 0 inputs, 0 reviews)\n"


def test_only_stores_are_verified(tmp_path: Path) -> None:
    refused = maskmill("verify", "store", cwd=tmp_path)
    assert refused.returncode == 2
    assert "store is not a label store: it does not exist" in refused.stderr


def test_reviews_in_force_are_told_from_withdrawn_ones(tmp_path: Path) -> None:
    store = LabelStore.create(tmp_path / "store", {"select": "argmax"})
    rows = [label_row("a"), label_row("b")]
    store.commit(rows, [input_row("a"), input_row("b")])
    store.commit_reviews([ReviewRow(id=row.id, reviewer="ana", time=1, verdict="accepted") for row in rows])
    store.commit_reviews([ReviewRow(id=rows[0].id, reviewer="ana", time=2, verdict="withdrawn")])
    assert "3 reviews, 1 of them in force" in ok("verify", "store", cwd=tmp_path)
    assert json.loads(ok("verify", "store", "--json", cwd=tmp_path))["num_reviews_in_force"] == 1
