"""Write a store as ordinary files: label and weight PNGs and a table."""

from __future__ import annotations

import csv
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from ..errors import StoreError
from .store import LabelStore


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
                _write(path, data)
            written, present = written + bool(missing), present + (not missing)
            if progress is not None:
                progress(written + present, total)
        with tempfile.NamedTemporaryFile("w", dir=output, suffix=".tmp", delete=False, newline="") as stream:
            table = csv.writer(stream)
            table.writerow(["uri", "id", "kept"])
            for entry in store.inputs():
                if entry.id is not None:
                    table.writerow([entry.uri, entry.id, f"{kept[entry.id]:.6f}"])
        Path(stream.name).chmod(0o644)
        os.replace(stream.name, output / "index.csv")
    except OSError as error:
        raise StoreError(f"cannot write to {output}: {error}; what was written stays, run it again to go on") from error
    return written, present


def _write(path: Path, data: bytes) -> None:
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as stream:
        stream.write(data)
    Path(stream.name).chmod(0o644)
    os.replace(stream.name, path)
