"""A picture of what a model sees in one photo, so that a wrong mean, layout or channel order shows at once."""

from __future__ import annotations

from pathlib import Path

from ..engine.images import decode_image
from ..engine.overlay import overlay, save_picture
from ..engine.predict import SemanticPredictor
from ..engine.select import Selection, select
from ..engine.session import OnnxSession
from ..engine.taxonomy import Taxonomy
from ..errors import UsageError
from .bundle import Bundle


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
