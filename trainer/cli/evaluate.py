"""The command that measures labels, a student or a model against true labels."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ...engine.cli.options import (
    IdsOption,
    JsonOption,
    LabelsOption,
    OverlapOption,
    PrecisionOption,
    ProviderOption,
    TileOption,
    WorkersOption,
    print_json,
)
from ...engine.runtimes.open import Provider
from ...errors import UsageError
from .options import DeviceOption


def evaluate_target(
    target: Annotated[
        Path, typer.Argument(metavar="STORE|RUN|BUNDLE", help="Label store, training run or model bundle to measure.")
    ],
    labels: LabelsOption,
    images: Annotated[
        str | None,
        typer.Option(metavar="SOURCE", help="Images to label and measure; needed for a run or a bundle."),
    ] = None,
    ids: IdsOption = None,
    taxonomy: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Class mapping; for a store or a run, its \\[labels] table reads --labels.",
            show_default="the target's own",
        ),
    ] = None,
    tile: TileOption = None,
    overlap: OverlapOption = 0,
    provider: ProviderOption = "cpu",
    precision: PrecisionOption = None,
    device: DeviceOption = None,
    workers: WorkersOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure labels against true labels: IoU per class, mIoU and accuracy.

    A store is measured by the labels it holds; a run labels --images with its student, a bundle with its model (argmax,
    every pixel kept).
    """
    from ...engine.model.bundle import MANIFEST
    from ..bundle import is_run

    running = {"--tile": tile, "--overlap": overlap or None, "--precision": precision, "--device": device}
    if (target / MANIFEST).is_file():
        _refuse({"--device": device}, "a bundle; choose its runtime with --provider")
        result = _evaluate_bundle(
            target, _needed(images, "a bundle"), labels, ids, taxonomy, provider, precision, tile, overlap, workers
        )
    elif is_run(target) and not (target / "labels.lance").exists():
        _refuse({"--precision": precision, "--provider": None if provider == "cpu" else provider}, "a training run")
        _evaluate_run(target, _needed(images, "a run"), labels, ids, taxonomy, tile, overlap, device, as_json)
        return
    else:
        _refuse({"--images": images, **running}, "a label store")
        result = _evaluate_store(target, labels, ids, taxonomy, workers)
    if as_json:
        print_json(result.to_json())
    else:
        from ...engine.report.display import print_quality

        print_quality(result)


def _refuse(options: dict[str, Any], target: str) -> None:
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise UsageError(f"{', '.join(given)} does not apply to {target}; leave it out")


def _needed(images: str | None, target: str) -> str:
    if images is None:
        raise UsageError(f"{target} needs images to label: give --images SOURCE")
    return images


def _evaluate_store(store: Path, labels: Path, ids: Path | None, taxonomy: Path | None, workers: int | None) -> Any:
    from ...engine.inputs.label_maps import LabelFolder, read_ids
    from ...engine.model.taxonomy import Taxonomy
    from ...engine.report.evaluate import evaluate
    from ...engine.store.label_store import LabelStore
    from ...kernels.processors import usable_processors

    opened = LabelStore.open(store)
    classes = Taxonomy.from_json(opened.classes)
    if taxonomy is not None:
        classes = classes.with_labels_of(taxonomy)
    return evaluate(
        opened,
        LabelFolder(labels),
        classes,
        ids=read_ids(ids) if ids else None,
        workers=workers or usable_processors(),
    )


def _evaluate_bundle(
    bundle: Path,
    images: str,
    labels: Path,
    ids: Path | None,
    taxonomy: Path | None,
    provider: Provider,
    precision: str | None,
    tile: int | None,
    overlap: int,
    workers: int | None,
) -> Any:
    from ...engine.inputs.label_maps import LabelFolder, read_ids
    from ...engine.inputs.sources import open_source
    from ...engine.labeling.selection import Selection
    from ...engine.predictors.open import ModelOptions, open_predictor
    from ...engine.report.evaluate import evaluate_predictor
    from ...kernels.processors import usable_processors

    options = ModelOptions(provider=provider, precision=precision, tile=tile, overlap=overlap)
    predictor, classes = open_predictor(bundle, taxonomy, options=options)
    return evaluate_predictor(
        predictor,
        open_source(images),
        LabelFolder(labels),
        classes,
        Selection.argmax(),
        ids=read_ids(ids) if ids else None,
        workers=workers or usable_processors(),
    )


def _evaluate_run(
    run: Path,
    images: str,
    labels: Path,
    ids: Path | None,
    taxonomy: Path | None,
    tile: int | None,
    overlap: int,
    device: str | None,
    as_json: bool,
) -> None:
    from ...engine.inputs.label_maps import read_ids
    from ...engine.report.display import counter
    from ..data.datasets import LabeledImages
    from ..evaluate import run_taxonomy, score_images
    from ..processes import resolve_device
    from ..students.models import load_run
    from ..training_display import print_scores

    student = load_run(run)
    chosen = resolve_device(device)
    classes = run_taxonomy(student.run)
    if taxonomy is not None:
        classes = classes.with_labels_of(taxonomy)
    labeled = LabeledImages.pair(images, labels, classes, ids=read_ids(ids) if ids else None)
    with counter("measuring", quiet=as_json) as progress:
        scores = score_images(
            student.module.to(chosen),
            labeled,
            student.run,
            device=chosen,
            tile=tile,
            overlap=overlap,
            progress=progress,
        )
    if as_json:
        print_json(scores.to_json())
    else:
        print_scores(scores)
