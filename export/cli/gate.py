"""Commands that convert bundles, prove artifacts, and compare the installed runtimes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, get_args, overload

import typer

from ...engine.cli.command import needs
from ...engine.cli.options.common import BundleArgument, ChangedBundleArgument, JsonOption
from ...engine.cli.options.groups import OptionGroup
from ...engine.cli.options.inputs import SOURCE_HELP, ImageGroup
from ...engine.cli.options.model import ProviderOption
from ...engine.cli.options.urls import reads_urls
from ...engine.model.storage import location_of
from ...engine.report.terminal import say
from ...errors import UsageError
from ..precision.convert import LowPrecision, OnFail
from ..precision.eight_bit import Method, Precision8

if TYPE_CHECKING:
    from ...engine.model.bundle import Bundle
    from ...engine.model.input_spec import BandSpec
    from ...engine.model.verdicts import Tolerances
    from ..gate.judge import GateImages

GateImagesOption = Annotated[
    str, typer.Option("--images", metavar="SOURCE", help=f"Real images to compare on: {SOURCE_HELP}.")
]
NumImagesOption = Annotated[
    int,
    typer.Option("--num-images", metavar="N", min=1, help="Number of images to use, evenly spaced over the source."),
]
CalibrationImagesOption = Annotated[
    str | None,
    typer.Option(
        "--calibration-images",
        metavar="SOURCE",
        help="Images to compute 8-bit ranges from.",
        show_default="the images of the comparison",
    ),
]
OnFailOption = Annotated[
    OnFail,
    typer.Option(
        "--on-fail",
        help="If the precision fails: stop, or try the next one (fp16, bf16, fp16 with some nodes in fp32).",
    ),
]
MeanIouOption = Annotated[
    float | None,
    typer.Option("--mean-iou", metavar="SHARE", min=0, max=1, help="Lowest mean mask IoU.", show_default="0.99"),
]
WorstIouOption = Annotated[
    float | None,
    typer.Option(
        "--worst-iou", metavar="SHARE", min=0, max=1, help="Lowest mask IoU of any image.", show_default="0.95"
    ),
]
AgreementOption = Annotated[
    float | None,
    typer.Option(
        "--agreement",
        metavar="SHARE",
        min=0,
        max=1,
        help="Lowest share of pixels with the same class.",
        show_default="0.995",
    ),
]
MinImagesOption = Annotated[
    int | None, typer.Option("--min-images", metavar="N", min=1, help="Fewest images to compare on.", show_default="50")
]
MinShareOption = Annotated[
    float | None,
    typer.Option(
        "--min-share",
        metavar="SHARE",
        min=0,
        max=1,
        help="Smallest share of an image that a class must cover to count in its IoU.",
        show_default="0",
    ),
]
ClassIouOption = Annotated[
    float | None,
    typer.Option(
        "--class-iou",
        metavar="SHARE",
        min=0,
        max=1,
        help="Lowest mask IoU of a class over all images.",
        show_default="0.9",
    ),
]
RequireClassesOption = Annotated[
    str | None,
    typer.Option(
        "--require-classes",
        metavar="NAME[,NAME]",
        help="Classes that the images must show, or 'all'.",
        show_default="none",
    ),
]
BatchOption = Annotated[
    int | None,
    typer.Option(
        "--artifact-batch", metavar="N", min=1, help="Images per call of the artifact.", show_default="2, if it can"
    ),
]
ShiftOption = Annotated[
    float | None,
    typer.Option(
        "--max-shift",
        metavar="SHARE",
        min=0,
        max=1,
        help="Largest shift of a score quantile for calibrations to stay valid.",
        show_default="0.01",
    ),
]


@dataclass(frozen=True, kw_only=True)
class SampleGroup(ImageGroup):
    """Images of a source that artifacts are compared on."""

    num_images: NumImagesOption = 100

    @overload
    def open(self, source: str, bands: BandSpec | None = None) -> GateImages: ...
    @overload
    def open(self, source: str | None, bands: BandSpec | None = None) -> GateImages | None: ...
    def open(self, source: str | None, bands: BandSpec | None = None) -> GateImages | None:
        """Choose images of ``source``, which hold the ``bands`` that the model takes; None for None."""
        from ..gate.judge import GateImages

        if source is None:
            return None
        return GateImages.open(
            source, limit=self.num_images, bands=bands, bit_depth=self.bit_depth, image_ending=self.image_ending
        )


@dataclass(frozen=True, kw_only=True)
class ToleranceGroup(OptionGroup):
    """How far masks may differ from the original's; None: the default of :class:`Tolerances`."""

    panel: ClassVar[str] = "Tolerances"
    mean_iou: MeanIouOption = None
    worst_iou: WorstIouOption = None
    agreement: AgreementOption = None
    min_images: MinImagesOption = None
    min_share: MinShareOption = None
    class_iou: ClassIouOption = None
    require_classes: RequireClassesOption = None
    score_quantile_shift: ShiftOption = None

    def tolerances(self, bundle: Bundle) -> Tolerances:
        """Return the tolerances; prints those that are not the defaults."""
        from ...engine.model.verdicts import Tolerances
        from ..gate.judge import describe_limit

        values = {name: value for name, value in asdict(self).items() if value is not None}
        names = values.pop("require_classes", None)
        if names is not None:
            required_names = tuple(name.strip() for name in names.split(",") if name.strip())
            values["required_classes"] = bundle.classes if required_names == ("all",) else required_names
        tolerances = Tolerances(**values)
        if overrides := tolerances.overrides():
            say(f"tolerances changed: {', '.join(f'{name} {describe_limit(v)}' for name, v in overrides.items())}")
        return tolerances


