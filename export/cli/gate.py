"""Commands that convert bundles, prove artifacts and compare what is installed."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Any

import typer

from ...engine.cli.options import BUNDLE, PROVIDER
from ...engine.runtimes.open import Provider
from ...errors import UsageError


class Precision(StrEnum):
    """What a bundle can be converted to."""

    fp16 = "fp16"
    bf16 = "bf16"
    int8 = "int8"
    fp8 = "fp8"


class OnFail(StrEnum):
    """What follows a precision that does not pass."""

    stop = "stop"
    next = "next"


class Method(StrEnum):
    """How an int8 activation's range follows from what was seen."""

    minmax = "minmax"
    percentile = "percentile"


IMAGES = typer.Option(..., metavar="SOURCE", help="Real images to compare on: a folder, list, glob, archive or URL.")
LIMIT = typer.Option(100, min=1, help="Images taken from the source, evenly spaced.")
MEAN_IOU = typer.Option(None, min=0, max=1, help="Lowest mean over images of the mask IoU.  [default: 0.99]")
WORST_IOU = typer.Option(None, min=0, max=1, help="Lowest mask IoU of any image.  [default: 0.95]")
AGREEMENT = typer.Option(None, min=0, max=1, help="Lowest share of pixels with the same class.  [default: 0.995]")
MIN_IMAGES = typer.Option(None, min=1, help="Fewest images to compare on.  [default: 50]")
MIN_SHARE = typer.Option(
    None, min=0, max=1, help="Share of an image that a class must cover to have an IoU of its own.  [default: 0]"
)
SHIFT = typer.Option(
    None, min=0, max=1, help="Largest move of a score quantile with which calibrations still serve.  [default: 0.01]"
)


def add_commands(app: typer.Typer) -> None:
    """Add ``convert``, ``gate`` and ``bench`` to the application."""
    app.command("convert", rich_help_panel="Models")(convert_bundle)
    app.command("gate", rich_help_panel="Models")(prove)
    app.command("bench", rich_help_panel="Models")(compare_installed)


def convert_bundle(
    bundle: Path = BUNDLE,
    precision: Precision = typer.Option(..., help="What to convert to."),
    images: str = IMAGES,
    limit: int = LIMIT,
    calibration_images: str | None = typer.Option(
        None, metavar="SOURCE", help="Images that 8-bit ranges are taken from.  [default: those of --images]"
    ),
    method: Method = typer.Option(Method.minmax, help="int8 ranges: all that was seen, or all but the last 0.01 %."),
    symmetric: bool = typer.Option(False, help="int8 ranges around 0, as TensorRT asks for."),
    keep_fp32: list[str] = typer.Option([], metavar="NODE", help="A node that stays in fp32; may be given again."),
    role: list[str] = typer.Option([], metavar="ROLE", help="Convert this graph only, e.g. encoder; may be repeated."),
    on_fail: OnFail = typer.Option(OnFail.stop, help="Stop, or walk on: fp16, bf16, fp16 with some nodes in fp32."),
    mean_iou: float | None = MEAN_IOU,
    worst_iou: float | None = WORST_IOU,
    agreement: float | None = AGREEMENT,
    min_images: int | None = MIN_IMAGES,
    min_share: float | None = MIN_SHARE,
    score_quantile_shift: float | None = SHIFT,
) -> None:
    """Add a lower precision to a bundle where it is the same as the original on real images; else write nothing."""
    from ...engine.model.bundle import Bundle
    from ...kernels.processors import usable_processors
    from ..gate.judge import GateImages
    from ..precision.convert import Conversion, convert

    model = Bundle.load(bundle)
    model.verify()
    tolerances = _tolerances(mean_iou, worst_iou, agreement, min_images, min_share, score_quantile_shift)
    how = Conversion(
        roles=tuple(role),
        keep_fp32=tuple(keep_fp32),
        calibration=None if calibration_images is None else GateImages.open(calibration_images, limit=limit),
        method=method.value,
        symmetric=symmetric,
        tolerances=tolerances,
        threads=usable_processors(),
    )
    photos = GateImages.open(images, limit=limit)
    converted = convert(model, precision.value, photos, how=how, on_fail=on_fail.value, say=typer.echo)
    for entry in converted.files:
        if entry.derived_from and entry not in model.files:
            typer.echo(f"wrote {converted.path / entry.path} ({entry.bytes:,} bytes)")


