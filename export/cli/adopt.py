"""Commands that make bundles and look at the machine."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Any

import typer

from ...engine.model.bundle import Bundle
from ...errors import UsageError


class Layout(StrEnum):
    """Order of the input's axes."""

    nchw = "NCHW"
    nhwc = "NHWC"


class Resize(StrEnum):
    """How an image reaches the input's size."""

    stretch = "stretch"
    longest_side = "longest-side"


class ResizeFilter(StrEnum):
    """Interpolation of the resize."""

    bilinear = "bilinear"
    bicubic = "bicubic"
    area = "area"


class Channels(StrEnum):
    """Order of the color channels."""

    rgb = "RGB"
    bgr = "BGR"


class Activation(StrEnum):
    """What turns the output into scores."""

    softmax = "softmax"
    sigmoid = "sigmoid"
    none = "none"


class ImportTask(StrEnum):
    """Tasks that an ONNX file can be adopted for."""

    semantic = "semantic"
    cam = "cam"
    promptable = "promptable"


def add_commands(app: typer.Typer) -> None:
    """Add ``import``, ``cam-head`` and ``doctor`` to the application."""
    app.command("import", rich_help_panel="Models")(import_model)
    app.command("cam-head", rich_help_panel="Models")(cam_head)
    app.command("doctor")(doctor)


def import_model(
    model: Path = typer.Argument(..., metavar="MODEL.onnx", help="The ONNX file; of a promptable model its encoder."),
    output: Path = typer.Option(..., "-o", "--output", metavar="BUNDLE", help="Folder of the bundle to make."),
    classes: Path | None = typer.Option(
        None, help="Class names in the order of the class axis, one a line; not for promptable models."
    ),
    task: ImportTask = typer.Option(
        ImportTask.semantic,
        help="Class scores; a classifier with activation maps, or whose maps follow; prompts to masks.",
    ),
    decoder: Path | None = typer.Option(
        None, metavar="DECODER.onnx", help="Decoder of a promptable model (--task promptable)."
    ),
    background: str | None = typer.Option(None, metavar="NAME", help="Which class is the background, if any."),
    layout: Layout = typer.Option(Layout.nchw, help="Order of the input's axes."),
    size: str | None = typer.Option(None, metavar="HEIGHTxWIDTH", help="Input size; needed where it is not fixed."),
    resize: Resize | None = typer.Option(None, help="Stretch, or keep the aspect ratio and pad.  [default: stretch]"),
    resize_filter: ResizeFilter | None = typer.Option(None, help="Interpolation filter.  [default: bilinear]"),
    antialias: bool | None = typer.Option(
        None, "--antialias/--no-antialias", help="Widen the filter when shrinking.  [default: antialias]"
    ),
    channels: Channels | None = typer.Option(None, help="Order of the color channels.  [default: RGB]"),
    scale: str | None = typer.Option(
        None, help="Factor on pixels (0 to 255), a number or a fraction such as 1/255.  [default: 1/255]"
    ),
    mean: str | None = typer.Option(
        None, metavar="M[,M,M]", help="Subtracted after scaling: x = (pixel * scale - mean) / std.  [default: 0]"
    ),
    std: str | None = typer.Option(None, metavar="S[,S,S]", help="Divisor after subtracting.  [default: 1]"),
    pad_value: str | None = typer.Option(
        None, metavar="V[,V,V]", help="Value of padded pixels, 0 to 255.  [default: 0; SAM's mean for promptable]"
    ),
    activation: Activation = typer.Option(Activation.softmax, help="What turns the output into scores."),
    output_name: str | None = typer.Option(None, help="Name of the score output, where the graph has several."),
    preprocessor: Path | None = typer.Option(
        None, help="A Hugging Face preprocessor_config.json; options given as well take precedence."
    ),
    license: str = typer.Option("", help="License of the weights, for the record."),
    preview: Path | None = typer.Option(
        None, metavar="IMAGE", help="Label this image and write the overlay BUNDLE/preview.png."
    ),
) -> None:
    """Adopt an ONNX model: check the graph, run it once, record its hashes."""
    from ..adopt.semantic import bundle_from_onnx, preprocessing_from_config

    fields, input_size = preprocessing_from_config(preprocessor) if preprocessor else ({}, None)
    given = {
        "resize": resize and resize.value,
        "resize_filter": resize_filter and resize_filter.value,
        "antialias": antialias,
        "channels": channels and channels.value,
        "scale": None if scale is None else _number(scale, "--scale"),
        "mean": None if mean is None else _three(mean, "--mean"),
        "std": None if std is None else _three(std, "--std"),
        "pad_value": None if pad_value is None else _pad_value(pad_value),
    }
    fields.update({name: value for name, value in given.items() if value is not None})
    common: dict[str, Any] = {"layout": layout.value, "size": parse_size(size) if size else input_size}
    common["license"] = license
    if (task is ImportTask.promptable) != (decoder is not None):
        raise UsageError("--decoder DECODER.onnx goes with --task promptable, and the other way round")
    if decoder is not None:
        from ..adopt.promptable import promptable_from_onnx

        bundle = promptable_from_onnx(model, decoder, output, **common, **fields)
    else:
        if classes is None:
            raise UsageError("class names are needed: --classes FILE, one a line in the order of the class axis")
        common |= {"classes": class_list(classes), "background": background, "activation": activation.value}
        if task is ImportTask.cam:
            from ..adopt.classifier import cam_from_onnx

            bundle = cam_from_onnx(model, output, **common, **fields)
        else:
            bundle = bundle_from_onnx(model, output, output_name=output_name, **common, **fields)
    spec = bundle.input
    typer.echo(
        f"{bundle.path}: {_meaning(bundle)}, "
        f"input {spec.height}x{spec.width} {spec.layout} {spec.channels}, "
        f"{spec.resize} {spec.resize_filter}{' antialiased' if spec.antialias else ''}, "
        f"x = (pixel * {spec.scale:g} - {_tuple(spec.mean)}) / {_tuple(spec.std)}"
    )
    if preview is not None:
        from ..preview import write_preview

        typer.echo(f"look at {write_preview(bundle, preview)}: labels must follow the objects in the photo")


