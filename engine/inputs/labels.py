"""Labels of a data set, found by image: a folder of label maps, or a file of another format.

::

    labels = open_labels("labels")                            # a folder, archive or URL of label maps
    entry = labels.find("photos/0001.jpg")
    labels.read(entry)                                        # (H, W) label indices

All functions that need labels take a :class:`LabelSource`. Files of label maps are paired with images by the rules of
:mod:`.pairing`. Other formats are read by :mod:`maskmill.engine.formats`; they name their images themselves, and names
are compared as names in lists are (:mod:`.names`).
"""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from numpy.typing import NDArray

from ...errors import ImageError, SourceError, UsageError
from ..formats.base import LabelReader
from ..formats.open import InputFormat, detect, is_exported, open_reader
from ..model.color_tables import ColorTable
from ..model.files import read_class_names
from .archives import split_member
from .label_maps import LABEL_EXTENSIONS, decode_label_map
from .pairing import PairingIndex, Pairs
from .sources import FORKS, Item, Source

NAMES_FILE = "classes.txt"
"""Name of the class list, which is searched in a label folder and the two folders above it."""

_READ = (
    f"labels are a folder, tar archive or URL of {', '.join(LABEL_EXTENSIONS)} files, or one of the formats "
    f"{', '.join(get_args(InputFormat))}"
)
_FORMAT_FILES = (".xml", ".zip", ".parquet", ".yaml", ".yml")
_OTHER_MAPS = re.compile(r"_gt(?:Fine|Coarse)_(?:color|instanceIds|instanceTrainIds)\.\w+$")
LOSSY = "label maps (lossy)"
"""Kind of skipped file with a lossy ending in a label folder."""


@dataclass(frozen=True)
class LabelEntry:
    """The labels of one image."""

    name: str
    """File, or file and image, for messages."""
    key: Any
    """Key by which the label source reads the labels."""


class LabelSource(ABC):
    """Labels, found by an image's uri."""

    path: str
    """File or folder, for messages."""
    as_stored: bool
    """True if label maps show photos as stored, before their EXIF orientation turns them."""
    skipped: Counter[str]
    """Skipped files by kind."""
    format: str = ""
    """Format and the decisions of its reader; empty for label maps."""
    by_name: bool = False
    """True if the reader numbers the label values, as for a COCO file, so that only class names have a meaning."""

    def __init__(self, path: str, entries: Mapping[str, LabelEntry], index: PairingIndex[LabelEntry]) -> None:
        self.path = path
        self._entries = [entries[name] for name in sorted(entries)]
        self._index = index

    def __len__(self) -> int:
        return len(self._entries)

    @property
    @abstractmethod
    def class_names(self) -> Mapping[int, str]:
        """Class name of each label index; empty if none are known."""

    @abstractmethod
    def read(
        self, entry: LabelEntry, colors: ColorTable | None = None, *, size: tuple[int, int] | None = None
    ) -> NDArray[Any]:
        """Read label indices (H, W), uint8 or uint16; raises :class:`UsageError`.

        ``colors`` is for label maps that store colors; ``size`` is the image's (height, width), for formats that may
        not state it.
        """

    def entries(self) -> Sequence[LabelEntry]:
        """Return every entry, sorted by name."""
        return self._entries

    def find(self, uri: str) -> LabelEntry | None:
        """Return the labels of one image, or None; raises :class:`UsageError` if two candidates match."""
        return self._index.find(uri)

    def pair(self, uris: Iterable[str], root: str = "") -> Pairs[LabelEntry]:
        """Pair images with their labels, one to one; raises :class:`UsageError` naming both if that is ambiguous."""
        return self._index.pair(uris, root)

    @abstractmethod
    def stamps(self, entries: Iterable[LabelEntry]) -> list[Any]:
        """Return plain data that changes with the labels of some entries: sizes and times of files."""

    def similar(self, uri: str) -> str:
        """Explain why an image has no labels despite a similar name; empty if there is no such name."""
        return self._index.similar(uri)


