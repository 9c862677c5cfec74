"""External prompts: boxes or points from a file, coarse masks from a label store or label files.

=================  ===================================================================================================
boxes, ``.csv``    ``image,label,x0,y0,x1,y1`` and optionally ``score``, a row per box
boxes, ``.json``   a COCO file: ``images``, ``categories``, and ``annotations`` with ``bbox`` and optionally ``score``;
                   its classes are the categories, also those without a box
points, ``.csv``   ``image,label,x,y`` and optionally ``positive`` (1 on the object, 0 off it) and ``object``: rows of
                   one image, label and object are one prompt
masks              a label store, or a file or folder of any label format that maskmill reads
=================  ===================================================================================================

Coordinates are pixels of the image; boxes are cut to it, and an image is rejected if a box or a point lies outside of
it. A CSV file has the classes that occur in it. An image without a row has no prompts, and is background everywhere.
``iscrowd`` boxes are left out: they contain several objects, and a prompt describes one.

Prompts of large files, read by windows, are cut to each window; their coordinates are pixels of the whole file.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ....errors import ImageError, UsageError
from ...formats.base import BACKGROUND
from ...inputs.rasters.scene_labels import SceneLabels
from ...model.storage import location_of
from ...reading.geotiff import MARK, Window, raster_shape
from .prompt_files import coco_boxes, csv_boxes, csv_rows, number_of
from .prompt_names import PromptNames
from .prompts import BOX_END, BOX_START, POSITIVE

NEGATIVE = 0.0
"""Label of a point off the object."""
MIN_PART = 0.001
"""Smallest share of the image for a part of a coarse mask to be refined."""
INNER_POINTS = 3
"""Number of points inside a part of a coarse mask."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Prompt:
    """One prompt for an object."""

    points: NDArray[np.float32]
    """(P, 2): (x, y) in pixels of the image; P may be 0 with a mask."""
    labels: NDArray[np.float32]
    """(P,): 1 on the object, 0 off it, 2 and 3 the corners of a box."""
    with_mask: bool = False
    """True if the part of the coarse mask is given as well; only for decoders that take a mask."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Target:
    """One object to segment."""

    target: int
    """Index of its class, not counting the background."""
    score: float = 1.0
    """Score of the prompt, in [0, 1]."""
    prompts: tuple[Prompt, ...]
    """Alternative prompts for it; the best answer is used."""
    coarse: NDArray[np.bool_] | None = field(default=None, compare=False)
    """(H, W): the part of the coarse mask that is to be refined; None for prompts without one."""


class GivenPrompts:
    """Prompts of images, with the names of their classes."""

    def __init__(
        self,
        classes: Sequence[str],
        find: Callable[[str], Sequence[Target]],
        condition: Callable[[str], str],
        origin: str,
        names: PromptNames,
        kind: str,
        notes: Sequence[str] = (),
    ) -> None:
        self.classes: tuple[str, ...] = tuple(classes)
        """Names of the classes, without the background."""
        self.origin = origin
        """File or store that the prompts come from."""
        self.targets_of = find
        """Function from an image's uri to the objects to segment."""
        self.condition = condition
        """Function from an image's uri to the text that, besides the pixels, decides its labels."""
        self._names = names
        self.kind: str = kind
        """Kind of the prompts: box, point or coarse mask."""
        self._notes = tuple(notes)

    def check(self, uris: Iterable[str]) -> list[str]:
        """Return warnings about images without prompts and names without an image, from the names alone.

        Raises :class:`UsageError` if no image has a prompt: everything would be labeled background.
        """
        images, without = 0, 0
        unused = dict.fromkeys(self._names.names)
        examples: list[str] = []
        for uri in uris:
            images += 1
            names = self._names.find(uri)
            if not names:
                without += 1
                examples = examples or [uri]
            for name, _ in names:
                unused.pop(name, None)
        names = ", ".join(list(unused)[:3]) + (", …" if len(unused) > 3 else "")
        if images and without == images:
            raise UsageError(
                f"none of the {images} images has a {self.kind} in {self.origin}, which names {names}, and an "
                f"image is {examples[0]}; all would be background: correct the names"
            )
        warnings = [*self._notes]
        if without:
            warnings.append(f"{without} image{'s' * (without > 1)} without a {self.kind}, labeled background")
        if unused:
            is_plural = len(unused) > 1
            warnings.append(
                f"{len(unused)} name{'s' * is_plural} of {self.origin} "
                f"{'have' if is_plural else 'has'} no image: {names}"
            )
        return ["; ".join(warnings)] if warnings else []


