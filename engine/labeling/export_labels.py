"""Write the labels of a store as files that other tools read.

::

    summary = export_labels(LabelStore.open("labels"), "out", "coco")
    summary.num_images, summary.skipped

The images go through a writer of :mod:`maskmill.engine.formats` in batches, on several threads and in a fixed order.
The entries of a batch for files of the whole export (such as a COCO file's annotations) are kept in
``OUT/.export/parts.jsonl`` until the end, so that memory does not grow and the same call continues after an
interruption. The certificate is written last.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from ...checks import check_choice, check_number
from ...errors import StoreError, UsageError
from ...kernels.processors import count_workers
from ..calibration.calibration import Calibration
from ..calibration.objects import ObjectThresholds
from ..formats.base import (
    FileSink,
    Ignored,
    ImageMode,
    Instance,
    LabelClasses,
    LabeledImage,
    Writer,
    WriterOptions,
)
from ..formats.open import CERTIFICATE, WRITERS, OutputFormat
from ..inputs.archives import archives_of, split_member
from ..inputs.identity import labels_id
from ..inputs.names import select_ids
from ..inputs.ordered_map import ordered_map
from ..inputs.sources import Item, Source, open_source
from ..model.publishing import write_atomically
from ..reading.geotiff import split_window
from ..store.instances import decode_instances
from ..store.label_store import LabelStore
from .certificate import NOT_IN_ORIGIN, make_certificate, write_certificate
from .export_names import export_names

_STATE = ".export"
_CHUNK = 64
"""Number of images per query of the store."""


@dataclass(frozen=True)
class ExportSummary:
    """Result of an export."""

    num_images: int
    """Number of images in the export."""
    num_before: int
    """Number of them that an earlier, interrupted call had written."""
    skipped: Counter[str] = field(default_factory=Counter)
    """Number of images left out, by reason."""
    num_objects: int | None = None
    """Number of objects above the thresholds in the images of this call; None without thresholds or new images."""
    num_files: int | None = None
    """Number of files that were merged from windows; None if there are no windows to merge."""


class _Entry(NamedTuple):
    uri: str
    id: str
    condition: str
    name: str
    stem: str


def export_labels(
    store: LabelStore,
    output: str | os.PathLike[str],
    format: OutputFormat,
    *,
    images: ImageMode | None = None,
    min_kept: float = 0.0,
    weights: bool = False,
    ignored: Ignored | None = None,
    ids: frozenset[str] | None = None,
    instances: bool = False,
    object_thresholds: ObjectThresholds | None = None,
    calibration: Calibration | None = None,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ExportSummary:
    """Export the labels of a store, reviewed pixels included.

    Parameters
    ----------
    store
        The label store.
    output
        A new or empty folder, or that of an interrupted export with the same options, which is continued.
    format
        One of :data:`maskmill.engine.formats.open.OutputFormat`.
    images
        Photos beside the labels; None: the format's own default (none, or copies in formats that embed photos).
    min_kept
        Smallest share of pixels with a label, in [0, 1]; images below it are left out, reviewed images never are.
    weights
        Write the weight maps as well, if the format has a place for them.
    ignored
        How pixels without a label are written in formats that cannot mark them.
    ids
        Names of the images to export; all if None.
    instances
        Write single objects in place of one mask per class (``coco``, ``coco-panoptic``). Images whose labels a
        reviewer corrected are left out, since their objects are not known.
    object_thresholds
        Lowest score of an object by class, as :func:`calibrate_objects` measures it; all objects of the store if None.
    calibration
        The calibration of the labels, whose coverage report goes into the certificate.
    workers
        Number of images processed in parallel; None: the number of usable processors.
    progress
        Called with (images done, images in all).

    Raises :class:`UsageError` for options that the format does not support or a folder that holds something else, and
    :class:`StoreError` if the store cannot be read or the folder cannot be written.
    """
    check_choice("format", format, OutputFormat)
    check_number("min_kept", min_kept, least=0, most=1)
    kind = WRITERS[format]
    if instances and "instances" not in store.run:
        raise UsageError(f"{store.path} holds no objects; label with --instances, or export classes")
    if object_thresholds is not None and not instances:
        raise UsageError("object thresholds apply to objects: export them with --instances")
    classes = LabelClasses(names=tuple(store.classes["targets"]), background=store.classes["background"])
    options = WriterOptions(
        classes=classes,
        images=images or kind.image_modes[0],
        weights=weights,
        ignored=ignored,
        instances=instances,
    )
    writer = kind(options)
    covers_background = ignored in ("background", "class") and classes.background is not None
    record = {
        "format": format,
        "images": options.images,
        "min_kept": min_kept,
        "ids": None if ids is None else sorted(ids),
        "weights": weights,
        "instances": instances,
        "object_thresholds": None if object_thresholds is None else object_thresholds.to_json(),
        "ignored": ignored,
        "uncovered": "background" if covers_background else "ignore",
        "background": None if classes.background is None else classes.names[classes.background],
        "classes": list(classes.names),
        "ignore": classes.ignore,
    }
    certificate = make_certificate(store, record, calibration)
    folder = Path(output)
    try:
        job = _Job(store, folder, writer, record, min_kept, ids, object_thresholds)
        job.run(count_workers(workers), progress)
        writer.finish(job.parts, job.sink)
        certificate["export"].update(num_images=len(job.entries), skipped=dict(job.skipped))
        write_certificate(folder, certificate, job.hashes())
        shutil.rmtree(folder / _STATE)
    except OSError as error:
        raise StoreError(
            f"cannot write to {folder}: {error}; the files so far are kept, run the same command again to continue"
        ) from error
    num_new = len(job.entries) - job.num_before
    num_objects = sum(job.num_chosen) if object_thresholds is not None and num_new else None
    num_files = len({entry.stem for entry in job.entries}) if writer.merges_windows else None
    return ExportSummary(len(job.entries), job.num_before, job.skipped, num_objects, num_files)


class _Job:
    """The plan of an export and its journal."""

    def __init__(
        self,
        store: LabelStore,
        folder: Path,
        writer: Writer,
        record: dict[str, Any],
        min_kept: float,
        ids: frozenset[str] | None,
        thresholds: ObjectThresholds | None,
    ) -> None:
        self._thresholds = thresholds
        self.num_chosen: list[int] = []  # number of objects of each image; several threads append to it
        self._store, self._folder, self._writer = store, folder, writer
        self._state = folder / _STATE
        self._journal = self._state / "parts.jsonl"
        self.sink = FileSink(folder)
        self.skipped: Counter[str] = Counter()
        self._check_folder(record)
        if not (self._state / "plan.jsonl").is_file():
            self._make_plan(min_kept, ids)
        with (self._state / "plan.jsonl").open(encoding="utf-8") as plan:
            self.skipped.update(json.loads(next(plan)))
            self.entries = [_Entry(*json.loads(line)) for line in plan]
        if not self.entries:
            counts = ", ".join(f"{reason}: {number}" for reason, number in self.skipped.items())
            raise UsageError(f"{store.path} holds no image to export ({counts or 'it is empty'})")
        self._batches = [
            self.entries[start : start + writer.batch] for start in range(0, len(self.entries), writer.batch)
        ]
        self._num_done = self._repair_journal()
        self.num_before = min(self._num_done * writer.batch, len(self.entries))

    def _check_folder(self, record: dict[str, Any]) -> None:
        """Make the folder, or check that it holds an interrupted export with the same options."""
        folders = ", ".join(str(folder.absolute()) for folder in self._store.folders)
        made_with = {"export": record, "run": self._store.run, "store": folders}
        text = json.dumps(made_with, sort_keys=True)
        options = self._state / "options.json"
        if options.is_file():
            if options.read_text(encoding="utf-8") != text:
                raise UsageError(
                    f"{self._folder} holds an interrupted export of another store or with other options; choose "
                    "another folder, or delete it"
                )
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        if any(self._folder.iterdir()):
            raise UsageError(self._occupied())
        self._state.mkdir()
        write_atomically(options, text.encode())

    def _occupied(self) -> str:
        """Return a message about the folder's contents, with advice."""
        if not (self._folder / CERTIFICATE).is_file():
            return f"{self._folder} is not empty; choose a new folder"
        try:
            record = json.loads((self._folder / CERTIFICATE).read_bytes())
            number, origin = int(record["export"]["num_images"]), record["origin"]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return f"{self._folder} holds a finished export; choose a new folder"
        num_stored = len(self._store)
        options = json.loads(json.dumps(self._store.run))
        made_with = {key: value for key, value in options.items() if key not in NOT_IN_ORIGIN}
        grown = (
            f", and {self._store.path} holds {num_stored:,} now" if origin == made_with and num_stored > number else ""
        )
        return (
            f"{self._folder} holds a finished export of {number:,} images{grown}; a finished export is not extended: "
            "delete the folder and export again, or choose a new folder"
        )

    def _make_plan(self, min_kept: float, ids: frozenset[str] | None) -> None:
        """Write the list of images; a continued export keeps it, even if the store has grown."""
        table = self._store.table(["id", "kept"])
        kept_shares = dict(zip(table["id"].to_pylist(), table["kept"].to_pylist(), strict=True))
        reviews = self._store.current_reviews()
        labeled_images, num_skipped = [], Counter()
        for row in self._store.current_inputs():
            if row.id is None:
                num_skipped["rejected input"] += 1
            elif row.id in reviews and reviews[row.id].verdict == "rejected":
                num_skipped["rejected by a reviewer"] += 1
            elif self._writer.options.instances and row.id in reviews and reviews[row.id].verdict == "corrected":
                num_skipped["corrected by a reviewer, whose objects are not known"] += 1
            elif row.id not in reviews and kept_shares[row.id] < min_kept:
                num_skipped["below --min-kept"] += 1
            else:
                labeled_images.append((row.uri, row.id, row.condition))
        if ids is not None:
            chosen_uris = set(select_ids([uri for uri, _, _ in labeled_images], ids))
            num_skipped["not listed"] = len(labeled_images) - len(chosen_uris)
            labeled_images = [entry for entry in labeled_images if entry[0] in chosen_uris]
        labeled_images.sort()
        uris = [uri for uri, _, _ in labeled_images]
        if self._writer.merges_windows:
            files = [(split_window(uri) or (uri,))[0] for uri in uris]
            name_of = dict(zip(dict.fromkeys(files), export_names(list(dict.fromkeys(files))), strict=True))
            names = [name_of[file] for file in files]
        else:
            names = export_names(uris)
        lines = [json.dumps(num_skipped)]
        lines += [json.dumps([*entry, *name]) for entry, name in zip(labeled_images, names, strict=True)]
        write_atomically(self._state / "plan.jsonl", "\n".join(lines).encode())

    def _repair_journal(self) -> int:
        """Cut off a line that was not finished; returns the number of whole lines."""
        if not self._journal.exists():
            return 0
        number = size = 0
        with self._journal.open("rb") as stream:
            for line in stream:
                if not line.endswith(b"\n"):
                    break
                number, size = number + 1, size + len(line)
        os.truncate(self._journal, size)
        return number

    def run(self, workers: int, progress: Callable[[int, int], None] | None) -> None:
        """Write the batches that the journal lacks."""
        size = self._writer.batch
        per_chunk = max(1, _CHUNK // size)
        starts = range(self._num_done, len(self._batches), per_chunk)
        num_done = self.num_before
        source = Source(str(self._store.path))
        with self._journal.open("a", encoding="utf-8") as stream:
            write = lambda start: self._write(start, start + per_chunk, source)  # noqa: E731
            for lines in ordered_map(write, starts, workers):
                stream.writelines(lines)
                stream.flush()
                num_done = min(num_done + len(lines) * size, len(self.entries))
                if progress is not None:
                    progress(num_done, len(self.entries))

    def _write(self, start: int, stop: int, source: Source) -> list[str]:
        batches = self._batches[start:stop]
        ids = [entry.id for batch in batches for entry in batch]
        rows = iter(self._store.take(ids, extras=self._writer.options.instances))
        lines = []
        for index, batch in enumerate(batches, start=start):
            sink = FileSink(self._folder)
            part = self._writer.write(index, [self._image(entry, next(rows), source) for entry in batch], sink)
            lines.append(json.dumps({"part": part, "files": sink.files}, ensure_ascii=False) + "\n")
        return lines

    def _image(self, entry: _Entry, row: Any, source: Source) -> LabeledImage:
        label, weight = self._store.maps(row)
        options = self._writer.options
        objects, doubtful = self._instances(row) if options.instances else (None, ())
        return LabeledImage(
            name=entry.name,
            stem=entry.stem,
            label=label,
            weight=weight if options.weights else None,
            score=row.confidence,
            data=self._photo(entry, source) if options.images == "copy" else None,
            instances=objects,
            doubtful=doubtful,
            path=entry.uri if "://" not in entry.uri and split_member(entry.uri) is None else None,
        )

    def _instances(self, row: Any) -> tuple[tuple[Instance, ...], tuple[Instance, ...]]:
        """Return the objects of an image, and those that the thresholds leave out."""
        objects = decode_instances(row, len(self._writer.options.classes.names))
        if self._thresholds is None:
            return objects, ()
        chosen_objects = self._thresholds.keep(objects)
        self.num_chosen.append(len(chosen_objects))
        numbers = set(map(id, chosen_objects))
        return chosen_objects, tuple(instance for instance in objects if id(instance) not in numbers)

    def _photo(self, entry: _Entry, source: Source) -> bytes:
        data = source.read(self._members.get(entry.uri, Item(entry.uri)))
        if labels_id(data, entry.condition) != entry.id:
            raise StoreError(f"{entry.uri} has changed since it was labeled; run `maskmill label` again")
        return data

    @cached_property
    def _members(self) -> dict[str, Item]:
        """Return the places of photos in archives, which a store does not keep."""
        archives = archives_of(entry.uri for entry in self.entries)
        return {item.uri: item for archive in archives for item in open_source(archive)}

    def parts(self) -> Iterator[str]:
        """Yield the parts of all batches, in order."""
        with self._journal.open(encoding="utf-8") as stream:
            for line in stream:
                yield json.loads(line)["part"]

    def hashes(self) -> Iterator[tuple[str, str]]:
        """Yield (file, sha256) of every file of the export."""
        with self._journal.open(encoding="utf-8") as stream:
            for line in stream:
                yield from json.loads(line)["files"].items()
        yield from self.sink.files.items()
