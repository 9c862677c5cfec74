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


def prompted_options(
    cam: Path | None,
    sam: Path | None,
    image_labels: Path | None,
    prompt: list[str] | None = None,
    embedding_cache: float | None = None,
) -> PromptedOptions | None:
    """Collect the options of prompted labeling; None without ``--sam``."""
    if sam is None:
        if cam is not None:
            raise UsageError("--cam BUNDLE needs --sam BUNDLE as well")
        if image_labels or prompt or embedding_cache:
            raise UsageError("--image-labels, --prompt and --embedding-cache need --sam BUNDLE")
        return None
    return PromptedOptions(
        sam=sam, cam=cam, image_labels=image_labels, prompt=tuple(prompt or ()), embedding_cache=embedding_cache
    )


def split_paths(paths: list[str], prompted: PromptedOptions | None) -> tuple[Path | None, str]:
    """Return the bundle and the source among the arguments; no bundle if ``--sam`` names the models."""
    if prompted is None:
        if len(paths) != 2:
            raise UsageError(
                f"expected a model bundle and a source, or --sam BUNDLE and a source; got {' '.join(paths)}"
            )
        return Path(paths[0]), paths[1]
    if len(paths) != 1:
        raise UsageError(f"with --sam BUNDLE only the source is expected; got {' '.join(paths)}")
    return None, paths[0]