def boxes_of(path: str | os.PathLike[str]) -> GivenPrompts:
    """Read boxes; raises :class:`UsageError` naming the line that is not as expected."""
    file = location_of(path)
    classes: Sequence[str] | None = None
    if file.suffix.lower() == ".json":
        rows, num_crowds, classes = coco_boxes(file)
    else:
        rows, num_crowds = [*csv_boxes(file)], 0
    is_plural = num_crowds > 1
    notes = [f"{num_crowds} iscrowd box{'es' * is_plural} of {file} {'are' if is_plural else 'is'} left out"] * (
        num_crowds > 0
    )
    prompts = [(image, label, score, box_prompt(*corners)) for image, label, score, corners in rows]
    return _of_rows(prompts, file, "box", notes, classes)


def points_of(path: str | os.PathLike[str]) -> GivenPrompts:
    """Read points; raises :class:`UsageError` naming the line that is not as expected."""
    file = location_of(path)
    groups: dict[tuple[str, str, str], list[tuple[float, float, float]]] = {}
    for number, row in csv_rows(file, ("image", "label", "x", "y")):
        positive = number_of(row.get("positive") or "1", file, number)
        if positive not in (0, 1):
            raise UsageError(f"{file}, line {number}: positive must be 1 on the object or 0 off it, got {positive:g}")
        point = (
            number_of(row["x"], file, number),
            number_of(row["y"], file, number),
            POSITIVE if positive else NEGATIVE,
        )
        groups.setdefault((row["image"], row["label"], row.get("object") or ""), []).append(point)
    rows = []
    for (image, label, _), points in groups.items():
        values = np.array(points, np.float32)
        if not (values[:, 2] == POSITIVE).any():
            raise UsageError(f"{file}: {label} in {image} has no point on the object; add one with positive 1")
        rows.append((image, label, 1.0, Prompt(points=values[:, :2], labels=values[:, 2])))
    return _of_rows(rows, file, "point")


def masks_of(path: str | os.PathLike[str]) -> GivenPrompts:
    """Open coarse masks; raises :class:`UsageError` for a path that holds no labels."""
    from ...store.run_record import is_store

    names, background, read_map, index = _stored_masks(path) if is_store(path) else _label_files(path)
    classes = [name for index, name in enumerate(names) if index != background]
    numbers = {index: number for number, index in enumerate(i for i in range(len(names)) if i != background)}

    scenes = SceneLabels(_MaskFiles(read_map), None)

    def label_of(uri: str) -> NDArray[Any] | None:
        if not (names := index.find(uri)):
            return None
        name, window = names[0]  # prefer a window's own mask to its file's
        return read_map(name) if window is None else scenes.read(_MaskFile(name), uri.rpartition(MARK)[0], window)

    def find(uri: str) -> Sequence[Target]:
        label = label_of(uri)
        return [] if label is None else list(_parts(label, numbers))

    def condition(uri: str) -> str:
        label = label_of(uri)
        return "" if label is None else f"coarse masks: {_digest(label.tobytes())}"

    return GivenPrompts(classes, find, condition, str(path), index, "coarse mask")


