"""Pairing label files with images by their names: each file belongs to one image, and each image has one file.

A label file belongs to the image with the same name up to the ending and the same subfolders: ``labels/a/1.png``
belongs to ``/photos/a/1.jpg``, not to ``/photos/b/1.jpg``. These naming rules are recognized per image:

======================  ==============================================================================================
same name               ``1.jpg``, ``1.png``
double ending           ``1.jpg``, ``1.jpg.png``
suffix                  ``1.jpg``, ``1_mask.png``; see :data:`SUFFIXES`
Cityscapes              ``x_leftImg8bit.png``, ``x_gtFine_labelIds.png``
parallel folders        ``train/images/1.jpg``, ``train/labels/1.png``; see :data:`LABEL_FOLDERS`
======================  ==============================================================================================

Other rules are given as a pattern, ``IMAGE=LABEL`` with ``*`` for the parts that are equal in both names:
``*_photo=*_truth``, ``train/*=trainannot/*``, or ``*=*.png`` to choose among endings.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

from ...errors import UsageError
from .names import file_key, tails, without_ending
from .sources import EXTENSIONS

T = TypeVar("T")

SUFFIXES = (
    *(
        "_mask",
        "-mask",
        ".mask",
        "_masks",
        "_label",
        "-label",
        ".label",
        "_labels",
        "_seg",
        "-seg",
        ".seg",
        "_segmentation",
    ),
    *(
        "_gt",
        "_GT",
        "_groundtruth",
        "_annotation",
        "_annotations",
        "_lbl",
        "_L",
        "_labelIds",
        "_labelTrainIds",
        "_trainId",
    ),
)
"""Suffixes that label files have and their images lack."""
_CITYSCAPES = ("_gtFine_labelIds", "_gtFine_labelTrainIds", "_gtCoarse_labelIds", "_gtCoarse_labelTrainIds")

IMAGE_FOLDERS = frozenset({"images", "image", "imgs", "img", "photos", "jpegimages", "leftimg8bit", "rgb"})
"""Folder names, in lower case, that stand for the images of a data set."""
LABEL_FOLDERS = frozenset(
    {"labels", "label", "masks", "mask", "annotations", "annotation", "gt", "gtfine", "gtcoarse", "groundtruth"}
    | {"ground_truth", "segmentationclass", "segmentationclassaug", "segmentation", "segmentations", "seg", "targets"}
)
"""Folder names, in lower case, that stand for the label maps of a data set."""


class Candidate(NamedTuple, Generic[T]):
    """A label file that may belong to an image."""

    label: T
    name: str
    """Name of the file, relative to the label folder."""
    rule: str
    """Naming rule by which it belongs to the image."""


@dataclass(frozen=True, kw_only=True)
class Pairs(Generic[T]):
    """Result of a pairing."""

    labels: Mapping[str, T]
    """Label of each image that has one, by uri, in the order of the images."""
    without_label: Sequence[str]
    """Uris of the images without a label."""
    unused: Sequence[str]
    """Names of the label files that belong to no image."""
    rules: Counter[str]
    """Number of images paired by each rule."""


class PairingIndex(Generic[T]):
    """Label files, found by their images.

    Parameters
    ----------
    labels
        (name relative to the label folder, label) of every file, or (image name, label) if ``image_names``.
    pattern
        ``IMAGE=LABEL`` instead of the known rules.
    image_names
        The names are those of the images themselves, with their endings, as in a COCO file.
    is_image
        True if a label is the file at an image's uri; a file never labels itself.
    """

    def __init__(
        self,
        labels: Iterable[tuple[str, T]],
        *,
        pattern: str | None = None,
        image_names: bool = False,
        is_image: Callable[[T, str], bool] = lambda label, uri: False,
    ) -> None:
        self._labels = [(file_key(name), label) for name, label in labels]
        self._is_image = is_image
        self._pattern = None if pattern is None else _Pattern(pattern)
        self._by_stem: dict[str, list[Candidate[T]]] = {}
        self._by_file: dict[str, list[Candidate[T]]] = {}
        self._parallel: dict[str, list[Candidate[T]]] = {}
        self._by_last: dict[str, list[str]] = {}
        for name, label in self._labels:
            stem = without_ending(name)
            self._by_last.setdefault(stem.rsplit("/", 1)[-1], []).append(name)
            rule = "other ending" if image_names else "same name"
            self._by_stem.setdefault(stem, []).append(Candidate(label, name, rule))
            if self._pattern is not None or image_names:
                self._by_file.setdefault(name, []).append(Candidate(label, name, "same name"))
            else:
                self._by_file.setdefault(stem, []).append(Candidate(label, name, "double ending"))
                self._add_rules(stem, name, label)

    def _add_rules(self, stem: str, name: str, label: T) -> None:
        served = [(stem, "same name")]
        for suffix in SUFFIXES:
            if stem.endswith(suffix) and not stem.endswith(f"/{suffix}") and stem != suffix:
                served.append((stem.removesuffix(suffix), f"suffix {suffix}"))
        for suffix in _CITYSCAPES:
            if stem.endswith(suffix):
                served.append((f"{stem.removesuffix(suffix)}_leftImg8bit", f"suffixes _leftImg8bit and {suffix}"))
        for place, rule in served[1:]:
            self._by_stem.setdefault(place, []).append(Candidate(label, name, rule))
        for place, rule in served:
            folders = place.split("/")[:-1]
            other_folders = [folder for folder in folders if folder.lower() not in LABEL_FOLDERS]
            if len(other_folders) < len(folders):
                where = "parallel folders" if rule == "same name" else f"{rule}, parallel folders"
                short = "/".join([*other_folders, place.rsplit("/", 1)[-1]])
                self._parallel.setdefault(short, []).append(Candidate(label, name, where))

    def __len__(self) -> int:
        return len(self._labels)

    def candidates(self, uri: str) -> list[Candidate[T]]:
        """Return the label files that may belong to an image: those that share the longest end of its path."""
        key = file_key(uri)
        if self._pattern is not None:
            translated, table = self._pattern.translate(key)
            searches = [] if translated is None else [(translated, self._by_file if table else self._by_stem)]
            rule = f"pattern {self._pattern.text}"
            return [candidate._replace(rule=rule) for candidate in self._longest(searches, uri)]
        searches = [(key, self._by_file), (without_ending(key), self._by_stem)]
        if candidates := self._longest(searches, uri):
            return candidates
        folders, _, last = without_ending(key).rpartition("/")
        other_folders = [folder for folder in folders.split("/") if folder.lower() not in IMAGE_FOLDERS]
        return self._longest([("/".join([*other_folders, last]), self._parallel)], uri)

    def _longest(
        self, searches: Sequence[tuple[str, Mapping[str, list[Candidate[T]]]]], uri: str
    ) -> list[Candidate[T]]:
        for ends in zip(*(list(tails(key)) for key, _ in searches), strict=True):
            candidates: list[Candidate[T]] = []
            for end, (_, table) in zip(ends, searches, strict=True):
                candidates += [
                    candidate
                    for candidate in table.get(end, ())
                    if not self._is_image(candidate.label, uri)
                    and all(candidate.name != other.name for other in candidates)
                ]
            if candidates:
                return candidates
        return []

    def find(self, uri: str) -> T | None:
        """Return the label of one image, or None; raises :class:`UsageError` if two files may belong to it."""
        candidates = self.candidates(uri)
        return _only(uri, candidates).label if candidates else None

    def pair(self, uris: Iterable[str], root: str = "") -> Pairs[T]:
        """Pair images with their label files; ``root`` is the images' folder, if they have one.

        Raises :class:`UsageError`, naming both files, if two files may belong to one image or one file to two.
        """
        options = {uri: self.candidates(uri) for uri in uris}
        exact = {
            candidate.name
            for candidates in options.values()
            for candidate in candidates
            if candidate.rule in ("same name", "double ending")
        }
        choices: dict[str, Candidate[T]] = {}
        served: dict[str, list[str]] = {}
        for uri, candidates in options.items():
            # a file with exactly the name of another image does not belong to this one by its suffix
            own = [
                candidate
                for candidate in candidates
                if candidate.name not in exact or candidate.rule in ("same name", "double ending")
            ]
            if own:
                choices[uri] = _only(uri, own)
                served.setdefault(choices[uri].name, []).append(uri)
        for name, owners in served.items():
            if len(owners) > 1:
                at_place = [uri for uri in owners if without_ending(_below(uri, root)) == without_ending(name)]
                if len(at_place) != 1:
                    raise UsageError(
                        f"the label map {name} matches two images, {owners[0]} and {owners[1]}; give images and labels "
                        "the same folders, or name the images to use with --ids"
                    )
                for uri in set(owners) - set(at_place):
                    del choices[uri]
        return Pairs(
            labels={uri: choices[uri].label for uri in options if uri in choices},
            without_label=[uri for uri in options if uri not in choices],
            unused=[name for name, _ in self._labels if name not in served],
            rules=Counter(choice.rule for choice in choices.values()),
        )

    def similar(self, uri: str) -> str:
        """Explain why an image has no label despite a file with a similar name; empty if there is no such file."""
        stem = without_ending(file_key(uri)).rsplit("/", 1)[-1]
        namesakes = [name for name in self._by_last.get(stem, ()) if self._pattern is None]
        if namesakes:
            return f"{namesakes[0]} has the name of {_short(uri)} but is in another folder"
        for last, names in self._by_last.items():
            if last != stem and last.startswith(stem) and not last[len(stem)].isalnum():
                return (
                    f"{names[0]} is similar to {_short(uri)}; if it is its map, give --pairing '*=*{last[len(stem) :]}'"
                )
        return ""


def _only(uri: str, candidates: Sequence[Candidate[T]]) -> Candidate[T]:
    if len(candidates) > 1:
        first, second = candidates[:2]
        raise UsageError(
            f"two label maps match the image {uri}: {first.name} ({first.rule}) and {second.name} ({second.rule}); "
            "remove one, or choose with --pairing, e.g. --pairing '*=*.png'"
        )
    return candidates[0]


def _short(uri: str) -> str:
    return "/".join(file_key(uri).split("/")[-2:])


def _below(uri: str, root: str) -> str:
    key = file_key(uri)
    base = file_key(root).rstrip("/")
    return key.removeprefix(f"{base}/") if base else key


class _Pattern:
    """``IMAGE=LABEL`` with ``*`` for equal parts; ``*`` spans no folders."""

    def __init__(self, text: str) -> None:
        image, equals, label = text.partition("=")
        if not equals or not image or image.count("*") != label.count("*") or "*" not in image:
            raise UsageError(
                f"a pairing pattern is IMAGE=LABEL with the same number of * on both sides, as in '*_photo=*_truth'; "
                f"got {text!r}"
            )
        self.text = text
        self._with_image_ending = _has_ending(image)
        self._with_label_ending = _has_ending(label)
        parts = [re.escape(part) for part in file_key(image).split("*")]
        self._image = re.compile(r"(?P<head>(?:.*/)?)" + "([^/]*)".join(parts))
        self._label = file_key(label)

    def translate(self, key: str) -> tuple[str | None, bool]:
        """Return the label's path for an image's, None if it does not match, and whether the path has an ending."""
        match = self._image.fullmatch(key if self._with_image_ending else without_ending(key))
        if match is None:
            return None, self._with_label_ending
        stars = iter(match.groups()[1:])
        path = re.sub(r"\*", lambda _: next(stars), self._label)
        return match["head"] + path, self._with_label_ending


def _has_ending(pattern: str) -> bool:
    return pattern.lower().endswith(EXTENSIONS)
