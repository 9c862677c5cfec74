"""The public function that adopts an ONNX model; `maskmill` exports it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from ..engine.arguments import Location, class_names_of
from ..errors import UsageError

if TYPE_CHECKING:
    from ..engine.model.bundle import Activation, Bundle, Channels, Layout, Resize, ResizeFilter


def adopt(
    model: Location,
    output: Location,
    *,
    classes: Location | Sequence[str],
    task: Literal["semantic", "cam"] = "semantic",
    background: str | None = None,
    layout: Layout = "NCHW",
    size: tuple[int, int] | None = None,
    activation: Activation = "softmax",
    output_name: str | None = None,
    resize: Resize = "stretch",
    resize_filter: ResizeFilter = "bilinear",
    antialias: bool = True,
    channels: Channels = "RGB",
    scale: float = 1 / 255,
    mean: float | tuple[float, float, float] = 0.0,
    std: float | tuple[float, float, float] = 1.0,
    pad_value: float = 0.0,
    license: str = "",
) -> Bundle:
    """Make a model bundle from an ONNX file: check the graph, run it, record hashes, classes and preprocessing.

    Parameters
    ----------
    model, output
        The ONNX file, and the folder of the bundle, which must not exist yet.
    classes, background
        Class names in the order of the class axis, or a file with one name per line; the name of the background class.
    task
        ``semantic`` for class scores per pixel, ``cam`` for a classifier with class activation maps.
    layout, size, activation, output_name
        Order of the input's axes; (height, width) in pixels if the graph leaves them open; the function that turns
        the output into scores; the score output's name if there are several.
    resize, resize_filter, antialias, channels, scale, mean, std, pad_value
        How an image (HWC uint8 RGB, [0, 255]) becomes the input: x = (pixel * scale - mean) / std.
    license
        License of the weights, for the record.

    Raises :class:`BundleError` for a graph that cannot be used, :class:`UsageError` for options that contradict it.
    """
    from .adopt.classifier import cam_from_onnx
    from .adopt.semantic import bundle_from_onnx

    names = class_names_of(classes)
    three_mean = (mean, mean, mean) if isinstance(mean, int | float) else mean
    three_std = (std, std, std) if isinstance(std, int | float) else std
    if task == "cam":
        if activation == "none":
            raise UsageError("a classifier's activation is softmax or sigmoid; choose one of them")
        return cam_from_onnx(
            model, output, classes=names, background=background, layout=layout, size=size, activation=activation,
            license=license, resize=resize, resize_filter=resize_filter, antialias=antialias, channels=channels,
            scale=scale, mean=three_mean, std=three_std, pad_value=pad_value,
        )  # fmt: skip
    return bundle_from_onnx(
        model, output, classes=names, background=background, layout=layout, size=size, activation=activation,
        output_name=output_name, license=license, resize=resize, resize_filter=resize_filter, antialias=antialias,
        channels=channels, scale=scale, mean=three_mean, std=three_std, pad_value=pad_value,
    )  # fmt: skip
