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

    An image that occurs twice is written once. Everything is read at one moment of the store, which may grow meanwhile.
    Files are complete when they have their name; the table is written last. Raises :class:`StoreError` if the folder
    cannot be written.
    """
    store = LabelStore.open(store.path, moment=store.moment)
    written = present = 0
    kept_shares: dict[str, float] = {}
    try:
        for folder in ("labels", "weights"):
            (output / folder).mkdir(parents=True, exist_ok=True)
        total = len(store)
        for row in store.iter_rows():
            kept_shares[row.id] = row.kept
            targets = {output / "labels" / f"{row.id}.png": row.label, output / "weights" / f"{row.id}.png": row.weight}
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
                rows.writerow([entry.uri, entry.id, f"{kept_shares[entry.id]:.6f}"])
        write_atomically(output / "index.csv", table.getvalue().encode())
    except OSError as error:
        raise StoreError(f"cannot write to {output}: {error}; run the command again to resume") from error
    return written, present
