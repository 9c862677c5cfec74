"""``run.json``: what decided the labels of a store, written once and never changed."""

from __future__ import annotations

import errno
import json
import os
import reprlib
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ...errors import StoreError, StoreMismatch

FORMAT_VERSION = 1
"""Of the folder's layout and the datasets' columns."""
RUN_FILE = "run.json"


def publish_run(folder: Path, run: Mapping[str, Any]) -> dict[str, Any]:
    """Write ``run.json`` in one step; where another process was faster, agree with it or raise StoreMismatch."""
    text = json.dumps({"format_version": FORMAT_VERSION, "run": dict(run)}, indent=2, allow_nan=False) + "\n"
    target = folder / RUN_FILE
    temporary = folder / f"{RUN_FILE}.{secrets.token_hex(4)}"
    try:
        with open(temporary, "x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        try:
            # unlike a rename, a link never replaces the file of another process
            os.link(temporary, target)
        except FileExistsError:
            pass
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
                raise
            os.replace(temporary, target)  # a filesystem without links
    finally:
        temporary.unlink(missing_ok=True)
    directory = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
    published = read_run(folder)
    check_run(folder, published, run)
    return published


def read_run(folder: Path) -> dict[str, Any]:
    """The run of the store in ``folder``; raises StoreError where it is no store that this program can read."""
    try:
        manifest = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
        version, run = manifest["format_version"], manifest["run"]
    except FileNotFoundError as error:
        missing = "it has no run.json" if folder.is_dir() else "it does not exist"
        raise StoreError(f"{folder} is not a label store: {missing}") from error
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise StoreError(f"{folder} is not a label store: its {RUN_FILE} cannot be read ({error})") from error
    if version != FORMAT_VERSION:
        raise StoreError(
            f"the label store {folder} has format {version}, this maskmill reads format {FORMAT_VERSION}; "
            "use the version of maskmill that made it, or a newer one"
        )
    return run


def check_run(folder: Path, stored: Mapping[str, Any], run: Mapping[str, Any]) -> None:
    """Raise StoreMismatch, naming what differs, unless the store was made with ``run``."""
    before, now = dict(_leaves("", stored)), dict(_leaves("", json.loads(json.dumps(run))))
    names = [name for name in dict.fromkeys([*before, *now]) if before.get(name, ...) != now.get(name, ...)]
    if names:
        differences = "; ".join(f"{name}: {_shown(before, name)} there, {_shown(now, name)} now" for name in names[:8])
        more = f"; and {len(names) - 8} more" if len(names) > 8 else ""
        raise StoreMismatch(
            f"the labels in {folder} were made with other options ({differences}{more}); "
            "use the same options, or another folder"
        )


def _leaves(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key in value:
            yield from _leaves(f"{prefix}.{key}" if prefix else str(key), value[key])
    else:
        yield prefix, value


def _shown(values: Mapping[str, Any], name: str) -> str:
    return reprlib.repr(values[name]) if name in values else "not set"
