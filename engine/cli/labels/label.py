"""Commands that label a corpus: by a model's class scores, by prompts, or into segments without classes."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from ....errors import UsageError
from ...predictors.open import (
    PromptedOptions,
    bundle_conditions,
    check_prompts,
    load_taxonomy,
    open_everything,
    open_predictor,
    open_prompted,
    prompted_conditions,
    prompted_taxonomy,
)
from ..command import needs
from ..options.common import BundleArgument, JsonOption, TaxonomyOption
from ..options.inputs import SourceArgument, WindowGroup
from ..options.model import ModelGroup, PromptedModelGroup, RuntimeGroup
from ..options.prompts import PromptGroup
from ..options.urls import reads_urls
from .label_options import (
    CorpusGroup,
    DryRunOption,
    EmbeddingCacheOption,
    LabelingRunnerGroup,
    OutputOption,
    RequiredOutput,
    RequiredSam,
    SelectionGroup,
)
from .labeling import LabelingRun, run_label, run_segment


@reads_urls
@needs(weight_levels="weight")
def label_corpus(
    bundle: BundleArgument,
    source: SourceArgument,
    selecting: SelectionGroup,
    corpus: CorpusGroup,
    windows: WindowGroup,
    model: ModelGroup,
    place: LabelingRunnerGroup,
    output: OutputOption = None,
    taxonomy: TaxonomyOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Label a corpus with a model. Run the same command again to continue an interrupted run.

    Exit status: 0 if every input is labeled, 1 if some were rejected by this run or an earlier one, 3 after a drift
    alarm with --on-drift stop, 130 if interrupted.
    """
    options = model.options(bundle, bit_depth=corpus.bit_depth, quiet=as_json)
    run = LabelingRun(
        source=source,
        output=output,
        corpus=corpus,
        place=place,
        provider=options.provider,
        as_json=as_json,
        dry_run=dry_run,
        windows=windows.cut,
    )
    if selecting.instances and model.tile is not None:
        raise UsageError(
            "--instances and --tile cannot be combined: an object in several tiles would be stored several times"
        )
    bundle, taxonomy = place.reached(bundle), place.reached(taxonomy)
    run_label(
        run,
        selecting,
        partial(open_predictor, bundle, taxonomy, options=options, say=run.say),
        partial(bundle_conditions, bundle),
        partial(load_taxonomy, bundle, taxonomy, options.text),
    )


@reads_urls
@needs(weight_levels="weight")
def label_prompted(
    source: SourceArgument,
    sam: RequiredSam,
    prompting: PromptGroup,
    selecting: SelectionGroup,
    corpus: CorpusGroup,
    windows: WindowGroup,
    runtime: PromptedModelGroup,
    place: LabelingRunnerGroup,
    output: OutputOption = None,
    taxonomy: TaxonomyOption = None,
    embedding_cache: EmbeddingCacheOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Label a corpus with a promptable model, such as Segment Anything, and prompts from one source.

    Sources: a classifier, whose activation maps give points; a detector; files of boxes or points; coarse masks to
    refine.

    Run the same command again to continue an interrupted run. Exit status: 0 if every input is labeled, 1 if some were
    rejected by this run or an earlier one, 3 after a drift alarm with --on-drift stop, 130 if interrupted.
    """
    run = LabelingRun(
        source=source,
        output=output,
        corpus=corpus,
        place=place,
        provider=runtime.provider,
        as_json=as_json,
        dry_run=dry_run,
        windows=windows.cut,
    )
    prompting.check_windows(windows.cut)
    prompts = prompting.reached(sam, place, embedding_cache=embedding_cache)
    if selecting.instances and prompting.cam is not None:
        raise UsageError("prompts from a classifier give classes, no single objects; leave --instances out")
    options = runtime.options(bit_depth=corpus.bit_depth)
    taxonomy = place.reached(taxonomy)
    run_label(
        run,
        selecting,
        partial(open_prompted, prompts, taxonomy, options=options, store=output, say=run.say),
        partial(prompted_conditions, prompts),
        partial(prompted_taxonomy, prompts, taxonomy),
        partial(check_prompts, prompts),
    )


@reads_urls
def segment_corpus(
    source: SourceArgument,
    sam: RequiredSam,
    output: RequiredOutput,
    corpus: CorpusGroup,
    windows: WindowGroup,
    runtime: RuntimeGroup,
    place: LabelingRunnerGroup,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Setting; repeat for several: side, min_score, min_stability, max_overlap, min_area.",
            show_default=False,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Cut every image into segments without classes, with a promptable model and a grid of points.

    Run the same command again to continue an interrupted run. Exit status: 0 if every input is segmented, 1 if some
    were rejected by this run or an earlier one, 130 if interrupted.
    """
    run = LabelingRun(
        source=source,
        output=output,
        corpus=corpus,
        place=place,
        provider=runtime.provider,
        as_json=as_json,
        windows=windows.cut,
    )
    prompts = PromptedOptions(sam=place.reached(sam), prompt=tuple(settings or ()))
    options = runtime.options(bit_depth=corpus.bit_depth)
    run_segment(run, partial(open_everything, prompts, options=options, say=run.say))
