"""The TOML file of a taxonomy: reading and checking its tables."""

from __future__ import annotations

import dataclasses
import difflib
import os
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ...checks import name_list
from ...errors import TaxonomyError, UsageError
from .color_tables import ColorTable, named_table, parse_color
from .files import read_text
from .schema import read_value

DROPPED = "dropped"
IGNORE = "ignore"


NEAR = 0.82
"""Similarity (:mod:`difflib`) of a name and a misspelling of it; ``mountain`` and ``train`` have .62."""


def nearest_name(name: str, choices: Iterable[str], similarity: float = NEAR) -> str | None:
    """Return the choice of which a name is probably a misspelling, ignoring case; None if there is none."""
    plain, by_plain = name.casefold(), {choice.casefold(): choice for choice in choices}
    swapped = [choice for choice in by_plain if sorted(choice) == sorted(plain)]
    matches = difflib.get_close_matches(plain, by_plain, n=1, cutoff=similarity) or swapped
    return by_plain[matches[0]] if matches else None


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """Return "; did you mean NAME?" for the choice most similar to a name; empty if none is similar."""
    choice = nearest_name(name, choices)
    return "" if choice is None else f"; did you mean {choice}?"


def plain_name(name: str) -> str:
    """Return a class name in the form in which names are compared."""
    return " ".join(name.casefold().replace("_", " ").replace("-", " ").split())


def check_several(targets: Sequence[str]) -> None:
    """Raise :class:`TaxonomyError` if there is only one target."""
    if len(targets) == 1:
        raise TaxonomyError(
            f"{targets[0]} is the only class, so every pixel would get it; give at least two targets, e.g. a background"
        )


@dataclass(frozen=True, kw_only=True)
class TaxonomyFile:
    """Entries of a taxonomy file, as they are written."""

    targets: tuple[str, ...]
    """Names of the target classes."""
    background: str | None = None
    """Name of the background target."""
    model: Mapping[str, str] = field(default_factory=dict)
    """Target, or "dropped", of every model class."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Target, or "ignore", of labels by index or name."""
    label_names: tuple[str, ...] = ()
    """Names of the label indices from 0 on."""
    colors: str | Mapping[str, str] | None = None
    """Name of a color table, or the target of every color."""


def read_taxonomy(path: str | os.PathLike[str]) -> TaxonomyFile:
    """Read a taxonomy file; raises :class:`TaxonomyError` if it cannot be read, is not TOML, or has wrong entries."""
    text = read_text(path, "the taxonomy", error=TaxonomyError)
    try:
        raw = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise TaxonomyError(f"the taxonomy {path} is not valid TOML: {error}") from error
    entries = [field.name for field in dataclasses.fields(TaxonomyFile)]
    if unknown := sorted(set(raw) - set(entries)):
        raise TaxonomyError(
            f"the taxonomy {path}: unknown entries: {name_list(unknown)}{did_you_mean(unknown[0], entries)}"
        )
    try:
        return read_value(TaxonomyFile, raw)
    except UsageError as error:
        example = '; list the classes, as in targets = ["background", "person"]' if "targets" in str(error) else ""
        raise TaxonomyError(f"the taxonomy {path}: {error}{example}") from error


def parse_targets(file: TaxonomyFile) -> tuple[tuple[str, ...], int | None]:
    """Return the targets and the index of the background; raises :class:`TaxonomyError`."""
    targets, background = file.targets, file.background
    if background is not None and background not in targets:
        raise TaxonomyError(
            f"the background {background!r} is not one of the targets: {name_list(targets)}"
            f"{did_you_mean(background, targets)}"
        )
    return targets, None if background is None else targets.index(background)


def parse_labels(
    file: TaxonomyFile, targets: Sequence[str]
) -> tuple[dict[int, int], dict[str, int], dict[int, str], ColorTable | None]:
    """Return the target index of every label by value and by name, names of values, and the color table."""
    colors = file.colors
    table = None
    names = {name: index for index, name in enumerate(file.label_names)}
    if isinstance(colors, str):
        table = named_table(colors)
        names = {name: index for index, name in table.names.items()}
    elif colors is not None:
        if file.labels:
            raise TaxonomyError('give `colors = "voc"` with [labels], or [colors] in place of [labels]')
        rgb = [parse_color(color) for color in colors]
        if len(set(rgb)) != len(rgb):
            raise TaxonomyError("[colors] lists a color twice")
        by_color = {
            index: _target("colors", color, value, targets, IGNORE)
            for index, (color, value) in enumerate(colors.items())
        }
        return by_color, {}, {}, ColorTable(name="", colors=tuple(rgb), indices=tuple(range(len(rgb))), names={})
    labels: dict[int, int] = {}
    targets_by_name: dict[str, int] = {}
    for key, value in file.labels.items():
        if key in names:
            index = names[key]
        elif key.isdecimal() and int(key) < 65536:
            index = int(key)
        elif not names and not key.lstrip("-").isdecimal():
            targets_by_name[key] = _target("labels", key, value, targets, IGNORE)
            continue
        else:
            raise TaxonomyError(
                f"[labels] {key!r} is neither a label index (0 to 65535) nor one of the label names"
                f"{did_you_mean(key, names)}"
            )
        if index in labels:
            raise TaxonomyError(f"[labels] gives label {index} twice")
        labels[index] = _target("labels", key, value, targets, IGNORE)
    return labels, targets_by_name, {index: name for name, index in names.items() if index in labels}, table


def parse_model(file: TaxonomyFile, classes: Sequence[str], targets: Sequence[str]) -> tuple[int, ...]:
    """Return the target index of every model class, -1 for dropped ones; raises :class:`TaxonomyError`."""
    model = file.model
    missing_classes = [name for name in classes if name not in model]
    if unknown := sorted(set(model) - set(classes)):
        names = name_list(unknown)
        raise TaxonomyError(
            f"[model] {names} {'is' if len(unknown) == 1 else 'are'} unknown"
            + (did_you_mean(unknown[0], missing_classes or classes) or f"; the model has {name_list(classes)}")
        )
    if missing_classes:
        raise TaxonomyError(
            f'[model] lacks the model classes {name_list(missing_classes)}; map each to a target or to "{DROPPED}"'
        )
    return tuple(_target("model", name, model[name], targets, DROPPED) for name in classes)


def _target(section: str, key: str, value: str, targets: Sequence[str], escape: str) -> int:
    if value == escape:
        return -1
    if value not in targets:
        hint = did_you_mean(value, [*targets, escape]) or "; add it to targets, or map it to one of them"
        raise TaxonomyError(f"[{section}] {key!r} = {value!r} is neither a target nor {escape!r}{hint}")
    return targets.index(value)
