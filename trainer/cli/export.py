"""The command that exports foundation models and students."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

import typer

from ...errors import UsageError
from ...export.cli.adopt import class_list, parse_size
from ...export.cli.gate import LIMIT, OnFail


class Wanted(StrEnum):
    """Precisions that a bundle can be exported in."""

    fp32 = "fp32"
    fp16 = "fp16"
    bf16 = "bf16"
    int8 = "int8"
    fp8 = "fp8"


class BackgroundScore(StrEnum):
    """Where the score of an added background class comes from."""

    rest = "rest"
    void = "void"


class Masks(StrEnum):
    """Masks that a prompt gives."""

    all = "all"
    best = "best"


def add_commands(app: typer.Typer) -> None:
    """Add ``export`` to the application."""
    app.command("export", rich_help_panel="Models")(export_model)


def export_model(
    model: str = typer.Argument(..., metavar="MODEL", help="Hub id, folder with a checkpoint, or a trainer's run."),
    output: Path = typer.Option(..., "-o", "--output", metavar="BUNDLE", help="Folder of the bundle to make."),
    family: str | None = typer.Option(None, metavar="NAME", help="Family of models.  [default: what config.json says]"),
    revision: str | None = typer.Option(None, help="Branch, tag or commit at the hub."),
    classes: Path | None = typer.Option(
        None, metavar="FILE", help="Class names, one a line: new names, or what a model that takes text is asked for."
    ),
    background: str | None = typer.Option(
        None, metavar="NAME", help="The background class; added first where a model of masks or texts has none."
    ),
    background_score: BackgroundScore = typer.Option(
        BackgroundScore.rest, help="Score of an added background: what the best class leaves of 1, or the void mass."
    ),
    template: str = typer.Option("a photo of a {}.", help="The sentence that a class name stands in."),
    masks: Masks = typer.Option(Masks.all, help="Masks a prompt gives: all, or the one with the best predicted IoU."),
    size: str | None = typer.Option(None, metavar="HEIGHTxWIDTH", help="Input size.  [default: the model's own]"),
    precision: Wanted = typer.Option(Wanted.fp32, help="A precision to convert to; fp32 is always written as well."),
    gate_images: str | None = typer.Option(
        None, metavar="SOURCE", help="Real images to compare on; needed for a lower precision.  [default: made-up]"
    ),
    calibration_images: str | None = typer.Option(
        None, metavar="SOURCE", help="Images that 8-bit ranges are taken from.  [default: those of --gate-images]"
    ),
    limit: int = LIMIT,
    on_fail: OnFail = typer.Option(OnFail.stop, help="Stop, or walk on: fp16, bf16, fp16 with some nodes in fp32."),
    allow_pickle: bool = typer.Option(False, help="Read weights from a pickle, which can run any code."),
    license: str = typer.Option("", help="License of the weights.  [default: what the model card says]"),
) -> None:
    """Export a model, compare it with the original, and write a bundle; where they differ nothing is written."""
    from ...engine.model.verdicts import Verdict
    from ...export.gate.judge import GateImages, describe
    from ...export.pretrained.families import Choices, bundle_from_pretrained
    from ..bundle import bundle_from_run, is_run

    if precision is not Wanted.fp32 and gate_images is None:
        raise UsageError(f"{precision.value} is proven on real images; give them with --gate-images")
    if "{}" not in template:
        raise UsageError(f"--template must hold {{}} where the class name goes, got {template!r}")
    photos = None if gate_images is None else GateImages.open(gate_images, limit=limit)
    wanted_size = parse_size(size) if size else None
    if is_run(model):
        bundle = bundle_from_run(model, output, size=wanted_size, license=license, images=photos)
    else:
        choices = Choices(
            classes=None if classes is None else tuple(class_list(classes)),
            background=background,
            background_score=background_score.value,
            size=wanted_size,
            template=template,
            masks=masks.value,
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
    free = f", any multiple of {spec.multiple}" if spec.dynamic else ""
    typer.echo(
        f"{bundle.path}: {bundle.task}, {len(bundle.classes)} classes, input {spec.height}x{spec.width}{free}, "
        f"{spec.resize} {spec.resize_filter}; {bundle.source.exporter}"
    )
    typer.echo(describe(Verdict.from_dict(bundle.verdicts[0])))
    if photos is not None and precision is not Wanted.fp32:
        from ...export.precision.convert import Conversion, convert
        from ...kernels.processors import usable_processors

        calibration = None if calibration_images is None else GateImages.open(calibration_images, limit=limit)
        how = Conversion(calibration=calibration, threads=usable_processors())
        convert(bundle, precision.value, photos, how=how, on_fail=on_fail.value, say=typer.echo)
