"""``run.json``: everything that decides the labels of a store, written once and never changed."""

from __future__ import annotations

import hashlib
import json
import os
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ...errors import StoreError, StoreMismatch, UsageError
from ..model.schema import read_json_object, read_value
from ..model.storage import location_of, open_folder
from ..model.taxonomy_difference import mapping_difference
from ..reading.remote_path import StorageError

FORMAT_VERSION = 2
"""Version of the folder's layout and of the datasets' columns."""
RUN_FILE = "run.json"


def is_store(folder: str | os.PathLike[str]) -> bool:
    """Return True for the folder of a label store, whole or damaged; training runs have a ``run.json`` as well."""
    return (location_of(folder) / "labels.lance").is_dir()


def publish_run(folder: Path, run: Mapping[str, Any]) -> dict[str, Any]:
    """Write ``run.json`` in one step; if another process was faster, agree with it or raise StoreMismatch."""
    manifest = {"format_version": FORMAT_VERSION, "hash": _digest(run), "run": dict(run)}
    open_folder(folder).write_once(RUN_FILE, (json.dumps(manifest, indent=2, allow_nan=False) + "\n").encode())
    published = read_run(folder)
    check_run(folder, published, run)
    return published


def read_run(folder: Path) -> dict[str, Any]:
    """Read the run record of a store. Raises :class:`StoreError` if ``folder`` holds no store of this format."""
    try:
        manifest = read_json_object(folder / RUN_FILE)
        version = manifest["format_version"]
    except FileNotFoundError as error:
        problem = (
            "it has no run.json; give the folder that `label -o` wrote" if folder.is_dir() else "it does not exist"
        )
        raise StoreError(f"{folder} is not a label store: {problem}").of_the_call() from error
    except StorageError:
        raise
    except (OSError, UsageError, KeyError) as error:
        raise StoreError(f"{folder} is not a label store: its {RUN_FILE} cannot be read ({error})") from error
    if "recipe" in manifest:
        raise StoreError(
            f"{folder} is a training run, not a label store; give the folder of a label store, or a new folder to "
            "make one"
        )
    if version == 1:
        raise StoreError(
            f"the label store {folder} has format 1, whose rows have no hashes; this maskmill reads format "
            f"{FORMAT_VERSION}. Label its images again into a new folder: maskmill label BUNDLE SOURCE -o NEW"
        )
    if version != FORMAT_VERSION:
        raise StoreError(
            f"the label store {folder} has format {version}, this maskmill reads format {FORMAT_VERSION}; "
            "use the version of maskmill that created it"
        )
    try:
        run, digest = manifest["run"], manifest["hash"]
    except KeyError as error:
        raise StoreError(f"{folder} is not a label store: its {RUN_FILE} has no {error}") from error
    try:
        if digest != _digest(run):
            raise StoreError(
                f"{folder / RUN_FILE} was damaged or edited: it does not match its hash; restore it, or label again"
            )
        read_value(RunRecord, run, "run")
    except (UsageError, ValueError, RecursionError) as error:
        # JSON has no NaN, but Python's reader accepts it
        raise StoreError(f"{folder / RUN_FILE} is damaged: {error}; restore it, or label again") from error
    return run


@dataclass(frozen=True, kw_only=True)
class ClassMapping:
    """Form of the class mapping that a store records, see :meth:`maskmill.engine.model.taxonomy.Taxonomy.to_json`."""

    targets: tuple[str, ...]
    background: int | None = None
    model: tuple[int, ...] | None = None
    labels: Mapping[int, int] | None = None
    named_labels: Mapping[str, int] | None = None
    label_names: Mapping[int, str] | None = None
    colors: Mapping[str, Any] | None = None
    assumed: bool = False

    def __post_init__(self) -> None:
        if self.background is not None and not 0 <= self.background < len(self.targets):
            raise UsageError(f"background {self.background} is not one of the {len(self.targets)} targets")


@dataclass(frozen=True, kw_only=True)
class KeptScores:
    """Form of the entry about kept scores."""

    version: int
    alpha: str
    limits: tuple[float | Literal["inf", "-inf"], ...]
    splits: tuple[float | Literal["inf", "-inf"], ...]
    calibration: str


