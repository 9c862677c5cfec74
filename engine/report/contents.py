"""The contents of a label store in words: its model, selection and labels. Hashes stay in ``run.json``.

::

    for line in describe_store(store):
        print(line)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ...checks import name_list
from ..labeling.certificate import promise
from ..labeling.drift import watch_store
from ..store.label_store import SEGMENTS, LabelStore
from ..store.rows import count_matrix

_GROUPS = {
    "pooled": "one threshold for all classes",
    "class": "a threshold per class",
    "cluster": "a threshold per group of classes",
    "shrunk": "a threshold per class, moved a quarter of the way to a constant threshold",
    "position": "a threshold per cell of a grid",
}
_ID_DIGITS = 12


def describe_store(store: LabelStore) -> list[str]:
    """Describe how the labels of a store were made, their coverage, and the current reviews, one line each."""
    run = store.run
    lines = [f"model: {_model(run)}", *(f"{name}: {text}" for name, text in _settings(run))]
    if run.get("maps") == SEGMENTS:
        lines.append("maps: segments without classes")
    elif "select" in run:
        lines += [f"selection: {_selection(run)}", f"promise: {promise(run)}", f"weight: {_weight(run)}"]
    if "kept_scores" in run:
        lines.append(f"kept scores: for `maskmill reselect` at alpha {run['kept_scores']['alpha']} and above")
    if "reselected_from" in run:
        lines.append(f"reselected from: {run['reselected_from']['store']}")
    lines += _coverage(store)
    if (drift := watch_store(store)) is not None:
        lines.append(f"drift: {drift.sentence()}")
    lines.append(f"reviews in force: {len(store.current_reviews()):,}")
    return lines


def _model(run: Mapping[str, Any]) -> str:
    promptable = run.get("promptable") or {}
    names = [
        f"{kind}{part['bundle'][:_ID_DIGITS]}"
        for kind, part in (("bundle ", run), ("promptable bundle ", promptable))
        if "bundle" in part
    ]
    sessions = list(dict.fromkeys(session.replace("/", " ") for session in _sessions(run)))
    model = " with ".join(names) or "not recorded"
    if "scores" in run:
        return f"{model}, scores read from files"
    return ", run by ".join([model, *([" and ".join(sessions)] if sessions else [])])


def _sessions(part: Mapping[str, Any]) -> Iterator[str]:
    for name, value in part.items():
        if name == "session":
            yield str(value)
        elif isinstance(value, Mapping):
            yield from _sessions(value)


def _settings(run: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if run.get("tile"):
        yield "tiles", f"{run['tile']} px, overlapping by {run.get('overlap', 0)} px"
    if run.get("bit_depth"):
        yield "bit depth", str(run["bit_depth"])
    if "classes_from" in run:
        yield "classes of an image", f"from {run['classes_from']}"
    for name in ("prompts", "everything"):
        if isinstance(values := run.get(name), Mapping):
            yield "settings", ", ".join(f"{key} {value}" for key, value in values.items() if value is not None)


def _selection(run: Mapping[str, Any]) -> str:
    if run["select"] == "threshold":
        level = run.get("threshold")
        return "threshold per class" if level is None else f"threshold, scores of at least {level:g}"
    if run["select"] != "conformal":
        return f"{run['select']}, every pixel gets its best class"
    record = run.get("calibration") or {}
    text = f"conformal, rule {run.get('rule')}"
    if "alpha" not in record:
        return text
    delta = "" if record.get("delta") is None else f", delta {record['delta']}"
    control = str(record.get("control", "miscoverage")).replace("-", " ")
    group = record.get("group", "class")
    text += f", {control} alpha {record['alpha']}{delta}"
    return f"{text}; {_GROUPS.get(group, group)}, measured per {record.get('unit', 'pixel')}"


def _weight(run: Mapping[str, Any]) -> str:
    return "none, 1 for every labeled pixel" if run.get("weight") == "none" else str(run.get("weight"))


def _coverage(store: LabelStore) -> list[str]:
    """Return the share of labeled pixels and each class's share of them, before reviews."""
    table = store.table(["width", "height", "counts"])
    if not len(table):
        return []
    sizes = [table[name].to_numpy().astype(np.int64) for name in ("width", "height")]
    counts = count_matrix(table["counts"]).sum(axis=0)
    num_kept = int(counts.sum())
    lines = [f"kept: {num_kept / max(int((sizes[0] * sizes[1]).sum()), 1):.1%} of the pixels have a label"]
    names = store.run.get("classes", {}).get("targets", ())
    if names and len(names) == len(counts):
        shares = (f"{name} {count / max(num_kept, 1):.1%}" for name, count in zip(names, counts.tolist(), strict=True))
        lines.append(f"classes, share of the labeled pixels: {name_list(shares)}")
    elif names:
        lines.append(f"classes: {name_list(names)}")
    return lines
