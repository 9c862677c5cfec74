"""The folder of a training run: its record ``run.json`` and its checkpoints; the package docstring has the layout.

::

    run = Run.load("run")
    state = read_checkpoint(best_checkpoint("run"))
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from ..engine.model.bundle import check_class_names
from ..engine.model.input_spec import InputSpec
from ..engine.model.publishing import remove_leftovers, write_atomically
from ..engine.model.schema import read_json_object, read_value
from ..engine.reading.local import read_local
from ..engine.store.run_record import is_store
from ..errors import ImageError, MissingPackageError, TrainingError, UsageError
from ..kernels.processors import let_idle_threads_sleep
from .recipes import Recipe, recipe_from_json

FORMAT_VERSION = 2
RUN_FILE, LAST, BEST = "run.json", "last.pt", "best.pt"


@dataclass(frozen=True, kw_only=True)
class Run:
    """Record of a training run: everything that determines the student, and that is needed to use it."""

    recipe: Recipe
    """The whole recipe."""
    model_options: Mapping[str, Any]
    """Options that build the network of the student again without a download."""
    classes: tuple[str, ...]
    """Names of the K classes."""
    background: int | None
    """Index of the background class, or None."""
    labels: Mapping[int, int]
    """Label index of the labeled folder → class, -1 for labels to ignore."""
    input: InputSpec
    """Preprocessing of an image."""
    data: Mapping[str, Any]
    """Training data: sources, records of the label stores, numbers of images, and the run that ``--init`` names."""
    versions: Mapping[str, str]
    """Versions of maskmill and torch."""

    @property
    def bit_depth(self) -> int | None:
        """Return the bits that photos of more than 8 bits fill, as its label stores were made; None: all bits."""
        return self.data.get("bit_depth")

    @property
    def ignore(self) -> int:
        """Return the index of pixels without a label: 255, or 65535 for more than 255 classes."""
        return 255 if len(self.classes) <= 255 else 65535

    def to_json(self) -> dict[str, Any]:
        """Return the record as plain data."""
        document = {
            "format_version": FORMAT_VERSION,
            "recipe": self.recipe.to_json(),
            "model": {"name": self.recipe.model, "options": dict(self.model_options)},
            "classes": list(self.classes),
            "background": self.background,
            "ignore": self.ignore,
            "labels": {str(index): target for index, target in sorted(self.labels.items())},
            "input": dataclasses.asdict(self.input),
            "data": dict(self.data),
            "versions": dict(self.versions),
        }
        return json.loads(json.dumps(document))

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write ``run.json`` atomically; create the folder if needed."""
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        write_atomically(path / RUN_FILE, (json.dumps(self.to_json(), indent=2) + "\n").encode(), sync=True)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Run:
        """Read ``run.json``; raises :class:`TrainingError` if it is missing, damaged or of another format."""
        path = Path(folder) / RUN_FILE
        if is_store(folder):
            raise TrainingError(f"{folder} is a label store, not a training run; give a folder that train made")
        try:
            document = read_json_object(path)
        except FileNotFoundError:
            raise TrainingError(
                f"{folder} is not a training run: it has no {RUN_FILE}; make one with `maskmill train`"
            ).of_the_call() from None
        except UsageError as error:
            raise TrainingError(str(error)) from error
        version = document.get("format_version")
        if version != FORMAT_VERSION:
            raise TrainingError(
                f"{path} has format version {version!r:.80}, this maskmill reads {FORMAT_VERSION}; train again"
            )
        try:
            return cls._from_json(document)
        except UsageError as error:
            raise TrainingError(f"{path} is damaged: {error}; train the student again") from error

    @classmethod
    def _from_json(cls, document: Mapping[str, Any]) -> Run:
        file: _RunFile = read_value(_RunFile, document)
        return cls(
            recipe=recipe_from_json(file.recipe),
            model_options=file.model.options,
            classes=file.classes,
            background=file.background,
            labels=file.labels,
            input=file.input,
            data=file.data,
            versions=file.versions,
        )


@dataclass(frozen=True, kw_only=True)
class _Model:
    """Network of a run."""

    name: str
    options: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class _RunFile:
    """Form of ``run.json``."""

    format_version: int
    recipe: Mapping[str, Any]
    model: _Model
    classes: tuple[str, ...]
    background: int | None
    ignore: int
    labels: Mapping[int, int]
    input: InputSpec
    data: Mapping[str, Any]
    versions: Mapping[str, str]

    def __post_init__(self) -> None:
        check_class_names(self.classes)
        if len(self.classes) < 2:
            raise UsageError(f"a student has at least two classes, got {len(self.classes)}")
        if self.background is not None and not 0 <= self.background < len(self.classes):
            raise UsageError(f"background {self.background} is not one of the {len(self.classes)} classes")
        for index, target in self.labels.items():
            if not 0 <= index < 1_000_000 or not -1 <= target < len(self.classes):
                raise UsageError(f"labels maps {index} to {target}, which is no class")


