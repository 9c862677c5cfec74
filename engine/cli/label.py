"""Commands that calibrate and label."""

from __future__ import annotations

import signal
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any

import typer

from ...errors import UsageError
from ..predictors.open import ModelOptions, load_taxonomy, open_everything, open_predictor, open_prompted
from ..runtimes.open import ON_GPU, Provider
from .options import BATCH, BUNDLE, DEVICES, OVERLAP, PRECISION, PROVIDER, TAXONOMY, THREADS, TILE, UNVERIFIED
from .prompted_options import CAM, EMBEDDING_CACHE, IMAGE_LABELS, PROMPT, SAM, prompted_options, split_paths
from .store import IDS, JSON, WORKERS, dump, evaluate_labels, print_json, show


class Group(StrEnum):
    """What shares a threshold."""

    pooled = "pooled"
    by_class = "class"
    position = "position"


class Unit(StrEnum):
    """What is taken as exchangeable."""

    pixel = "pixel"
    image = "image"


class Rule(StrEnum):
    """How the prediction set decides the label."""

    argmax = "argmax"
    foreground = "foreground"
    single = "single"
    agree = "agree"


class Method(StrEnum):
    """How pixels are selected."""

    argmax = "argmax"
    threshold = "threshold"
    conformal = "conformal"


class Weight(StrEnum):
    """How kept pixels are weighted."""

    none = "none"
    confidence = "confidence"
    pcos = "pcos"


def add_commands(app: typer.Typer) -> None:
    """Add the engine's commands to the application."""
    app.command("taxonomy", rich_help_panel="Labels")(draft_taxonomy)
    app.command("calibrate", rich_help_panel="Labels")(calibrate_thresholds)
    app.command("label", rich_help_panel="Labels")(label_corpus)
    app.command("eval", rich_help_panel="Labels")(evaluate_labels)
    app.command("show", rich_help_panel="Labels")(show)
    app.command("dump", rich_help_panel="Labels")(dump)


def draft_taxonomy(
    bundle: Path = BUNDLE,
    output: Path = typer.Option(..., "-o", "--output", metavar="FILE", help="TOML file to write."),
    labels: Path | None = typer.Option(None, metavar="DIR", help="Label maps whose indices are to be mapped."),
    label_names: Path | None = typer.Option(
        None, metavar="FILE", help="The dataset's class names.  [default: classes.txt in or beside the label folder]"
    ),
) -> None:
    """Draft a class mapping from the obvious name matches and list what did not match."""
    import numpy as np

    from ..inputs.label_maps import LabelFolder, read_label_map
    from ..model.bundle import Bundle
    from ..model.files import read_class_names
    from ..model.taxonomy import draft
    from ..predictors.prompted.activation_maps import scored_bundle

    model = scored_bundle(Bundle.load(bundle))
    if output.exists():
        raise UsageError(f"{output} exists already; remove it or choose another name")
    names: dict[int, str] | None = None
    if labels is not None:
        present = {int(index) for path in LabelFolder(labels).files() for index in np.unique(read_label_map(path))}
        candidates = [label_names] if label_names else [labels / "classes.txt", labels.parent / "classes.txt"]
        known = next((read_class_names(path) for path in candidates if label_names or path.is_file()), {})
        names = {index: known.get(index, f"label {index}") for index in sorted(present - {255} | set(known))}
    elif label_names is not None:
        names = read_class_names(label_names)
    text, unmatched = draft(model, names)
    output.write_text(text, encoding="utf-8")
    typer.echo(f"wrote {output}; check every line before you use it")
    if unmatched:
        typer.echo("no obvious match:\n  " + "\n  ".join(unmatched))