class LabelFolder(LabelSource):
    """Label maps of a folder (recursive, linked folders too), archive or URL.

    Raises :class:`UsageError` if it is missing, holds no label map, or was written by maskmill itself.
    """

    def __init__(self, path: str | os.PathLike[str], *, pairing: str | None = None, as_stored: bool = False) -> None:
        location = _absolute(path)
        if "://" not in location:
            _refuse_other_things(Path(location))
            if Path(location).is_file() and not location.lower().endswith(".tar"):
                raise UsageError(f"{location} is a file in an unknown format; {_READ}")
        self.path = location
        self.as_stored = as_stored
        self._source = Source(location, endings=frozenset(LABEL_EXTENSIONS))
        try:
            items = list(self._source)
        except SourceError as error:
            raise UsageError(f"{location} holds no label map ({', '.join(LABEL_EXTENSIONS)}): {error}") from error
        lossy = {kind: self._source.skipped[kind] for kind in (".jpg", ".jpeg", ".webp")}
        forks = Counter({FORKS: self._source.skipped[FORKS]})
        self.skipped = forks + Counter({f"{kind} {LOSSY}": number for kind, number in lossy.items()})
        if pairing is None:
            label_maps = [item for item in items if not _OTHER_MAPS.search(item.uri)]
            self.skipped += Counter({"color and instance maps of Cityscapes": len(items) - len(label_maps)})
            items = label_maps
        entries = {self._relative(item): LabelEntry(item.uri, item) for item in items}
        super().__init__(location, entries, PairingIndex(entries.items(), pattern=pairing, is_image=_is_same_file))

    def _relative(self, item: Item) -> str:
        if (member := split_member(item.uri)) is not None:
            return member[1]
        # filesystems differ in the slashes after a scheme
        uri, folder = (re.sub(r"^(\w+)://+", r"\1://", name) for name in (item.uri, self.path))
        return uri.removeprefix(folder).lstrip("/\\") or os.path.basename(item.uri)

    @property
    def class_names(self) -> dict[int, str]:
        """Class names of ``classes.txt`` in the folder or one of the two above it; empty if there is no such file."""
        if "://" in self.path:
            return {}
        folder = Path(self.path)
        for place in (folder, *folder.parents[:2]):
            if (place / NAMES_FILE).is_file():
                return read_class_names(place / NAMES_FILE)
        return {}

    def read(
        self, entry: LabelEntry, colors: ColorTable | None = None, *, size: tuple[int, int] | None = None
    ) -> NDArray[Any]:
        """Read a label map as label indices (H, W), uint8 or uint16; raises :class:`UsageError`."""
        try:
            data = self._source.read(entry.key)
        except ImageError as error:
            raise UsageError(f"cannot read the label map {entry.name}: {error}") from error
        return decode_label_map(data, entry.name, colors)

    def stamps(self, entries: Iterable[LabelEntry]) -> list[Any]:
        """Return (uri, size, stamp) of each label map, as they were listed."""
        return [entry.key[:3] for entry in entries]


class LabelSet(LabelSource):
    """Labels in a format other than label maps; label values represent the classes that the format names."""

    def __init__(self, reader: LabelReader, *, as_stored: bool = False) -> None:
        self.as_stored = as_stored
        self.skipped = Counter()
        self.by_name: bool = not reader.stored_values
        self.format: str = f"{reader.format} ({'; '.join(reader.notes)})" if reader.notes else reader.format
        self._reader = reader
        entries = {name: LabelEntry(f"{reader.path}: {name}", name) for name in reader.names()}
        if not entries:
            raise UsageError(f"{reader.path} holds no labeled image")
        super().__init__(reader.path, entries, PairingIndex(entries.items(), image_names=True))

    @property
    def class_names(self) -> Mapping[int, str]:
        """Class name of each label index; empty if the format has none."""
        return self._reader.class_names

    def read(
        self, entry: LabelEntry, colors: ColorTable | None = None, *, size: tuple[int, int] | None = None
    ) -> NDArray[Any]:
        """Read label indices (H, W), uint8 or uint16; raises :class:`UsageError`."""
        return self._reader.read_labels(entry.key, size)

    def stamps(self, entries: Iterable[LabelEntry]) -> list[Any]:
        """Return the names of the labels, and (path, size, time) of the local files that may hold them."""
        return [[entry.name for entry in entries], [list(stamp) for stamp in _file_stamps(self._reader.path)]]


