"""Kill a labeling run inside each kind of disk operation, fill the disk at it, and lose what was not synced.

    python benchmarks/disk_faults.py [--places 20] [--kinds kill full lost] [--output FILE]

A run of 12 photos with a commit every two; ``disk_faults.c`` counts its writes, renames, links and syncs below the
store. At each of the places, spread evenly over all operations:

* ``kill``: the process ends after half of the bytes of the operation;
* ``full``: this and every later write fails with "no space left on device", until the next run;
* ``lost``: as ``kill``, and every file that was written and never synced is empty afterwards (a power loss).

Then the same command runs again without faults; if it refuses the store, ``verify --repair`` and the command run again.
Claims: the store in the end holds every label once, equal to that of a run without faults, and a command that fails
says so in one line.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
CHILD = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from maskmill.engine.inputs.sources import open_source
from maskmill.engine.labeling import writer
from maskmill.engine.labeling.label_run import label
from maskmill.engine.labeling.selection import Selection
from maskmill.engine.model.bundle import Bundle
from maskmill.engine.model.taxonomy import Taxonomy
from maskmill.engine.predictors.semantic import SemanticPredictor
from maskmill.engine.runtimes.onnx_runtime import OnnxSession
from maskmill.engine.store.waiting import waiting_rows
from maskmill.errors import MaskmillError
writer.COMMIT_ROWS = 2
waiting_rows.COMMIT_SHARE = waiting_rows.CHEAP_SECONDS = 1e9
folder = Path(sys.argv[1])
bundle = Bundle.load(folder / "bundle")
predictor = SemanticPredictor(bundle, OnnxSession(bundle))
photos, taxonomy = open_source(folder / "photos"), Taxonomy.of_model(bundle)
try:
    label(predictor, photos, folder / "store", taxonomy, Selection.argmax(), workers=1)
except MaskmillError as error:
    print(f"{type(error).__name__}: {error}")
    sys.exit(3)
"""


def run(folder: Path, shim: Path | None, place: int = 0, kind: str = "") -> tuple[int, str]:
    """Label; returns the exit status and the last line of output."""
    environment = dict(os.environ)
    if shim is not None:
        environment |= {
            "LD_PRELOAD": str(shim), "FAULT_FOLDER": str(folder / "store"), "FAULT_AT": str(place),
            "FAULT_KIND": "full" if kind == "full" else "kill", "FAULT_LOG": str(folder / "log.txt"),
        }  # fmt: skip
    command = [sys.executable, "-c", CHILD, str(folder), str(ROOT)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    lines = (result.stdout + result.stderr).strip().splitlines()
    assert result.returncode in (0, 3, 137), result.stderr[-1000:]
    return result.returncode, lines[-1] if lines else ""


def lose_unsynced(folder: Path) -> int:
    """Empty every file that was written and never synced, also under its later name; returns how many there were."""
    unsynced: set[str] = set()
    for line in (folder / "log.txt").read_text().splitlines():
        kind, _, path = line.partition(" ")
        if kind == "write":
            unsynced.add(path)
        elif kind == "sync":
            unsynced.discard(path)
        elif kind in ("rename", "link"):
            before, _, after = path.partition("\t")
            if before in unsynced:
                unsynced.add(after)
    lost = 0
    for path in unsynced:
        if os.path.isfile(path):
            os.truncate(path, 0)
            lost += 1
    return lost


def labels(folder: Path) -> dict[str, bytes]:
    """Return the maps of every image, read with all checks."""
    from maskmill.engine.store.label_store import LabelStore

    store = LabelStore.open(folder / "store")
    result = {}
    for row in store.inputs():
        label, weight = store.read(row.uri)
        result[Path(row.uri).name] = label.tobytes() + weight.tobytes()
    assert len(store) == len({row.id for row in store.inputs()})
    return result


def main() -> None:
    """Run every fault and print what happened."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--places", type=int, default=20)
    parser.add_argument("--kinds", nargs="*", default=["kill", "full", "lost"])
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    from maskmill.engine.store.verify import verify
    from tests.models import color_bundle

    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        shim = base / "shim.so"
        source = Path(__file__).with_suffix(".c")
        subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", str(shim), str(source), "-ldl"], check=True)

        def fresh(label: str) -> Path:
            folder = base / label
            (folder / "photos").mkdir(parents=True)
            color_bundle(folder)
            for number in range(12):
                pixels = np.random.default_rng(number).integers(0, 256, (24, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / "photos" / f"{number}.png")
            return folder

        sound = fresh("sound")
        assert run(sound, shim)[0] == 0
        expected = labels(sound)
        operations = (sound / "log.txt").read_text().splitlines()
        result: dict[str, Any] = {
            "images": len(expected),
            "operations": dict(Counter(line.split()[0] for line in operations)),
            "places": options.places,
        }
        for kind in options.kinds:
            counts: Counter[str] = Counter()
            messages: Counter[str] = Counter()
            for place in np.unique(np.linspace(1, len(operations), options.places).astype(int)):
                folder = fresh(f"{kind}-{place}")
                status, line = run(folder, shim, int(place), kind)
                counts[{0: "run ended well", 3: "run ended with one line", 137: "run killed"}[status]] += 1
                if status == 3:
                    messages[line.replace(str(folder), "")[:160]] += 1
                if kind == "lost":
                    counts["files emptied"] += lose_unsynced(folder)
                status, line = run(folder, None)
                if status:
                    counts["next run refused the store"] += 1
                    messages[line.replace(str(folder), "")[:160]] += 1
                    try:
                        verify(folder / "store", repair=True)
                    except Exception as error:
                        messages[f"verify: {type(error).__name__}: {str(error).replace(str(folder), '')[:160]}"] += 1
                    status, line = run(folder, None)
                if status:
                    counts["not restored"] += 1
                    messages[line.replace(str(folder), "")[:160]] += 1
                    continue
                try:
                    counts["labels as without faults" if labels(folder) == expected else "WRONG"] += 1
                except Exception as error:
                    counts["labels refused after a run"] += 1
                    messages[f"{type(error).__name__}: {str(error).replace(str(folder), '')[:160]}"] += 1
            result[kind] = {"counts": dict(counts), "messages": dict(messages)}
            print(kind, json.dumps(result[kind], indent=1), flush=True)
    if options.output is not None:
        options.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
