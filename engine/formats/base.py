"""Base of all label formats: classes, labeled images, readers, writers, and painting shapes into a map.

A reader opens a label file or folder, lists its images and rasterizes the map of one image per call::

    reader = open_reader("instances.json")          # any format, see maskmill.engine.formats.open
    reader.class_names                              # {0: "background", 1: "cow", …}: values of the maps
    label = reader.read_labels(reader.names()[0])   # (H, W) uint8 or uint16

A writer is given one batch of labeled images at a time, in any order and from any thread, and assembles what belongs to
all images at the end. In every format the class name ``ignore`` means: these pixels have no label.
"""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from ...errors import MaskmillError, UsageError
from ..model.publishing import write_atomically

BACKGROUND = "background"
IGNORE = "ignore"

Ignored = Literal["drop", "background", "class"]
"""How ignored pixels are written in a format that cannot mark them: no shape, background, or a class named ``ignore``.
"""
ImageMode = Literal["copy", "link", "none"]
"""Photos beside the labels: copies, symbolic links, or none."""
Overlaps = Literal["smaller", "later"]
"""The upper one of two overlapping shapes: the one with fewer pixels, or the later one in the file."""
Uncovered = Literal["auto", "background", "ignore"]
"""Label of pixels without a shape."""


@dataclass(frozen=True, kw_only=True)
class LabelClasses:
    """Class names of label maps, value i meaning ``names[i]``."""

    names: tuple[str, ...]
    """Names of the K classes."""
    background: int | None = None
    """Index of the background class, or None."""

    @property
    def ignore(self) -> int:
        """Value of ignored pixels: 255, or 65535 with more than 255 classes."""
        return 255 if len(self.names) <= 255 else 65535

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the maps, uint8 or uint16."""
        return np.dtype(np.uint8 if len(self.names) <= 255 else np.uint16)

    @cached_property
    def colors(self) -> NDArray[np.uint8]:
        """Color of each class, (K, 3) uint8 RGB: PASCAL VOC's palette, which never repeats below 256 classes."""
        return voc_palette(len(self.names))


@dataclass(frozen=True, kw_only=True)
class Instance:
    """One object of an image."""

    target: int
    """Index of its class."""
    score: float
    """Score of the object, in [0, 1]."""
    box: tuple[int, int, int, int]
    """(x, y, width, height) of its pixels."""
    counts: str
    """Mask as COCO's compressed run lengths."""
    area: int
    """Number of pixels."""
    quality: float = 1.0
    """Quality of the mask in [0, 1]: the IoU that the model predicts for it, or else its stability."""


@dataclass(frozen=True, kw_only=True)
class LabeledImage:
    """One image's labels, as a writer receives them."""

    name: str
    """Relative name of the photo with ``/`` and extension, unique in the export, as in ``street/0001.jpg``."""
    stem: str
    """The name without extension, unique in the export: the name of files that belong to the image."""
    label: NDArray[Any]
    """(H, W) uint8 or uint16 class indices or the ignore value."""
    weight: NDArray[np.uint8] | None = None
    """(H, W) uint8 weight of each pixel, 255 for full weight; None if weights are not exported."""
    score: float = 1.0
    """Mean confidence of the labels, in [0, 1]."""
    data: bytes | None = None
    """Bytes of the photo's file; None if they are not needed."""
    path: str | None = None
    """Absolute path of a local photo, for links."""
    instances: tuple[Instance, ...] | None = None
    """Objects of the image, best first, no two of which share a pixel; None if classes are exported, not objects."""
    doubtful: tuple[Instance, ...] = ()
    """Objects below the thresholds: they may be right, so their pixels are not written as background."""


class FileSink:
    """Files written into a folder, each complete as soon as its name exists, with their sha256 in :attr:`files`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, str] = {}

    def save(self, relative: str, data: bytes) -> None:
        """Write a file and its folders."""
        target = self._place(relative)
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, data)
        self.files[relative] = hashlib.sha256(data).hexdigest()

    def adopt(self, relative: str, temporary: Path) -> None:
        """Move a file that was written under a temporary name to its final name."""
        with temporary.open("rb") as stream:
            self.files[relative] = hashlib.file_digest(stream, "sha256").hexdigest()
        os.replace(temporary, self._place(relative))

    def link(self, relative: str, path: str) -> None:
        """Make a symbolic link to a local photo; links are not hashed."""
        target = self._place(relative)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        target.symlink_to(path)

    def _place(self, relative: str) -> Path:
        """Return the path of a file; raises :class:`UsageError` for a name outside the folder."""
        parts = Path(relative)
        if parts.is_absolute() or ".." in parts.parts or "\0" in relative:
            raise UsageError(f"an export writes into its own folder only, not to {relative!r:.200}")
        return self.folder / parts


@dataclass(frozen=True, kw_only=True)
class WriterOptions:
    """Choices of one export."""

    classes: LabelClasses
    images: ImageMode = "none"
    weights: bool = False
    """True if weights are written."""
    instances: bool = False
    """True if single objects are written in place of one mask per class."""
    ignored: Ignored | None = None
    """How ignored pixels are written; needed by formats that cannot mark them."""
    certificate: str = "{}"
    """The certificate's text, for formats that carry metadata of their own."""


