"""Labels of a data set: a folder of label maps, or another format's file, found by image.

::

    labels = open_labels("labels")                            # a folder, archive or URL of label maps
    entry = labels.find("/photos/1.jpg")
    labels.read(entry)                                        # (H, W) label indices

Everything that needs labels takes a :class:`LabelSource`. Another format stands in for the folder of label maps with
an object that has ``path``, ``class_names``, ``names()`` and ``read_labels(name)`` (:class:`LabelReader`);
:class:`LabelSet` finds and pairs its images, and :func:`open_labels` opens it. Names of a format's images are compared
as names in lists are; label map files are paired by the rules of :mod:`.pairing`.
"""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from ...errors import SourceError, UsageError
from ..model.color_tables import ColorTable
from ..model.files import read_class_names, read_text
from .label_maps import LABEL_EXTENSIONS, decode_label_map
from .pairing import PairingIndex, Pairs
from .sources import FORKS, Item, Source

NAMES_FILE = "classes.txt"
"""Class list that is looked for in a label folder and the two folders above it."""

LOSSY = "label maps (lossy)"
"""Kind of the files with a lossy ending in a label folder; they are not read."""


class LabelReader(Protocol):
    """Labels of one file format: the images they belong to, and a way to read them."""

    path: str
    """File or folder, for messages."""
    class_names: Mapping[int, str]
    """Class name of each label index; empty if the format has none."""

    def names(self) -> Sequence[str]:
        """Return the names of the images that have labels, as the format writes them."""
        ...

    def read_labels(self, name: str) -> NDArray[Any]:
        """Return the label indices (H, W) of an image, uint8 or uint16, 255 for pixels to ignore."""
        ...


@dataclass(frozen=True)
class LabelEntry:
    """The labels of one image."""

    name: str
    """File, or file and image, for messages."""
    key: Any
    """What the label source reads by."""


class LabelSource(ABC):
    """Labels, found by an image's uri."""

    path: str
    """File or folder, for messages."""
    as_stored: bool
    """Whether label maps show photos as stored, before their EXIF orientation turns them."""
    skipped: Counter[str]
    """Files passed over, by kind."""

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
    def read(self, entry: LabelEntry, colors: ColorTable | None = None) -> NDArray[Any]:
        """Read label indices (H, W), uint8 or uint16; raises :class:`UsageError`."""

    def entries(self) -> Sequence[LabelEntry]:
        """Return every entry, sorted by name."""
        return self._entries

    def find(self, uri: str) -> LabelEntry | None:
        """Return the labels of one image, or None; raises :class:`UsageError` if two candidates match."""
        return self._index.find(uri)

    def pair(self, uris: Iterable[str], root: str = "") -> Pairs[LabelEntry]:
        """Pair images with their labels, one to one; raises :class:`UsageError` naming both if that is ambiguous."""
        return self._index.pair(uris, root)

    def similar(self, uri: str) -> str:
        """Explain why an image has no labels although a name is similar; empty if there is no such name."""
        return self._index.similar(uri)


class LabelFolder(LabelSource):
    """Label maps of a folder (recursive, linked folders too), archive or URL.

    Raises :class:`UsageError` if it is missing, holds no label map, or was written by maskmill itself.
    """

    def __init__(self, path: str | os.PathLike[str], *, pairing: str | None = None, as_stored: bool = False) -> None:
        location = os.fspath(path)
        if "://" not in location:
            location = os.path.abspath(os.path.expanduser(location))
            _refuse_other_things(Path(location))
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
        entries = {self._relative(item): LabelEntry(item.uri, item) for item in items}
        super().__init__(location, entries, PairingIndex(entries.items(), pattern=pairing, is_image=_is_same_file))

    def _relative(self, item: Item) -> str:
        if "::" in item.uri:
            return item.uri.rsplit("::", 1)[1]
        return item.uri.removeprefix(self.path).lstrip("/\\") or os.path.basename(item.uri)

    @property
    def class_names(self) -> dict[int, str]:
        """Names of ``classes.txt`` in the folder or one of the two above it; empty if there is none."""
        if "://" in self.path:
            return {}
        folder = Path(self.path)
        for place in (folder, *folder.parents[:2]):
            if (place / NAMES_FILE).is_file():
                return read_class_names(place / NAMES_FILE)
        return {}

    def read(self, entry: LabelEntry, colors: ColorTable | None = None) -> NDArray[Any]:
        """Read a label map as label indices (H, W), uint8 or uint16; raises :class:`UsageError`."""
        return decode_label_map(self._source.read(entry.key), entry.name, colors)


