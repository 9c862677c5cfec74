"""Description of a labeling run for other processes: plain data, and functions that they import by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from ...errors import SessionError
from ..inputs.sources import Source
from ..labeling.label_run import run_record, segment_record
from ..labeling.selection import Selection
from ..labeling.stages import Stages
from ..store.label_store import LabelStore


def no_conditions() -> Callable[[str], str]:
    """Return the conditions of models whose labels depend on the pixels alone."""
    return _no_condition


def _no_condition(uri: str) -> str:
    return ""


def installed_version() -> str:
    """Return the version of maskmill that runs."""
    try:
        return version("maskmill")
    except PackageNotFoundError:
        return "unknown"


@dataclass(frozen=True, kw_only=True)
class Job:
    """Work that every process of a run shares."""

    opening: Callable[[], Any]
    """Opens the model in a worker: returns predictor and taxonomy; with ``selection`` None, a predictor of segments."""
    selection: Selection | None
    """Selection and weights; None: segments without classes."""
    source: Source
    """Images; workers read them, and the driver lists them."""
    store: str
    """Folder or URL of the label store, the same for all processes."""
    storage_options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the store's filesystem."""
    conditions: Callable[[], Callable[[str], str]] = no_conditions
    """Returns, without opening a model, the function from a uri to its condition (:meth:`Predictor.condition`)."""
    max_pixels: int | None = None
    """Largest image to accept, in pixels."""
    version: str = field(default_factory=installed_version)
    """Version of maskmill that made the job; workers of another version are refused."""

    def open(self, threads: int | None) -> tuple[Stages, LabelStore, int]:
        """Open the model and the store in a worker; returns the stages, the store and the number of target classes.

        Raises :class:`StoreMismatch` if the store holds labels made with other options, such as another bundle.
        """
        if self.version != installed_version():
            raise SessionError(
                f"this worker has maskmill {installed_version()}, the run was started with {self.version}; install the "
                "same version on every machine"
            )
        options: Any = {"workers": threads, "max_pixels": self.max_pixels}
        if self.selection is None:
            predictor, num_targets = self.opening(), 1
            record = segment_record(predictor, self.source)
            stages = Stages.segmenting(predictor, self.source, **options)
        else:
            predictor, taxonomy = self.opening()
            self.selection.check(predictor, taxonomy, self.source.windows)
            num_targets = taxonomy.num_targets
            record = run_record(predictor, taxonomy, self.selection, self.source)
            stages = Stages.labeling(predictor, self.source, taxonomy, self.selection, **options)
        store = LabelStore.open_or_create(self.store, record, storage_options=self.storage_options)
        if self.selection is not None and self.selection.keeper is not None:
            self.selection.keeper.write(store.path)
        return stages, store, num_targets
