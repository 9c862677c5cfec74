"""Label maps that are hard for label formats, and exports of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as stn
from numpy.typing import NDArray

from maskmill.engine.formats.base import FileSink, Ignored, LabelClasses, LabeledImage, LabelReader, WriterOptions
from maskmill.engine.formats.open import WRITERS, OutputFormat

from ...builders import encoded, photo

CLASSES = LabelClasses(names=("background", "cow", "horse, brown", "tête"), background=0)
"""Four classes; one name holds a comma, one is not ASCII."""

label_maps = stn.arrays(
    st.sampled_from([np.uint8, np.uint16]),
    stn.array_shapes(min_dims=2, max_dims=2, max_side=12),
    elements=st.integers(0, 3),
)
"""Small maps with holes, regions that touch at corners, and single pixels."""


def nested_map() -> NDArray[np.uint8]:
    """A ring around a ring around a pixel, regions that touch at a corner, and ignored pixels in three corners."""
    label = np.zeros((20, 31), dtype=np.uint8)
    label[2:17, 3:20] = 1
    label[4:15, 5:18] = 2
    label[6:13, 7:16] = 1
    label[9, 11] = 3
    label[9, 13] = 0
    label[0:2, 0:3] = label[17:, 20:] = label[:2, -1:] = 255
    label[18, 3] = label[19, 4] = 3
    return label


def labeled_images(maps: Sequence[NDArray[Any]]) -> list[LabeledImage]:
    """Images ``folder 0/0.png``, ``folder 1/1.png`` … with the label maps and made-up weights."""
    return [
        LabeledImage(
            name=f"folder {index % 2}/{index}.png",
            stem=f"folder {index % 2}/{index}",
            label=label,
            weight=np.full(label.shape, 100 + index % 100, dtype=np.uint8),
            score=0.75,
            data=encoded(photo(*label.shape, seed=index), "PNG"),
        )
        for index, label in enumerate(maps)
    ]


def write(
    folder: Path,
    format: OutputFormat,
    maps: Sequence[NDArray[Any]],
    *,
    classes: LabelClasses = CLASSES,
    ignored: Ignored | None = None,
    weights: bool = False,
) -> list[LabeledImage]:
    """Write label maps and photos in one format, as an export does."""
    kind = WRITERS[format]
    if ignored is None and not kind.marks_ignored:
        ignored = "class"
    writer = kind(WriterOptions(classes=classes, images="copy", ignored=ignored, weights=weights))
    folder.mkdir(parents=True, exist_ok=True)
    sink, images = FileSink(folder), labeled_images(maps)
    parts = [
        writer.write(start // writer.batch, images[start : start + writer.batch], sink)
        for start in range(0, len(images), writer.batch)
    ]
    writer.finish(lambda: iter(parts), sink)
    return images


def read(reader: LabelReader, name: str, classes: LabelClasses = CLASSES) -> NDArray[Any]:
    """Read one image's map as indices of ``classes``."""
    ignore = 65535 if len(reader.class_names) > 255 else 255
    table = np.full(65536, 9999)
    table[ignore] = classes.ignore
    for value, class_name in reader.class_names.items():
        if class_name in classes.names:
            table[value] = classes.names.index(class_name)
    return table[reader.read_labels(name)]


def name_in(reader: LabelReader, stem: str) -> str:
    """Return the name under which a reader lists the image of ``stem``."""
    (name,) = [name for name in reader.names() if name in (stem, f"{stem}.png")]
    return name
