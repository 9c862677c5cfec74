"""Names of images: comparison, look-up by name, and selection of images by a list of names.

Names are compared from the end of the path: ``a/1.jpg`` names the image ``/photos/a/1.jpg``, but neither
``/photos/b/1.jpg`` nor ``/photos/a/1.png``. An entry without an ending names the image with any ending. Unicode forms
that look equal are equal (NFC).
"""

from __future__ import annotations

import io
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar
from urllib.parse import urlsplit

from ...errors import ImageError, SourceError, UsageError
from ..model.files import MAX_TEXT
from ..model.schema import decode_json
from ..model.storage import location_of, read_file
from ..reading.access import chain_of, place_in_chain
from ..reading.remote import reason
from .archives import split_member
from .listings import list_entries

T = TypeVar("T")

_PAIR = re.compile(r"^(\S+\.\w{3,4}) \S+\.\w{3,4}$")


def file_key(uri: str) -> str:
    """Return an image's path inside its archive, or its path or URL, with ``/`` between folders, in form NFC."""
    member = split_member(uri)
    name = uri if member is None else member[1]
    if member is None and "://" in name:
        parts = chain_of(name)
        name = parts[place_in_chain(parts)]
    if name.startswith(("http://", "https://")):
        parts = urlsplit(name)
        name = f"{parts.netloc}{parts.path}"
    return unicodedata.normalize("NFC", name.replace("\\", "/")).removeprefix("./")


def without_ending(key: str) -> str:
    """Return a path without the ending of its file name; ``a.b/c`` stays as it is."""
    folder, _, file = key.rpartition("/")
    stem = file.rsplit(".", 1)[0] if "." in file[1:] else file
    return f"{folder}/{stem}" if folder or key.startswith("/") else stem


def image_id(uri: str) -> str:
    """Return an image's file name without folder, archive and ending."""
    return without_ending(file_key(uri)).rsplit("/", 1)[-1]


def tails(key: str) -> Iterator[str]:
    """Yield ``a/b/c``, ``b/c``, ``c`` for ``a/b/c``."""
    parts = key.split("/")
    for start in range(len(parts)):
        yield "/".join(parts[start:])


class NameIndex(Generic[T]):
    """Values that belong to images, found by an image's uri.

    The keys of ``things`` are names from a file, with or without folders and endings. ``origin`` describes them in
    messages, as in "images in labels.csv".
    """

    def __init__(self, things: Mapping[str, T], origin: str) -> None:
        self._origin = origin
        self._by_file: dict[str, list[T]] = {}
        self._by_stem: dict[str, list[tuple[str, T]]] = {}
        self._by_last: dict[str, list[str]] = {}
        for name, thing in things.items():
            key = file_key(name)
            self._by_file.setdefault(key, []).append(thing)
            self._by_stem.setdefault(key, []).append((name, thing))
            stem = without_ending(key)
            if stem != key:
                self._by_stem.setdefault(stem, []).append((name, thing))
            self._by_last.setdefault(image_id(name), []).append(name)
        self.things: Mapping[str, T] = things
        """The values by their names as written."""

    def __len__(self) -> int:
        return len(self.things)

    def find(self, uri: str) -> T | None:
        """Return the value of an image, or None.

        Raises :class:`UsageError` naming the candidates if several names without the image's ending match it.
        """
        key = file_key(uri)
        for tail in tails(key):
            if tail in self._by_file:
                return self._by_file[tail][0]
        for tail in tails(without_ending(key)):
            candidates = self._by_stem.get(tail, [])
            if len(candidates) > 1:
                raise UsageError(
                    f"{uri} matches {len(candidates)} {self._origin} ({candidates[0][0]}, {candidates[1][0]}); "
                    "write the image's ending"
                )
            if candidates:
                return candidates[0][1]
        return None

    def similar(self, uri: str) -> list[str]:
        """Return the names with the image's file name that are in other folders or have another ending."""
        return self._by_last.get(image_id(uri), [])


