"""Draw a model's labels over one photo, so that a wrong mean, layout or channel order shows at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..engine.inputs.images import decode_image
from ..engine.labeling.selection import Selection, select
from ..engine.model.bundle import Bundle
from ..engine.model.taxonomy import Taxonomy
from ..engine.predictors.semantic import SemanticPredictor
from ..engine.report.overlay import overlay, save_picture
from ..engine.runtimes.onnx_runtime import OnnxSession
from ..errors import ImageError, UsageError


def read_photo(path: Path) -> NDArray[np.uint8]:
    """Read a photo, (H, W, 3) uint8 RGB; raises :class:`UsageError` if it cannot be read."""
    try:
        return decode_image(path.read_bytes())
    except (OSError, ImageError) as error:
        raise UsageError(f"cannot read the preview image {path}: {error}") from error


def write_preview(bundle: Bundle, photo: NDArray[np.uint8]) -> Path:
    """Write the overlay of a photo and its labels into the bundle, in the classes of its model; returns its path."""
    taxonomy = Taxonomy.of_model(bundle)
    score_map = SemanticPredictor(bundle, OnnxSession(bundle)).predict(photo)
    labels = select(score_map, taxonomy, Selection()).label
    path = bundle.path / "preview.png"
    save_picture(overlay(photo, labels, taxonomy.targets, background=taxonomy.background), path)
    return path
