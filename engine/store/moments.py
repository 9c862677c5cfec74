"""Moments of a store: versions of its datasets that belong together, and pins that keep them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from .table import Table


@dataclass(frozen=True, kw_only=True)
class Moment:
    """Versions of the datasets that belong together: every input points to labels that exist."""

    labels: int
    """Version of ``labels.lance``."""
    inputs: int
    """Version of ``inputs.lance``."""
    reviews: int
    """Version of ``reviews.lance``."""


def open_moment(tables: Mapping[str, Table], moment: Moment | None = None) -> dict[str, Any]:
    """Open every dataset, at ``moment`` or at the newest one.

    Inputs are opened first: labels are committed before the inputs that point to them.
    """
    versions = {} if moment is None else asdict(moment)
    return {name: tables[name].open(versions.get(name)) for name in ("inputs", "labels", "reviews")}


def moment_of(datasets: Mapping[str, Any]) -> Moment:
    """Return the versions of open datasets."""
    return Moment(**{name: int(dataset.version) for name, dataset in datasets.items()})


def pin_moment(tables: Mapping[str, Table], tag: str) -> Moment:
    """Tag the newest moment, so that no cleanup drops it; an existing pin with this name is kept.

    Processes that pin the same name at once agree on one moment.
    """
    versions: dict[str, int] = {}
    # each dataset is opened after the one before is tagged, so the labels are not older than the inputs
    for name in ("inputs", "reviews", "labels"):
        dataset = tables[name].open()
        if tag not in dataset.tags.list():
            try:
                dataset.tags.create(tag, dataset.version)
            except (OSError, ValueError):
                if tag not in dataset.tags.list():  # otherwise another process was faster
                    raise
        versions[name] = int(dataset.tags.list()[tag]["version"])
    return Moment(**versions)


def unpin_moment(tables: Mapping[str, Table], tag: str) -> None:
    """Delete the tags of a pin; does nothing if there is none with this name."""
    for name in ("labels", "inputs", "reviews"):
        tags = tables[name].open().tags
        if tag in tags.list():
            tags.delete(tag)
