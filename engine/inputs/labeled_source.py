"""Labeled images: pairing images with their labels, reading true classes, and counting used and skipped files.

::

    labeled = pair_images(open_source("photos"), open_labels("labels"), taxonomy)
    for item in labeled.items:
        truth = labeled.read(item.uri)                        # (H, W) target indices
    print(labeled.summary.line())
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...checks import name_list
from ...errors import UsageError
from ..model.color_tables import ColorTable
from ..model.taxonomy import Taxonomy
from ..model.taxonomy_draft import means_nothing, same_class
from ..reading.access import current_access
from ..reading.geotiff import split_window
from .image_formats import orientation_of, turn_upright
from .images import image_size
from .labels import LOSSY, NAMES_FILE, LabelEntry, LabelSource
from .names import match_ids, select_ids
from .rasters.scene_labels import SceneLabels
from .sources import Item, Source, read_uri
from .summary import SourceSummary

_BINARY = frozenset({0, 255})
_count_lock = threading.Lock()


class LabeledSource:
    """Images paired one to one with their labels, and counts of used and skipped files; see :func:`pair_images`."""

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
        self.items: list[Item] = [items[uri] for uri in entries if uri in items]
        """The images, in their source's order; empty if only uris were paired."""
        self.uris: list[str] = list(entries)
        """Names of the images, in order."""
        self._entries = dict(entries)
        self._taxonomy = taxonomy
        self._access = current_access()
        self._scenes = SceneLabels(labels, taxonomy.colors)

    def name_of(self, uri: str) -> str:
        """Return the file of an image's labels, for messages."""
        return self._entries[uri].name

    def fingerprints(self) -> dict[str, str]:
        """Return hashes of the labels, by names and stamps of their files, and of the mapping of their values."""
        labels = [
            self.labels.path,
            self.labels.format,
            self.labels.as_stored,
            self.labels.stamps(self._entries.values()),
        ]
        colors = self._taxonomy.colors
        table = None if colors is None else [colors.colors, colors.indices]
        mapping = [sorted(self._taxonomy.labels.items()), self._taxonomy.ignore_index, table]
        return {
            name: hashlib.blake2b(json.dumps(value).encode(), digest_size=16).hexdigest()
            for name, value in (("labels", labels), ("label mapping", mapping))
        }

    def read(self, uri: str, photo: bytes | None = None) -> NDArray[Any]:
        """Read the target indices (H, W) of an image and count its pixels; from any thread.

        ``photo`` is the image file's bytes, for its EXIF orientation; it is read if needed. Raises :class:`UsageError`,
        :class:`TaxonomyError`, or :class:`ImageError` if a photo is needed and cannot be read.
        """
        entry, is_turned = self._entries[uri], False
        if (window := split_window(uri)) is not None:
            raw, photo = self._scenes.read(entry, *window), None
        else:
            if photo is None and self.labels.as_stored:
                photo = read_uri(uri, access=self._access)
            size = None if photo is None or not self.labels.format else self._stored_size(photo)
            raw = self.labels.read(entry, self._taxonomy.colors, size=size)
        if photo is not None and (orientation := orientation_of(photo)) != 1:
            is_turned = True
            if self.labels.as_stored:
                raw = turn_upright(raw, orientation)
        targets = self._taxonomy.encode(raw, entry.name)
        with _count_lock:
            self.summary.turned += is_turned
            self.summary.count_labels(targets, self._taxonomy.ignore_index)
        return targets

    def on_data(self, targets: NDArray[Any], with_data: NDArray[np.bool_] | None) -> NDArray[Any]:
        """Ignore the targets (H, W) of an image's pixels without data, and count them as ignored; from any thread."""
        if with_data is None:
            return targets
        ignore = self._taxonomy.ignore_index
        faults = ~with_data & (targets != ignore)
        with _count_lock:
            self.summary.ignored_pixels += int(np.count_nonzero(faults))
        return np.where(faults, targets.dtype.type(ignore), targets)

    def _stored_size(self, photo: bytes) -> tuple[int, int]:
        """Return the (height, width) of a photo's labels."""
        height, width = image_size(photo, max_pixels=1 << 40)
        return (width, height) if self.labels.as_stored and orientation_of(photo) >= 5 else (height, width)

    def size_hint(self, uri: str, photo: bytes | None = None) -> str:
        """Return advice for a map whose size differs from its image's."""
        if self.labels.as_stored or photo is None or orientation_of(photo) == 1:
            return "they must be the same size"
        return "the photo is turned by its EXIF orientation; if the map shows it as stored, give --labels-as-stored"


