"""Public functions that adopt an ONNX model and rescale its scores; `maskmill` exports them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from ..engine.arguments import Location, class_names_of, counter_if, labels_of, predictor_of
from ..errors import UsageError
from ..kernels.processors import count_workers

if TYPE_CHECKING:
    from ..engine.inputs.labels import LabelSource
    from ..engine.model.bundle import Activation, Bundle
    from ..engine.model.input_spec import Channels, Layout, Resize, ResizeFilter, SampleType
    from ..engine.model.taxonomy import Taxonomy
    from .rescaling import Rescaling


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
    bands: Sequence[int] | None = None,
    sample_type: SampleType = "uint8",
    display_bands: tuple[int, int, int] | None = None,
    scale: float | None = None,
    mean: float | Sequence[float] = 0.0,
    std: float | Sequence[float] = 1.0,
    pad_value: float | Sequence[float] = 0.0,
    license: str = "",
) -> Bundle:
    """Make a model bundle from an ONNX file: check and run the graph, record hashes, classes and preprocessing.

    Parameters
    ----------
    model, output
        The ONNX file, and the folder of the bundle, which must not exist yet.
    classes, background
        Class names in the order of the class axis, or a file with one name per line; the name of the background class.
    task
        ``semantic`` for class scores per pixel, ``cam`` for a classifier with class activation maps.
    layout
        Order of the input's axes, ``NCHW`` or ``NHWC``.
    size
        (height, width) of the input in pixels, if the graph leaves them open.
    activation
        Function that turns the output into scores.
    output_name
        Name of the score output, if the graph has several outputs.
    resize, resize_filter, antialias, channels, scale, mean, std, pad_value
        How an image (HWC uint8 RGB, [0, 255]) becomes the input: x = (pixel * scale - mean) / std; the scale is 1/255
        if None.
    bands, sample_type, display_bands
        For a semantic model of multi-band images: the bands to read, counted from 1, in the order of the model's
        channels; the number type of their samples, of which all except uint8 need a ``scale``; the three bands that
        pictures show.
    license
        License of the weights, kept in the bundle.

    Raises :class:`BundleError` for a graph that cannot be used, :class:`UsageError` for options that contradict it.
    """
    from .adopt.classifier import cam_from_onnx
    from .adopt.preprocessing import with_bands
    from .adopt.semantic import bundle_from_onnx

    names = class_names_of(classes)
    values = {"mean": mean, "std": std, "pad_value": pad_value}
    fields: dict[str, Any] = {
        name: value if isinstance(value, int | float) else tuple(value) for name, value in values.items()
    }
    if scale is not None:
        fields["scale"] = scale
    if bands is not None:
        fields = with_bands(fields, bands, sample_type, display_bands)
    elif sample_type != "uint8" or display_bands is not None:
        raise UsageError("sample_type and display_bands apply to bands; give bands as well")
    else:
        fields |= {name: (fields[name],) * 3 for name in ("mean", "std") if isinstance(fields[name], int | float)}
    fields |= {"resize": resize, "resize_filter": resize_filter, "antialias": antialias, "channels": channels}
    if task == "cam":
        if activation == "none":
            raise UsageError("a classifier's activation is softmax or sigmoid; choose one of them")
        return cam_from_onnx(
            model, output, classes=names, background=background, layout=layout, size=size, activation=activation,
            license=license, **fields,
        )  # fmt: skip
    return bundle_from_onnx(
        model, output, classes=names, background=background, layout=layout, size=size, activation=activation,
        output_name=output_name, license=license, **fields,
    )  # fmt: skip


def rescale(
    model: Location | Bundle,
    images: Location,
    labels: Location | LabelSource,
    output: Location,
    *,
    taxonomy: Location | Taxonomy | None = None,
    ids: Sequence[str] | None = None,
    image_ending: str | None = None,
    bit_depth: int | None = None,
    workers: int | None = None,
    progress: bool = False,
) -> tuple[Bundle, Rescaling]:
    """Fit a scale and per-class offsets of a model's logits to labeled images, and write a bundle that applies them.

    Use it for a teacher that predicts some classes too often or too rarely. Calibrate the new bundle, not the old one.

    Parameters
    ----------
    model, output
        A semantic bundle or its folder, and the folder of the new one, which must not exist yet.
    images, labels, taxonomy, ids, image_ending, bit_depth
        As for :func:`maskmill.calibrate`.
    workers
        Number of images processed in parallel; if None, one per core.
    progress
        Show a progress bar.

    Returns the new bundle and the fitted values, with the mIoU before and after the fit on images left out of it.
    Raises :class:`UsageError` for a model whose scores are not a softmax over classes, :class:`CalibrationError`,
    :class:`TaxonomyError`.
    """
    from ..engine.inputs.sources import open_source
    from .rescaling import rescale_bundle

    predictor, classes = predictor_of(model, taxonomy, "cpu", None, 0, bit_depth=bit_depth)
    with counter_if("rescaling", progress) as observer:
        return rescale_bundle(
            predictor,
            open_source(images, image_ending=image_ending),
            labels_of(labels),
            classes,
            output,
            ids=None if ids is None else frozenset(ids),
            workers=count_workers(workers),
            progress=observer,
        )
