"""The command that rescales a model's scores on labeled images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ...engine.cli.options.common import BundleArgument, JsonOption, TaxonomyOption, WorkersOption, print_json
from ...engine.cli.options.inputs import ImageGroup
from ...engine.cli.options.model import BatchOption, OverlapOption, ThreadsOption, TileOption
from ...engine.cli.options.truth import ImagesOption, LabelsOption, TruthGroup
from ...engine.cli.options.urls import reads_urls
from ...engine.report.terminal import say


@reads_urls
def rescale_scores(
    bundle: BundleArgument,
    images: ImagesOption,
    labels: LabelsOption,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="BUNDLE", help="Folder of the bundle to make.")],
    files: ImageGroup,
    truth: TruthGroup,
    taxonomy: TaxonomyOption = None,
    threads: ThreadsOption = 1,
    batch: BatchOption = 1,
    tile: TileOption = None,
    overlap: OverlapOption = 0,
    workers: WorkersOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fit a scale of the logits and an offset per class to labeled images, and write the rescaled model as a bundle.

    For a model that predicts some classes too often or too rarely. The scores of the new bundle are a softmax of the
    rescaled logits. The mIoU printed is that of every pixel's top class before and after, on images left out of the
    fit. Gate and calibrate the new bundle, not the old one.
    """
    from ...engine.inputs.sources import open_source
    from ...engine.predictors.open import ModelOptions, open_predictor
    from ...engine.report import display
    from ...kernels.processors import count_workers
    from ..rescaling import rescale_bundle

    assert images is not None, "the option is required"
    assert labels is not None, "the option is required"
    options = ModelOptions(threads=threads, batch=batch, tile=tile, overlap=overlap, bit_depth=files.bit_depth)
    predictor, classes = open_predictor(bundle, taxonomy, options=options, say=None if as_json else say)
    with display.counter("rescaling", quiet=as_json) as progress:
        rescaled, rescaling = rescale_bundle(
            predictor,
            open_source(images, image_ending=files.image_ending),
            truth.open(labels),
            classes,
            output,
            ids=truth.names,
            workers=count_workers(workers),
            progress=progress,
        )
    if as_json:
        print_json({**vars(rescaling), "source": rescaling.source and rescaling.source.to_json()})
        return
    if rescaling.source is not None:
        say(rescaling.source.line())
    names = sorted(zip(rescaled.classes, rescaling.offsets, strict=True), key=lambda pair: -abs(pair[1]))
    for name, offset in names[:5]:
        say(f"  {name}: {offset:+.2f}")
    say(
        f"{output}: logits times {rescaling.scale:.3g} and an offset per class, from {rescaling.num_images} images; "
        f"mIoU {rescaling.miou_before:.3f} before, {rescaling.miou:.3f} after, on images left out"
    )