def cam_head(
    bundle: Path = typer.Argument(..., metavar="BUNDLE", help="A cam bundle whose graph gives its features."),
    images: str = typer.Option(..., metavar="SOURCE", help="Images: a folder, list, glob, tar or URL."),
    image_labels: Path = typer.Option(..., metavar="FILE", help="Classes that they show: CSV, JSON lines, COCO."),
    output: Path = typer.Option(..., "-o", "--output", metavar="BUNDLE", help="Folder of the bundle to make."),
    regularization: float = typer.Option(0.01, help="Weight of the head's squared norm."),
) -> None:
    """Fit a classification head on frozen features: a classifier of your classes from image-level labels."""
    from ...engine.inputs.image_labels import ImageLabels
    from ...engine.inputs.sources import open_source
    from ..adopt.cam_head import fit_cam_head

    fitted, report = fit_cam_head(
        Bundle.load(bundle),
        open_source(images),
        ImageLabels.load(image_labels),
        output,
        regularization=regularization,
    )
    for name, count in report.counts.items():
        precision = report.precision[name]
        typer.echo(f"  {name}: {count} images, average precision {'-' if precision is None else f'{precision:.3f}'}")
    typer.echo(
        f"{fitted.path}: {len(fitted.classes)} classes from {report.num_images} images ({report.skipped} not listed); "
        f"mean average precision on held-out images {report.mean_precision:.3f}"
    )


def doctor() -> None:
    """Print what this machine can run, what is missing and the line that installs it."""
    from ..doctor import print_report

    print_report()


def _number(text: str, option: str) -> float:
    try:
        numerator, _, denominator = text.partition("/")
        return float(numerator) / float(denominator or 1)
    except (ValueError, ZeroDivisionError):
        raise UsageError(f"{option} must be a number or a fraction such as 1/255, got {text!r}") from None


def _meaning(bundle: Bundle) -> str:
    """What a bundle gives, in a few words."""
    if bundle.prompt is not None:
        return f"{bundle.prompt.num_masks} mask(s) a prompt, {bundle.prompt.signature} decoder"
    activation = next(output.activation for output in bundle.outputs if output.kind in ("scores", "logits"))
    return f"{len(bundle.classes)} classes, {activation}"


def _pad_value(text: str) -> float | tuple[float, float, float]:
    values = _three(text, "--pad-value")
    return values[0] if len(set(values)) == 1 else values


def _three(text: str, option: str) -> tuple[float, float, float]:
    parts = [_number(part, option) for part in text.split(",")]
    if len(parts) == 1:
        parts *= 3
    if len(parts) != 3:
        raise UsageError(f"{option} must be one number or three separated by commas, got {text!r}")
    return parts[0], parts[1], parts[2]


def class_list(path: Path) -> list[str]:
    """Names of the classes in their order; raises :class:`UsageError` where the file leaves one out."""
    from ...engine.model.files import read_class_names

    names = read_class_names(path)
    if sorted(names) != list(range(len(names))):
        raise UsageError(f"{path} must name every class from 0 to {max(names)}, with none left out")
    return [names[index] for index in range(len(names))]


def parse_size(text: str) -> tuple[int, int]:
    """(height, width) in pixels of ``HEIGHTxWIDTH``, or of one number for both."""
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UsageError(f"--size must be HEIGHTxWIDTH or one number, as in 512x1024, got {text!r}")
    return int(parts[0]), int(parts[-1])


def _tuple(values: tuple[float, ...]) -> str:
    shown = [f"{value:g}" for value in values]
    return shown[0] if len(set(shown)) == 1 else f"({', '.join(shown)})"
