"""Drafting a taxonomy file: names of a data set matched with names of a model."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Literal

from ...checks import check_choice, name_list
from ...errors import TaxonomyError, UsageError
from .bundle import Bundle
from .color_tables import TABLE_NAMES, named_table
from .files import read_class_names
from .taxonomy import model_labels
from .taxonomy_file import DROPPED, IGNORE, nearest_name

Unmatched = Literal["ignore", "background"]
"""Target of data set classes whose name no model class has."""

_ALIASES = {
    "airplane": "aeroplane",
    "plane": "aeroplane",
    "bike": "bicycle",
    "motorcycle": "motorbike",
    "tv": "tvmonitor",
    "tv monitor": "tvmonitor",
    "couch": "sofa",
    "dining table": "diningtable",
    "potted plant": "pottedplant",
    "people": "person",
    "pedestrian": "person",
}
"""Different names of the same class in VOC, COCO and CamVid."""
_CLASSES_FROM = {
    "promptable": "--boxes, --points, --coarse-masks or --detector, as for labeling; with --cam, draft for that bundle",
    "text": "--text, as for labeling",
}
"""Source of the class names of models without their own, by task."""
_VOID = frozenset({"void", "unlabelled", "unlabeled", "ignore", "ignored", "unlabelled(ignore)", "other"})
"""Names of labels that are not classes."""


def same_class(first: str, second: str) -> bool:
    """Return True if two names mean the same class: equal up to case, blanks, ``_``, ``-`` and known aliases."""
    return _normalized(first) == _normalized(second)


def means_nothing(name: str) -> bool:
    """Return True if a label's name, such as ``void``, does not denote a class."""
    return _normalized(name) in _VOID


def read_label_names(source: str | os.PathLike[str]) -> dict[int, str]:
    """Read the class name of each label index: a class list, or the name of a data set (``voc``, ``ade20k``, …)."""
    if str(source) in TABLE_NAMES:
        return dict(named_table(str(source)).names)
    return read_class_names(source)


def draft(
    bundle: Bundle,
    label_names: Mapping[int, str] | None = None,
    *,
    unmatched: Unmatched = "ignore",
    by_name: bool = False,
    colors: str | None = None,
) -> tuple[str, list[str]]:
    """Write a taxonomy for a model and, if given, a data set's ``{index: name}``; returns (TOML text, unmatched names).

    Targets are the model's background and the classes whose names match a data set class; without a data set, all
    classes. Data set classes without a match become ``unmatched`` and are listed; so are model classes that were
    dropped.

    With ``by_name`` the labels are written by name, for formats whose values have no meaning; ``colors`` is the
    name of the color table of label maps that store colors.

    Raises :class:`TaxonomyError` if fewer than two targets remain, :class:`UsageError` for a bundle without classes.
    """
    check_choice("unmatched", unmatched, Unmatched)
    if not bundle.classes:
        source = _CLASSES_FROM.get(bundle.task, "the predictor that gives it classes")
        raise UsageError(
            f"a model of the task {bundle.task} has no classes of its own; give the option that names them: {source}"
        )
    classes, notes = bundle.classes, []
    class_of = {_normalized(name): name for name in classes}
    background = None if bundle.background is None else classes[bundle.background]
    if unmatched == "background" and background is None:
        raise UsageError("the model has no background class for unmatched names; leave them ignored")
    fallback = background if unmatched == "background" and background is not None else IGNORE
    labels: dict[int, tuple[str, str]] = {}
    for index, name in sorted((label_names or {}).items()):
        match = class_of.get(_normalized(name))
        if match is not None:
            labels[index] = (name, match)
        elif means_nothing(name):
            labels[index] = (name, IGNORE)
        else:
            labels[index] = (name, fallback)
            similar = nearest_name(_normalized(name), class_of)
            hint = f"; did you mean the model's {class_of[similar]}?" if similar else ""
            label = f"label {name}" if by_name else f"label {index} ({name})"
            notes.append(f"{label} → {fallback}{hint}")
    matches = {target for _, target in labels.values()} - {IGNORE}
    names_in_use = matches | {background} if label_names else set(classes)
    targets = [name for name in classes if name in names_in_use]
    if len(targets) < 2 or (label_names and not matches - {background}):
        names = name_list(name for name, _ in labels.values()) or "none"
        raise TaxonomyError(
            f"no name of the labels is a class of the model, so nothing could be labeled: the labels are "
            f"{names}; the model has {name_list(classes)}; write the mapping by hand, or give other names with "
            "--label-names"
        )
    lines = [
        "# Target classes. Check every line: only names that match were mapped.",
        f"targets = {json.dumps(targets, ensure_ascii=False)}",
    ]
    if colors is not None:
        lines.insert(1, f"colors = {json.dumps(colors)}  # color table of the label maps")
    if background is not None:
        lines.append(f"background = {json.dumps(background, ensure_ascii=False)}")
    lines += [
        "",
        f'[model]  # a class of the model = a target, or "{DROPPED}" (it can win a pixel, which then stays unlabeled)',
    ]
    for name in classes:
        lines.append(
            f"{json.dumps(name, ensure_ascii=False)} = {json.dumps(name if name in names_in_use else DROPPED)}"
        )
        if name not in names_in_use:
            notes.append(f"model class {name} → {DROPPED}")
    keys = "name of the labels" if by_name else "label index of the data set"
    lines += ["", f'[labels]  # a {keys} = a target, or "{IGNORE}"; 255 is ignored']
    if label_names is None:
        for index, target in model_labels(bundle).items():
            lines.append(f"{index} = {json.dumps(IGNORE if target < 0 else classes[target], ensure_ascii=False)}")
    for index, (name, target) in labels.items():
        key, note = (json.dumps(name, ensure_ascii=False), "") if by_name else (str(index), f"  # {name}")
        lines.append(f"{key} = {json.dumps(target, ensure_ascii=False)}{note}")
    return "\n".join(lines) + "\n", notes


def _normalized(name: str) -> str:
    plain = " ".join(name.casefold().replace("_", " ").replace("-", " ").split())
    return _ALIASES.get(plain, plain)
