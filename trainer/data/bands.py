"""Images of several bands for training: what a store was labeled on, decoded samples, and their normalization.

::

    spec, windows = bands_of(store.run)                 # None, None for photos
    image, with_data = decode_filled(data, spec)        # (H, W, C) in the sample type, without missing samples
    normalization = measure_bands([images], spec)       # mean and standard deviation per band
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ...engine.inputs.images import decode_input
from ...engine.inputs.rasters.bands import pixels_with_data
from ...engine.model.input_spec import BandSpec
from ...engine.model.schema import read_value
from ...engine.reading.geotiff import Windows
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


def bands_of(run: Mapping[str, Any]) -> tuple[BandSpec | None, Windows | None]:
    """Return the bands, and the windows, that a store's record names: None for photos, and for whole files."""
    bands, windows = run.get("bands"), run.get("windows")
    return (
        None if bands is None else read_value(BandSpec, bands, "bands"),
        None if windows is None else read_value(Windows, windows, "windows"),
    )


def common_bands(runs: Sequence[Mapping[str, Any]]) -> tuple[BandSpec | None, Windows | None]:
    """Return bands and windows of the stores of a run; raises :class:`UsageError` if they differ."""
    found = [bands_of(run) for run in runs]
    if any(other != found[0] for other in found[1:]):
        raise UsageError("the stores hold labels of other bands or windows; train on stores of one model's labels")
    return found[0] if found else (None, None)


def decode_filled(data: bytes, bands: BandSpec | None) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
    """Decode a photo, or bands in which samples without data are the mean of the others in their band.

    Returns the image and (H, W), True for pixels that have data, or None if all have. Raises :class:`ImageError`.
    """
    image = decode_input(data, bands)
    if bands is None or (with_data := pixels_with_data(image)) is None:
        return np.ma.getdata(image), None
    samples = np.ma.getdata(image).copy()
    faults = np.ma.getmaskarray(image) | ~np.isfinite(samples)
    for channel in range(samples.shape[2]):
        plane, missing = samples[..., channel], faults[..., channel]
        if missing.any():
            plane[missing] = 0 if missing.all() else plane[~missing].mean(dtype=np.float64)
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