class Writer(ABC):
    """Base of all writers: :meth:`write` makes one batch's part, :meth:`finish` assembles the parts."""

    format: ClassVar[str]
    marks_ignored: ClassVar[bool] = False
    """True if the format can mark a pixel as unlabeled."""
    holds_instances: ClassVar[bool] = False
    """True if the format tells objects of one class apart."""
    holds_weights: ClassVar[bool] = False
    """True if the format can hold weights."""
    merges_windows: ClassVar[bool] = False
    """True if windows of one file become one file again."""
    image_modes: ClassVar[tuple[ImageMode, ...]] = ("none", "copy", "link")
    """Choices for photos, the default first."""
    batch: ClassVar[int] = 1
    """Consecutive images that are written together."""

    def __init__(self, options: WriterOptions) -> None:
        """Check the options against the format; raises :class:`UsageError`."""
        self.options = options
        if options.images not in self.image_modes:
            raise UsageError(
                f"{self.format} cannot be written with --images {options.images}; it takes "
                f"{', '.join(self.image_modes)}"
            )
        if options.weights and not self.holds_weights:
            raise UsageError(f"{self.format} has no place for weights; leave out --weights, or export png as well")
        if options.instances and not self.holds_instances:
            raise UsageError(
                f"{self.format} cannot distinguish objects of the same class; use coco or coco-panoptic with "
                "--instances"
            )
        if self.marks_ignored and options.ignored is not None:
            raise UsageError(f"{self.format} marks ignored pixels itself; leave out --ignored")
        if not self.marks_ignored and options.ignored is None:
            raise UsageError(
                f"{self.format} cannot mark pixels without a label; give --ignored drop (no shape there), "
                "background (they count as background), or class (a class named `ignore`)"
            )
        if options.ignored == "background" and options.classes.background is None:
            raise UsageError("--ignored background needs a background class, and these labels have none")
        names = options.classes.names
        self.names: tuple[str, ...] = (*names, IGNORE) if options.ignored == "class" else names
        """Names of the values that :meth:`labels` returns."""

    def labels(self, image: LabeledImage) -> NDArray[Any]:
        """Return the map to write, ignored pixels as ``--ignored`` says: the ignore value, background, or class K."""
        classes, fate = self.options.classes, self.options.ignored
        if fate not in ("background", "class"):
            return image.label
        value = len(classes.names)
        if fate == "background" and classes.background is not None:
            value = classes.background
        if value == classes.ignore:
            # 255 classes and one more need 16 bits
            return np.where(image.label == classes.ignore, np.uint16(value), image.label.astype(np.uint16))
        return np.where(image.label == classes.ignore, image.label.dtype.type(value), image.label)

    def place_image(self, sink: FileSink, image: LabeledImage, relative: str) -> None:
        """Copy or link the photo to a place in the export, as the options say."""
        if self.options.images == "copy" and image.data is not None:
            sink.save(relative, image.data)
        elif self.options.images == "link":
            if image.path is None:
                raise UsageError(f"{image.name} is not a local file and cannot be linked; use --images copy")
            sink.link(relative, image.path)

    @abstractmethod
    def write(self, index: int, images: Sequence[LabeledImage], sink: FileSink) -> str:
        """Write the files of batch ``index`` and return its part of the common files, one line or an empty string."""

    def finish(self, parts: Callable[[], Iterator[str]], sink: FileSink) -> None:  # noqa: B027
        """Write the files that belong to all images; ``parts()`` yields what :meth:`write` returned, in order."""


class LabelReader(ABC):
    """Base of all readers."""

    format: str

    path: str
    """File, folder or URL that was opened."""
    class_names: Mapping[int, str]
    """Name of every value that the maps may hold; the ignore value has none."""
    image_names: Sequence[str]
    """Images with labels, by their names in the file or folder."""
    stored_values: bool = False
    """True if values are read as stored; otherwise this reader numbers the classes, and only names matter."""
    notes: tuple[str, ...] = ()
    """Decisions that a reader should tell its user, as in "pixels without a shape are background"."""

    def __len__(self) -> int:
        return len(self.image_names)

    def names(self) -> Sequence[str]:
        """Return the names of the images that have labels, as the format writes them."""
        return self.image_names

    def read_labels(self, name: str, size: tuple[int, int] | None = None) -> NDArray[Any]:
        """Rasterize the label map (H, W) uint8 or uint16 of one image of :meth:`names`.

        ``size`` is the image's (height, width), for formats that may not state it. Raises :class:`UsageError` if the
        labels are damaged or name an unknown class.
        """
        with damage_named(self.path):
            return self.decode_labels(name, size)

    @abstractmethod
    def decode_labels(self, name: str, size: tuple[int, int] | None = None) -> NDArray[Any]:
        """Rasterize a map for :meth:`read_labels`; may raise any exception for values of the wrong type."""