def pair_images(
    source: Source, labels: LabelSource, taxonomy: Taxonomy, *, ids: Iterable[str] | None = None
) -> LabeledSource:
    """Pair the images of a source with their labels; files that are used as label maps are not images.

    Images without labels are left out and counted, unless ``ids`` names them. Raises :class:`UsageError` if nothing
    matches, a match is ambiguous, or the meaning of the labels' values is doubtful (see :func:`check_labels`).
    """
    items = {item.uri: item for item in source}
    root = source.spec if "://" in source.spec or os.path.isdir(source.spec) else ""
    return _pair(list(items), labels, taxonomy, ids, root, items, source.skipped)


def pair_uris(
    uris: Sequence[str], labels: LabelSource, taxonomy: Taxonomy, *, ids: Iterable[str] | None = None
) -> LabeledSource:
    """Pair images, given by their uris, with their labels; see :func:`pair_images`."""
    return _pair(uris, labels, taxonomy, ids, _common_folder(uris), {}, Counter())


def _common_folder(uris: Sequence[str]) -> str:
    """Return the folder that holds all images; empty if they are not local files of one folder."""
    if not uris or not all(os.path.isabs(uri) for uri in uris):
        return ""
    return os.path.commonpath([os.path.dirname(uri) for uri in uris])


def _pair(
    uris: Sequence[str],
    labels: LabelSource,
    taxonomy: Taxonomy,
    ids: Iterable[str] | None,
    root: str,
    items: Mapping[str, Item],
    skipped: Counter[str],
) -> LabeledSource:
    windows = _by_file(uris)
    if ids is not None:
        ids = _files_named(frozenset(ids), windows)
    selection = select_ids(list(windows), ids)
    pairs = labels.pair(selection, root)
    maps = {entry.name for entry in pairs.labels.values()}
    unused_maps = {entry.name for entry in labels.entries()} - maps
    inside = bool(root) and labels.path != root and labels.path.startswith(f"{root.rstrip('/')}/")
    # a file of a run is a label map or an image, never both
    map_files = {uri for uri in pairs.without_label if uri in maps or (inside and uri in unused_maps)}
    unlabeled = [uri for uri in pairs.without_label if uri not in map_files]
    matches = {uri: entry for uri, entry in pairs.labels.items() if uri not in maps}
    hint = next((text for uri in unlabeled[:20] if (text := labels.similar(uri))), "")
    if ids is not None and unlabeled:
        raise UsageError(
            f"{len(unlabeled)} of the listed images have no label map in {labels.path}, e.g. {unlabeled[0]}"
            f"{hint and f' ({hint})'}; add it, or take the image off the list"
        )
    if not matches:
        example = f", e.g. {unlabeled[0]}" if unlabeled else ""
        raise UsageError(
            f"no image has a label map in {labels.path}{example}: {hint or 'the names must be equal up to the ending'}"
        )
    taxonomy = taxonomy.for_labels(labels.class_names, labels.path, by_name=labels.by_name)
    images = set(windows) - map_files
    entries = {uri: entry for file, entry in matches.items() for uri in windows[file]}
    summary = SourceSummary(
        images=len(entries),
        skipped=skipped + _skipped_labels(labels, root) + Counter({"label maps beside the photos": len(map_files)}),
        without_map=unlabeled,
        without_image=[] if ids is not None else [name for name in pairs.unused if not _is_photo(name, labels, images)],
        hint=hint,
        rules=dict(pairs.rules),
        as_stored=labels.as_stored,
        labels_format=labels.format,
        assumed=taxonomy.assumed and not labels.class_names,
    )
    check_labels(labels, list(matches.values()), taxonomy)
    return LabeledSource(entries, labels, taxonomy, summary, items)


def _by_file(uris: Iterable[str]) -> dict[str, list[str]]:
    """Return the windows of each file that is read by windows, and every other image as a list of one."""
    files: dict[str, list[str]] = {}
    for uri in uris:
        part = split_window(uri)
        files.setdefault(uri if part is None else part[0], []).append(uri)
    return files


