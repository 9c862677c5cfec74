"""Draw a model's labels over one photo, so that a wrong mean, layout or channel order shows at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...errors import ImageError, UsageError
from ..inputs.images import decode_image
from ..labeling.selection import Selection, select
from ..model.bundle import Bundle
from ..model.taxonomy import Taxonomy
from ..predictors.semantic import SemanticPredictor
from ..runtimes.onnx_runtime import OnnxSession
from .overlay import overlay, save_picture


def read_photo(path: Path) -> NDArray[np.uint8]:
    """Read a photo, (H, W, 3) uint8 RGB; raises :class:`UsageError` if it cannot be read."""
    try:
        return decode_image(path.read_bytes())
    except (OSError, ImageError) as error:
        raise UsageError(f"cannot read the image {path}: {error}") from error


def write_preview(bundle: Bundle, photo: NDArray[np.uint8], output: Path) -> Path:
    """Write the overlay of a photo and its labels, in the classes of the model itself; returns ``output``.

    Raises :class:`UsageError` for a bundle that is not ``semantic``.
    """
    taxonomy = Taxonomy.of_model(bundle)
    score_map = SemanticPredictor(bundle, OnnxSession(bundle)).predict(photo)
    labels = select(score_map, taxonomy, Selection()).label
    save_picture(overlay(photo, labels, taxonomy.targets, background=taxonomy.background), output)
    return output
