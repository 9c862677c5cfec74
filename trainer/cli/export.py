"""The command that exports foundation models and students."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from ...engine.cli.command import needs
from ...engine.cli.options.urls import reads_urls
from ...engine.model.files import read_ordered_class_names
from ...engine.model.input_spec import ResizeFilter
from ...engine.model.storage import location_of
from ...engine.report.terminal import say
from ...errors import UsageError
from ...export.cli.gate import CalibrationImagesOption, OnFailOption, SampleGroup
from ...export.cli.import_model import channel_numbers, parse_size
from ...export.precision.convert import LowPrecision
from ...export.precision.eight_bit import Precision8
from ...export.pretrained.folded import BackgroundScore, Masks
from .options import AllowCodeOption


@reads_urls
@needs(
    num_images="gate_images",
    image_ending="gate_images",
    bit_depth="gate_images",
    calibration_images="precision",
    on_fail="precision",
)
def export_model(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Hub id, folder with a checkpoint, or training run.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="BUNDLE", help="Folder of the bundle to make.")],
    sample: SampleGroup,
    family: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Model family.", show_default="read from config.json"),
    ] = None,
    revision: Annotated[
        str | None, typer.Option(metavar="NAME", help="Branch, tag or commit at the hub.", show_default="main")
    ] = None,
    classes: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            parser=location_of,
            help="Class names, one per line: new names, or the prompts of a model that takes text.",
            show_default="the model's own",
        ),
    ] = None,
    background: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Background class; added as the first class if the model has none.",
            show_default="none added",
        ),
    ] = None,
    background_score: Annotated[
        BackgroundScore,
        typer.Option(help="Score of an added background: 1 minus the best class, or the void probability."),
    ] = "rest",
    template: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="Sentence around a class name, for models that take text.",
            show_default="the family's own",
        ),
    ] = None,
    masks: Annotated[
        Masks, typer.Option(help="Masks per prompt: all, or the one with the best predicted IoU.")
    ] = "all",
    instances: Annotated[
        int,
        typer.Option(
            "--instances",
            min=0,
            max=1000,
            metavar="N",
            help="Also give the N best objects of an image, for label --instances (models with mask queries).",
        ),
    ] = 0,
    size: Annotated[
        str | None, typer.Option(metavar="HEIGHTxWIDTH", help="Input size.", show_default="the model's own")
    ] = None,
    mean: Annotated[
        str | None,
        typer.Option(metavar="M[,M,M]", help="Mean per channel, after scaling.", show_default="the model's own"),
    ] = None,
    std: Annotated[
        str | None, typer.Option(metavar="S[,S,S]", help="Divisor per channel.", show_default="the model's own")
    ] = None,
    resize_filter: Annotated[
        ResizeFilter | None,
        typer.Option(
            metavar="NAME",
            help=f"Interpolation filter of the resize: {', '.join(get_args(ResizeFilter))}.",
            show_default="the model's own",
        ),
    ] = None,
    precision: Annotated[
        LowPrecision | None,
        typer.Option(help="Lower precision to write in addition to fp32.", show_default="fp32 only"),
    ] = None,
    gate_images: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE",
            help="Real images to compare on; needed for a lower precision.",
            show_default="2 generated images",
        ),
    ] = None,
    calibration_images: CalibrationImagesOption = None,
    on_fail: OnFailOption = "stop",
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Read weights from a pickle, which can run any code.")
    ] = False,
    allow_code: AllowCodeOption = False,
    license: Annotated[
        str, typer.Option(metavar="TEXT", help="License of the weights, if the model card does not say it.")
    ] = "",
) -> None:
    """Export a model, compare it with the original, and write a bundle; nothing is written if they differ."""
    from ...engine.model.verdicts import Verdict
    from ...export.gate.judge import describe
    from ...export.pretrained.families import Choices, bundle_from_pretrained
    from ..bundle import bundle_from_run, is_run
    from ..run import Run

    if calibration_images is not None and precision not in get_args(Precision8):
        raise UsageError(f"--calibration-images apply to --precision int8 and fp8, not to {precision}; leave them out")
    if precision is not None and gate_images is None:
        raise UsageError(f"--precision {precision} is checked on real images; give them with --gate-images")
    if template is not None and "{}" not in template:
        raise UsageError(f"--template must hold {{}} where the class name goes, got {template!r}")
    run = Run.load(model) if is_run(model) else None
    bands = None if run is None else run.input.bands
    if run is not None and sample.bit_depth is None:
        sample = replace(sample, bit_depth=run.bit_depth)
    photos = sample.open(gate_images, bands)
    wanted_size = parse_size(size) if size else None
    if run is not None:
        _refuse_for_a_run(
            {
                "--family": family,
                "--revision": revision,
                "--classes": classes,
                "--background": background,
                "--mean": mean,
                "--std": std,
                "--resize-filter": resize_filter,
                "--allow-pickle": allow_pickle or None,
                "--instances": instances or None,
                "--background-score": None if background_score == "rest" else background_score,
                "--template": template,
                "--masks": None if masks == "all" else masks,
            }
        )
        bundle = bundle_from_run(model, output, size=wanted_size, license=license, allow_code=allow_code, images=photos)
    else:
        if allow_code:
            raise UsageError("--allow-code applies to a training run only: code of a checkpoint is never run")
        choices = Choices(
            classes=None if classes is None else tuple(read_ordered_class_names(classes)),
            background=background,
            background_score=background_score,
            size=wanted_size,
            mean=None if mean is None else channel_numbers(mean, "--mean", 3),
            std=None if std is None else channel_numbers(std, "--std", 3),
            resize_filter=resize_filter,
            template=template,
            masks=masks,
            instances=instances,
        )
        bundle = bundle_from_pretrained(
            model,
            output,
            choices,
            family=family,
            revision=revision,
            allow_pickle=allow_pickle,
            license=license,
            images=photos,
        )
    spec = bundle.input
    multiples = f", any multiple of {spec.multiple}" if spec.dynamic else ""
    say(
        f"{bundle.location}: {bundle.task}, {len(bundle.classes)} classes, "
        f"input {spec.height}x{spec.width}{multiples}, {spec.resize} {spec.resize_filter}; {bundle.source.exporter}"
    )
    verdict = Verdict.from_dict(bundle.verdicts[0])
    say(describe(verdict))
    if photos is None:
        say(f"compared on {verdict.metrics.images} generated images; use --gate-images for real ones")
    else:
        say(photos.summary.line())
    if run is not None and run.bit_depth is not None:
        say(f"the student was trained with --bit-depth {run.bit_depth}: give it to `maskmill label`, too")
    if photos is not None and precision is not None:
        from ...export.precision.convert import Conversion, convert
        from ...kernels.processors import usable_processors

        how = Conversion(calibration=sample.open(calibration_images, bands), threads=usable_processors())
        convert(bundle, precision, photos, how=how, on_fail=on_fail, say=say)


def _refuse_for_a_run(options: dict[str, Any]) -> None:
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise UsageError(f"{', '.join(given)} does not apply to a training run, which knows its classes; leave it out")