@dataclass(frozen=True, kw_only=True)
class WatchSettings:
    """Form of the entry about drift."""

    level: float
    sample: int
    statistics: tuple[str, ...]
    calibration: str


@dataclass(frozen=True, kw_only=True)
class SelectionOrigin:
    """Form of the entry about the store that labels were selected again from."""

    store: str
    selection: Mapping[str, Any]
    kept_scores: str


_DERIVED = ("reselected_from", "kept_scores", "thresholds", "artifact")
"""Entries of a run record that depend on other settings, or that no option sets."""
_ABSENT: Any = None
"""Default of entries that may be missing but not null."""


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """Form of the entries that later commands read; a record holds others as well, which are only compared."""

    __pydantic_config__ = {"extra": "ignore"}

    bundle: str | None = None
    session: str | None = None
    artifact: str | None = None
    tile: int | None = None
    overlap: int | None = None
    bit_depth: int | None = None
    maps: str | None = None
    classes: ClassMapping = _ABSENT
    classes_from: str | None = None
    select: str | None = None
    rule: str | None = None
    weight: str | None = None
    weight_levels: int | None = None
    threshold: float | None = None
    calibration: Mapping[str, str | None] = _ABSENT
    kept_scores: KeptScores = _ABSENT
    instances: Mapping[str, float] = _ABSENT
    drift: WatchSettings = _ABSENT
    reselected_from: SelectionOrigin = _ABSENT
    promptable: Mapping[str, Any] = _ABSENT
    prompts: Mapping[str, Any] = _ABSENT
    everything: Mapping[str, Any] = _ABSENT


def check_run(folder: Path, stored: Mapping[str, Any], run: Mapping[str, Any]) -> None:
    """Raise StoreMismatch, naming what differs, unless the store was made with ``run``."""
    mapping, options = run_differences(stored, run)
    if mapping is not None:
        raise StoreMismatch(
            f"the labels in {folder} were made with {mapping}{options and f'; {options}'}; "
            f"give the same --taxonomy FILE{' and the same options' if options else ''}, or another folder"
        )
    if options:
        raise StoreMismatch(
            f"the labels in {folder} were made with other options ({options}); use the same options, or another folder"
        )


def run_differences(
    stored: Mapping[str, Any], run: Mapping[str, Any], stores: tuple[str, str] | None = None
) -> tuple[str | None, str]:
    """Describe how two records differ: in the class mapping (None if equal), and in other options (empty if equal).

    ``stores`` are the names of the stores that they belong to; None for a store and a run into it.
    """
    places = ("there", "now") if stores is None else (f"in {stores[0]}", f"in {stores[1]}")
    before, now = dict(_leaves("", stored)), dict(_leaves("", json.loads(json.dumps(run))))
    names = [name for name in dict.fromkeys([*before, *now]) if before.get(name, ...) != now.get(name, ...)]
    classes, other_classes = stored.get("classes"), run.get("classes")
    mapping = [name for name in names if name == "taxonomy" or name.startswith("classes.")]
    if not mapping or not isinstance(classes, Mapping) or not isinstance(other_classes, Mapping):
        return None, _differences(before, now, names, places)
    details = mapping_difference(classes, other_classes, ("there", "here") if stores is None else places)
    names = [name for name in names if name not in mapping]
    return f"another class mapping{details and f' ({details})'}", _differences(before, now, names, places)


def _differences(
    before: Mapping[str, Any], now: Mapping[str, Any], names: Sequence[str], places: tuple[str, str]
) -> str:
    """Name the settings that differ; derived entries are only counted beside others."""
    settings = [name for name in names if name.split(".")[0] not in _DERIVED] or list(names)
    differences = "; ".join(
        f"{name}: {_text(before, name)} {places[0]}, {_text(now, name)} {places[1]}" for name in settings[:8]
    )
    num_more = len(names) - min(len(settings), 8)
    return differences + (f"; and {num_more} more" if num_more else "")


def _digest(run: Mapping[str, Any]) -> str:
    text = json.dumps(run, sort_keys=True, allow_nan=False)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _leaves(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key in value:
            yield from _leaves(f"{prefix}.{key}" if prefix else str(key), value[key])
    else:
        yield prefix, value


def _text(values: Mapping[str, Any], name: str) -> str:
    return reprlib.repr(values[name]) if name in values else "not set"