def _of_rows(
    rows: Sequence[tuple[str, str, float, Prompt]],
    file: Path,
    kind: str,
    notes: Sequence[str] = (),
    class_names: Iterable[str] | None = None,
) -> GivenPrompts:
    """Make prompts of (image, class, score, prompt); the classes are those that occur if ``class_names`` is None."""
    if not rows:
        raise UsageError(f"{file} holds no prompts{''.join(f'; {note}' for note in notes)}")
    occurring = {label for _, label, _, _ in rows}
    # sorted, so that a calibration does not depend on the order in which a file lists the classes
    classes = sorted(occurring.union(class_names or ()))
    if BACKGROUND in classes:
        raise UsageError(
            f"{file} prompts for {BACKGROUND}, but the background is what no prompt covers; leave these rows out"
        )
    by_image: dict[str, list[Target]] = {}
    for image, label, score, prompt in rows:
        by_image.setdefault(image, []).append(Target(target=classes.index(label), score=score, prompts=(prompt,)))
    index = PromptNames(by_image, f"images in {file}")

    def find(uri: str) -> Sequence[Target]:
        targets: list[Target] = []
        for name, window in index.find(uri):
            rows = by_image[name]
            targets += rows if window is None else within_window(rows, window, uri.rpartition(MARK)[0])
        return targets

    def condition(uri: str) -> str:
        parts = [
            f"{classes[target.target]} {target.score} {prompt.points.tolist()} {prompt.labels.tolist()}"
            for target in find(uri)
            for prompt in target.prompts
        ]
        return f"prompts: {_digest(json.dumps(sorted(parts)).encode())}" if parts else ""

    return GivenPrompts(classes, find, condition, str(file), index, kind, notes)


def box_prompt(x0: float, y0: float, x1: float, y1: float) -> Prompt:
    """Return the prompt of a box, in pixels of the image."""
    return Prompt(points=np.array([[x0, y0], [x1, y1]], np.float32), labels=np.array([BOX_START, BOX_END], np.float32))


def within_image(targets: Sequence[Target], size: tuple[int, int]) -> list[Target]:
    """Return the objects of an image of ``size`` (height, width) with boxes cut to it.

    Raises :class:`ImageError` for a box without a pixel of the image, or a point outside of it.
    """
    return [replace(target, prompts=tuple(_cut(prompt, size) for prompt in target.prompts)) for target in targets]


def _cut(prompt: Prompt, size: tuple[int, int]) -> Prompt:
    if not len(prompt.points):
        return prompt
    limits = np.array([size[1], size[0]], np.float32)
    points = np.clip(prompt.points, 0, limits)
    corners = points[prompt.labels >= BOX_START]
    is_box = prompt.labels >= BOX_START
    if (points != prompt.points)[~is_box].any() or (len(corners) and not (corners[0] < corners[1]).all()):
        places = ", ".join(f"{value:g}" for value in prompt.points.ravel().tolist())
        raise ImageError(
            "outside", f"the prompt {places} lies outside of the image, {size[1]}x{size[0]} pixels; correct the file"
        )
    return prompt if (points == prompt.points).all() else replace(prompt, points=points)


def within_window(targets: Sequence[Target], window: Window, path: str) -> list[Target]:
    """Return the part of the objects of the file ``path`` that a window shows, in pixels of the window.

    Boxes are cut to the window; points outside of it and objects without a remaining prompt are left out. A point
    on the border of two windows is in the right or lower one; one on the file's own border is in the last window.
    """
    size, start = (window.height, window.width), np.array([window.column, window.row], np.float32)
    parts = []
    for target in targets:
        prompts = []
        for prompt in target.prompts:
            points, is_box = prompt.points - start, prompt.labels >= BOX_START
            inside = is_box | _are_inside(points, window, path)
            moved = replace(prompt, points=points[inside], labels=prompt.labels[inside])
            with suppress(ImageError):  # a box beside the window
                if is_box.any() or (moved.labels == POSITIVE).any():
                    prompts.append(_cut(moved, size))
        if prompts:
            parts.append(replace(target, prompts=tuple(prompts)))
    return parts


def _are_inside(points: NDArray[np.float32], window: Window, path: str) -> NDArray[np.bool_]:
    """Return True (n,) for the points (n, 2), in pixels of a window, that are inside it."""
    limits = np.array([window.width, window.height])
    on_end = points == limits
    inside = (points >= 0) & (points < limits)
    if on_end.any():
        inside |= on_end & _ends_file(path, window)
    return np.all(inside, axis=1)


