"""Labeled images: pairing a folder of label maps with images, and reading the maps.

A label map belongs to the image with the same name up to the extension, at the same place below the two folders
(``images/a/1.jpg`` and ``labels/a/1.png``) or, failing that, with the same file name anywhere.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from ...errors import UsageError

T = TypeVar("T")

LABEL_EXTENSIONS = (".png", ".tif", ".tiff", ".bmp", ".gif")


class LabelFolder:
    """Label maps of a folder (recursive), found by an image's uri.

    Raises :class:`UsageError` where the folder is missing or holds no label map.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if not self.path.is_dir():
            raise UsageError(f"the label folder {self.path} does not exist")
        files = sorted(file for file in self.path.rglob("*") if file.suffix.lower() in LABEL_EXTENSIONS)
        if not files:
            raise UsageError(f"{self.path} holds no label map ({', '.join(LABEL_EXTENSIONS)})")
        places = {file.relative_to(self.path).with_suffix("").as_posix(): file for file in files}
        self._index = NameIndex(places, f"label maps in {self.path}")

    def __len__(self) -> int:
        return len(self._index)

    def files(self) -> list[Path]:
        """Every label map, sorted."""
        return sorted(self._index.values())

    def find(self, uri: str) -> Path | None:
        """The label map of an image, or None; an ambiguous file name is an error naming the candidates."""
        return self._index.find(uri)


class NameIndex(Generic[T]):
    """What belongs to images, found by an image's uri; ``what`` names it in errors, as in "label maps in labels/".

    ``places`` are paths without extensions. A thing belongs to the image at the same place below any folder or,
    failing that, with the same file name anywhere.
    """

    def __init__(self, places: Mapping[str, T], what: str) -> None:
        self._by_place = dict(places)
        self._what = what
        self._by_stem: dict[str, list[str]] = {}
        for place in self._by_place:
            self._by_stem.setdefault(place.rsplit("/", 1)[-1], []).append(place)

    def __len__(self) -> int:
        return len(self._by_place)

    def values(self) -> Iterable[T]:
        """What is indexed, in the order given."""
        return self._by_place.values()

    def find(self, uri: str) -> T | None:
        """What belongs to an image, or None; :class:`UsageError` names the candidates where several might."""
        parts = pairing_key(uri).split("/")
        candidates = self._by_stem.get(parts[-1], [])
        if len(candidates) == 1:
            return self._by_place[candidates[0]]
        # The longest tail of the uri that is a place decides among equal file names.
        for start in range(len(parts)):
            if (place := "/".join(parts[start:])) in self._by_place:
                return self._by_place[place]
        if candidates:
            raise UsageError(
                f"{uri} matches {len(candidates)} {self._what} ({candidates[0]}, {candidates[1]}, …); "
                "give images and labels the same folder structure"
            )
        return None


def pairing_key(uri: str) -> str:
    """An image's path inside its archive, or its path or URL, with ``/`` and without the extension."""
    name = uri.rsplit("::", 1)[-1].replace("\\", "/")
    folder, _, file = name.rpartition("/")
    stem = file.rsplit(".", 1)[0] if "." in file else file
    return f"{folder}/{stem}" if folder else stem


def read_label_map(path: str | os.PathLike[str]) -> NDArray[Any]:
    """Read a label map as class indices (H, W), uint8 or uint16; palette images give their indices, not colors.

    Raises :class:`UsageError` for a file that cannot be read or holds colors.
    """
    try:
        with Image.open(path) as image:
            if image.mode not in ("L", "P", "1", "I;16", "I;16B", "I;16L", "I"):
                raise UsageError(f"{path} is a {image.mode} image; a label map holds one class index a pixel (L or P)")
            labels = np.asarray(image)
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"cannot read the label map {path}: {error}") from error
    if labels.dtype == np.bool_:
        return labels.astype(np.uint8)
    if labels.dtype != np.uint8:
        if labels.min(initial=0) < 0 or labels.max(initial=0) > 65535:
            raise UsageError(f"{path} holds values outside 0 to 65535; a label map holds one class index a pixel")
        return labels.astype(np.uint16)
    return labels


def read_ids(path: str | os.PathLike[str]) -> frozenset[str]:
    """Read a list of image names, one a line; each is compared without folder and extension."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the list of images {path}: {error}") from error
    names = frozenset(image_id(line.strip()) for line in lines if line.strip())
    if not names:
        raise UsageError(f"the list of images {path} is empty")
    return names


def image_id(uri: str) -> str:
    """An image's file name without folder, archive and extension."""
    return pairing_key(uri).rsplit("/", 1)[-1]


def select_ids(uris: Mapping[str, Any] | Iterable[str], ids: Iterable[str] | None) -> list[str]:
    """The uris whose :func:`image_id` is in ``ids`` (all where None); an id that matches nothing is an error."""
    uris = list(uris)
    if ids is None:
        return uris
    wanted = {image_id(name) for name in ids}
    chosen = [uri for uri in uris if image_id(uri) in wanted]
    if missing := wanted - {image_id(uri) for uri in chosen}:
        some = ", ".join(sorted(missing)[:5])
        raise UsageError(f"{len(missing)} of the {len(wanted)} listed images are not there: {some}")
    return chosen
