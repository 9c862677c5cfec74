"""Create a bundle's folder atomically."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..engine.model.bundle import ModelFile, Role
from ..engine.model.files import sha256
from ..engine.model.publishing import published_folder
from ..errors import UsageError

if TYPE_CHECKING:
    import onnx


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """Make a temporary folder and rename it to ``folder`` at the end; after an error it is deleted.

    Raises :class:`UsageError` if ``folder`` exists already.
    """
    if folder.exists():
        raise UsageError(f"{folder} exists already; remove it or choose another name for the bundle")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with published_folder(folder) as staging:
        yield staging


def model_file(path: Path, *, role: Role = "model", folder: Path | None = None) -> ModelFile:
    """Return the manifest's entry for a file in the bundle's folder, by default the folder that it resides in."""
    name = path.relative_to(folder or path.parent).as_posix()
    return ModelFile(path=name, sha256=sha256(path), bytes=path.stat().st_size, role=role)


def write_model(
    model: onnx.ModelProto, source: Path, external: Iterable[Path], staging: Path, *, role: Role = "model"
) -> list[Path]:
    """Write ``model`` to ``ROLE.onnx``, copy the external data of its ``source`` beside it, and return the paths.

    External data keeps its name, which the file refers to. Raises :class:`UsageError` if another file of the bundle has
    the same name.
    """
    target = staging / f"{role}.onnx"
    target.write_bytes(model.SerializeToString(deterministic=True))
    files = [target]
    for data in external:
        copy = staging / data.relative_to(source.parent)
        if copy.exists():
            raise UsageError(
                f"two files of the bundle would be named {copy.name}; save {source} with another data file"
            )
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(data, copy)
        files.append(copy)
    return files