@lru_cache(maxsize=4096)
def _ends_file(path: str, window: Window) -> tuple[bool, bool]:
    """Return (right, lower): True if that border of a window is its file's border; False if the file is unreadable."""
    try:
        height, width = raster_shape(path)
    except ImageError:  # the window is rejected when it is read
        return False, False
    return window.column + window.width == width, window.row + window.height == height


@dataclass(frozen=True)
class _MaskFile:
    name: str


@dataclass
class _MaskFiles:
    """Coarse masks by name, as label maps of whole files."""

    read_name: Callable[[str], NDArray[Any]]
    format: str = ""

    def read(self, entry: Any, colors: Any = None, *, size: Any = None) -> NDArray[Any]:
        return self.read_name(entry.name)


def _stored_masks(
    path: str | os.PathLike[str],
) -> tuple[Sequence[str], int | None, Callable[[str], NDArray[Any]], PromptNames]:
    from ...store.label_store import LabelStore

    store = LabelStore.open(path)
    ids: Mapping[str, str] = {row.uri: row.id for row in store.inputs() if row.id is not None}
    index = PromptNames(ids, f"images in {path}")

    def read_map(name: str) -> NDArray[Any]:
        return store.maps(store.take([ids[name]])[0])[0]

    return store.classes["targets"], store.classes["background"], read_map, index


def _label_files(
    path: str | os.PathLike[str],
) -> tuple[Sequence[str], int | None, Callable[[str], NDArray[Any]], PromptNames]:
    from ...formats.open import open_reader

    reader = open_reader(str(path))
    index = PromptNames(reader.names(), f"images in {path}")
    names = [reader.class_names.get(value, f"class {value}") for value in range(max(reader.class_names) + 1)]

    return names, names.index(BACKGROUND) if BACKGROUND in names else None, reader.read_labels, index


def _parts(label: NDArray[Any], numbers: Mapping[int, int]) -> Iterator[Target]:
    """Make prompts for the connected parts of each class.

    The prompts are the box, the box with inner points, and the points alone; and, with the part itself as a mask, the
    box with the mask and the mask alone.
    """
    for value in np.unique(label).tolist():
        if value not in numbers:
            continue
        _, parts, statistics, _ = cv2.connectedComponentsWithStats((label == value).astype(np.uint8), connectivity=8)
        for number, (left, top, width, height, area) in enumerate(statistics[1:].tolist(), start=1):
            if area < max(1, MIN_PART * label.size):
                continue
            part = parts == number
            box = box_prompt(left, top, left + width, top + height)
            points = inner_points(part[top : top + height, left : left + width], INNER_POINTS) + (left, top)
            inside = Prompt(points=points.astype(np.float32), labels=np.full(len(points), POSITIVE, np.float32))
            both = Prompt(
                points=np.concatenate([box.points, inside.points]), labels=np.concatenate([box.labels, inside.labels])
            )
            alone = Prompt(points=np.zeros((0, 2), np.float32), labels=np.zeros(0, np.float32), with_mask=True)
            prompts = (box, both, inside, replace(box, with_mask=True), alone)
            yield Target(target=numbers[value], prompts=prompts, coarse=part)


def inner_points(part: NDArray[np.bool_], limit: int) -> NDArray[np.float64]:
    """Return at most ``limit`` points (n, 2), (x, y), deep inside a part and far from each other; n > 0."""
    padded = np.pad(part.astype(np.uint8), 1)
    depth = cv2.distanceTransform(padded, cv2.DIST_L2, 3)[1:-1, 1:-1]
    deepest = float(depth.max())
    points = []
    while len(points) < limit:
        row, column = np.unravel_index(int(depth.argmax()), depth.shape)
        if points and depth[row, column] < deepest / 2:
            break
        points.append((column + 0.5, row + 0.5))
        # exclude a circle around this point, twice as large as the one that fits inside the part
        cv2.circle(depth, (int(column), int(row)), max(1, math.ceil(2 * float(depth[row, column]))), 0.0, -1)
    return np.array(points)


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