def open_labels(
    path: str | os.PathLike[str],
    *,
    pairing: str | None = None,
    as_stored: bool = False,
    format: InputFormat | None = None,
) -> LabelSource:
    """Open the labels of a data set: a folder, archive or URL of label maps, or another format's file or folder.

    ``path`` is their location; ``pairing`` is a pattern of :mod:`.pairing`; with ``as_stored``, label maps show photos
    before their EXIF orientation is applied; ``format`` names the format, if it is not recognized or wrongly so.

    Raises :class:`UsageError` if there are no labels, or if their format cannot be read.
    """
    location = _absolute(path)
    if "://" not in location:
        _refuse_other_things(Path(location))
    label_format = _detected(location) if format is None and pairing is None else format
    if label_format is None:
        return LabelFolder(location, pairing=pairing, as_stored=as_stored)
    if pairing is not None:
        raise UsageError(f"--pairing is for label maps; {label_format} names its images itself, so leave it out")
    reader = open_reader(location, label_format)
    if format is None and not len(reader) and os.path.isdir(location):
        # a stray file beside label maps
        return LabelFolder(location, as_stored=as_stored)
    return LabelSet(reader, as_stored=as_stored)


def _absolute(path: str | os.PathLike[str]) -> str:
    location = os.fspath(path)
    return location if "://" in location else os.path.abspath(os.path.expanduser(location))


def _detected(location: str) -> InputFormat | None:
    """Return the format of labels other than label maps; None for label maps.

    Cityscapes' maps are label maps like others unless ``--labels-format cityscapes`` is given, and folders of maps with
    a class list are read as exports only if maskmill wrote them.
    """
    try:
        format = None if location.lower().endswith(".tar") else detect(location)
    except UsageError:
        # the folder holds a file of no format, or of several
        if os.path.isdir(location) and not any(name.endswith(_FORMAT_FILES) for name in os.listdir(location)):
            return None
        raise
    if format == "cityscapes" or (format in ("png", "fiftyone") and not is_exported(location)):
        return None
    return format


def _is_same_file(entry: LabelEntry, uri: str) -> bool:
    if entry.name == uri:
        return True
    if os.path.basename(entry.name) != os.path.basename(uri) or "://" in uri:
        return False
    try:
        return os.path.samefile(entry.name, uri)
    except OSError:
        return False


def _refuse_other_things(path: Path) -> None:
    """Raise :class:`UsageError` for paths that hold no true labels, naming what they are."""
    if not path.exists():
        raise UsageError(f"the labels {path} do not exist; {_READ}")
    if path.is_file() and path.suffix.lower() not in (".tar", ".json", ".xml", ".zip", ".parquet"):
        raise UsageError(f"{path} is a file; {_READ}")
    if (path / "labels.lance").exists():
        raise UsageError(
            f"{path} is a label store of maskmill, not true labels; measure it with `maskmill evaluate`, or write its "
            "label maps with `maskmill export-labels`"
        )
    if is_exported(str(path.parent)):
        raise UsageError(
            f"{path} is part of an export that maskmill wrote, so its values are the export's classes; give the "
            f"export's own folder, {path.parent}, which names them"
        )


def _file_stamps(path: str) -> list[tuple[str, int, int]]:
    """Return (path, size, time in ns) of a file, or of the files below a folder, except those of a store's runs."""
    paths = [path] if os.path.isfile(path) else []
    for folder, folders, names in os.walk(path):
        folders[:] = [name for name in folders if name not in ("leases", "history")]
        paths += [os.path.join(folder, name) for name in names]
    stats = [(name, os.stat(name)) for name in sorted(paths) if os.path.exists(name)]
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
