"""Taxonomy: the mapping of a model's classes, and of a data set's labels, to the target classes that are labeled.

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
pseudo-class "none of these" with index K after the K targets: it can win a pixel, and that pixel stays unlabeled.
Keys of ``[labels]`` may be names if the labels have names: from a ``label_names`` list (in index order) in this file,
from a class list beside the label maps, or from a format such as COCO. Label 255 (65535 in 16-bit maps) is ignored
unless ``[labels]`` maps it.

Label maps that store colors need a color table: ``colors = "voc"`` (or ``cityscapes``, ``ade20k``, ``camvid``; the keys
of ``[labels]`` are then indices or names of that data set), or a table of their own in place of ``[labels]``::

    [colors]                        # every color of the label maps: a target, or "ignore"
    "128, 0, 0" = "person"
    "#000000" = "ignore"

Without a file the model's own classes are the targets, and label i is assumed to mean class i; label i + 1 for models
whose preprocessor says ``do_reduce_labels`` (ADE20K: label 0 is unlabeled).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...checks import name_list
from ...errors import TaxonomyError
from .bundle import Bundle
from .color_tables import ColorTable
from .taxonomy_file import (
    DROPPED,
    IGNORE,
    check_several,
    did_you_mean,
    nearest_name,
    parse_labels,
    parse_model,
    parse_targets,
    plain_name,
    read_taxonomy,
)


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
    colors: ColorTable | None = None
    """Color table of label maps that store colors; None if they store indices."""
    named_labels: Mapping[str, int] = field(default_factory=dict)
    """Target index of dataset labels that are given by name, -1 for labels to ignore; see :meth:`for_labels`."""
    label_names: Mapping[int, str] = field(default_factory=dict)
    """Name of each index of ``labels`` that the taxonomy file names."""
    assumed: bool = False
    """True if ``labels`` is only assumed to be in the model's order, since there is no taxonomy file."""

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
        """Return the model's own classes as targets, label i assumed to mean class i (i + 1 with reduced labels).

        Raises :class:`TaxonomyError` if the model has only one class.
        """
        indices = tuple(range(len(bundle.classes)))
        check_several(bundle.classes)
        return cls(
            targets=bundle.classes,
            background=bundle.background,
            model=indices,
            labels=model_labels(bundle),
            assumed=True,
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str], bundle: Bundle) -> Taxonomy:
        """Read a taxonomy file and check it against the model's classes; raises :class:`TaxonomyError`."""
        file = read_taxonomy(path)
        try:
            targets, background = parse_targets(file)
            check_several(targets)
            labels, targets_by_name, label_names, colors = parse_labels(file, targets)
            mapped_targets = {*labels.values(), *targets_by_name.values()}
            if background is not None and mapped_targets and mapped_targets <= {background, -1}:
                raise TaxonomyError(
                    f"[labels] maps no label to another target than the background {targets[background]!r}, so "
                    "nothing could be measured; map the labels of the other targets"
                )
            model = parse_model(file, bundle.classes, targets)
            if unmapped := [
                name for index, name in enumerate(targets) if index in mapped_targets and index not in model
            ]:
                raise TaxonomyError(
                    f"no model class is mapped to the target{'' if len(unmapped) == 1 else 's'} "
                    f"{name_list(map(repr, unmapped))}, which [labels] uses; under [model], map at least one to "
                    f'{unmapped[0]!r}, or remove that target and map its labels to "{IGNORE}"'
                )
            return cls(
                targets=targets,
                background=background,
                model=model,
                labels=labels,
                named_labels=targets_by_name,
                label_names=label_names,
                colors=colors,
            )
        except TaxonomyError as error:
            raise TaxonomyError(f"{path}: {error}") from error

    def with_labels_of(self, path: str | os.PathLike[str]) -> Taxonomy:
        """Return the same targets with the ``[labels]`` of another taxonomy file, which must have the same targets."""
        file = read_taxonomy(path)
        try:
            targets, _ = parse_targets(file)
            labels, targets_by_name, label_names, colors = parse_labels(file, targets)
        except TaxonomyError as error:
            raise TaxonomyError(f"{path}: {error}") from error
        if targets != self.targets:
            raise TaxonomyError(
                f"{path} has the targets {name_list(targets)}; the labels were made with {name_list(self.targets)}: "
                "give the class mapping that they, or the labels their student learned from, were made with"
            )
        return replace(
            self, labels=labels, named_labels=targets_by_name, label_names=label_names, colors=colors, assumed=False
        )

    def for_own_labels(self) -> Taxonomy:
        """Return the taxonomy for labels whose class names are the targets, as those of a label store are."""
        return replace(self, labels={}, named_labels={}, label_names={}, colors=None, assumed=False)

    def for_labels(self, names: Mapping[int, str], origin: str, *, by_name: bool) -> Taxonomy:
        """Return the taxonomy for labels whose values have names, as those of ``origin`` do.

        Names under ``[labels]`` are looked up among ``names``. With ``by_name`` the values themselves have no meaning,
        as in a COCO file, and a name that is not listed is mapped to the target of the same name.

        Raises :class:`TaxonomyError` for a name that ``origin`` does not have or that is not mapped to a target, and
        for indices if only names have a meaning.
        """
        values = {name: index for index, name in names.items()}
        labels = {} if by_name else dict(self.labels)
        targets_by_name = dict(self.named_labels)
        if by_name and not self.assumed:
            if unnamed := sorted(set(self.labels) - set(self.label_names)):
                raise TaxonomyError(
                    f"[labels] names the label {unnamed[0]}, but the labels of {origin} have names and no indices; "
                    f'write names instead, as in "{next(iter(values), "cow")}" = "TARGET"'
                )
            targets_by_name |= {self.label_names[index]: target for index, target in self.labels.items()}
            # a file may list only some classes; but a name similar to an unmapped one is a misspelling
            unmatched_names = set(values) - set(targets_by_name)
            targets_by_name = {
                name: target
                for name, target in targets_by_name.items()
                if name in values or nearest_name(name, unmatched_names, 0.6)
            }
        if unknown := sorted(set(targets_by_name) - set(values)):
            raise TaxonomyError(
                f"[labels] names {name_list(unknown, most=5)}, which {origin} does not have"
                f"{did_you_mean(unknown[0], values) or f'; it has {name_list(values)}'}"
            )
        labels |= {values[name]: target for name, target in targets_by_name.items()}
        if by_name:
            targets = {plain_name(name): index for index, name in enumerate(self.targets)}
            same_names = {
                index: targets[plain_name(name)] for name, index in values.items() if plain_name(name) in targets
            }
            labels = same_names | labels
            if missing_values := sorted(set(values.values()) - set(labels)):
                name = names[missing_values[0]]
                raise TaxonomyError(
                    f"{origin} has the class {name}, which stands for no target ({name_list(self.targets)}); add "
                    f'`"{name}" = "TARGET"` or `"{name}" = "{IGNORE}"` under [labels], '
                    "or draft a class mapping with `maskmill taxonomy`"
                )
        return replace(self, labels=labels, named_labels={}, label_names={}, assumed=self.assumed and not by_name)

    @property
    def num_targets(self) -> int:
        """K, the number of target classes."""
        return len(self.targets)

    @property
    def num_scored(self) -> int:
        """Number of classes that compete for a pixel: K, and one more if model classes are dropped."""
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
        """Target of every model class (C,) int32, or None if the targets are the model's classes."""
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
        """Map dataset labels (H, W) to target indices (H, W) in :attr:`dtype`, ignored pixels to :attr:`ignore_index`.

        Raises :class:`TaxonomyError` for a label that the taxonomy does not know, naming ``file`` and its pixels.
        """
        targets = self._lookup[labels]
        if (unknown := targets == -2).any():
            index = int(labels[unknown][0])
            number = int(np.count_nonzero(labels == index))
            known_labels = name_list(sorted(self.labels)) or "none"
            if self.assumed:
                raise TaxonomyError(
                    f"{file} holds the label {index} on {number:,} pixels, and the model has no class for it (its "
                    f"classes are taken for the labels {known_labels}); draft a class mapping with `maskmill "
                    "taxonomy`, and give it as --taxonomy"
                )
            raise TaxonomyError(
                f"{file} holds the label {index}, which the taxonomy does not know (it knows {known_labels} and 255), "
                f'on {number:,} pixels; add `{index} = "TARGET"` or `{index} = "{IGNORE}"` under [labels]'
            )
        return np.where(targets < 0, self.ignore_index, targets).astype(self.dtype)

    def to_json(self) -> dict[str, Any]:
        """Return plain data, for run and calibration records."""
        raw: dict[str, Any] = {
            "targets": list(self.targets),
            "background": self.background,
            "model": list(self.model),
            "labels": {str(index): target for index, target in sorted(self.labels.items())},
        }
        if self.named_labels:
            raw["named_labels"] = dict(self.named_labels)
        if self.label_names:
            raw["label_names"] = {str(index): name for index, name in sorted(self.label_names.items())}
        if self.colors is not None:
            raw["colors"] = self.colors.to_json()
        if self.assumed:
            raw["assumed"] = True
        return raw

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Taxonomy:
        """Return the taxonomy of :meth:`to_json`'s data; raises :class:`TaxonomyError` if they are damaged."""
        colors = raw.get("colors")
        try:
            return cls(
                targets=tuple(raw["targets"]),
                background=raw["background"],
                model=tuple(raw["model"]),
                labels={int(index): target for index, target in raw["labels"].items()},
                named_labels=raw.get("named_labels", {}),
                label_names={int(index): name for index, name in raw.get("label_names", {}).items()},
                colors=None if colors is None else ColorTable.from_json(colors),
                assumed=raw.get("assumed", False),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise TaxonomyError(f"the recorded class mapping is damaged: {error}; make it again") from error

    @property
    def fingerprint(self) -> str:
        """Hash of the parts that decide scores and thresholds: targets, background and the model's mapping."""
        decisive = {key: value for key, value in self.to_json().items() if key in ("targets", "background", "model")}
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def model_labels(bundle: Bundle) -> dict[int, int]:
    """Return the target of each label of the data set that a model was trained on, if its classes are the targets.

    Label i means class i. If the model's preprocessor reduces labels, label 0 is ignored and label i + 1 means class i.
    """
    classes = range(len(bundle.classes))
    if bundle.reduced_labels:
        return {0: -1} | {index + 1: index for index in classes}
    return {index: index for index in classes}
