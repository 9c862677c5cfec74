"""Labels of a data set: a folder of label maps, or another format's file, found and read by image.

::

    labels = open_labels("labels")                            # a folder, archive or URL of label maps
    truth = pair_images(open_source("photos"), labels, taxonomy)
    truth.read(item, photo)                                   # (H, W) target indices of one image
    print(truth.summary.line())

Everything that needs labels takes a :class:`LabelSource`. Another format stands in for the folder of label maps with an
object that has ``names``, ``read_labels`` and ``class_names`` (:class:`LabelReader`); :class:`LabelSet` gives it
``find`` and ``pair``. Names of a format's images are compared as names in lists are; files are paired by the rules of
:mod:`.pairing`.
"""

from __future__ import annotations

import json
import os
import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ...errors import SourceError, UsageError
from ..model.color_tables import ColorTable
from ..model.files import read_class_names, read_text
from ..model.taxonomy import Taxonomy
from ..model.taxonomy_draft import means_nothing, same_class
from .image_formats import orientation_of, turn_upright
from .label_maps import LABEL_EXTENSIONS, decode_label_map
from .names import select_ids
from .pairing import PairingIndex, Pairs
from .sources import FORKS, Item, Source, read_uri
from .summary import SourceSummary

NAMES_FILE = "classes.txt"
"""Class list that is looked for in a label folder and the two folders above it."""
_BINARY = frozenset({0, 255})
_count_lock = threading.Lock()


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


class LabelSource(Protocol):
    """Labels, found by an image's uri."""

    path: str
    """File or folder, for messages."""
    class_names: Mapping[int, str]
    """Class name of each label index; empty if none are known."""
    as_stored: bool
    """Whether label maps show photos as stored, before their EXIF orientation turns them."""
    skipped: Counter[str]
    """Files passed over, by kind."""

    def __len__(self) -> int:
        """Return the number of labeled images."""
        ...

    def entries(self) -> Sequence[LabelEntry]:
        """Return every entry, sorted by name."""
        ...

    def find(self, uri: str) -> LabelEntry | None:
        """Return the labels of one image, or None; raises :class:`UsageError` if two candidates match."""
        ...

    def pair(self, uris: Iterable[str], root: str = "") -> Pairs[LabelEntry]:
        """Pair images with their labels, one to one; see :meth:`maskmill.engine.inputs.pairing.PairingIndex.pair`."""
        ...

    def similar(self, uri: str) -> str:
        """Explain why an image has no labels although a name is similar; empty if there is no such name."""
        ...

    def read(self, entry: LabelEntry, colors: ColorTable | None = None) -> NDArray[Any]:
        """Read label indices (H, W), uint8 or uint16; raises :class:`UsageError`."""
        ...


class _Indexed:
    """Finding by name, for both kinds of label sources."""

    _index: PairingIndex[LabelEntry]
    _entries: list[LabelEntry]

    def __len__(self) -> int:
        return len(self._entries)

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


class LabelFolder(_Indexed):
    """Label maps of a folder (recursive, linked folders too), archive or URL.

    Raises :class:`UsageError` if it is missing, holds no label map, or was written by maskmill itself.
    """

    def __init__(self, path: str | os.PathLike[str], *, pairing: str | None = None, as_stored: bool = False) -> None:
        self.path = os.fspath(path)
        self.as_stored = as_stored
        if "://" not in self.path:
            self.path = os.path.abspath(os.path.expanduser(self.path))
            _refuse_other_things(Path(self.path))
        self._source = Source(self.path, endings=frozenset(LABEL_EXTENSIONS))
        try:
            items = list(self._source)
        except SourceError as error:
            raise UsageError(f"{self.path} holds no label map ({', '.join(LABEL_EXTENSIONS)}): {error}") from error
        lossy = {kind: self._source.skipped[kind] for kind in (".jpg", ".jpeg", ".webp")}
        self.skipped = Counter({FORKS: self._source.skipped[FORKS]})
        self.skipped.update({f"{kind} label maps (lossy)": number for kind, number in lossy.items()})
        self.skipped = +self.skipped
        names = {self._relative(item): LabelEntry(item.uri, item) for item in items}
        self._entries = [names[name] for name in sorted(names)]
        self._index = PairingIndex(names.items(), pattern=pairing, is_image=_is_same_file)

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


