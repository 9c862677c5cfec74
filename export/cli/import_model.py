"""Commands that adopt ONNX models, fit a head on a classifier, and inspect the machine."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import typer

from ...engine.cli.options.common import BundleArgument, options_of_call
from ...engine.cli.options.inputs import SOURCE_HELP
from ...engine.cli.options.urls import UrlGroup, reads_urls
from ...engine.model.bundle import Activation, Bundle
from ...engine.model.files import read_ordered_class_names
from ...engine.model.input_spec import Channels, InputSpec, Layout, Resize, ResizeFilter, SampleType
from ...engine.model.storage import location_of
from ...engine.report.terminal import say
from ...errors import UsageError
from ..adopt.boxes import BoxLayout

ImportTask = Literal["semantic", "cam", "promptable", "detector"]
"""Tasks of a bundle that an ONNX file can be adopted for."""


@reads_urls
def import_model(
    context: typer.Context,
    model: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL.onnx|SCORES",
            help="ONNX file (for a promptable model: its encoder), or a folder of scores per image.",
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="BUNDLE", help="Folder of the bundle to make.")],
    classes: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            parser=location_of,
            help="Class names in the order of the class axis, one per line; not for promptable models.",
        ),
    ] = None,
    task: Annotated[
        ImportTask,
        typer.Option(
            metavar="NAME",
            help="semantic: class scores per pixel; cam: classifier with class activation maps; promptable: prompts to "
            "masks; detector: boxes, as prompts.",
        ),
    ] = "semantic",
    decoder: Annotated[
        Path | None, typer.Option(metavar="DECODER.onnx", help="Decoder of a promptable model (--task promptable).")
    ] = None,
    box_layout: Annotated[
        BoxLayout | None,
        typer.Option(
            metavar="NAME",
            help="Outputs of a detector: yolo, yolo-nms (suppression in the graph) or detr.",
            show_default="by their shapes",
        ),
    ] = None,
    background: Annotated[
        str | None, typer.Option(metavar="NAME", help="Name of the background class.", show_default="no background")
    ] = None,
    layout: Annotated[Layout, typer.Option(help="Order of the input's axes.")] = "NCHW",
    size: Annotated[
        str | None,
        typer.Option(
            metavar="HEIGHTxWIDTH", help="Input size, if the graph leaves it open.", show_default="the graph's"
        ),
    ] = None,
    resize: Annotated[
        Resize | None,
        typer.Option(
            metavar="NAME",
            help="stretch to the input size, or keep the aspect ratio and pad (longest-side).",
            show_default="stretch",
        ),
    ] = None,
    resize_filter: Annotated[
        ResizeFilter | None,
        typer.Option(
            metavar="NAME",
            help=f"Interpolation filter of the resize: {', '.join(get_args(ResizeFilter))}.",
            show_default="bilinear",
        ),
    ] = None,
    antialias: Annotated[
        bool | None,
        typer.Option("--antialias/--no-antialias", help="Use antialiasing when shrinking.", show_default="antialias"),
    ] = None,
    channels: Annotated[Channels | None, typer.Option(help="Order of the color channels.", show_default="RGB")] = None,
    bands: Annotated[
        str | None,
        typer.Option(
            metavar="N,N,...",
            help="Bands of a file that the model takes, in the order of its channels, such as 4,3,2.",
            show_default="red, green and blue",
        ),
    ] = None,
    sample_type: Annotated[
        SampleType, typer.Option(metavar="NAME", help="Number type of bands: uint8, uint16, int16 or float32.")
    ] = "uint8",
    display_bands: Annotated[
        str | None,
        typer.Option(
            metavar="N,N,N", help="Bands that pictures show as red, green and blue.", show_default="the first three"
        ),
    ] = None,
    scale: Annotated[
        str | None,
        typer.Option(
            metavar="FACTOR",
            help="Factor on samples (0 to 255 in photos), a number or a fraction such as 1/255.",
            show_default="1/255; bands of other types need one",
        ),
    ] = None,
    mean: Annotated[
        str | None,
        typer.Option(
            metavar="M[,M,...]",
            help="Subtracted after scaling: x = (pixel * scale - mean) / std.",
            show_default="0",
        ),
    ] = None,
    std: Annotated[
        str | None, typer.Option(metavar="S[,S,...]", help="Divisor after subtracting.", show_default="1")
    ] = None,
    pad_value: Annotated[
        str | None,
        typer.Option(
            metavar="V[,V,...]",
            help="Value of padded pixels, before scaling.",
            show_default="0; SAM's mean for promptable",
        ),
    ] = None,
    activation: Annotated[
        Activation | None,
        typer.Option(
            metavar="NAME",
            help="Function that turns the output into scores: softmax, sigmoid or none.",
            show_default="softmax; none for a folder of scores",
        ),
    ] = None,
    output_name: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Name of the score output.", show_default="the only output"),
    ] = None,
    features_name: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Name of a tensor to keep as features.", show_default="no features"),
    ] = None,
    preprocessor: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Hugging Face preprocessor file (JSON); other options take precedence over it."
        ),
    ] = None,
    license: Annotated[str, typer.Option(metavar="TEXT", help="License of the weights, for the record.")] = "",
    preview: Annotated[
        Path | None, typer.Option(metavar="IMAGE", help="Label this image and write preview.png into the bundle.")
    ] = None,
) -> None:
    """Make a bundle from an ONNX model: check the graph, run it on pictures, record its hashes.

    A folder of scores from any other program also becomes a bundle, with --classes, --background and --activation. For
    each image NAME it holds NAME.npy or NAME.zarr with the axes (classes, height, width), or a folder NAME with a gray
    CLASS.png per class; if NAME/scores.json gives confidences, these are binary masks.
    """
    from ...engine.report.preview import read_photo, write_preview
    from ..adopt.preprocessing import Preprocessing, read_preprocessor, with_bands
    from ..adopt.semantic import bundle_from_onnx

    if model.is_dir():
        _refuse_for_scores(context)
        from ...engine.predictors.score_files import write_score_bundle

        bundle = write_score_bundle(
            output, scores=model, classes=_class_names(classes), background=background,
            activation=activation or "none", license=license,
        )  # fmt: skip
        say(f"{bundle.location}: scores of {len(bundle.classes)} classes from the files in {model}")
        return
    if task != "semantic":
        _refuse_unless_semantic(
            {"--output-name": output_name, "--features-name": features_name, "--preview": preview, "--bands": bands},
            task,
        )
    numbers = None if bands is None else parse_bands(bands, "--bands")
    num_channels = 3 if numbers is None else len(numbers)
    steps = read_preprocessor(preprocessor) if preprocessor else Preprocessing()
    settings = dict(steps.fields)
    stated = {
        "resize": resize,
        "resize_filter": resize_filter,
        "antialias": antialias,
        "channels": channels,
        "scale": None if scale is None else _number(scale, "--scale"),
        "mean": None if mean is None else channel_numbers(mean, "--mean", num_channels),
        "std": None if std is None else channel_numbers(std, "--std", num_channels),
        "pad_value": None if pad_value is None else _pad_value(pad_value, num_channels),
    }
    settings.update({name: value for name, value in stated.items() if value is not None})
    if numbers is not None:
        display_numbers = None if display_bands is None else parse_bands(display_bands, "--display-bands")
        if display_numbers is not None and len(display_numbers) != 3:
            raise UsageError(f"--display-bands must be three band numbers, got {display_bands!r}")
        settings = with_bands(settings, numbers, sample_type, display_numbers)
    elif sample_type != "uint8" or display_bands is not None:
        raise UsageError("--sample-type and --display-bands apply to --bands; give it as well")
    photo = None if preview is None else read_photo(preview, settings.get("bands"))
    common: dict[str, Any] = {"layout": layout, "size": parse_size(size) if size else steps.size, "license": license}
    if box_layout is not None and task != "detector":
        raise UsageError("--box-layout applies to --task detector; leave it out, or add --task detector")
    if (task == "promptable") != (decoder is not None):
        raise UsageError("--decoder DECODER.onnx and --task promptable go together; give both or neither")
    if decoder is not None:
        from ..adopt.promptable import promptable_from_onnx

        _refuse_unless_semantic({"--classes": classes, "--background": background, "--activation": activation}, task)
        bundle = promptable_from_onnx(model, decoder, output, **common, **settings)
    else:
        common |= {
            "classes": _class_names(classes),
            "background": background,
            "activation": activation or "softmax",
        }
        if task == "detector":
            from ..adopt.boxes import detector_from_onnx

            _refuse_unless_semantic({"--background": background}, task)
            common |= {"boxes": box_layout, "activation": activation}
            del common["background"]
            bundle = detector_from_onnx(model, output, **common, **settings)
        elif task == "cam":
            from ..adopt.classifier import cam_from_onnx

            bundle = cam_from_onnx(model, output, **common, **settings)
        else:
            bundle = bundle_from_onnx(
                model,
                output,
                output_name=output_name,
                features_name=features_name,
                reduced_labels=steps.reduced_labels,
                images=() if photo is None else [(str(preview), photo)],
                **common,
                **settings,
            )
    spec = bundle.input
    say(
        f"{bundle.location}: {_meaning(bundle)}, input {spec.height}x{spec.width} {spec.layout} {_channels(spec)}, "
        f"{spec.resize} {spec.resize_filter}{' antialiased' if spec.antialias else ''}, "
        f"x = ({'sample' if spec.bands else 'pixel'} * {spec.scale:g} - {_tuple(spec.mean)}) / {_tuple(spec.std)}"
    )
    for change in bundle.source.changes:
        say(f"note: {change}")
    if bundle.reduced_labels:
        say("note: label maps of its dataset hold 0 for unlabeled pixels and k + 1 for class k")
    if photo is not None:
        picture = write_preview(bundle, photo, bundle.path / "preview.png")
        say(f"check {picture}: the labels must follow the objects in the photo")


@reads_urls
def cam_head(
    bundle: BundleArgument,
    images: Annotated[str, typer.Option(metavar="SOURCE", help=f"Images to fit on: {SOURCE_HELP}.")],
    image_labels: Annotated[
        Path,
        typer.Option(
            metavar="FILE", parser=location_of, help="Classes that each image shows: CSV, JSON lines or COCO."
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="BUNDLE", help="Folder of the bundle to make.")],
    regularization: Annotated[
        float, typer.Option(metavar="NUMBER", min=0, help="Weight of the head's squared norm.")
    ] = 0.01,
) -> None:
    """Fit a classifier of your classes on the frozen features of a cam bundle, from image-level labels."""
    from ...engine.inputs.image_labels import ImageLabels
    from ...engine.inputs.sources import open_source
    from ...engine.inputs.summary import SourceSummary
    from ..adopt.cam_head import fit_cam_head

    source = open_source(images)
    result, report = fit_cam_head(
        Bundle.load(bundle),
        source,
        ImageLabels.load(image_labels),
        output,
        regularization=regularization,
    )
    for name, count in report.counts.items():
        precision = report.precision[name]
        say(f"  {name}: {count} images, average precision {'-' if precision is None else f'{precision:.3f}'}")
    say(
        f"{result.path}: {len(result.classes)} classes from {report.num_images} images ({report.skipped} not listed); "
        f"mean average precision on held-out images {report.mean_precision:.3f}"
    )
    say(SourceSummary(images=report.num_images, skipped=source.skipped).line())


def doctor() -> None:
    """Print the installed packages and the devices, and the command that installs each missing package."""
    from ..doctor import print_report

    print_report()


def _refuse_unless_semantic(options: dict[str, Any], task: ImportTask) -> None:
    """Raise :class:`UsageError` for an option that belongs to semantic models only."""
    for name, value in options.items():
        if value is not None:
            raise UsageError(f"{name} does not apply to --task {task}; leave it out")


def _class_names(file: Path | None) -> list[str]:
    if file is None:
        raise UsageError("class names are needed: --classes FILE, one per line in the order of the class axis")
    return read_ordered_class_names(file)


def _refuse_for_scores(context: typer.Context) -> None:
    """Raise :class:`UsageError` for an option that does not describe a folder of scores."""
    names = options_of_call(context)
    of_scores = {"model", "output", "classes", "background", "activation", "license"}
    others = sorted(names[name] for name in names.keys() - of_scores - {field.name for field in fields(UrlGroup)})
    if others:
        raise UsageError(f"{', '.join(others)} describes a graph, and a folder of scores has none; leave it out")


def _number(text: str, option: str) -> float:
    try:
        numerator, _, denominator = text.partition("/")
        return float(numerator) / float(denominator or 1)
    except (ValueError, ZeroDivisionError):
        raise UsageError(f"{option} must be a number or a fraction such as 1/255, got {text!r}") from None


def _meaning(bundle: Bundle) -> str:
    """Describe the outputs of a bundle in a few words."""
    if bundle.prompt is not None:
        return f"{bundle.prompt.num_masks} mask(s) per prompt, {bundle.prompt.signature} decoder"
    if bundle.task == "detector":
        return f"boxes of {len(bundle.classes)} classes"
    activation = next(output.activation for output in bundle.outputs if output.kind in ("scores", "logits"))
    return f"{len(bundle.classes)} classes, {activation}"


def _channels(spec: InputSpec) -> str:
    if spec.bands is None:
        return spec.channels
    return f"bands {','.join(map(str, spec.bands.numbers))} of {spec.bands.sample_type}"


def _pad_value(text: str, num_channels: int) -> float | tuple[float, ...]:
    values = channel_numbers(text, "--pad-value", num_channels)
    return values[0] if len(set(values)) == 1 else values


def channel_numbers(text: str, option: str, num_channels: int) -> tuple[float, ...]:
    """Parse one number for all channels, or one per channel; raise :class:`UsageError` that names ``option``."""
    parts = [_number(part, option) for part in text.split(",")]
    if len(parts) == 1:
        parts *= num_channels
    if len(parts) != num_channels:
        number = "three" if num_channels == 3 else str(num_channels)
        raise UsageError(f"{option} must be one number or {number} separated by commas, got {text!r}")
    return tuple(parts)


def parse_bands(text: str, option: str) -> tuple[int, ...]:
    """Parse band numbers and ranges, such as ``1-4,8``; raise :class:`UsageError` that names ``option``."""
    numbers: list[int] = []
    for part in text.split(","):
        ends = [end.strip() for end in part.split("-")]
        if len(ends) > 2 or not all(end.isdecimal() and len(end) < 6 for end in ends) or int(ends[0]) > int(ends[-1]):
            raise UsageError(
                f"{option} must be band numbers or ranges separated by commas, counted from 1, such as 1-4,8; got "
                f"{text!r}"
            )
        numbers += range(int(ends[0]), int(ends[-1]) + 1)
    return tuple(numbers)


def parse_size(text: str) -> tuple[int, int]:
    """Parse ``HEIGHTxWIDTH``, or one number for both, into (height, width) in pixels."""
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UsageError(f"--size must be HEIGHTxWIDTH or one number, as in 512x1024, got {text!r}")
    return int(parts[0]), int(parts[-1])


def _tuple(values: tuple[float, ...]) -> str:
    shown = [f"{value:g}" for value in values]
    return shown[0] if len(set(shown)) == 1 else f"({', '.join(shown)})"