def prove(
    bundle: Path = BUNDLE,
    images: str = IMAGES,
    limit: int = LIMIT,
    precision: str | None = typer.Option(
        None, metavar="PRECISION", help="Which artifact.  [default: every conversion]"
    ),
    provider: Provider = PROVIDER,
    reference: Path | None = typer.Option(
        None, metavar="BUNDLE", help="Compare with this bundle's originals instead; prints, and records nothing."
    ),
    mean_iou: float | None = MEAN_IOU,
    worst_iou: float | None = WORST_IOU,
    agreement: float | None = AGREEMENT,
    min_images: int | None = MIN_IMAGES,
    min_share: float | None = MIN_SHARE,
    score_quantile_shift: float | None = SHIFT,
) -> None:
    """Prove that an artifact, run by a provider, is the same as the bundle's original on real images.

    The verdict goes into the bundle's manifest; without one that passed, conversions and engines do not label.
    """
    from ...engine.model.bundle import Bundle
    from ...kernels.processors import usable_processors
    from ..gate.judge import GateImages, describe, require_pass
    from ..gate.proof import prove_artifact, prove_same

    model = Bundle.load(bundle)
    model.verify()
    tolerances = _tolerances(mean_iou, worst_iou, agreement, min_images, min_share, score_quantile_shift)
    photos = GateImages.open(images, limit=limit)
    if reference is not None:
        verdicts = prove_same(Bundle.load(reference), model, photos, tolerances, threads=usable_processors())
        typer.echo(describe(verdicts[0]))
        require_pass(*verdicts)
        return
    known = sorted({file.precision for file in model.files if file.derived_from and file.role != "external-data"})
    precisions: list[str | None] = [precision] if precision or provider != "cpu" else [*known]
    if not precisions:
        raise UsageError(f"{bundle} has no conversion to prove; make one with `maskmill convert`")
    failed = []
    for each in precisions:
        verdicts = prove_artifact(model, provider, each, photos, tolerances, threads=usable_processors())
        typer.echo(describe(verdicts[0]))
        failed += [verdict for verdict in verdicts if not verdict.passed]
    if failed:
        require_pass(*failed)


def compare_installed(
    bundle: Path = BUNDLE,
    images: str | None = typer.Option(
        None, metavar="SOURCE", help="Real images to time and compare on.  [default: made-up pictures, no comparison]"
    ),
    limit: int = LIMIT,
    seconds: float = typer.Option(5.0, min=0.1, help="Seconds that each is timed for."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON instead of a table."),
) -> None:
    """Images a second of every runtime and precision that is there, and what the gate says of each."""
    from ...engine.model.bundle import Bundle
    from ..gate.bench import measure, print_rows
    from ..gate.judge import GateImages

    model = Bundle.load(bundle)
    model.verify()
    rows = measure(model, GateImages.open(images, limit=limit) if images else None, seconds=seconds)
    print_rows(rows, as_json=as_json)


def _tolerances(
    mean_iou: float | None,
    worst_iou: float | None,
    agreement: float | None,
    min_images: int | None,
    min_share: float | None,
    score_quantile_shift: float | None,
) -> Any:
    """The defaults with what was given in their place, which is printed."""
    from ...engine.model.verdicts import Tolerances

    given = {
        "mean_iou": mean_iou,
        "worst_iou": worst_iou,
        "agreement": agreement,
        "min_images": min_images,
        "min_share": min_share,
        "score_quantile_shift": score_quantile_shift,
    }
    tolerances = Tolerances(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
    if overrides := tolerances.overrides():
        typer.echo(f"tolerances changed: {', '.join(f'{name} {value:g}' for name, value in overrides.items())}")
    return tolerances
