"""Put converted graphs into a bundle: write them to a temporary folder, move them in, then list them.

::

    entries = save_graph(graph, staging, original, "fp16")
    bundle = with_files(bundle, entries)
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...engine.model.bundle import Bundle, ModelFile, Role
from ...engine.model.files import sha256

if TYPE_CHECKING:
    import onnx

_LARGEST_FILE = 2**31 - 1  # size limit of a protobuf message, in bytes


def save_graph(
    graph: onnx.ModelProto, folder: Path, original: ModelFile, precision: str, options: Sequence[str] = ()
) -> list[ModelFile]:
    """Write a graph and return its manifest entries; weights over 2 GB go into a file beside it.

    The name holds role and precision, and a hash of the original and ``options``, so that another artifact has another
    name and a manifest never lists a file that was overwritten.
    """
    import onnx

    tag = hashlib.sha256(repr((original.sha256, precision, tuple(options))).encode()).hexdigest()[:8]
    path = folder / f"{original.role}-{precision}-{tag}.onnx"
    shared: dict[str, Any] = {"precision": precision, "derived_from": original.sha256}
    if graph.ByteSize() <= _LARGEST_FILE:
        path.write_bytes(graph.SerializeToString(deterministic=True))
        return [_entry(path, role=original.role, **shared)]
    data = path.with_suffix(".data")
    onnx.save_model(graph, path, save_as_external_data=True, location=data.name)
    return [_entry(path, role=original.role, **shared), _entry(data, role="external-data", **shared)]


def with_files(bundle: Bundle, entries: Sequence[ModelFile]) -> Bundle:
    """Return the bundle with ``entries`` in place of earlier conversions of the same role and precision; not saved.

    Verdicts on replaced files are removed, too.
    """
    new = {(entry.role, entry.precision, entry.derived_from) for entry in entries}
    remaining = [file for file in bundle.files if (file.role, file.precision, file.derived_from) not in new]
    gone = {file.sha256 for file in bundle.files} - {file.sha256 for file in (*remaining, *entries)}
    verdicts = tuple(verdict for verdict in bundle.verdicts if verdict["artifact"] not in gone)
    return dataclasses.replace(bundle, files=(*remaining, *entries), verdicts=verdicts)


def remove_unlisted(before: Bundle, after: Bundle) -> None:
    """Delete the files that an earlier manifest listed and the saved one does not."""
    for path in {file.path for file in before.files} - {file.path for file in after.files}:
        (after.path / path).unlink(missing_ok=True)


def _entry(path: Path, *, role: Role, precision: str, derived_from: str) -> ModelFile:
    return ModelFile(
        path=path.name,
        sha256=sha256(path),
        bytes=path.stat().st_size,
        role=role,
        precision=precision,
        derived_from=derived_from,
    )
