"""Read an image processor's configuration, a file of Hugging Face models, into the fields of a bundle's input.

::

    steps = read_preprocessor("preprocessor_config.json")
    InputSpec(name="image", height=512, width=512, **steps.fields)

Every key of the configuration is checked: an unknown key, and one that changes pixels in a way that a bundle cannot
express, are errors.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...engine.model.input_spec import BandSpec, SampleType, default_display
from ...engine.model.schema import read_json_object
from ...errors import UsageError

PIL_FILTERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "area"}
"""Pillow's numbers of resampling filters, as ``resample`` has them."""

_READ = frozenset(
    ("do_resize", "size", "resample", "do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")
    + ("do_flip_channel_order", "do_center_crop", "pad_size", "include_top", "rescale_offset", "do_reduce_labels")
    + ("reduce_labels", "image_processor_type", "feature_extractor_type")
)
# keys about labels, prompts and file formats, or about crops and shapes that a stretch replaces
_HARMLESS = frozenset(
    ("processor_class", "auto_map", "_processor_class", "do_convert_rgb", "data_format", "input_data_format")
    + ("return_tensors", "device", "disable_grouping", "image_seq_length", "default_to_square", "crop_size", "crop_pct")
    + ("do_pad", "size_divisor", "ensure_multiple_of", "keep_aspect_ratio", "max_size", "_max_size", "ignore_index")
    + ("num_labels", "num_text", "repo_path", "class_info_file", "metadata", "mask_size", "mask_pad_size")
    + ("do_split_image", "id2label", "label2id", "transformers_version", "_valid_processor_keys", "return_row_col_info")
)


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Steps of an image processor that decide pixels and labels."""

    fields: Mapping[str, Any] = field(default_factory=dict)
    """Fields of :class:`maskmill.engine.model.bundle.InputSpec`."""
    size: tuple[int, int] | None = None
    """(height, width) that images are resized to, in pixels; None if the configuration leaves it open."""
    reduced_labels: bool = False
    """True if label maps of the model's dataset hold 0 for unlabeled pixels and k + 1 for class k."""


def read_preprocessor(path: str | os.PathLike[str]) -> Preprocessing:
    """Read a ``preprocessor_config.json``.

    Raises :class:`UsageError` for a file that cannot be read, and for steps that a bundle cannot express.
    """
    try:
        config = read_json_object(Path(path))
    except FileNotFoundError:
        raise UsageError(f"the preprocessor {path} does not exist") from None
    return preprocessing_of(config, path)


def preprocessing_of(config: Mapping[str, Any], path: str | os.PathLike[str]) -> Preprocessing:
    """Read a configuration that stands in ``path``; raises :class:`UsageError` as :func:`read_preprocessor` does."""
    unknown = [name for name, value in config.items() if name not in _READ | _HARMLESS and value not in (None, False)]
    if unknown:
        raise UsageError(
            f"{path} has the key {unknown[0]!r}, whose effect on pixels is not known; if it has none, remove it from "
            "the file, else give the steps with --size, --scale, --mean, --std and --resize-filter"
        )
    if config.get("do_center_crop"):
        raise UsageError(f"{path} crops the center of images; labels need the whole image, so set do_center_crop false")
    fields: dict[str, Any] = {}
    size = _resize(config, path, fields) if config.get("do_resize", True) else None
    _normalize(config, path, fields)
    if config.get("do_flip_channel_order"):
        fields["channels"] = "BGR"
    flag = config.get("do_reduce_labels", config.get("reduce_labels", False))
    return Preprocessing(fields=fields, size=size, reduced_labels=bool(flag))


