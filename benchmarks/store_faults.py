"""Flip single bits of a label store's files, and count the reactions of Lance, readers, verify and the next run.

    python benchmarks/store_faults.py [--flips 200] [--structure] [--json]

A store of 1,500 images, 40 rejects and 60 reviews, written in 24 commits with a compaction in between. Bits are drawn
uniformly over all data, manifest, deletion and index files of the three datasets; with ``--structure``, only over the
newest manifests and the deletion files. Keys: `flips`; `changed`, flips after which Lance gives other rows or an error,
`silent`, those of them without an error, and `harmless`, the others; `refused`, at which maskmill's readers stop;
`found`, which `maskmill verify` names; `repaired`, after which a repair and the next run restore all labels and inputs;
`wrong`, after which maskmill's readers give anything else than before; `reviews_lost`, flips that cost a review, and
`unnamed`, those that verify does not name.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import lance
import numpy as np

from maskmill.engine.inputs.identity import content_id
from maskmill.engine.model.png import encode_png
from maskmill.engine.store import label_store
from maskmill.engine.store.label_store import InputRow, LabelRow, LabelStore, ReviewRow
from maskmill.engine.store.schema import KEYS
from maskmill.engine.store.table import Table
from maskmill.engine.store.verify import verify
from maskmill.errors import StoreError

IMAGES, REJECTS, REVIEWS, COMMITS = 1500, 40, 60, 24


def label_row(number: int) -> LabelRow:
    """Make labels similar to a model's: a few regions with ragged borders."""
    draw = np.random.default_rng(number)
    label = np.kron(draw.integers(0, 8, (6, 8)), np.ones((12, 12))).astype(np.uint8)
    label[draw.random(label.shape) < 0.02] = 255
    weight = np.where(label == 255, 0, draw.integers(1, 16, label.shape) * 16).astype(np.uint8)
    counts = np.bincount(label.ravel(), minlength=256)[:8]
    kept = float((label != 255).mean())
    return LabelRow(
        id=content_id(b"%d" % number), width=label.shape[1], height=label.shape[0], label=encode_png(label),
        weight=encode_png(weight), counts=counts, kept=kept, confidence=0.9,
    )  # fmt: skip


def input_row(number: int, error: str | None = None) -> InputRow:
    """Make an input with labels, or a reject."""
    id = None if error else content_id(b"%d" % number)
    return InputRow(uri=f"/photos/{number:06d}.jpg", size=number, stamp="1", id=id, error=error, message=error)


def fill(store: LabelStore) -> None:
    """Commit what is missing, as a run does."""
    done = {row.uri for row in store.inputs()}
    missing = [number for number in range(IMAGES + REJECTS) if f"/photos/{number:06d}.jpg" not in done]
    size = -(-(IMAGES + REJECTS) // COMMITS)
    for start in range(0, len(missing), size):
        numbers = missing[start : start + size]
        labels = [label_row(number) for number in numbers if number < IMAGES]
        store.commit(labels, [input_row(number, None if number < IMAGES else "truncated") for number in numbers])


def make(path: Path) -> None:
    """Create the store that is damaged."""
    label_store.COMPACT_EVERY = COMMITS - 6
    store = LabelStore.create(path, {"select": "argmax"})
    store.commit([], [input_row(number, "empty") for number in range(IMAGES, IMAGES + REJECTS // 2)])
    fill(store)
    store.commit([], [input_row(number, "truncated") for number in range(IMAGES, IMAGES + 5)])  # deletes rows
    for start in range(0, REVIEWS, 20):
        numbers = range(start, start + 20)
        store.commit_reviews([
            ReviewRow(id=content_id(b"%d" % number), reviewer="Ada", time=1, verdict="corrected",
                      label=label_row(number + 1).label)
            for number in numbers
        ])  # fmt: skip


def raw(path: Path) -> dict[str, Any]:
    """Read everything through Lance, without our checks."""
    tables = {}
    for name, keys in KEYS.items():
        rows = lance.dataset(path / f"{name}.lance", session=lance.Session()).to_table().to_pylist()
        tables[name] = sorted(rows, key=lambda row: tuple(map(str, (row[key] for key in keys))))  # noqa: B023
    return tables


def checked(path: Path) -> tuple[Any, ...]:
    """Read labels, inputs and reviews through maskmill's readers."""
    store = LabelStore.open(path)
    labels = {row.id: str(vars(row)) for row in store.iter_rows(extras=True)}
    return labels, {row.uri: row for row in store.inputs()}, {row.id: row for row in store.reviews()}


def files_of(path: Path, structure: bool) -> list[Path]:
    """List the files whose bits are drawn."""
    if not structure:
        kinds = ("data", "_versions", "_deletions", "_indices")
        return sorted(file for kind in kinds for file in path.glob(f"*.lance/{kind}/*") if file.is_file())
    tables = [Table(path, name, None) for name in KEYS]
    return [table.manifest(table.open().version) for table in tables] + sorted(path.glob("*.lance/_deletions/*"))


def outcome(path: Path, before_raw: dict[str, Any], before: tuple[Any, ...]) -> Counter[str]:
    """Read, verify and repair a store with one flipped bit."""
    counts: Counter[str] = Counter(flips=1)
    try:
        changed, error = raw(path) != before_raw, False
    except BaseException as fault:
        if isinstance(fault, KeyboardInterrupt):
            raise
        changed = error = True
    try:
        refused = False
        wrong = checked(path) != before
    except StoreError:
        refused, wrong = True, False
    found = bool(verify(path).damages)
    counts += Counter(changed=changed, silent=changed and not error, wrong=wrong)
    counts += Counter({f"{'changed' if changed else 'harmless'}, refused": refused})
    counts += Counter({f"{'changed' if changed else 'harmless'}, found": found})
    if not (changed or found or refused):
        return counts
    result = verify(path, repair=True)
    fill(LabelStore.open(path))
    after = checked(path)
    lost = len(before[2]) > len(after[2])
    named = any(damage.dataset == "reviews" for damage in result.damages)
    counts += Counter({f"{'changed' if changed else 'harmless'}, repaired": after[:2] == before[:2]})
    return counts + Counter(reviews_lost=lost, unnamed=lost and not named)


def main(argv: list[str] | None = None) -> int:
    """Print the table; 1 if a flip that changes what is read is not found or not repaired."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flips", type=int, default=200, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--structure", action="store_true", help="newest manifests and deletion files only")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(argv)
    draw, totals = random.Random(options.seed), Counter[str]()
    by_kind: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        original, path = Path(folder) / "original", Path(folder) / "store"
        make(original)
        before_raw, before = raw(original), checked(original)
        files = files_of(original, options.structure)
        weights = [file.stat().st_size for file in files]
        for _ in range(options.flips):
            (file,) = draw.choices(files, weights)
            shutil.copytree(original, path)
            data, bit = bytearray(file.read_bytes()), draw.randrange(8 * file.stat().st_size)
            data[bit // 8] ^= 1 << (bit % 8)
            (path / file.relative_to(original)).write_bytes(data)
            by_kind[f"{file.parts[-3]}/{file.parts[-2]}"] += 1
            totals += outcome(path, before_raw, before)
            shutil.rmtree(path)
    print(json.dumps(totals) if options.json else "\n".join(f"{name:22}{totals[name]:6}" for name in totals))
    if not options.json:
        print("\n".join(f"  {name:40}{count:6}" for name, count in sorted(by_kind.items())))
    sound = totals["changed"] == totals["changed, found"] == totals["changed, repaired"] and not totals["wrong"]
    return int(not sound)


if __name__ == "__main__":
    sys.exit(main())
