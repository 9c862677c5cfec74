"""Draw a model's labels over one photo, so that a wrong mean, layout or channel order is visible at once."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from ...errors import ImageError, SourceError, UsageError
from ..inputs.images import decode_input
from ..inputs.rasters.bands import display_of
from ..inputs.sources import read_uri
from ..labeling.selection import Selection, select
from ..model.bundle import Bundle
from ..model.input_spec import BandSpec
from ..model.taxonomy import Taxonomy
from ..predictors.semantic import SemanticPredictor
from ..runtimes.onnx_runtime import OnnxSession
from .overlay import overlay, save_picture


def read_photo(path: str | os.PathLike[str], bands: BandSpec | None = None) -> NDArray[Any]:
    """Read a photo, (H, W, 3) uint8 RGB, or the bands of a file; raises :class:`UsageError` if it cannot be read."""
    try:
        return decode_input(read_uri(str(path)), bands)
    except (ImageError, SourceError) as error:
        reason = str(error).removeprefix(f"cannot read {path}: ")
        raise UsageError(f"cannot read the image {path}: {reason}") from error


def write_preview(bundle: Bundle, photo: NDArray[Any], output: Path) -> Path:
    """Write the overlay of a photo and its labels, in the classes of the model itself; returns ``output``.

    Raises :class:`UsageError` for a bundle that is not ``semantic``.
    """
    taxonomy = Taxonomy.of_model(bundle)
    score_map = SemanticPredictor(bundle, OnnxSession(bundle)).predict(photo)
    labels = select(score_map, taxonomy, Selection()).label
    bands = bundle.input.bands
    picture = photo if bands is None else display_of(photo, bands)
    save_picture(overlay(picture, labels, taxonomy.targets, background=taxonomy.background), output)
    return output