def calibrate_thresholds(
    bundle: Path | None = typer.Argument(None, metavar="[BUNDLE]", help="The model, unless --cam and --sam are given."),
    images: str = typer.Option(..., metavar="SOURCE", help="Labeled images: a folder, list, glob, tar or URL."),
    labels: Path = typer.Option(..., metavar="DIR", help="Their label maps, under the same names."),
    output: Path = typer.Option(..., "-o", "--output", metavar="FILE", help="Calibration (JSON) to write."),
    alpha: str = typer.Option(..., help="Share of true classes that may miss the prediction set, e.g. 0.05."),
    group: Group = typer.Option(Group.by_class, help="One threshold for all pixels, a class, or a position."),
    unit: Unit = typer.Option(Unit.pixel, help="Pixels (heuristic), or images (finite-sample guarantee)."),
    rule: Rule = typer.Option(Rule.agree, help="How the prediction set decides the label."),
    taxonomy: Path | None = TAXONOMY,
    ids: Path | None = IDS,
    min_images: int | None = typer.Option(
        None, min=1, help="Fewest images for a threshold of its own.  [default: ceil(1/alpha) - 1]"
    ),
    folds: int = typer.Option(5, min=2, help="Parts of the images for the held-out coverage."),
    grid: int = typer.Option(512, min=1, help="Side of the position grid (--group position)."),
    provider: Provider = PROVIDER,
    precision: str | None = PRECISION,
    allow_unverified: bool = UNVERIFIED,
    threads: int = THREADS,
    tile: int | None = TILE,
    overlap: int = OVERLAP,
    cam: Path | None = CAM,
    sam: Path | None = SAM,
    image_labels: Path | None = IMAGE_LABELS,
    prompt: list[str] | None = PROMPT,
    workers: int | None = WORKERS,
    as_json: bool = JSON,
) -> None:
    """Compute conformal thresholds from labeled images and report their coverage."""
    from ...kernels.processors import usable_processors
    from ..calibration.calibrate import calibrate
    from ..inputs.label_maps import LabelFolder, read_ids
    from ..inputs.sources import open_source
    from ..report import display

    options = ModelOptions(
        provider=provider,
        precision=precision,
        threads=threads,
        tile=tile,
        overlap=overlap,
        allow_unverified=allow_unverified,
    )
    prompted = prompted_options(cam, sam, image_labels, prompt)
    if (bundle is None) == (prompted is None):
        raise UsageError("expected a model bundle, or --cam BUNDLE and --sam BUNDLE")
    predictor: Any
    if prompted is not None:
        predictor, classes = open_prompted(prompted, taxonomy, options=options, say=typer.echo)
    else:
        assert bundle is not None, "checked above"
        predictor, classes = open_predictor(bundle, taxonomy, options=options, say=typer.echo)
    if output.suffix != ".json" or not output.parent.is_dir():
        raise UsageError(f"cannot write {output}: the calibration must be a .json file in an existing folder")
    with display.counter("calibrating", quiet=as_json) as progress:
        calibration = calibrate(
            predictor,
            open_source(images),
            LabelFolder(labels),
            classes,
            alpha=alpha,
            group=group.value,
            unit=unit.value,
            rule=rule.value,
            ids=read_ids(ids) if ids else None,
            min_images=min_images,
            folds=folds,
            grid=(grid, grid),
            workers=workers or usable_processors(),
            progress=progress,
        )
    calibration.save(output)
    if as_json:
        print_json(dict(calibration.report))
    else:
        display.print_calibration(calibration, output)


