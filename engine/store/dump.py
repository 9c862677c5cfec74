"""Write a store as ordinary files: label and weight PNGs and a table."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path

from ...errors import StoreError
from ..model.publishing import write_atomically
from .label_store import LabelStore


def dump_store(
    store: LabelStore, output: Path, *, progress: Callable[[int, int], None] | None = None
) -> tuple[int, int]:
    """Write ``labels/ID.png``, ``weights/ID.png`` and ``index.csv`` (uri, id, kept); returns (written, already there).

    ID is the content hash, so an image that occurs twice is written once. Files are complete once they have their
    name; the table is written last. Raises :class:`StoreError` where the folder cannot be written.
    """
    written = present = 0
    kept: dict[str, float] = {}
    try:
        for folder in ("labels", "weights"):
            (output / folder).mkdir(parents=True, exist_ok=True)
        total = len(store)
        for row in store.iter_rows(["id", "label", "weight", "kept"]):
            kept[row["id"]] = row["kept"]
            targets = {output / f"{kind}s" / f"{row['id']}.png": row[kind] for kind in ("label", "weight")}
            missing = {path: data for path, data in targets.items() if not path.exists()}
            for path, data in missing.items():
                write_atomically(path, data)
            written, present = written + bool(missing), present + (not missing)
            if progress is not None:
                progress(written + present, total)
        table = io.StringIO(newline="")
        rows = csv.writer(table)
        rows.writerow(["uri", "id", "kept"])
        for entry in store.inputs():
            if entry.id is not None:
                rows.writerow([entry.uri, entry.id, f"{kept[entry.id]:.6f}"])
        write_atomically(output / "index.csv", table.getvalue().encode())
    except OSError as error:
        raise StoreError(f"cannot write to {output}: {error}; what was written stays, run it again to go on") from error
    return written, present
