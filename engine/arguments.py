"""Conversion of the arguments of public functions: paths to objects, and displays of progress."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .calibration.calibration import Calibration
    from .inputs.labels import LabelSource
    from .labeling.progress import Progress
    from .model.bundle import Bundle
    from .model.input_spec import BandSpec
    from .model.taxonomy import Taxonomy
    from .predictors.base import Predictor
    from .runtimes.open import ProviderChoice
    from .store.label_store import LabelStore

Location = str | os.PathLike[str]
"""A path, or a URL as a string."""


def calibration_of(calibration: Location | Calibration | None) -> Calibration | None:
    """Return the calibration, or load it from its file."""
    from .calibration.calibration import Calibration

    return calibration if isinstance(calibration, Calibration | None) else Calibration.load(calibration)


def bundle_of(model: Location | Bundle) -> Bundle:
    """Return the bundle, or load it from its folder."""
    from .model.bundle import Bundle

    return model if isinstance(model, Bundle) else Bundle.load(model)


def store_of(store: Location | LabelStore | Sequence[Location]) -> LabelStore:
    """Return the store, or open it from its folder; several folders are read as one store."""
    from .store.label_store import LabelStore
    from .store.several.joined import open_stores

    if isinstance(store, LabelStore):
        return store
    return open_stores(store if isinstance(store, list | tuple) else [store])  # type: ignore[list-item]


def labels_of(labels: Location | LabelSource) -> LabelSource:
    """Return the labels, or open their folder or file."""
    from .inputs.labels import open_labels

    return open_labels(labels) if isinstance(labels, str | os.PathLike) else labels


def predictor_of(
    model: Location | Bundle | Predictor,
    taxonomy: Location | Taxonomy | None,
    provider: ProviderChoice,
    tile: int | None,
    overlap: int,
    precision: str | None = None,
    bit_depth: int | None = None,
    text: Sequence[str] = (),
) -> tuple[Predictor, Taxonomy]:
    """Open a semantic bundle, or accept a predictor, with its class mapping."""
    from .model.bundle import Bundle
    from .model.storage import location_of
    from .model.taxonomy import Taxonomy
    from .predictors.open import ModelOptions, open_predictor
    from .runtimes.tuned import resolve

    if isinstance(model, str | os.PathLike | Bundle):
        folder = model.path if isinstance(model, Bundle) else location_of(model)
        if provider == "auto":
            provider, precision = resolve(bundle_of(model), provider, precision)
        options = ModelOptions(
            provider=provider, precision=precision, tile=tile, overlap=overlap, bit_depth=bit_depth, text=tuple(text)
        )
        predictor, classes = open_predictor(
            folder, None if isinstance(taxonomy, Taxonomy | None) else location_of(taxonomy), options=options
        )
        return predictor, taxonomy if isinstance(taxonomy, Taxonomy) else classes
    if bit_depth is not None:
        raise UsageError(
            "a predictor already determines how images are decoded; leave bit_depth out, or give the bundle"
        )
    if text:
        raise UsageError("a predictor already has its classes; leave text out, or give the bundle")
    if isinstance(taxonomy, Taxonomy):
        return model, taxonomy
    return model, Taxonomy.of_model(model.bundle) if taxonomy is None else Taxonomy.load(taxonomy, model.bundle)


def image_of(
    image: Location | NDArray[Any], bands: BandSpec | None = None, bit_depth: int | None = None
) -> NDArray[Any]:
    """Return the image, or decode it from its file: (H, W, 3) uint8 RGB, or ``bands`` (H, W, C) in their sample type.

    ``bit_depth`` is the number of bits in use in photos of more than 8 bits; if None, all bits of their type.
    Raises :class:`UsageError` for a file that cannot be opened, and :class:`ImageError`.
    """
    from .inputs.images import decode_input
    from .reading.access import current_access
    from .reading.local import read_local

    if not isinstance(image, str | os.PathLike):
        return image
    try:
        return decode_input(read_local(os.fspath(image), current_access().max_bytes), bands, bit_depth=bit_depth)
    except OSError as error:
        raise UsageError(f"cannot read {image}: {error}") from error


def class_names_of(classes: Location | Sequence[str]) -> list[str]:
    """Return class names in order, from a sequence or a file."""
    from .model.files import read_ordered_class_names

    return read_ordered_class_names(classes) if isinstance(classes, str | os.PathLike) else list(classes)


@contextmanager
def counter_if(name: str, progress: bool) -> Iterator[Callable[[int, int], None] | None]:
    """Show a progress bar if ``progress``; yields the function that updates it with (done, total), or None."""
    if not progress:
        yield None
        return
    from .report.display import counter

    with counter(name, quiet=False) as observer:
        yield observer


@contextmanager
def run_display_if(progress: bool) -> Iterator[Callable[[Progress], None] | None]:
    """Show the progress of a labeling run if ``progress``; yields the function that updates it, or None."""
    if not progress:
        yield None
        return
    from .report.display import run_display

    with run_display(as_json=False) as observer:
        yield observer
