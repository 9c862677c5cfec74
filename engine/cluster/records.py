"""Records of drivers and workers in the folder of a store, validated when they are read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from ..labeling.progress import Progress
from ..labeling.thread_stages import StageTime

if TYPE_CHECKING:
    from pydantic import TypeAdapter


@dataclass(kw_only=True)
class _Counts:
    planned: int
    images: int
    duplicates: int
    pixels: int
    input_bytes: int
    label_bytes: int
    weight_bytes: int
    seconds: float
    stored: int = 0
    rejects: dict[str, int]
    earlier_rejects: dict[str, int]
    kept: list[int]
    stages: list[StageTime]
    skipped: dict[str, int]
    low_range: list[str]
    interrupted: bool
    drifted: bool
    warnings: list[str]


@dataclass(kw_only=True)
class _Process:
    state: str
    host: str = ""
    process: int = 0
    started: str = ""
    boot: str = ""
    pids: str = ""
    progress: _Counts | None = None


@dataclass(kw_only=True)
class _Worker(_Process):
    beat: int
    leases: dict[str, int]
    time: float
    name: str = ""
    stalled: str = ""
    error: str = ""
    alone: bool = False


@dataclass(kw_only=True)
class _Driver(_Process):
    token: str
    version: str = ""
    beat: int = 0
    planned_all: bool = False
    commits: int = 0
    commit_seconds: float = 0.0
    time: float = 0.0


def worker_record(data: bytes) -> dict[str, Any] | None:
    """Return the record of a worker in a file; None if the file holds anything else.

    A worker without counts, such as that of a calibration, gets counts of 0.
    """
    record = _read(_Worker, data)
    return None if record is None else {**record, "progress": record.get("progress") or Progress().record()}


def driver_record(data: bytes) -> dict[str, Any] | None:
    """Return the record of a driver in a file; None if the file holds anything else."""
    record = _read(_Driver, data)
    defaults = {"version": "", "planned_all": False, "commits": 0, "commit_seconds": 0.0, "time": 0.0}
    if record is None:
        return None
    return {**defaults, **record, "progress": record.get("progress") or Progress().record()}


def counts_of(meta: dict[str, Any]) -> Progress | None:
    """Return the counts in the plain data of a finished lease; None if there are none."""
    return Progress.from_record(meta["progress"]) if _is_valid(_Counts, meta.get("progress")) else None


def _read(kind: Any, data: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return record if _is_valid(kind, record) else None


def _is_valid(kind: Any, raw: Any) -> bool:
    from pydantic import ValidationError

    try:
        _validator(kind).validate_json(json.dumps({"": raw}), strict=True)
        counts = raw if kind is _Counts else raw.get("progress")
        if counts is not None:
            Progress.from_record(counts)
    except (ValidationError, OverflowError):  # some counts are kept in 64 bits
        return False
    return True


@cache
def _validator(kind: Any) -> TypeAdapter[dict[str, Any]]:
    from pydantic import TypeAdapter

    # wrapped, since only so the configuration reaches dataclasses
    return TypeAdapter(dict[str, kind], config={"extra": "ignore", "allow_inf_nan": False})
