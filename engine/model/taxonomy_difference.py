"""Descriptions of the differences between two class mappings, for messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...checks import name_list


def mapping_difference(
    before: Mapping[str, Any], now: Mapping[str, Any], places: tuple[str, str] = ("there", "here")
) -> str:
    """Describe how two mappings of :meth:`maskmill.engine.model.taxonomy.Taxonomy.to_json`'s form differ.

    ``places`` name the two mappings. Entries that one of them lacks are not compared; empty if no
    difference is known.
    """
    targets, new_targets = list(before.get("targets", [])), list(now.get("targets", []))
    parts = []
    if missing_targets := [name for name in targets if name not in new_targets]:
        parts.append(f"{_targets(missing_targets)} only {places[0]}")
    if added := [name for name in new_targets if name not in targets]:
        parts.append(f"{_targets(added)} only {places[1]}")
    if targets != new_targets and not parts:
        parts.append("the targets have another order")
    old_background, new_background = (_background(raw) for raw in (before, now))
    if old_background != new_background:
        parts.append(f"the background is {old_background} {places[0]} and {new_background} {places[1]}")
    common = [name for name in targets if name in new_targets]
    for key, sentence in (
        ("model", "other model classes are mapped to {}"),
        ("labels", "other labels are mapped to {}"),
    ):
        if key in before and key in now and not parts:
            differing = [name for name in common if _sources(before, key, name) != _sources(now, key, name)]
            if differing:
                parts.append(sentence.format(name_list(differing)))
    return "; ".join(parts)


def _background(raw: Mapping[str, Any]) -> str:
    index = raw.get("background")
    return "none" if index is None else str(raw["targets"][index])


def _sources(raw: Mapping[str, Any], key: str, name: str) -> set[Any]:
    """Return the model classes or labels that are mapped to a target."""
    target, entries = raw["targets"].index(name), raw[key]
    pairs = entries.items() if isinstance(entries, Mapping) else enumerate(entries)
    return {source for source, value in pairs if value == target}


def _targets(names: Sequence[str]) -> str:
    return f"the target {names[0]} is" if len(names) == 1 else f"the targets {name_list(names)} are"