class LabelSet(_Indexed):
    """Labels of another format than label maps, read through its :class:`LabelReader`."""

    def __init__(self, reader: LabelReader, *, as_stored: bool = False) -> None:
        self.path = reader.path
        self.class_names = reader.class_names
        self.as_stored = as_stored
        self.skipped: Counter[str] = Counter()
        self._reader = reader
        names = {name: LabelEntry(f"{reader.path}: {name}", name) for name in reader.names()}
        if not names:
            raise UsageError(f"{reader.path} holds no labeled image")
        self._entries = [names[name] for name in sorted(names)]
        self._index = PairingIndex(names.items(), image_names=True)

    def read(self, entry: LabelEntry, colors: ColorTable | None = None) -> NDArray[Any]:
        """Read label indices (H, W), uint8 or uint16; ``colors`` is for label maps only."""
        return self._reader.read_labels(entry.key)


def open_labels(
    path: str | os.PathLike[str], *, pairing: str | None = None, as_stored: bool = False
) -> LabelFolder | LabelSet:
    """Open the labels of a data set.

    ``pairing`` is a pattern of :mod:`.pairing`; ``as_stored`` says that label maps show photos before their EXIF
    orientation turns them. Raises :class:`UsageError` if there are no labels, or in a format that is not read.
    """
    return LabelFolder(path, pairing=pairing, as_stored=as_stored)


class LabeledSource:
    """Images with their labels, one to one, and what was read and passed over; see :func:`pair_images`."""

    def __init__(
        self,
        entries: Mapping[str, LabelEntry],
        labels: LabelSource,
        taxonomy: Taxonomy,
        summary: SourceSummary,
        items: Mapping[str, Item],
    ) -> None:
        self.labels = labels
        self.summary = summary
        """Counts; those of pixels grow as maps are read."""
        self.items = [items[uri] for uri in entries if uri in items]
        """The images, in their source's order; empty if only uris were paired."""
        self.uris = list(entries)
        """Names of the images, in order."""
        self._entries = dict(entries)
        self._taxonomy = taxonomy

    def name_of(self, uri: str) -> str:
        """Return the file of an image's labels, for messages."""
        return self._entries[uri].name

    def read(self, uri: str, photo: bytes | None = None) -> NDArray[Any]:
        """Read the target indices (H, W) of an image and count its pixels; from any thread.

        ``photo`` is the image file's bytes, for its EXIF orientation; it is read if needed. Raises :class:`UsageError`,
        :class:`TaxonomyError`, or :class:`ImageError` if a photo is needed and cannot be read.
        """
        entry = self._entries[uri]
        raw = self.labels.read(entry, self._taxonomy.colors)
        turned = False
        if photo is None and self.labels.as_stored:
            photo = read_uri(uri)
        if photo is not None and (orientation := orientation_of(photo)) != 1:
            turned = True
            if self.labels.as_stored:
                raw = turn_upright(raw, orientation)
        targets = self._taxonomy.encode(raw, entry.name)
        with _count_lock:
            self.summary.turned += turned
            self.summary.count_labels(targets, self._taxonomy.ignore_index)
        return targets

    def size_hint(self, uri: str, photo: bytes | None = None) -> str:
        """Return what to do if a map's size is not its image's."""
        if self.labels.as_stored or photo is None or orientation_of(photo) == 1:
            return "they must be the same size"
        return "the photo is turned by its EXIF orientation; if the map shows it as stored, give --labels-as-stored"


def pair_images(
    source: Source, labels: LabelSource, taxonomy: Taxonomy, *, ids: Iterable[str] | None = None
) -> LabeledSource:
    """Pair the images of a source with their labels; files that serve as label maps are no images.

    Images without labels are left out and counted, unless ``ids`` names them. Raises :class:`UsageError` if nothing
    matches, a match is ambiguous, or the labels' values cannot be what they seem (see :func:`check_labels`).
    """
    items = {item.uri: item for item in source}
    root = source.spec if "://" in source.spec or os.path.isdir(source.spec) else ""
    return _pair(list(items), labels, taxonomy, ids, root, items, source.skipped)


