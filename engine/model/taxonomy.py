"""Which classes are labeled: model classes → target classes, and dataset labels → target classes.

A taxonomy file is TOML::

    targets = ["background", "person", "cow"]
    background = "background"       # optional: the target that the `foreground` rule avoids

    [model]                         # every class of the model: a target, or "dropped"
    background = "background"
    person = "person"
    rider = "person"
    train = "dropped"

    [labels]                        # every label index of the dataset: a target, or "ignore"
    0 = "ignore"
    11 = "person"
    22 = "person"

Scores of model classes that share a target are summed (softmax) or maxed (sigmoid). Dropped classes form one
pseudo-class "none of these" with index K after the K targets: it competes, and is never emitted. With a
``label_names`` list (in index order) the keys of ``[labels]`` may be names. Label 255 (65535 in 16-bit maps) is
ignored unless ``[labels]`` says otherwise. Without a file the model's own classes are the targets.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import TaxonomyError
from .bundle import Bundle

DROPPED = "dropped"
IGNORE = "ignore"

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
"""The same things under the names of VOC, COCO and CamVid."""


@dataclass(frozen=True, kw_only=True)
class Taxonomy:
    """The mapping from a model's classes and a dataset's labels to the target classes."""

    targets: tuple[str, ...]
    """Names of the K target classes."""
    background: int | None
    """Index of the background target, or None."""
    model: tuple[int, ...]
    """Target index of every model class, -1 for dropped classes."""
    labels: Mapping[int, int] = field(default_factory=dict)
    """Target index of every dataset label, -1 for labels to ignore."""

    def __post_init__(self) -> None:
        if not self.targets:
            raise TaxonomyError("a taxonomy needs at least one target class")
        if len(set(self.targets)) != len(self.targets) or {DROPPED, IGNORE} & set(self.targets):
            raise TaxonomyError(f"target names must be unique and none of '{DROPPED}', '{IGNORE}': {self.targets}")
        if len(self.targets) > 1023:
            raise TaxonomyError(f"at most 1023 target classes are supported, got {len(self.targets)}")
        if all(target < 0 for target in self.model):
            raise TaxonomyError("every model class is dropped; map at least one to a target")

    @classmethod
    def of_model(cls, bundle: Bundle) -> Taxonomy:
        """The model's own classes as targets, label i meaning class i."""
        indices = tuple(range(len(bundle.classes)))
        return cls(
            targets=bundle.classes,
            background=bundle.background,
            model=indices,
            labels={index: index for index in indices},
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str], bundle: Bundle) -> Taxonomy:
        """Read a taxonomy file and check it against the model's classes; raises :class:`TaxonomyError`."""
        raw = _read(path)
        try:
            targets, background, labels = _parse(raw)
            model = _parse_model(raw, bundle.classes, targets)
            return cls(targets=targets, background=background, model=model, labels=labels)
        except TaxonomyError as error:
            raise TaxonomyError(f"{path}: {error}") from error

    def with_labels_of(self, path: str | os.PathLike[str]) -> Taxonomy:
        """The same targets with the ``[labels]`` of another taxonomy file, which must have the same targets."""
        try:
            targets, _, labels = _parse(_read(path))
        except TaxonomyError as error:
            raise TaxonomyError(f"{path}: {error}") from error
        if targets != self.targets:
            raise TaxonomyError(
                f"{path} has the targets {', '.join(targets)}; the labels were made with {', '.join(self.targets)}"
            )
        return replace(self, labels=labels)

    @property
    def num_targets(self) -> int:
        """K, the number of target classes."""
        return len(self.targets)

    @property
    def num_scored(self) -> int:
        """Classes that compete for a pixel: K, and one more where model classes are dropped."""
        return self.num_targets + any(target < 0 for target in self.model)

    @property
    def ignore_index(self) -> int:
        """255, or 65535 beyond 255 targets."""
        return 255 if self.num_targets <= 255 else 65535

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of label maps: uint8, or uint16 beyond 255 targets."""
        return np.dtype(np.uint8 if self.num_targets <= 255 else np.uint16)

    @cached_property
    def groups(self) -> NDArray[np.int32] | None:
        """Target of every model class (C,) int32, or None where the targets are the model's classes."""
        if self.model == tuple(range(self.num_targets)):
            return None
        return np.asarray(self.model, dtype=np.int32)

    @cached_property
    def _lookup(self) -> NDArray[np.int32]:
        # -2 marks labels that the taxonomy does not know
        table = np.full(65536, -2, dtype=np.int32)
        table[[255, 65535]] = -1
        for index, target in self.labels.items():
            table[index] = target
        return table

    def encode(self, labels: NDArray[np.integer[Any]], file: str) -> NDArray[Any]:
        """Dataset labels (H, W) → target indices (H, W) in :attr:`dtype`, ignored pixels at :attr:`ignore_index`.

        ``file`` names the map in the error for a label that the taxonomy does not know.
        """
        targets = self._lookup[labels]
        if (unknown := targets == -2).any():
            index = int(labels[unknown][0])
            known = ", ".join(map(str, sorted(self.labels))) or "none"
            raise TaxonomyError(
                f"{file} holds the label {index}, which the taxonomy does not know (it knows {known} and 255); "
                f'add `{index} = "TARGET"` or `{index} = "{IGNORE}"` under [labels]'
            )
        return np.where(targets < 0, self.ignore_index, targets).astype(self.dtype)

    def to_json(self) -> dict[str, Any]:
        """Plain data, for run and calibration records."""
        return {
            "targets": list(self.targets),
            "background": self.background,
            "model": list(self.model),
            "labels": {str(index): target for index, target in sorted(self.labels.items())},
        }

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Taxonomy:
        """The inverse of :meth:`to_json`."""
        return cls(
            targets=tuple(raw["targets"]),
            background=raw["background"],
            model=tuple(raw["model"]),
            labels={int(index): target for index, target in raw["labels"].items()},
        )

    @property
    def fingerprint(self) -> str:
        """Hash of what decides scores and thresholds: targets, background and the model's mapping."""
        decisive = {key: value for key, value in self.to_json().items() if key != "labels"}
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def _read(path: str | os.PathLike[str]) -> dict[str, Any]:
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise TaxonomyError(f"cannot read the taxonomy {path}: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise TaxonomyError(f"the taxonomy {path} is not valid TOML: {error}") from error


def _parse(raw: Mapping[str, Any]) -> tuple[tuple[str, ...], int | None, dict[int, int]]:
    """Targets, background index and label mapping."""
    if unknown := set(raw) - {"targets", "background", "model", "labels", "label_names"}:
        raise TaxonomyError(f"unknown entries: {', '.join(sorted(unknown))}")
    targets = raw.get("targets")
    if not isinstance(targets, list) or not all(isinstance(name, str) for name in targets):
        raise TaxonomyError('`targets` must be a list of names, as in targets = ["background", "person"]')
    background = raw.get("background")
    if background is not None and background not in targets:
        raise TaxonomyError(f"the background {background!r} is not one of the targets: {', '.join(targets)}")
    names = raw.get("label_names", [])
    labels: dict[int, int] = {}
    for key, value in raw.get("labels", {}).items():
        if key in names:
            index = names.index(key)
        elif key.isdecimal() and int(key) < 65536:
            index = int(key)
        else:
            raise TaxonomyError(f"[labels] {key!r} is neither a label index (0 to 65535) nor one of `label_names`")
        if index in labels:
            raise TaxonomyError(f"[labels] gives label {index} twice")
        labels[index] = _target("labels", key, value, targets, IGNORE)
    return tuple(targets), None if background is None else targets.index(background), labels


def _parse_model(raw: Mapping[str, Any], classes: Sequence[str], targets: Sequence[str]) -> tuple[int, ...]:
    """Target index of every model class."""
    model = dict(raw.get("model", {}))
    if missing := [name for name in classes if name not in model]:
        raise TaxonomyError(
            f'[model] lacks the model classes {", ".join(missing)}; map each to a target or to "{DROPPED}"'
        )
    if extra := set(model) - set(classes):
        raise TaxonomyError(f"[model] names classes that the model does not have: {', '.join(sorted(extra))}")
    return tuple(_target("model", name, model[name], targets, DROPPED) for name in classes)


def _target(section: str, key: str, value: Any, targets: Sequence[str], escape: str) -> int:
    if value == escape:
        return -1
    if value not in targets:
        raise TaxonomyError(f"[{section}] {key!r} = {value!r} is neither a target nor {escape!r}")
    return targets.index(value)


def draft(bundle: Bundle, label_names: Mapping[int, str] | None = None) -> tuple[str, list[str]]:
    """A taxonomy file for a model and, where given, a dataset's ``{index: name}``; returns (TOML text, unmatched).

    Targets are the model's background and the classes whose names match a dataset class; without a dataset, all
    classes. Dataset classes without a match become background where the model has one and are listed in ``unmatched``;
    so are model classes that were dropped.
    """
    classes, unmatched = bundle.classes, []
    by_name = {_normalized(name): name for name in classes}
    background = None if bundle.background is None else classes[bundle.background]
    labels: dict[int, tuple[str, str]] = {}
    for index, name in sorted((label_names or {}).items()):
        match = by_name.get(_normalized(name))
        if _normalized(name) in {"void", "unlabelled", "unlabeled", "ignore", "unlabelled(ignore)"}:
            labels[index] = (name, IGNORE)
        elif match is not None:
            labels[index] = (name, match)
        else:
            labels[index] = (name, background or IGNORE)
            similar = difflib.get_close_matches(_normalized(name), by_name, n=1)
            hint = f"; like the model's {by_name[similar[0]]}" if similar else ""
            unmatched.append(f"label {index} ({name}) → {background or IGNORE}{hint}")
    used = {target for _, target in labels.values()} | {background} if label_names else set(classes)
    targets = [name for name in classes if name in used]
    lines = [
        "# Which classes are labeled. Check every line: only names that match were mapped.",
        f"targets = {json.dumps(targets, ensure_ascii=False)}",
    ]
    if background is not None:
        lines.append(f"background = {json.dumps(background, ensure_ascii=False)}")
    lines += ["", f'[model]  # a class of the model = a target, or "{DROPPED}" (it competes, and is never emitted)']
    for name in classes:
        lines.append(f"{json.dumps(name, ensure_ascii=False)} = {json.dumps(name if name in used else DROPPED)}")
        if name not in used:
            unmatched.append(f"model class {name} → {DROPPED}")
    lines += ["", f'[labels]  # a label index of the dataset = a target, or "{IGNORE}"; 255 is ignored']
    if label_names is None:
        lines += [f"{index} = {json.dumps(name, ensure_ascii=False)}" for index, name in enumerate(classes)]
    for index, (name, target) in labels.items():
        lines.append(f"{index} = {json.dumps(target, ensure_ascii=False)}  # {name}")
    return "\n".join(lines) + "\n", unmatched


def _normalized(name: str) -> str:
    plain = " ".join(name.casefold().replace("_", " ").replace("-", " ").split())
    return _ALIASES.get(plain, plain)