def best_checkpoint(folder: str | os.PathLike[str]) -> Path:
    """Return ``best.pt``, or ``last.pt`` if there was no validation; raises :class:`TrainingError` if neither
    exists.
    """
    for name in (BEST, LAST):
        if (path := Path(folder) / name).is_file():
            return path
    raise TrainingError(f"{folder} has no checkpoint yet; train it first")


def write_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write a checkpoint atomically: the file gets its name only after all bytes are on disk."""
    torch = import_torch()
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    buffer.write(_trailer(buffer.getbuffer()))
    try:
        remove_leftovers(path.parent)  # unfinished checkpoints of a killed process
        write_atomically(path, buffer.getvalue(), sync=True)
    except OSError as error:
        raise TrainingError(f"cannot write the checkpoint {path}: {error}") from error


def read_checkpoint(path: Path, device: str = "cpu") -> dict[str, Any]:
    """Read a checkpoint: tensors on ``device`` and plain data; no code in it is run.

    Raises :class:`TrainingError` if it is missing, damaged, or no dictionary.
    """
    torch = import_torch()
    try:
        # PyTorch does not detect flipped bits
        data = read_local(os.fspath(path), MAX_CHECKPOINT)
        content = memoryview(data)[:-_TRAILER_BYTES]
        if data[-_TRAILER_BYTES:] != _trailer(content):
            raise TrainingError(f"the checkpoint {path} does not match the hash at its end: it is damaged; train again")
        state = torch.load(io.BytesIO(content), map_location=device, weights_only=True)
    except ImageError as error:
        raise TrainingError(f"cannot read the checkpoint {path}: {error}") from error
    except FileNotFoundError:
        raise TrainingError(f"the checkpoint {path} does not exist") from None
    except TrainingError:
        raise
    except Exception as error:
        # PyTorch's reader raises nearly every kind of exception for damage
        reason = str(error).partition("\n")[0].partition(". ")[0]
        raise TrainingError(
            f"cannot read the checkpoint {path}, which is damaged or not a checkpoint: {reason}"
        ) from error
    if not isinstance(state, dict):
        raise TrainingError(f"{path} is not a checkpoint: it holds a {type(state).__name__}, not a dictionary")
    return state


def _trailer(content: bytes | memoryview) -> bytes:
    """Return the end of a checkpoint's file: the hash of everything before it."""
    return b"\nsha256 " + hashlib.sha256(content).hexdigest().encode() + b"\n"


_TRAILER_BYTES = 73
MAX_CHECKPOINT = 1 << 36
"""Largest checkpoint, in bytes."""


def student_state(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the weights of the student in a checkpoint: the moving average if the recipe keeps one.

    Raises :class:`TrainingError` if there are none, or if one of them is not finite.
    """
    weights = state.get("model") if state.get("ema") is None else state["ema"]
    if not isinstance(weights, Mapping):
        raise TrainingError("the checkpoint holds no weights of a student; train it again")
    torch = import_torch()
    for name, weight in weights.items():
        if not isinstance(weight, torch.Tensor):
            raise TrainingError(f"the checkpoint's weight {name!r:.80} is no tensor; train the student again")
        if weight.is_floating_point() and not weight.isfinite().all():
            raise TrainingError(f"the checkpoint's weight {name} is not finite; train the student again")
    return weights


def import_torch() -> ModuleType:
    """Import and return ``torch``; raises :class:`MissingPackageError` with the install command."""
    let_idle_threads_sleep()
    try:
        import torch
    except ImportError as error:
        raise MissingPackageError("torch", "train", "training") from error
    return torch


def run_differences(stored: Run, requested: Run) -> list[str]:
    """List the differences between two records as ``key: old value there, new value now``, except versions."""
    before, now = dict(_leaves("", stored.to_json())), dict(_leaves("", requested.to_json()))
    keys = [key for key in dict.fromkeys([*before, *now]) if not key.startswith("versions.")]
    return [
        f"{key}: {before.get(key)!r} there, {now.get(key)!r} now" for key in keys if before.get(key) != now.get(key)
    ]


def _leaves(prefix: str, value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        return [leaf for key in value for leaf in _leaves(f"{prefix}.{key}" if prefix else str(key), value[key])]
    return [(prefix, value)]


def open_run(folder: Path, new_run: Run) -> bool:
    """Start or resume a run in a folder; return True if the folder holds a checkpoint to resume from.

    Raises :class:`UsageError` if the folder holds another run or other files.
    """
    if is_store(folder):
        raise UsageError(f"{folder} is a label store, not a training run; choose another folder for the run with -o")
    if (folder / RUN_FILE).is_file():
        if differences := run_differences(Run.load(folder), new_run):
            summary = "; ".join(differences[:5])
            raise UsageError(f"{folder} holds another run ({summary}); use the same options, or another folder")
        return (folder / LAST).is_file()
    if folder.is_dir() and any(folder.iterdir()):
        raise UsageError(f"{folder} is not empty and not a training run; choose a new folder")
    new_run.save(folder)
    return False
