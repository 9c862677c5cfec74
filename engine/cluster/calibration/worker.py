"""Worker of a calibration: claims leases of labeled images, runs the model on them and returns its observations."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from ....errors import MaskmillError, SessionError, StoreError, UsageError
from ....kernels.processors import usable_processors
from ...calibration.calibration import conditions
from ...calibration.scores.observe import observe
from ...inputs.labeled_source import LabeledSource
from ...inputs.sources import Item, Source
from ...model.storage import open_folder
from ...model.taxonomy import Taxonomy
from ...predictors.base import Predictor
from ...store.table import store_errors
from ...store.waiting.presence import BEAT_SECONDS, identity
from ..job import installed_version
from ..leases import Leases
from .observation_file import encode_observations

LEASE_IMAGES = 32
"""Number of images of a lease, rounded up to whole batches of the model."""
POLL_SECONDS = 0.5
"""Seconds between two searches for a lease while there is none."""
RECORD = "calibration.json"
"""File that identifies the calibration that the leases of a folder belong to."""
FIT_RECORD = "fit.json"
"""File with the options that thresholds are fitted with."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Labeled images and the model that is run on them, as a process has opened them."""

    predictor: Predictor
    """The model."""
    source: Source
    """Images."""
    labeled: LabeledSource
    """The images with their labels."""
    taxonomy: Taxonomy
    """Target classes."""
    grid: tuple[int, int] | None = None
    """Height and width of the grid that scores are resampled to, if thresholds depend on the position."""

    def leases(self) -> dict[str, list[Item]]:
        """Return the images of each lease; its name is the number of its first image."""
        items, size = self.labeled.items, self._lease_size
        return {f"{start:08d}": items[start : start + size] for start in range(0, len(items), size)}

    @property
    def _lease_size(self) -> int:
        batch = max(self.predictor.batch, 1)
        return -(-LEASE_IMAGES // batch) * batch

    def record(self) -> dict[str, Any]:
        """Return the options that two processes must agree on to share the work."""
        items = json.dumps([item[:3] for item in self.labeled.items])
        return {
            "version": installed_version(),
            "model": json.loads(json.dumps(conditions(self.predictor, self.taxonomy))),
            "batch": self.predictor.batch,
            "grid": None if self.grid is None else list(self.grid),
            "images": hashlib.blake2b(items.encode(), digest_size=16).hexdigest(),
            "images per lease": self._lease_size,
            **self.labeled.fingerprints(),
        }

    def join(self, folder: str, options: Mapping[str, Any] | None = None) -> None:
        """Agree with the other processes of a folder, and with those that fit thresholds on the ``options`` of the fit.

        Raises :class:`UsageError` if their calibration is a different one, and :class:`StoreError` for a damaged
        record.
        """
        with store_errors(f"cannot write to {folder}"):
            if different := _different(folder, RECORD, self.record()):
                raise UsageError(
                    f"{folder} holds unfinished work of another calibration (different: {', '.join(different)}); use "
                    "the same options, images and labels in every process, or delete that folder"
                )
            if options is not None and (different := _different(folder, FIT_RECORD, options)):
                raise UsageError(
                    f"{folder} holds unfinished work of a calibration with other options (different: "
                    f"{', '.join(different)}); use the same options in every process, or, if none of them runs any "
                    f"more, delete the file {FIT_RECORD} there to continue with the scores that are finished"
                )

    def observe(self, lease: str, items: Sequence[Item], workers: int) -> bytes:
        """Run the model on the images of a lease; returns the file to hand back."""
        summary = self.labeled.summary
        before = {name: getattr(summary, name) for name in _COUNTS}
        summary.low_range.clear()
        observations = list(
            observe(
                self.predictor,
                self.source,
                self.labeled,
                self.taxonomy,
                items,
                first=int(lease),
                grid=self.grid,
                workers=workers,
            )
        )
        counts = {name: getattr(summary, name) - number for name, number in before.items()}
        meta = {"counts": counts, "low_range": sorted(summary.low_range)}
        return encode_observations(observations, has_grid=self.grid is not None, meta=meta)

    def add_counts(self, parts: Sequence[Mapping[str, Any]]) -> None:
        """Replace the counts of pixels by those of all leases, ``parts`` of :meth:`observe`'s files."""
        summary = self.labeled.summary
        for name in _COUNTS:
            setattr(summary, name, sum(part["counts"][name] for part in parts))
        summary.low_range.clear()
        summary.note_low_range(uri for part in parts for uri in part["low_range"])


def _different(folder: str, name: str, record: Mapping[str, Any]) -> list[str]:
    """Write a record if there is none; returns the keys at which another process's record differs."""
    files, data = open_folder(folder), json.dumps(record).encode()
    if files.write_once(name, data):
        return []
    try:
        other_record = json.loads(files.read(name))
    except FileNotFoundError:  # the other processes have just finished
        return []
    except ValueError:
        other_record = None
    if not isinstance(other_record, dict):
        raise StoreError(f"{folder}/{name} is damaged; delete that folder and run the same command again")
    return [key for key, value in json.loads(data).items() if other_record.get(key) != value]


_COUNTS = ("turned", "label_pixels", "ignored_pixels", "without_data")


@dataclass(frozen=True, kw_only=True)
class ObservationJob:
    """Work of every process of a calibration, as other processes need it."""

    opening: Callable[[], tuple[Predictor, Taxonomy]]
    """Opens the model in a worker, with the class mapping."""
    pairing: Callable[[Taxonomy], tuple[Source, LabeledSource, Taxonomy]]
    """Opens the labeled images in a worker; returns them with the class mapping of their labels."""
    store: str
    """Folder of the leases, which all processes reach under this name."""
    grid: tuple[int, int] | None = None
    """Grid of thresholds per position."""
    storage_options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the folder's filesystem."""
    version: str = field(default_factory=installed_version)
    """Version of maskmill that made the job; workers of another version are refused."""

    def open(self) -> Sample:
        """Open model and images; raises :class:`SessionError` for another version."""
        if self.version != installed_version():
            raise SessionError(
                f"this worker has maskmill {installed_version()}, the calibration was started with {self.version}; "
                "install the same version on every machine"
            )
        predictor, classes = self.opening()
        source, labeled_source, classes = self.pairing(classes)
        return Sample(predictor=predictor, source=source, labeled=labeled_source, taxonomy=classes, grid=self.grid)


class ObservationWorker:
    """One process that runs the model on leases of labeled images."""

    def __init__(
        self, job: ObservationJob, leases: Leases, *, token: str, threads: int | None = None, name: str = ""
    ) -> None:
        self.stop = threading.Event()
        """Ends the run after the lease in progress."""
        self._job = job
        self._signs = Signs(leases, token, name)
        self._leases = leases
        self._token = token
        self._threads = threads or usable_processors()

    def run(self, *, is_over: Callable[[], bool]) -> None:
        """Work until the run is over; errors are raised, and left in the worker's record."""
        with self._signs.shown():
            sample = self._job.open()
            sample.join(self._job.store)
            while not self.stop.is_set():
                if not self.work(sample) and (is_over() or self.stop.wait(POLL_SECONDS)):
                    return

    def work(self, sample: Sample) -> bool:
        """Claim a lease and work on it; returns False if there is none."""
        claim = self._leases.claim(self._token)
        if claim is None:
            return False
        lease, items = claim
        self._signs.busy(lease)
        self._leases.hand_back(lease, self._token, len(items), sample.observe(lease, items, self._threads))
        self._signs.idle()
        return True


class Signs:
    """Heartbeats of a process, written by a thread."""

    def __init__(self, leases: Leases, token: str, name: str = "") -> None:
        self._leases, self._token, self._name = leases, token, name
        self._busy: dict[str, int] = {}
        self._state = "starting"
        self._error: str | None = None
        self._number = 0

    def busy(self, lease: str) -> None:
        """Note the lease in progress."""
        self._busy = {lease: 0}

    def idle(self) -> None:
        """Note that there is no lease in progress."""
        self._busy = {}
        self._state = "labeling"

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Write heartbeats within the context; at the end the record is deleted, unless it holds an error."""
        ended = threading.Event()

        def beat() -> None:
            while not ended.wait(BEAT_SECONDS):
                with suppress(StoreError):  # the next beat follows soon, and observers tolerate a missing one
                    self._write()

        self._write()
        thread = threading.Thread(target=beat, name="maskmill-beat", daemon=True)
        thread.start()
        try:
            yield
        except BaseException as error:
            if isinstance(error, MaskmillError):
                self._error = " ".join(str(error).split())
            elif isinstance(error, Exception):
                self._error = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise
        finally:
            ended.set()
            thread.join()
            with suppress(StoreError):  # the first error is the one to report
                if self._error is None:
                    self._leases.leave(self._token)
                else:
                    self._write()

    def _write(self) -> None:
        self._number += 1
        record: dict[str, Any] = {
            **identity(),
            "name": self._name,
            "beat": self._number,
            "state": self._state,
            "leases": dict(self._busy),
            "time": time.time(),
        }
        if self._error is not None:
            record["error"] = self._error
        self._leases.beat(self._token, record)
