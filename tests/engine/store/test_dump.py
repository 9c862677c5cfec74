from __future__ import annotations

import csv
from pathlib import Path

from maskmill.engine.store.dump import dump_store
from maskmill.engine.store.label_store import LabelStore, content_id

from ...builders import input_row, label_row


def test_a_store_is_dumped_at_one_moment_while_others_write(tmp_path: Path) -> None:
    store = LabelStore.create(tmp_path / "store", {})
    store.commit([label_row("a"), label_row("b")], [input_row("a"), input_row("b")])
    writer = LabelStore.open(store.path)

    def write(done: int, _: int) -> None:
        writer.commit([label_row(f"later {done}")], [input_row(f"later {done}"), input_row("a", uri=f"copy {done}")])

    assert dump_store(store, tmp_path / "files", progress=write) == (2, 0)
    with open(tmp_path / "files" / "index.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["uri"]: row["id"] for row in rows} == {name: content_id(name.encode()) for name in "ab"}
    assert len(list((tmp_path / "files" / "labels").iterdir())) == 2
    assert dump_store(LabelStore.open(store.path), tmp_path / "files") == (2, 2)
