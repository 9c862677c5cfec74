"""A picture of what a model sees in one photo, so that a wrong mean, layout or channel order shows at once."""

from __future__ import annotations

from pathlib import Path

from ..engine.inputs.images import decode_image
from ..engine.labeling.selection import Selection, select
from ..engine.model.bundle import Bundle
from ..engine.model.taxonomy import Taxonomy
from ..engine.predictors.semantic import SemanticPredictor
from ..engine.report.overlay import overlay, save_picture
from ..engine.runtimes.onnx_runtime import OnnxSession
from ..errors import UsageError


def write_preview(bundle: Bundle, image: Path) -> Path:
    """Label one photo with a bundle's own classes and write the overlay into the bundle; returns its path."""
    try:
        pixels = decode_image(image.read_bytes())
    except OSError as error:
        raise UsageError(f"cannot read the preview image {image}: {error}") from error
    taxonomy = Taxonomy.of_model(bundle)
    score_map = SemanticPredictor(bundle, OnnxSession(bundle)).predict(pixels)
    labels = select(score_map, taxonomy, Selection()).label
    path = bundle.path / "preview.png"
    save_picture(overlay(pixels, labels, taxonomy.targets, background=taxonomy.background), path)
    return path