def with_bands(
    fields: Mapping[str, Any],
    numbers: Sequence[int],
    sample_type: SampleType = "uint8",
    display: tuple[int, int, int] | None = None,
) -> dict[str, Any]:
    """Complete fields of an :class:`InputSpec` for a model that takes bands of a file.

    One mean, standard deviation or pad value applies to every band. Pictures show the bands ``display``, or the first
    three; samples of more than 8 bits are shown from 0 to 1 / scale, or two standard deviations around the mean.

    Raises :class:`UsageError` for values that are not one per band, and if samples of more than 8 bits have no scale.
    """
    numbers, fields = tuple(numbers), dict(fields)
    if sample_type != "uint8" and "scale" not in fields:
        raise UsageError(f"{sample_type} samples need a scale, such as --scale 1/10000")
    for name, default in (("mean", 0.0), ("std", 1.0)):
        value = fields.get(name, default)
        values = tuple(value) if isinstance(value, Sequence) else (value,)
        fields[name] = values[:1] * len(numbers) if len(set(values)) == 1 else values
    if display is None and numbers:
        display = default_display(numbers)
    display_range = (0.0, 255.0)
    if sample_type != "uint8":
        scale, low, high = fields["scale"], 0.0, 1.0
        if set(fields["mean"]) != {0.0} or set(fields["std"]) != {1.0}:
            low = min(mean - 2 * std for mean, std in zip(fields["mean"], fields["std"], strict=False))
            high = max(mean + 2 * std for mean, std in zip(fields["mean"], fields["std"], strict=False))
        first, last = sorted((low / scale, high / scale)) if scale else (low, high)
        display_range = (first, last)
    fields["bands"] = BandSpec(
        numbers=numbers, sample_type=sample_type, display=display or (1, 1, 1), display_range=display_range
    )
    return fields


def _resize(config: Mapping[str, Any], path: str | os.PathLike[str], fields: dict[str, Any]) -> tuple[int, int]:
    """Set how images are resized, and return the (height, width) that they are resized to."""
    value = config.get("size")
    sides = {"height": value, "width": value} if isinstance(value, int) else value
    if isinstance(sides, Mapping):
        sides = {name: side for name, side in sides.items() if side is not None}
    if isinstance(sides, Mapping) and {"height", "width"} <= set(sides):
        size, fields["resize"] = (sides["height"], sides["width"]), "stretch"
    elif isinstance(sides, Mapping) and set(sides) == {"longest_edge"}:
        edge = sides["longest_edge"]
        pad_size = config.get("pad_size")
        pad_size = pad_size if isinstance(pad_size, Mapping) else {"height": edge, "width": edge}
        size, fields["resize"] = (pad_size.get("height"), pad_size.get("width")), "longest-side"
    else:
        raise UsageError(
            f"{path} resizes to {value}; give --size and --resize instead (height and width, or longest side)"
        )
    height, width = size
    if not (isinstance(height, int) and isinstance(width, int) and min(height, width) > 0):
        raise UsageError(f"{path} resizes to {value}; sizes must be whole numbers of pixels, give --size HEIGHTxWIDTH")
    resample = config.get("resample", 2)
    if not isinstance(resample, int) or resample not in PIL_FILTERS:
        names = ", ".join(f"{number} {name}" for number, name in PIL_FILTERS.items())
        raise UsageError(f"{path} resamples with filter {resample!r}; known are {names}; give --resize-filter")
    fields["resize_filter"] = PIL_FILTERS[resample]
    return height, width


def _normalize(config: Mapping[str, Any], path: str | os.PathLike[str], fields: dict[str, Any]) -> None:
    """Set scale, mean and std such that x = (pixel * scale - mean) / std."""
    scale, mean, std = 1.0, (0.0,) * 3, (1.0,) * 3
    if config.get("do_rescale", True):
        scale = _number(config.get("rescale_factor", 1 / 255), f"{path}: rescale_factor")
    if config.get("do_normalize", True):
        mean, std = (_three(config, name, path) for name in ("image_mean", "image_std"))
    if config.get("rescale_offset"):
        mean = tuple(value + 1 for value in mean)
    kind = str(config.get("image_processor_type") or config.get("feature_extractor_type") or "")
    if config.get("include_top", kind.startswith("EfficientNet")):
        # EfficientNet's classifiers divide by the standard deviation a second time
        std = tuple(value * again for value, again in zip(std, _three(config, "image_std", path), strict=True))
    fields["scale"] = scale
    if mean != (0.0,) * 3 or std != (1.0,) * 3 or config.get("do_normalize", True):
        fields["mean"], fields["std"] = mean, std


def _three(config: Mapping[str, Any], name: str, path: str | os.PathLike[str]) -> tuple[float, float, float]:
    option = "--mean" if name == "image_mean" else "--std"
    value = config.get(name)
    if value is None:
        state = "is null" if name in config else "is missing"
        raise UsageError(f"{path} normalizes, but its {name} {state}; give {option}")
    values = list(value) if isinstance(value, list | tuple) else [value] * 3
    if len(values) != 3:
        raise UsageError(f"{path}: {name} must have three values, one per channel, got {value!r}; give {option}")
    first, second, third = (_number(part, f"{path}: {name}") for part in values)
    return first, second, third


def _number(value: object, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UsageError(f"{name} must be a number, got {value!r}")
    return float(value)