class LabelSet(LabelSource):
    """Labels of another format than label maps, read through its :class:`LabelReader`."""

    def __init__(self, reader: LabelReader, *, as_stored: bool = False) -> None:
        self.as_stored = as_stored
        self.skipped = Counter()
        self._reader = reader
        entries = {name: LabelEntry(f"{reader.path}: {name}", name) for name in reader.names()}
        if not entries:
            raise UsageError(f"{reader.path} holds no labeled image")
        super().__init__(reader.path, entries, PairingIndex(entries.items(), image_names=True))

    @property
    def class_names(self) -> Mapping[int, str]:
        """Class name of each label index; empty if the format has none."""
        return self._reader.class_names

    def read(self, entry: LabelEntry, colors: ColorTable | None = None) -> NDArray[Any]:
        """Read label indices (H, W), uint8 or uint16; ``colors`` is for label maps only."""
        return self._reader.read_labels(entry.key)


def open_labels(path: str | os.PathLike[str], *, pairing: str | None = None, as_stored: bool = False) -> LabelSource:
    """Open the labels of a data set.

    ``pairing`` is a pattern of :mod:`.pairing`; ``as_stored`` says that label maps show photos before their EXIF
    orientation turns them. Raises :class:`UsageError` if there are no labels, or in a format that is not read.
    """
    return LabelFolder(path, pairing=pairing, as_stored=as_stored)


def _is_same_file(entry: LabelEntry, uri: str) -> bool:
    if entry.name == uri:
        return True
    if os.path.basename(entry.name) != os.path.basename(uri) or "://" in uri or "::" in uri:
        return False
    try:
        return os.path.samefile(entry.name, uri)
    except OSError:
        return False


def _refuse_other_things(path: Path) -> None:
    """Raise :class:`UsageError` for paths that are no folder or archive of label maps, naming what they are."""
    maps = f"label maps are read from a folder, tar archive or URL of {', '.join(LABEL_EXTENSIONS)} files"
    if path.is_file():
        if path.suffix.lower() == ".json":
            raise UsageError(f"{path} is {_kind_of_json(path)}, not a folder; {maps}")
        if path.suffix.lower() != ".tar":
            raise UsageError(f"{path} is a file; {maps}")
        return
    if not path.is_dir():
        raise UsageError(f"the label folder {path} does not exist; {maps}")
    if (path / "labels.lance").exists():
        raise UsageError(
            f"{path} is a label store of maskmill, not true labels; measure it with `maskmill evaluate`, or write its "
            "label maps with `maskmill export-labels`"
        )
    for folder in (path, path.parent):
        index = folder / "index.csv"
        if index.is_file() and index.open("rb").readline().lstrip(b"\xef\xbb\xbf").startswith(b"uri,id,kept"):
            raise UsageError(
                f"{path} was written by maskmill from a label store: its maps hold the store's classes, not the "
                "labels of a data set, and calibrating or measuring with them would compare maskmill with itself; "
                "give true labels"
            )


def _kind_of_json(path: Path) -> str:
    try:
        raw = json.loads(read_text(path, "the labels"))
    except json.JSONDecodeError:
        return "a JSON file"
    return "a COCO file" if isinstance(raw, dict) and {"images", "annotations"} <= set(raw) else "a JSON file"