def pair_uris(
    uris: Sequence[str], labels: LabelSource, taxonomy: Taxonomy, *, ids: Iterable[str] | None = None
) -> LabeledSource:
    """Pair images, given by their uris, with their labels; see :func:`pair_images`."""
    return _pair(uris, labels, taxonomy, ids, "", {}, Counter())


def _pair(
    uris: Sequence[str],
    labels: LabelSource,
    taxonomy: Taxonomy,
    ids: Iterable[str] | None,
    root: str,
    items: Mapping[str, Item],
    skipped: Counter[str],
) -> LabeledSource:
    selection = select_ids(uris, ids)
    pairs = labels.pair(selection, root)
    maps = {entry.name for entry in pairs.labels.values()}
    others = {entry.name for entry in labels.entries()} - maps
    inside = bool(root) and labels.path != root and labels.path.startswith(f"{root.rstrip('/')}/")
    # one file is a label map or an image of a run, never both
    shared = {uri for uri in pairs.without_label if uri in maps or (inside and uri in others)}
    without = [uri for uri in pairs.without_label if uri not in shared]
    chosen = {uri: entry for uri, entry in pairs.labels.items() if uri not in maps}
    hint = next((text for uri in without[:20] if (text := labels.similar(uri))), "")
    if ids is not None and without:
        raise UsageError(
            f"{len(without)} of the listed images have no label map in {labels.path}, e.g. {without[0]}"
            f"{hint and f' ({hint})'}; add it, or take the image off the list"
        )
    if not chosen:
        example = f", e.g. {without[0]}" if without else ""
        raise UsageError(
            f"no image has a label map in {labels.path}{example}: {hint or 'the names must be equal up to the ending'}"
        )
    images = set(uris)
    summary = SourceSummary(
        images=len(chosen),
        skipped=skipped + labels.skipped + Counter({"label maps": len(shared)}),
        without_map=without,
        without_image=[] if ids is not None else [name for name in pairs.unused if not _is_photo(name, labels, images)],
        hint=hint,
        rules=dict(pairs.rules),
        as_stored=labels.as_stored,
    )
    check_labels(labels, list(chosen.values()), taxonomy)
    return LabeledSource(chosen, labels, taxonomy, summary, items)


def _is_photo(name: str, labels: LabelSource, images: set[str]) -> bool:
    return os.path.join(labels.path, name) in images


def check_labels(labels: LabelSource, entries: Sequence[LabelEntry], taxonomy: Taxonomy) -> None:
    """Check what label values seem to mean before anything is computed with them.

    A set whose only values are 0 and 255 is refused unless the taxonomy says what 255 is: it may be the object or the
    pixels to ignore. Without a taxonomy file label i is taken as the model's class i; if the labels' class names are
    known they must be the model's. Raises :class:`UsageError`.
    """
    if taxonomy.assumed:
        _check_names(labels, taxonomy)
    if 255 in taxonomy.labels or taxonomy.colors is not None:
        return
    marked = total = 0
    for entry in entries:
        values = labels.read(entry)
        if not _BINARY.issuperset(np.unique(values).tolist()):
            return
        marked += int(np.count_nonzero(values == 255))
        total += values.size
    if marked:
        raise UsageError(
            f"the label maps in {labels.path} hold only 0 and 255, and 255 on {marked / total:.0%} of the pixels; say "
            "in a "
            'taxonomy what 255 is, under [labels]: 255 = "TARGET" if it is the object, 255 = "ignore" if it is '
            'unlabeled'
        )


def _check_names(labels: LabelSource, taxonomy: Taxonomy) -> None:
    for index, name in labels.class_names.items():
        if index in (255, 65535) or means_nothing(name):
            continue
        target = taxonomy.labels.get(index, -1)
        if target >= 0 and same_class(name, taxonomy.targets[target]):
            continue
        other = f"it is the model's {taxonomy.targets[target]}" if target >= 0 else "the model has no class for it"
        raise UsageError(
            f"label {index} of {labels.path} is {name}, but without a taxonomy {other}; draft a class mapping with "
            f"`maskmill taxonomy BUNDLE --labels {labels.path} -o taxonomy.toml` and give it as --taxonomy"
        )


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