def label_corpus(
    paths: list[str] = typer.Argument(
        ...,
        metavar="[BUNDLE] SOURCE",
        help="The model, unless --cam and --sam are given; and a folder, list, glob, WebDataset tar or URL.",
    ),
    output: Path | None = typer.Option(None, "-o", "--output", metavar="STORE", help="Label store to make or go on."),
    select: Method = typer.Option(Method.argmax, help="Keep every pixel, confident ones, or those vouched for."),
    calibration: Path | None = typer.Option(None, metavar="FILE", help="Calibration (--select conformal)."),
    threshold: float | None = typer.Option(None, help="Lowest confidence to keep (--select threshold)."),
    taxonomy: Path | None = TAXONOMY,
    weight: Weight = typer.Option(Weight.none, help="Weights of kept pixels."),
    weight_levels: int = typer.Option(256, min=2, max=256, help="Distinct weights; fewer make smaller files."),
    tile: int | None = TILE,
    overlap: int = OVERLAP,
    cam: Path | None = CAM,
    sam: Path | None = SAM,
    image_labels: Path | None = IMAGE_LABELS,
    prompt: list[str] | None = PROMPT,
    embedding_cache: float | None = EMBEDDING_CACHE,
    shard: str | None = typer.Option(None, metavar="I/N", help="Take part I of N (0 to N-1), by a hash of the uri."),
    workers: int | None = WORKERS,
    limit: int | None = typer.Option(None, min=1, help="Label at most so many inputs."),
    retry_rejects: bool = typer.Option(False, help="Try inputs again that could not be decoded before."),
    max_pixels: int | None = typer.Option(None, min=1, help="Refuse larger images.  [default: 178,956,970]"),
    provider: Provider = PROVIDER,
    precision: str | None = PRECISION,
    allow_unverified: bool = UNVERIFIED,
    threads: int = THREADS,
    batch: int = BATCH,
    devices: str | None = DEVICES,
    dry_run: bool = typer.Option(False, help="Label a sample; print hours and gigabytes for the whole."),
    as_json: bool = JSON,
) -> None:
    """Label a corpus. Running the same command again goes on where it stopped.

    Exit status: 0 all inputs dealt with, 1 some could not be decoded, 130 interrupted.
    """
    from ..calibration.calibration import Calibration
    from ..inputs.sources import open_source
    from ..labeling import label_run as pipeline
    from ..labeling.multi_gpu import label_on_devices, label_share, segment_share
    from ..labeling.selection import Selection
    from ..model.taxonomy import Taxonomy
    from ..report import display

    if (calibration is not None) != (select is Method.conformal):
        raise UsageError("--calibration FILE goes with --select conformal, and the other way round")
    if (threshold is not None) != (select is Method.threshold):
        raise UsageError("--threshold T goes with --select threshold, and the other way round")
    if output is None and not dry_run:
        raise UsageError("labels need a store: give -o STORE (or --dry-run)")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    model = ModelOptions(
        provider=provider,
        precision=precision,
        threads=threads,
        batch=batch,
        tile=tile,
        overlap=overlap,
        allow_unverified=allow_unverified,
    )
    say = None if as_json else typer.echo
    prompted = prompted_options(cam, sam, image_labels, prompt, embedding_cache)
    bundle, source = split_paths(paths, prompted)
    common: dict[str, Any] = {
        "shard_of": _shard(shard),
        "workers": workers,
        "limit": limit,
        "max_pixels": max_pixels,
    }
    gpus = _devices(devices, provider, dry_run)
    if prompted is not None and prompted.cam is None:
        if select is not Method.argmax or weight is not Weight.none or taxonomy or output is None or dry_run:
            raise UsageError("segments have no classes: --select, --weight, --taxonomy and --dry-run go with --cam")
        opening = partial(open_everything, prompted, options=model, say=say)
        segments = None if gpus else opening()
        common["retry_rejects"] = retry_rejects
        with display.run_display(as_json=as_json) as observer:
            if segments is None:
                work = partial(segment_share, opening)
                progress = label_on_devices(work, source, output, devices=gpus, observer=observer, **common)
            else:
                progress = pipeline.segment(segments, open_source(source), output, observer=observer, **common)
        _finish(progress, Taxonomy(targets=("segment",), background=None, model=(0,)), output, as_json)
        return
    opening: Any
    if prompted is not None:
        opening = partial(open_prompted, prompted, taxonomy, options=model, store=output, say=say)
    else:
        opening = partial(open_predictor, bundle, taxonomy, options=model, say=say)
    predictor: Any = None
    if gpus:  # each device's process opens its own; this one keeps away from them
        named = bundle or cam
        assert named is not None, "checked above"
        classes = load_taxonomy(named, taxonomy)
    else:
        predictor, classes = opening()
    thresholds = Calibration.load(calibration) if calibration else None
    options: dict[str, Any] = {"weight": weight.value, "weight_levels": weight_levels}
    if thresholds is not None:
        selection = Selection.conformal(thresholds, **options)
    elif threshold is not None:
        selection = Selection.threshold(threshold, **options)
    else:
        selection = Selection(**options)
    if dry_run:
        progress, total = pipeline.dry_run(predictor, open_source(source), classes, selection, **common)
        display.print_estimate(progress, total, as_json=as_json)
        return
    assert output is not None, "checked above"
    common["retry_rejects"] = retry_rejects
    with display.run_display(as_json=as_json) as observer:
        if gpus:
            work = partial(label_share, opening, selection)
            progress = label_on_devices(work, source, output, devices=gpus, observer=observer, **common)
        else:
            progress = pipeline.label(
                predictor, open_source(source), output, classes, selection, observer=observer, **common
            )
    _finish(progress, classes, output, as_json)


def _finish(progress: Any, classes: Any, store: Path, as_json: bool) -> None:
    """Print the end of a run, and leave with its exit status."""
    from ..report import display

    if as_json:
        print_json({"event": "summary", **progress.to_json(classes)}, indent=None)
    else:
        display.print_summary(progress, classes, store)
    if progress.interrupted:
        raise typer.Exit(130)
    if progress.rejects:
        raise typer.Exit(1)


def _devices(text: str | None, provider: Provider, dry_run: bool) -> tuple[int, ...]:
    """The GPUs of ``--devices``; none where it was not given."""
    if text is None:
        return ()
    if provider not in ON_GPU or dry_run:
        raise UsageError(f"--devices goes with --provider {' or '.join(ON_GPU)}, and not with --dry-run")
    parts = text.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise UsageError(f"--devices must be numbers separated by commas, as in 0,1, got {text!r}")
    return tuple(int(part) for part in parts)


def _shard(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise UsageError(f"--shard must be I/N with I from 0 to N-1, as in 0/8, got {text!r}")
    return int(index), int(count)
