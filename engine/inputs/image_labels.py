"""Image-level labels: the classes that each image shows, from a file that a person wrote.

::

    labels = ImageLabels.load("labels.csv")
    labels.classes_of("photos/0001.jpg", ("cow", "horse"))      # indices of the classes it shows

=================  ==================================================================================================
``labels.csv``     a row per image, its name in the column ``image``: class names separated by ``;`` in a column
                   ``labels``, or a column of 0 and 1 per class
``labels.jsonl``   a line per image: ``{"image": "1.jpg", "labels": ["cow", "horse"]}``
``instances.json`` a COCO file: an image shows the categories of its annotations
=================  ==================================================================================================

Names are compared by their tails, see :mod:`.names`.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ...checks import name_list
from ...errors import ImageError, UsageError
from ..model.files import read_text
from ..model.schema import decode_json, read_value
from ..model.storage import location_of
from .names import NameIndex

_NEGATIVE, _POSITIVE = ("", "0", "-1", "false", "no"), ("1", "true", "yes")


class ImageLabels:
    """Class names of images; ``origin`` names their file in messages."""

    def __init__(self, names: Mapping[str, frozenset[str]], origin: str) -> None:
        self.origin = origin
        """File of the labels."""
        self.names = frozenset().union(*names.values())
        """Every class that an image shows."""
        self._index = NameIndex(names, f"images in {origin}")

    def __len__(self) -> int:
        return len(self._index)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ImageLabels:
        """Read a file; raises :class:`UsageError` naming the line that is not as expected."""
        file = location_of(path)
        reader = {".csv": _read_csv, ".jsonl": _read_lines, ".json": _read_coco}.get(file.suffix.lower())
        if reader is None:
            raise UsageError(f"image-level labels are a .csv, .jsonl or COCO .json file, got {file.name}")
        names: dict[str, frozenset[str]] = {}
        text = read_text(file, "the image-level labels")
        for image, classes in reader(file, io.StringIO(text, newline="")):
            if image in names:
                raise UsageError(f"{file} lists the image {image} twice")
            names[image] = frozenset(classes)
        if not names:
            raise UsageError(f"{file} lists no image")
        return cls(names, str(file))

    def check(self, classes: Sequence[str]) -> None:
        """Raise :class:`UsageError` unless every class that an image shows is one of ``classes``."""
        if unknown := sorted(self.names - set(classes)):
            raise UsageError(
                f"{self.origin} names classes that the model does not have: {name_list(unknown)}; "
                f"it has {name_list(classes)}"
            )

    def find(self, uri: str) -> frozenset[str] | None:
        """Return the names of the classes that an image shows; None for an image that is not listed."""
        return self._index.find(uri)

    def classes_of(self, uri: str, classes: Sequence[str]) -> list[int]:
        """Return the indices in ``classes`` of those that an image shows, ascending.

        Raises :class:`ImageError` of the kind ``no-labels`` for an image that is not listed.
        """
        names = self.find(uri)
        if names is None:
            similar = self._index.similar(uri)
            hint = f" (it lists {similar[0]})" if similar else ""
            raise ImageError(
                "no-labels", f"{self.origin} does not list {uri}{hint}; add it, with no classes if it shows none"
            )
        return [index for index, name in enumerate(classes) if name in names]


def _read_csv(path: Any, stream: Any) -> Iterator[tuple[str, Iterable[str]]]:
    reader = csv.DictReader(stream)
    columns = list(reader.fieldnames or ())
    if "image" not in columns or len(columns) < 2:
        raise UsageError(f"{path} needs a first line with `image,labels`, or `image` and a column per class")
    for row in reader:
        place = f"{path}, line {reader.line_num}"
        if not row["image"] or None in row:
            raise UsageError(f"{place}: expected {len(columns)} values, the first an image's name")
        if columns == ["image", "labels"]:
            yield row["image"], [name.strip() for name in (row["labels"] or "").split(";") if name.strip()]
            continue
        values = {name: (row[name] or "").strip().lower() for name in columns if name != "image"}
        if faulty := [name for name, value in values.items() if value not in _NEGATIVE + _POSITIVE]:
            raise UsageError(f"{place}: {faulty[0]} is {values[faulty[0]]!r}, expected 0 or 1")
        yield row["image"], [name for name, value in values.items() if value in _POSITIVE]


def _read_lines(path: Any, stream: Any) -> Iterator[tuple[str, Iterable[str]]]:
    for number, line in enumerate(stream, start=1):
        if not line.strip():
            continue
        try:
            raw = decode_json(line)
            image, labels = raw["image"], raw["labels"]
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise UsageError(f'{path}, line {number}: expected {{"image": NAME, "labels": [CLASS, …]}}') from error
        if not isinstance(image, str) or not isinstance(labels, list) or not all(isinstance(n, str) for n in labels):
            raise UsageError(f"{path}, line {number}: the image is a name and its labels a list of class names")
        yield image, labels


def _read_coco(path: Any, stream: Any) -> Iterator[tuple[str, Iterable[str]]]:
    from ..formats.coco import category_names, image_files, owner_of  # imported here, since it needs Numba

    try:
        raw = decode_json(stream.read())
        read_value(list[str], [category["name"] for category in raw["categories"]], "names of categories")
        read_value(list[str], [image["file_name"] for image in raw["images"]], "file names of images")
        categories, images = category_names(raw["categories"], path), image_files(raw["images"], path)
        classes: dict[str, set[str]] = {name: set() for name in images.values()}
        for number, annotation in enumerate(raw["annotations"]):
            name, label = owner_of(annotation, images, categories, f"{path}, annotation {number}")
            classes[name].add(label)
    except UsageError:
        raise
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise UsageError(f"{path} is not a COCO file of images, annotations and categories ({error!r})") from error
    yield from classes.items()
