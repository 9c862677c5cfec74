"""Images of several bands for training: the bands of a store, decoded samples, and their normalization.

::

    pixels = pixels_of(store.run)                          # photos, or their bands
    image, with_data = decode_filled(data, pixels)         # (H, W, C) in the sample type, without missing samples
    normalization = measure_bands([images], pixels.bands)  # mean and standard deviation per band
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ...engine.inputs.images import decode_input
from ...engine.inputs.rasters.bands import pixels_with_data
from ...engine.model.input_spec import BandSpec
from ...engine.model.schema import read_value
from ...engine.reading.geotiff import Windows
from ...engine.store.label_store import LabelStore
from ...errors import UsageError

MEASURED_IMAGES = 64
"""Images, evenly spaced, over which mean and standard deviation of the bands are computed."""


@dataclass(frozen=True, kw_only=True)
class Normalization:
    """Bands of the images, and mean and standard deviation of their samples."""

    bands: BandSpec
    """Bands that the student takes."""
    mean: tuple[float, ...]
    """Mean sample of each band."""
    std: tuple[float, ...]
    """Standard deviation of each band, 1 for a constant one."""


class Readable(Protocol):
    """List of images with labels, such as :class:`.parts.Part`."""

    uris: list[str]
    """Names of the images, in order."""

    def read(self, index: int) -> Any:
        """Read one image with its maps."""
        ...


@dataclass(frozen=True, kw_only=True)
class Pixels:
    """How the files of a training run become images."""

    bands: BandSpec | None = None
    """Bands that are read in place of a photo; None for photos."""
    bit_depth: int | None = None
    """Bits that photos of more than 8 bits fill; None: all bits of their type."""


PHOTOS = Pixels()
"""Photos of 8 bits, or of all bits of their type."""


def pixels_of(run: Mapping[str, Any]) -> Pixels:
    """Return how the images of a store were read, from its record."""
    bands = run.get("bands")
    return Pixels(bands=None if bands is None else read_value(BandSpec, bands, "bands"), bit_depth=run.get("bit_depth"))


def common_pixels(stores: Sequence[LabelStore]) -> tuple[Pixels, Windows | None]:
    """Return how the images of stores were read, and by which windows; raises :class:`UsageError` if they differ."""
    settings = [(pixels_of(store.run), store.windows) for store in stores]
    if any(other != settings[0] for other in settings[1:]):
        raise UsageError(
            "the stores hold labels of other bands, windows or bit depths; train on stores of one model's labels"
        )
    return settings[0] if settings else (PHOTOS, None)


def decode_filled(
    data: bytes, pixels: Pixels, *, warn: Callable[[str], None] | None = None
) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
    """Decode a photo, or bands in which samples without data are the mean of the others in their band.

    ``warn`` is that of :func:`maskmill.engine.inputs.images.decode_image`. Returns the image and (H, W), True for
    pixels that have data, or None if all have. Raises :class:`ImageError`.
    """
    image = decode_input(data, pixels.bands, bit_depth=pixels.bit_depth, warn=warn)
    if pixels.bands is None or (with_data := pixels_with_data(image)) is None:
        return np.ma.getdata(image), None
    samples = np.ma.getdata(image).copy()
    faults = np.ma.getmaskarray(image) | ~np.isfinite(samples)
    for channel in range(samples.shape[2]):
        plane, is_missing = samples[..., channel], faults[..., channel]
        if is_missing.any():
            plane[is_missing] = 0 if is_missing.all() else plane[~is_missing].mean(dtype=np.float64)
    return samples, with_data


def measure_bands(parts: Sequence[Readable], bands: BandSpec) -> Normalization:
    """Measure mean and standard deviation of each band over :data:`MEASURED_IMAGES` images of a run."""
    places = [(part, index) for part in parts for index in range(len(part.uris))]
    count, sums, squares = 0, np.zeros(len(bands.numbers)), np.zeros(len(bands.numbers))
    for part, index in places[:: -(-len(places) // MEASURED_IMAGES) or 1]:
        samples = part.read(index).image.reshape(-1, len(bands.numbers)).astype(np.float64)
        count += len(samples)
        sums += samples.sum(axis=0)
        squares += (samples**2).sum(axis=0)
    mean = sums / max(count, 1)
    variance = np.maximum(squares / max(count, 1) - mean**2, 0)
    std = np.where(variance > 1e-12 * np.maximum(mean**2, 1e-12), np.sqrt(variance), 1.0)
    return Normalization(bands=bands, mean=tuple(mean.tolist()), std=tuple(std.tolist()))