@reads_urls
def convert_bundle(
    bundle: ChangedBundleArgument,
    images: GateImagesOption,
    sample: SampleGroup,
    limits: ToleranceGroup,
    precision: Annotated[LowPrecision, typer.Option(help="Precision to convert to.")],
    calibration_images: CalibrationImagesOption = None,
    method: Annotated[
        Method,
        typer.Option(help="int8 ranges: of all values (minmax), or without the most extreme 0.01 % (percentile)."),
    ] = "minmax",
    symmetric: Annotated[bool, typer.Option("--symmetric", help="int8 ranges around 0, which TensorRT needs.")] = False,
    keep_fp32: Annotated[
        list[str] | None,
        typer.Option(metavar="NODE", help="Node that stays in fp32; repeat for several.", show_default=False),
    ] = None,
    role: Annotated[
        list[str] | None,
        typer.Option(metavar="ROLE", help="Graph to convert, such as encoder; repeat for several.", show_default="all"),
    ] = None,
    on_fail: OnFailOption = "stop",
) -> None:
    """Convert a bundle to a lower precision; keep the result only if it gives the original's masks on real images."""
    from ...engine.model.bundle import Bundle
    from ...kernels.processors import usable_processors
    from ..precision.convert import Conversion, convert

    if precision != "int8" and (method != "minmax" or symmetric):
        raise UsageError(f"--method and --symmetric apply to --precision int8, not to {precision}; leave them out")
    if precision not in get_args(Precision8) and calibration_images is not None:
        raise UsageError(f"--calibration-images apply to --precision int8 and fp8, not to {precision}; leave them out")
    model = Bundle.load(bundle)
    model.verify()
    tolerances = limits.tolerances(model)
    how = Conversion(
        roles=tuple(role or ()),
        keep_fp32=tuple(keep_fp32 or ()),
        calibration=sample.open(calibration_images, model.input.bands),
        method=method,
        symmetric=symmetric,
        tolerances=tolerances,
        threads=usable_processors(),
    )
    photos = sample.open(images, model.input.bands)
    new_bundle = convert(model, precision, photos, how=how, on_fail=on_fail, say=say)
    say(photos.summary.line())
    for entry in new_bundle.files:
        if entry.derived_from and entry not in model.files:
            say(f"wrote {new_bundle.path / entry.path} ({entry.bytes:,} bytes)")