@contextmanager
def damage_named(path: str) -> Iterator[None]:
    """Turn errors about values of a wrong type or size in other programs' files into one that names the file."""
    try:
        yield
    except MaskmillError:
        raise
    except (AttributeError, TypeError, KeyError, IndexError, ValueError, OverflowError, RecursionError) as error:
        detail = str(error).partition("\n")[0][:200]
        raise UsageError(f"{path} is damaged: {type(error).__name__}, {detail}; write it again") from error


@dataclass(frozen=True, kw_only=True)
class ShapeOptions:
    """Options of reading files that hold shapes."""

    overlaps: Overlaps | None = None
    """Shape on top where two overlap; the format's own rule if None."""
    uncovered: Uncovered = "auto"
    """Label of pixels without a shape; ``auto``: background, but ignored if background has shapes of its own."""
    background: str = BACKGROUND
    """Name of the background class."""
    crowds: Literal["ignore", "object"] = "ignore"
    """Meaning of COCO's ``iscrowd``: pixels to ignore, or an object like any other, as CVAT and Datumaro write it."""
    predictions: bool = True
    """True if a file of predictions that nobody edited counts as labels (Label Studio)."""
    option: str = "--labels-format"
    """Option of the command that names the format, for messages."""


class ShapeClasses:
    """Values of the classes of a format that draws shapes, and the value of pixels without a shape."""

    def __init__(self, names: Iterable[str], options: ShapeOptions, *, used_names: Iterable[str]) -> None:
        """Number the classes; ``used_names`` are those with shapes."""
        unique = dict.fromkeys(name for name in names if name != IGNORE)
        ignored = options.uncovered == "ignore" or (
            options.uncovered == "auto" and options.background in set(used_names)
        )
        if not ignored:
            unique = unique if options.background in unique else {options.background: None} | unique
        sequence = tuple(unique)
        self.table = LabelClasses(names=sequence)
        self.values = {name: value for value, name in enumerate(sequence)} | {IGNORE: self.table.ignore}
        """Value of every class name."""
        self.uncovered = self.table.ignore if ignored else self.values[options.background]
        self.note = "pixels without a shape are " + ("ignored" if ignored else options.background)

    @property
    def by_value(self) -> dict[int, str]:
        """Name of every value."""
        return dict(enumerate(self.table.names))


@dataclass(frozen=True)
class Shape:
    """Pixels of one value."""

    value: int
    runs: NDArray[np.int64]
    """Runs down the columns, see :mod:`.rle`."""
    area: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "area", int((self.runs[:, 1] - self.runs[:, 0]).sum()))


def paint_shapes(
    shapes: Iterable[Shape], height: int, width: int, classes: ShapeClasses, overlaps: Overlaps = "later"
) -> NDArray[Any]:
    """Paint shapes into a label map (H, W); with ``smaller`` the shapes of fewer pixels come on top.

    Ignored shapes are painted first, so that labeled shapes inside them keep their labels.
    """
    from .rle import paint_runs  # imported here, since it needs Numba and predictors do not

    columns = np.full(height * width, classes.uncovered, dtype=classes.table.dtype)
    sequence = list(shapes)
    if overlaps == "smaller":
        sequence.sort(key=lambda shape: -shape.area)
    sequence.sort(key=lambda shape: shape.value != classes.table.ignore)
    for shape in sequence:
        paint_runs(columns, shape.runs, shape.value)
    return np.ascontiguousarray(columns.reshape(width, height).T)


def check_size(height: Any, width: Any, where: str) -> tuple[int, int]:
    """Check an image's size as a file states it; raises :class:`UsageError`."""
    try:
        size = int(height), int(width)
    except (TypeError, ValueError):
        size = (0, 0)
    if min(size) < 1 or size[0] * size[1] > 1 << 30:
        raise UsageError(f"{where}: expected the image's height and width in pixels, got {height!r} and {width!r}")
    return size


def voc_palette(number: int) -> NDArray[np.uint8]:
    """Return PASCAL VOC's colors, (number, 3) uint8 RGB."""
    index = np.arange(number)
    colors = np.zeros((number, 3), dtype=np.uint8)
    for bit in range(8):
        for channel in range(3):
            colors[:, channel] |= ((index >> (3 * bit + channel)) & 1).astype(np.uint8) << np.uint8(7 - bit)
    return colors
