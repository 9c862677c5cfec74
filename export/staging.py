"""Make a bundle's folder whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..engine.model.bundle import ModelFile
from ..engine.model.files import sha256
from ..engine.model.publishing import published_folder
from ..errors import UsageError


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """A new folder beside ``folder`` that takes its name at the end; nothing is left of it after an error.

    Raises :class:`UsageError` where ``folder`` exists already.
    """
    if folder.exists():
        raise UsageError(f"{folder} exists already; remove it or choose another name for the bundle")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with published_folder(folder) as staging:
        yield staging


def model_file(path: Path, *, role: str = "model") -> ModelFile:
    """The manifest's entry for a file in the bundle's folder."""
    return ModelFile(path=path.name, sha256=sha256(path), bytes=path.stat().st_size, role=role)  # type: ignore[arg-type]


def copy_model(source: Path, external: Iterable[Path], staging: Path, *, role: str = "model") -> list[ModelFile]:
    """Copy an ONNX file to ``ROLE.onnx``, and its external data under their own names, which the file refers to.

    Raises :class:`UsageError` where another file of the bundle has the name of the external data.
    """
    target = staging / f"{role}.onnx"
    shutil.copyfile(source, target)
    files = [model_file(target, role=role)]
    for data in external:
        copy = staging / data.relative_to(source.parent)
        if copy.exists():
            raise UsageError(
                f"two files of the bundle would be named {copy.name}; save {source} with another data file"
            )
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(data, copy)
        entry = ModelFile(
            path=copy.relative_to(staging).as_posix(),
            sha256=sha256(copy),
            bytes=copy.stat().st_size,
            role="external-data",
        )
        files.append(entry)
    return files
