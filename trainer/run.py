"""The folder of a training run: its record ``run.json`` and its checkpoints; the package docstring has the layout.

::

    run = Run.load("run")
    state = read_checkpoint(best_checkpoint("run"))
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..engine.model.bundle import InputSpec
from ..engine.model.publishing import remove_leftovers, write_atomically
from ..errors import MissingPackageError, TrainingError, UsageError
from .recipes import Recipe, recipe_from_json

FORMAT_VERSION = 1
RUN_FILE, LAST, BEST = "run.json", "last.pt", "best.pt"


@dataclass(frozen=True, kw_only=True)
class Run:
    """Record of a training run: everything that determines the student, and what its users need."""

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
    def ignore(self) -> int:
        """Return the index of pixels without a label: 255, or 65535 for more than 255 classes."""
        return 255 if len(self.classes) <= 255 else 65535

    def to_json(self) -> dict[str, Any]:
        """Return the record as plain data."""
        raw = {
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
        return json.loads(json.dumps(raw))

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write ``run.json`` atomically; create the folder if needed."""
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        write_atomically(path / RUN_FILE, (json.dumps(self.to_json(), indent=2) + "\n").encode(), sync=True)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Run:
        """Read ``run.json``; raises :class:`TrainingError` if it is missing or this version of maskmill cannot read
        it.
        """
        path = Path(folder) / RUN_FILE
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            version = raw["format_version"]
        except FileNotFoundError:
            raise TrainingError(
                f"{folder} is not a training run: it has no {RUN_FILE}; make one with `maskmill train`"
            ) from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise TrainingError(f"cannot read {path}: {error}") from error
        if version != FORMAT_VERSION:
            raise TrainingError(f"{path} has format version {version}, this maskmill reads {FORMAT_VERSION}")
        spec: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in raw["input"].items()
        }
        return cls(
            recipe=recipe_from_json(raw["recipe"]),
            model_options=raw["model"]["options"],
            classes=tuple(raw["classes"]),
            background=raw["background"],
            labels={int(index): target for index, target in raw["labels"].items()},
            input=InputSpec(**spec),
            data=raw["data"],
            versions=raw["versions"],
        )


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
    try:
        remove_leftovers(path.parent)  # checkpoints that a killed process had not finished
        write_atomically(path, buffer.getvalue(), sync=True)
    except OSError as error:
        raise TrainingError(f"cannot write the checkpoint {path}: {error}") from error


def read_checkpoint(path: Path, device: str = "cpu") -> dict[str, Any]:
    """Read a checkpoint: tensors on ``device`` and plain data. Raises :class:`TrainingError`."""
    torch = import_torch()
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise TrainingError(f"the checkpoint {path} does not exist") from None
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        reason = str(error).partition("\n")[0].partition(". ")[0]
        raise TrainingError(
            f"cannot read the checkpoint {path}, which is damaged or not a checkpoint: {reason}"
        ) from error


def student_state(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the weights of the student in a checkpoint: the moving average if the recipe keeps one."""
    return state["model"] if state["ema"] is None else state["ema"]


def import_torch() -> Any:
    """Import and return ``torch``; raises :class:`MissingPackageError` with the install command."""
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


def open_run(folder: Path, requested: Run) -> bool:
    """Start or resume a run in a folder; return True if the folder holds a checkpoint to resume from.

    Raises :class:`UsageError` if the folder holds another run or other files.
    """
    if (folder / RUN_FILE).is_file():
        if differences := run_differences(Run.load(folder), requested):
            summary = "; ".join(differences[:5])
            raise UsageError(f"{folder} holds another run ({summary}); use the same options, or another folder")
        return (folder / LAST).is_file()
    if folder.is_dir() and any(folder.iterdir()):
        raise UsageError(f"{folder} is not empty and not a training run; choose a new folder")
    requested.save(folder)
    return False
