"""Read the rows of files of boxes and points: CSV, and boxes in COCO's JSON."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from ....errors import UsageError
from ...formats.base import BACKGROUND, IGNORE
from ...model.files import MAX_TEXT, read_text
from ...model.schema import read_json_object

Corners = tuple[float, float, float, float]
"""(x0, y0, x1, y1) in pixels of the image."""
_FARTHEST = 1e6  # pixels; larger numbers are not coordinates


def csv_rows(file: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the line number and the values of each row; raises :class:`UsageError` if one of the columns has none."""
    reader = csv.DictReader(io.StringIO(read_text(file, "the prompts"), newline=""))
    if missing_columns := [name for name in columns if name not in (reader.fieldnames or ())]:
        raise UsageError(f"{file} needs a first line with {','.join(columns)}; it lacks {', '.join(missing_columns)}")
    for row in reader:
        if None in row or any(not (row[name] or "").strip() for name in columns):
            raise UsageError(f"{file}, line {reader.line_num}: expected a value for each of {','.join(columns)}")
        yield reader.line_num, {name: value.strip() for name, value in row.items() if value is not None}


def csv_boxes(file: Path) -> Iterator[tuple[str, str, float, Corners]]:
    """Yield image, class, score and corners of the boxes of a CSV file."""
    for number, row in csv_rows(file, ("image", "label", "x0", "y0", "x1", "y1")):
        x0, y0, x1, y1 = (number_of(row[name], file, number) for name in ("x0", "y0", "x1", "y1"))
        score = number_of(row.get("score") or "1", file, number)
        _check(x0, y0, x1, y1, score, f"{file}, line {number}")
        yield row["image"], row["label"], score, (x0, y0, x1, y1)


def coco_boxes(file: Path) -> tuple[list[tuple[str, str, float, Corners]], int, list[str]]:
    """Return image, class, score and corners of the boxes of a COCO file, the crowds left out, and the classes.

    Classes are the categories, whether they have a box or not, without the background and the pixels to ignore.
    """
    from ...formats.coco import category_names, image_files, is_crowd, owner_of  # imported here, since it needs Numba

    boxes, num_crowds = [], 0
    try:
        raw = read_json_object(file, max_bytes=MAX_TEXT)
        categories, images = category_names(raw["categories"], file), image_files(raw["images"], file)
        for number, annotation in enumerate(raw["annotations"]):
            where = f"{file}, annotation {number}"
            image, label = owner_of(annotation, images, categories, where)
            if is_crowd(annotation, where):
                num_crowds += 1
                continue
            x0, y0, width, height = map(float, annotation["bbox"])
            score = float(annotation.get("score", 1.0))
            _check(x0, y0, x0 + width, y0 + height, score, where)
            boxes.append((image, label, score, (x0, y0, x0 + width, y0 + height)))
    except UsageError:
        raise
    except OSError as error:
        raise UsageError(f"cannot read the prompts {file}: {error.strerror or error}") from error
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise UsageError(f"{file} is not a COCO file of images, categories and boxes ({error!r:.200})") from error
    return boxes, num_crowds, [name for name in categories.values() if name not in (BACKGROUND, IGNORE)]


def _check(x0: float, y0: float, x1: float, y1: float, score: float, where: str) -> None:
    if not (-_FARTHEST <= x0 < x1 <= _FARTHEST and -_FARTHEST <= y0 < y1 <= _FARTHEST and 0 <= score <= 1):
        raise UsageError(
            f"{where}: expected a box x0 < x1, y0 < y1 in pixels and a score in [0, 1], got {x0:g}, {y0:g}, {x1:g}, "
            f"{y1:g} and {score:g}; correct it or leave it out"
        )


def number_of(text: str, file: Path, line: int) -> float:
    """Read a number of pixels or a score; raises :class:`UsageError` with its line."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not abs(value) <= _FARTHEST:
        raise UsageError(f"{file}, line {line}: expected a number of pixels or a score, got {text!r:.80}")
    return value