@reads_urls
def prove(
    bundle: ChangedBundleArgument,
    images: GateImagesOption,
    sample: SampleGroup,
    limits: ToleranceGroup,
    precision: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Precision to check.", show_default="every conversion"),
    ] = None,
    provider: ProviderOption = "cpu",
    batch: BatchOption = None,
    reference: Annotated[
        Path | None,
        typer.Option(
            metavar="BUNDLE",
            parser=location_of,
            help="Compare with the original of this bundle instead; no verdict is recorded.",
        ),
    ] = None,
) -> None:
    """Compare an artifact with the bundle's original on real images, and record the verdict.

    A conversion or an engine can label only with a passing verdict.
    """
    from ...engine.model.bundle import Bundle
    from ...kernels.processors import usable_processors
    from ..gate.judge import describe, require_pass
    from ..gate.proof import prove_artifact, prove_same

    if reference is not None and (precision is not None or provider != "cpu"):
        raise UsageError(
            "--reference compares the originals of two bundles on the CPU; leave --precision and --provider out"
        )
    model = Bundle.load(bundle)
    model.verify()
    tolerances = limits.tolerances(model)
    photos = sample.open(images, model.input.bands)
    if reference is not None:
        verdicts = prove_same(
            Bundle.load(reference), model, photos, tolerances, threads=usable_processors(), batch=batch
        )
        say(describe(verdicts[0]))
        say(photos.summary.line())
        require_pass(*verdicts)
        return
    converted_precisions = sorted(
        {file.precision for file in model.files if file.derived_from and file.role != "external-data"}
    )
    precisions: list[str | None] = [precision] if precision or provider != "cpu" else [*converted_precisions]
    if not precisions:
        raise UsageError(f"{bundle} has no conversion to check; make one with `maskmill convert`")
    failures = []
    for candidate in precisions:
        verdicts = prove_artifact(
            model, provider, candidate, photos, tolerances, threads=usable_processors(), batch=batch
        )
        say(describe(verdicts[0]))
        failures += [verdict for verdict in verdicts if not verdict.passed]
    say(photos.summary.line())
    if failures:
        require_pass(*failures)


@reads_urls
@needs(num_images="images", image_ending="images", bit_depth="images")
def compare_installed(
    bundle: BundleArgument,
    sample: SampleGroup,
    images: Annotated[
        str | None,
        typer.Option(
            "--images",
            metavar="SOURCE",
            help="Real images to time and compare on.",
            show_default="generated, not compared",
        ),
    ] = None,
    seconds: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.1, help="Seconds to time each combination for.")
    ] = 5.0,
    as_json: JsonOption = False,
) -> None:
    """Measure images per second of every installed runtime and precision, and compare their masks."""
    from ...engine.model.bundle import Bundle
    from ..gate.bench import measure, print_rows

    model = Bundle.load(bundle)
    model.verify()
    photos = sample.open(images, model.input.bands)
    print_rows(measure(model, photos, seconds=seconds), as_json=as_json)
    if photos is not None and not as_json:
        say(photos.summary.line())


@reads_urls
def tune_bundle(
    bundle: ChangedBundleArgument,
    images: GateImagesOption,
    sample: SampleGroup,
    limits: ToleranceGroup,
    precisions: Annotated[
        str | None,
        typer.Option(
            metavar="NAME[,NAME]",
            help="Precisions to convert to and try as well: fp16, bf16, int8 or fp8.",
            show_default="those of the bundle",
        ),
    ] = None,
    seconds: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.1, help="Seconds to time each combination for.")
    ] = 5.0,
    as_json: JsonOption = False,
) -> None:
    """Choose the fastest runtime and precision that gives the original's masks, for label --provider auto.

    The choice holds for this machine's processor and is recorded in the bundle.
    """
    from ...engine.model.bundle import Bundle
    from ..gate.bench import print_rows
    from ..precision.tune import tune

    model = Bundle.load(bundle)
    model.verify()
    tolerances = limits.tolerances(model)
    precision_names = [name.strip() for name in precisions.split(",")] if precisions else []
    photos = sample.open(images, model.input.bands)
    choice, rows = tune(
        model, photos, precisions=precision_names, seconds=seconds, tolerances=tolerances, say=None if as_json else say
    )
    print_rows(rows, as_json=as_json)
    if not as_json:
        say(photos.summary.line())
        say(
            f"{bundle}: {choice.provider} in {choice.precision} on {choice.machine}, {choice.images_per_second:g} "
            f"images/s, {choice.ratio:.2f}x the original; `label --provider auto` uses it"
        )
