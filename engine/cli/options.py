"""Command-line arguments and options that several commands share, so that each has one name, one help and one default.

Each alias is the annotation of a parameter; the default stands in the command's signature::

    def calibrate(bundle: BundleArgument, workers: WorkersOption = None) -> None: ...
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from ...errors import UsageError
from ..formats.open import InputFormat
from ..model.storage import location_of, parse_storage_options
from ..reading.access import Access, limit_reads
from ..reading.storage_options import use_storage
from ..runtimes.open import Provider, ProviderChoice

SOURCE_HELP = "a folder, list, glob, URL, WebDataset tar, Parquet, Lance or saved data set"

BundleArgument = Annotated[
    Path, typer.Argument(metavar="BUNDLE", parser=location_of, help="Folder or URL of the model bundle.")
]
ChangedBundleArgument = Annotated[
    Path, typer.Argument(metavar="BUNDLE", help="Folder of the model bundle, which receives the result.")
]
StoresArgument = Annotated[
    list[Path],
    typer.Argument(
        metavar="STORE", parser=location_of, help="Label stores, by folder or URL; several are read as one."
    ),
]
SourceArgument = Annotated[str, typer.Argument(metavar="SOURCE", help=f"Images to label: {SOURCE_HELP}.")]

ImagesOption = Annotated[
    str | None,
    typer.Option("--images", metavar="SOURCE", help=f"Labeled images: {SOURCE_HELP}.", show_default=False),
]
LabelsOption = Annotated[
    str | None,
    typer.Option(
        "--labels",
        metavar="LABELS",
        help="Their true labels: a folder of label maps, or a file or folder of another format.",
        show_default=False,
    ),
]
FormatOption = Annotated[
    InputFormat | None,
    typer.Option("--labels-format", metavar="NAME", help="Format of --labels, such as coco.", show_default="detected"),
]
TaxonomyOption = Annotated[
    Path | None,
    typer.Option(
        "--taxonomy",
        metavar="FILE",
        parser=location_of,
        help="Class mapping (TOML).",
        show_default="the model's own classes",
    ),
]
IdsOption = Annotated[
    Path | None,
    typer.Option(
        "--ids",
        metavar="FILE",
        parser=location_of,
        help="Names of the images to use, one per line.",
        show_default="all",
    ),
]
PairingOption = Annotated[
    str | None,
    typer.Option(
        "--pairing",
        metavar="IMAGE=LABEL",
        help="Names of label maps with \\* for the equal part, as in '\\*=\\*_gt'.",
        show_default="known names are recognized",
    ),
]
AsStoredOption = Annotated[
    bool,
    typer.Option("--labels-as-stored", help="Label maps show photos as stored, before their EXIF orientation is used."),
]
BitDepthOption = Annotated[
    int | None,
    typer.Option(
        "--bit-depth",
        min=9,
        max=32,
        metavar="BITS",
        help="Bits that images of more than 8 bits fill, such as 12.",
        show_default="all bits of their type",
    ),
]
EndingOption = Annotated[
    str | None,
    typer.Option(
        "--image-ending",
        metavar="ENDING",
        help="Take only the files of folders and archives that end like this, such as jpg.",
        show_default="every image ending",
    ),
]


def _use_storage(context: typer.Context, texts: list[str] | None) -> list[str] | None:
    """Use the options of the command line for every URL until the command ends."""
    context.with_resource(use_storage(parse_storage_options(texts)))
    return texts


StorageOption = Annotated[
    list[str] | None,
    typer.Option(
        "--storage-option",
        metavar="KEY=VALUE",
        is_eager=True,  # the URLs of other options are opened with it
        callback=_use_storage,
        help="Option of the storage of URLs, such as aws_region=NAME; repeat for several.",
        show_default="environment",
    ),
]
TimeoutOption = Annotated[
    float, typer.Option("--timeout", metavar="SECONDS", help="Longest wait for the server of a URL.")
]
RetriesOption = Annotated[
    int,
    typer.Option(
        "--retries",
        metavar="N",
        help="Further attempts to read a URL after a failure that may pass, such as no answer within --timeout.",
    ),
]
SchemesOption = Annotated[
    str | None,
    typer.Option(
        "--schemes",
        metavar="NAMES",
        help="Schemes of the URLs that a list may name, such as https,s3, besides the list's own scheme.",
        show_default="http, https and object stores",
    ),
]
WorkersOption = Annotated[
    int | None,
    typer.Option(
        "--workers", min=1, metavar="N", help="Images in progress at the same time.", show_default="one per core"
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]

ProviderOption = Annotated[
    Provider,
    typer.Option(
        "--provider",
        metavar="RUNTIME",
        help="Runtime of the model: cpu, cuda, tensorrt, engine or openvino. It is never replaced by another.",
    ),
]
ProviderOrAutoOption = Annotated[
    ProviderChoice,
    typer.Option(
        "--provider",
        metavar="RUNTIME",
        help="Runtime of the model: cpu, cuda, tensorrt, engine or openvino, never replaced by another; or auto, what "
        "maskmill tune chose for this machine.",
    ),
]
WindowsOption = Annotated[
    int | None,
    typer.Option(
        "--windows",
        min=16,
        metavar="PIXELS",
        help="Read GeoTIFF files that are larger by square windows of this side, each an image of its own.",
        show_default="off",
    ),
]
WindowOverlapOption = Annotated[
    int,
    typer.Option("--window-overlap", min=0, metavar="PIXELS", help="Overlap of neighboring windows (with --windows)."),
]
BoxesOption = Annotated[
    Path | None,
    typer.Option(
        "--boxes",
        metavar="FILE",
        parser=location_of,
        help="Prompts from boxes: a CSV or COCO file.",
        show_default=False,
    ),
]
PointsOption = Annotated[
    Path | None,
    typer.Option(
        "--points", metavar="FILE", parser=location_of, help="Prompts from points: a CSV file.", show_default=False
    ),
]
MasksOption = Annotated[
    Path | None,
    typer.Option(
        "--coarse-masks",
        metavar="STORE",
        parser=location_of,
        help="Coarse masks to refine: a label store or label files.",
        show_default=False,
    ),
]
PrecisionOption = Annotated[
    str | None,
    typer.Option(
        "--precision", metavar="NAME", help="Precision of the bundle's file or engine to run.", show_default="the first"
    ),
]
UnverifiedOption = Annotated[
    bool,
    typer.Option("--allow-unverified", help="Run a converted file or an engine without a passing gate verdict."),
]
ThreadsOption = Annotated[
    int,
    typer.Option(
        "--threads",
        min=1,
        metavar="N",
        help="Threads per model call; with 1, several images run in parallel, one per core.",
    ),
]
BatchOption = Annotated[
    int,
    typer.Option(
        "--batch", min=1, metavar="N", help="Images per model call; a TensorRT engine uses its own batch size."
    ),
]
TileOption = Annotated[
    int | None,
    typer.Option(
        "--tile", min=16, metavar="PIXELS", help="Cut larger images into square tiles of this side.", show_default="off"
    ),
]
OverlapOption = Annotated[
    int, typer.Option("--overlap", min=0, metavar="PIXELS", help="Overlap of neighboring tiles (with --tile).")
]
DevicesOption = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="CUDA:N,...",
        help="GPUs to use, one process per GPU, such as cuda:0,cuda:1.",
        show_default="the first GPU, if the provider runs on one",
    ),
]

CamOption = Annotated[
    Path | None,
    typer.Option(
        "--cam",
        metavar="BUNDLE",
        parser=location_of,
        help="Classifier with class activation maps; use it together with --sam.",
    ),
]
SamOption = Annotated[
    Path | None,
    typer.Option("--sam", metavar="BUNDLE", parser=location_of, help="Promptable model, such as Segment Anything."),
]
DetectorOption = Annotated[
    Path | None,
    typer.Option(
        "--detector",
        metavar="BUNDLE",
        parser=location_of,
        help="Prompts from the boxes of this detector.",
        show_default=False,
    ),
]
TextOption = Annotated[
    str | None,
    typer.Option(
        "--text",
        metavar="NAMES",
        help="Class names, separated by commas, for a model that takes text.",
        show_default=False,
    ),
]
ImageLabelsOption = Annotated[
    Path | None,
    typer.Option(
        "--image-labels",
        metavar="FILE",
        parser=location_of,
        help="Classes that each image shows: CSV, JSON lines or COCO.",
        show_default="as the classifier predicts",
    ),
]
PromptSettings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="Prompt setting; repeat for several. With --cam: mode, peaks, tau, min_distance, max_peaks, "
        "box_threshold, pick, keep, scales, flip, class_threshold; with --detector: box_score, box_overlap, max_boxes.",
        show_default=False,
    ),
]


def reads_stores(command: Callable[..., None]) -> Callable[..., None]:
    """Add ``--storage-option`` to a command, which holds for every URL that it opens."""
    return _with_options(command, {"storage_option": (StorageOption, None)}, lambda storage_option: nullcontext())


def reads_urls(command: Callable[..., None]) -> Callable[..., None]:
    """Add ``--storage-option``, ``--timeout``, ``--retries`` and ``--schemes``, for all that a command reads."""
    default = Access()
    options = {
        "storage_option": (StorageOption, None),
        "timeout": (TimeoutOption, default.timeout),
        "retries": (RetriesOption, default.retries),
        "schemes": (SchemesOption, None),
    }

    def limits(*, storage_option: Any, timeout: float, retries: int, schemes: str | None) -> Any:
        names = None if schemes is None else [scheme.strip().lower() for scheme in schemes.split(",")]
        return limit_reads(timeout=timeout, retries=retries, schemes=names)

    return _with_options(command, options, limits)


def _with_options(
    command: Callable[..., None],
    options: Mapping[str, tuple[Any, Any]],
    entering: Callable[..., AbstractContextManager[Any]],
) -> Callable[..., None]:
    """Add options, (annotation, default) by name, to a command, which runs within what ``entering`` makes of them."""

    @wraps(command)
    def extended(**arguments: Any) -> None:
        values = {name: arguments.pop(name) for name in options}
        with entering(**values):
            command(**arguments)

    annotations = get_type_hints(command, include_extras=True)
    signature = inspect.signature(command)
    # Typer reads the parameters of a command from its signature
    extended.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[
            *(
                parameter.replace(annotation=annotations[name], kind=inspect.Parameter.KEYWORD_ONLY)
                for name, parameter in signature.parameters.items()
            ),
            *(
                inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=value)
                for name, (annotation, value) in options.items()
            ),
        ]
    )
    extended.__annotations__ = annotations | {name: annotation for name, (annotation, _) in options.items()}
    return extended


def options_of_call(context: typer.Context) -> set[str]:
    """Return the names of the parameters that the command line gives."""
    names = (parameter.name or "" for parameter in context.command.params)
    sources = ((name, context.get_parameter_source(name)) for name in names)
    return {name for name, source in sources if source is not None and source.name == "COMMANDLINE"}


def print_json(raw: object, indent: int | None = 2) -> None:
    """Print plain data as JSON on standard output."""
    import json

    typer.echo(json.dumps(raw, indent=indent))


def new_file(path: Path, suffix: str) -> None:
    """Refuse an output file that exists or cannot be written, before any work is done.

    Raises :class:`UsageError` as :func:`writable_file` does, and for a file that exists.
    """
    writable_file(path, suffix)
    if path.exists():
        raise UsageError(f"{path} exists already, and other files may refer to it; choose another name, or remove it")


def writable_file(path: Path, suffix: str) -> None:
    """Refuse an output file that cannot be written, before any work is done.

    Raises :class:`UsageError` if the suffix differs, or the folder does not exist or cannot be written to.
    """
    if path.suffix != suffix or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise UsageError(f"cannot write {path}: expected a {suffix} file in an existing folder")