def _files_named(ids: frozenset[str], windows: dict[str, list[str]]) -> frozenset[str]:
    """Return the files that ``ids`` name, and of files with single windows among ``ids`` keep only these windows.

    Raises :class:`UsageError` for a name that selects no file or several, or a window that is not there.
    """
    parts = {name: split_window(name) for name in ids}
    file_names = {name: name if part is None else part[0] for name, part in parts.items()}
    selection = match_ids(windows, file_names.values())
    whole_files = {selection[name] for name, part in parts.items() if part is None}
    available = {uri for uris in windows.values() for uri in uris}
    uris_of: dict[str, set[str]] = {}
    for name, part in parts.items():
        if part is None:
            continue
        file = selection[file_names[name]]
        uri = f"{file}{part[1].text()}"
        if uri not in available:
            raise UsageError(f"the listed window {name} is not there; give the same --windows as for the list")
        if file not in whole_files:
            uris_of.setdefault(file, set()).add(uri)
    for file, uris in uris_of.items():
        windows[file] = [uri for uri in windows[file] if uri in uris]
    return frozenset(selection.values())


def _skipped_labels(labels: LabelSource, root: str) -> Counter[str]:
    """Return the counts of files that the labels skipped, unless their folder also holds the photos."""
    together = root == labels.path or root.startswith(f"{labels.path}/")
    return Counter({kind: number for kind, number in labels.skipped.items() if not (together and LOSSY in kind)})


def _is_photo(name: str, labels: LabelSource, images: set[str]) -> bool:
    return os.path.join(labels.path, name) in images


def check_labels(labels: LabelSource, entries: Sequence[LabelEntry], taxonomy: Taxonomy) -> None:
    """Check that the meaning of label values is clear, before anything is computed with them.

    A set whose only values are 0 and 255 is refused unless the taxonomy defines 255: it may mean the object or the
    pixels to ignore. Without a taxonomy file, label i is assumed to be the model's class i; if the labels' class names
    are known they must be the model's. Raises :class:`UsageError`.
    """
    if labels.by_name:
        return
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
    if 0 < marked < total:
        raise UsageError(
            f"the label maps in {labels.path} hold only 0 and 255, and 255 on {marked / total:.0%} of the pixels; say "
            "in a "
            'taxonomy what 255 is, under [labels]: 255 = "TARGET" if it is the object, 255 = "ignore" if it is '
            "unlabeled"
        )


def value_names(
    labels: LabelSource, names: Mapping[int, str] | None = None, *, colors: ColorTable | None = None
) -> dict[int, str]:
    """Return the name of every label value that occurs, for drafting a taxonomy.

    ``names`` are the names by index, by default those of the labels' own class list. 255 needs none unless the only
    other value is 0: it is ignored then. Raises :class:`UsageError` if a value has no name, saying which names to give.
    """
    names = dict(labels.class_names if names is None else names)
    if labels.by_name:
        return names
    present: set[int] = set()
    for entry in labels.entries():
        present.update(np.unique(labels.read(entry, colors)).tolist())
    needed_values = present if present <= _BINARY else present - {255, 65535}
    if missing_values := sorted(needed_values - set(names)):
        raise UsageError(
            f"the label maps in {labels.path} hold {name_list(missing_values)}, and no name is known for "
            f"{'it' if len(missing_values) == 1 else 'them'}; give the names of the label values with --label-names "
            f"FILE (a line `INDEX NAME` per value), as {NAMES_FILE} beside the label folder, or by the name of a data "
            "set, as in --label-names voc"
        )
    return {index: name for index, name in sorted(names.items()) if index in present or index not in (255, 65535)}


def _check_names(labels: LabelSource, taxonomy: Taxonomy) -> None:
    for index, name in labels.class_names.items():
        if index in (255, 65535) or means_nothing(name):
            continue
        target = taxonomy.labels.get(index, -1)
        if target >= 0 and same_class(name, taxonomy.targets[target]):
            continue
        model_class = (
            f"it is the model's {taxonomy.targets[target]}" if target >= 0 else "the model has no class for it"
        )
        raise UsageError(
            f"label {index} of {labels.path} is {name}, but without a taxonomy {model_class}; draft a class mapping "
            f"with `maskmill taxonomy BUNDLE --labels {labels.path} -o taxonomy.toml`, with the same "
            "--boxes, --points, --coarse-masks, --detector or --text if they name the classes; give it as --taxonomy"
        )
