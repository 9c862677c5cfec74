"""The command-line options of labeling from image-level classes, and the predictors they make."""

from __future__ import annotations

from pathlib import Path

import typer

from ...errors import UsageError
from ..predictors.open import PromptedOptions

CAM = typer.Option(None, "--cam", metavar="BUNDLE", help="Classifier with activation maps; goes with --sam.")
SAM = typer.Option(
    None, "--sam", metavar="BUNDLE", help="Promptable model; without --cam everything is segmented, without classes."
)
IMAGE_LABELS = typer.Option(
    None,
    metavar="FILE",
    help="Classes that each image shows: CSV, JSON lines, COCO.  [default: as the classifier says]",
)
PROMPT = typer.Option(
    None,
    "--prompt",
    metavar="NAME=VALUE",
    help="How to prompt, repeatable: mode, peaks, tau, min_distance, max_peaks, box_threshold, pick, keep, scales, "
    "flip, class_threshold; of --sam alone side, min_score, min_stability, max_overlap, min_area.",
)
EMBEDDING_CACHE = typer.Option(
    None, min=0.001, metavar="GIGABYTES", help="Keep the encoder's results in the store, at most so much of them."
)


def split_paths(paths: list[str], options: PromptedOptions) -> tuple[Path | None, str]:
    """The bundle and the source among the arguments; no bundle where ``--sam`` names the models."""
    if options.sam is None:
        if len(paths) != 2:
            raise UsageError(
                f"expected a model bundle and a source, or --sam BUNDLE and a source; got {' '.join(paths)}"
            )
        return Path(paths[0]), paths[1]
    if len(paths) != 1:
        raise UsageError(f"with --sam BUNDLE only the source is expected; got {' '.join(paths)}")
    return None, paths[0]
