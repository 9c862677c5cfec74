"""Move a graph from a file into a bundle: load it, edit it if necessary, and write it with its external data."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...engine.model.bundle import Bundle, ModelFile, Provenance, Role
from ...engine.model.files import sha256
from ...engine.model.input_spec import InputSpec, Layout
from ...engine.runtimes.onnx_runtime import OnnxSession
from ...errors import UsageError
from ..graph import external_files, image_input, load_checked
from ..staging import model_file, write_model
from .rewrite import INTEGERS, cast_input, freeze_batch, refuse_training_nodes
from .trial import Trial

if TYPE_CHECKING:
    import onnx


@dataclass(kw_only=True)
class Adoption:
    """A graph that is being adopted, and the edits made to it."""

    source: Path
    """The file that it was read from."""
    model: onnx.ModelProto
    """The graph, without its external data."""
    changes: list[str] = field(default_factory=list)
    """Edits, one sentence each."""
    _written: int = 0

    @classmethod
    def open(cls, source: Path) -> Adoption:
        """Load and check a file; raises :class:`BundleError` for a graph that cannot be used."""
        changes: list[str] = []
        model = load_checked(source, changes)
        refuse_training_nodes(model)
        return cls(source=source, model=model, changes=changes)

    def note(self, sentence: str) -> None:
        """Record an edit; an empty sentence is ignored."""
        self.changes += [sentence] if sentence else []

    def image_input(
        self, layout: Layout, size: tuple[int, int] | None, preprocessing: dict[str, Any]
    ) -> tuple[str, tuple[int, int]]:
        """Cast an input of another number type to float32; return the input's name and its (height, width).

        An input of integers takes raw pixels, so that ``preprocessing`` gets a scale of 1 unless it has one; other
        values than whole numbers raise :class:`UsageError`.
        """
        bands = preprocessing.get("bands")
        num_channels = 3 if bands is None else len(bands.numbers)
        kind, sentence = cast_input(self.model)
        self.note(sentence)
        if kind in INTEGERS.values():
            defaults = {"scale": 1.0, "mean": (0.0,) * num_channels, "std": (1.0,) * num_channels, "pad_value": 0.0}
            for name, value in defaults.items():
                preprocessing.setdefault(name, value)
            levels = np.arange(256)[:, None] * preprocessing["scale"] - np.asarray(preprocessing["mean"])
            levels = levels / np.asarray(preprocessing["std"])
            if np.abs(levels - np.rint(levels)).max() > 1e-6:
                raise UsageError(
                    f"the graph takes {kind}, raw pixels from 0 to 255, and normalizes them itself; scale, mean and "
                    "std would make fractions of them: leave them out, or give --scale 1"
                )
        return image_input(self.model, layout, size, None if bands is None else num_channels)

    def place(self, staging: Path, role: Role = "model") -> list[Path]:
        """Write the graph, or copy its file if it was not edited, with its external data; returns the paths."""
        files = write_model(self.model, self.source, external_files(self.model, self.source), staging, role=role)
        if not self.changes:
            shutil.copyfile(self.source, files[0])
        self._written = len(self.changes)
        return files

    def write(
        self,
        staging: Path,
        spec: InputSpec,
        outputs: Sequence[str],
        tensors: Sequence[NDArray[np.float32]],
        role: Role = "model",
    ) -> list[Path]:
        """Write the graph and its external data into the bundle's folder, and return their paths.

        If nodes inside the graph fix the batch size, its signature declares it.
        """
        files = self.place(staging, role)
        batch = Trial(files[0], spec.name, outputs).fixed_batch(tensors)
        if batch is not None:
            self.note(freeze_batch(self.model, batch))
            self.rewrite(files[0])
        return files

    def entries(self, files: Sequence[Path], role: Role = "model") -> tuple[ModelFile, ...]:
        """Return the manifest's entries for the paths that :meth:`write` returned."""
        folder = files[0].parent
        data = [model_file(file, folder=folder, role="external-data") for file in files[1:]]
        return model_file(files[0], role=role), *data

    def save(self, files: Sequence[Path], *, license: str, **fields: Any) -> None:
        """Write the manifest beside the paths that :meth:`write` returned, after ONNX Runtime has loaded the graph.

        ``fields`` are those of :class:`Bundle` that the graph does not decide.
        """
        provenance = Provenance(
            id=self.source.name, weights_sha256=sha256(self.source), license=license, changes=tuple(self.changes)
        )
        bundle = Bundle(path=files[0].parent, files=self.entries(files), source=provenance, **fields)
        OnnxSession(bundle)
        bundle.save()

    def rewrite(self, path: Path) -> None:
        """Write the graph again if it was edited since."""
        if len(self.changes) > self._written:
            path.write_bytes(self.model.SerializeToString(deterministic=True))
            self._written = len(self.changes)