def read_ids(path: str | os.PathLike[str]) -> frozenset[str]:
    """Read a list of image names: one per line, or a CSV or Parquet file with a column ``image``.

    In published splits, a line is an image and its label map, separated by a space; only the image is used. A
    ``.json`` file is a queue of ``maskmill rank``, and names its images.

    Raises :class:`UsageError` if the list cannot be read or is empty.
    """
    if location_of(path).suffix == ".json":
        return _queued_names(path)
    try:
        entries = list(list_entries(io.BytesIO(read_file(path, MAX_TEXT)), str(path)))
    except (OSError, ImageError) as error:
        raise UsageError(f"cannot read the list of images {path}: {reason(error)}") from error
    except SourceError as error:
        raise UsageError(str(error)) from error
    if problem := next((entry for entry in entries if entry.problem), None):
        raise UsageError(f"{problem.name}: {problem.problem}")
    names = frozenset(_PAIR.sub(r"\1", entry.name) for entry in entries)
    if not names:
        raise UsageError(f"the list of images {path} is empty; it needs one image name per line")
    return names


def _queued_names(path: str | os.PathLike[str]) -> frozenset[str]:
    try:
        names = frozenset(str(image["uri"]) for image in decode_json(read_file(path, MAX_TEXT))["images"])
    except (OSError, ImageError) as error:
        raise UsageError(f"cannot read the list of images {path}: {reason(error)}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{path} is not a queue of `maskmill rank`; give a list with one image name per line"
        ) from error
    if not names:
        raise UsageError(f"the queue {path} is empty; it names no image")
    return names


def select_ids(uris: Mapping[str, Any] | Iterable[str], ids: Iterable[str] | None) -> list[str]:
    """Return the uris that ``ids`` name, in their own order; all of them if ``ids`` is None.

    Every name selects exactly one image; see the module's text for how names are compared. Raises :class:`UsageError`
    for names that select no image or several.
    """
    uris = list(uris)
    if ids is None:
        return uris
    selection = set(match_ids(uris, ids).values())
    return [uri for uri in uris if uri in selection]


def match_ids(uris: Iterable[str], ids: Iterable[str]) -> dict[str, str]:
    """Return the one uri that each name of ``ids`` selects; raises :class:`UsageError` as :func:`select_ids`."""
    by_file: dict[str, list[str]] = {}
    by_stem: dict[str, list[str]] = {}
    known_uris = dict.fromkeys(uris)
    for uri in known_uris:
        key = file_key(uri)
        by_file.setdefault(key.rsplit("/", 1)[-1], []).append(uri)
        by_stem.setdefault(without_ending(key).rsplit("/", 1)[-1], []).append(uri)
    selection, missing_names = {}, []
    names = sorted(set(ids))
    for name in names:
        matches = [name] if name in known_uris else _matches(name, by_file, by_stem)
        if len(matches) > 1:
            raise UsageError(
                f"the listed image {name} is ambiguous: {matches[0]} and {matches[1]} match; add the folder or the "
                "ending"
            )
        if matches:
            selection[name] = matches[0]
        else:
            missing_names.append(name)
    if missing_names:
        examples = ", ".join(f"{name}{_hint(name, by_stem)}" for name in missing_names[:5])
        raise UsageError(f"{len(missing_names)} of the {len(names)} listed images are not there: {examples}")
    return selection


def _matches(name: str, by_file: Mapping[str, Sequence[str]], by_stem: Mapping[str, Sequence[str]]) -> list[str]:
    key = file_key(name)
    last = key.rsplit("/", 1)[-1]
    exact = [uri for uri in by_file.get(last, ()) if _is_tail(key, file_key(uri))]
    return exact or [uri for uri in by_stem.get(last, ()) if _is_tail(key, without_ending(file_key(uri)))]


def _hint(name: str, by_stem: Mapping[str, Sequence[str]]) -> str:
    """Suggest the image that may be meant by an entry without a match."""
    candidates = by_stem.get(image_id(name)) or by_stem.get(file_key(name).rsplit("/", 1)[-1])
    return f" ({file_key(candidates[0]).rsplit('/', 1)[-1]} is there)" if candidates else ""


def _is_tail(tail: str, key: str) -> bool:
    return key == tail or key.endswith(f"/{tail}")
