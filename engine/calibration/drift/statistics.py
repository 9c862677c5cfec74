"""Describe an image by nine numbers: seven of the photo's appearance, and two of the model's scores.

They are read from a sample of 64 x 64 points, so that their cost does not depend on the size of the image::

    picture = sample_picture(image, backend)            # before the model, on the backend
    statistics = describe_images([score_map], [picture], taxonomy)      # (1, 9) float64
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....kernels.types import BackendArray
from ...backends.base import Backend
from ...inputs.rasters.bands import display_of
from ...model.files import inflate
from ...model.taxonomy import Taxonomy
from ...predictors.base import ScoreMap
from ...runtimes.device_arrays import is_device_array

STATISTICS = (
    "brightness",
    "highlights",
    "contrast",
    "detail",
    "sharpness",
    "color",
    "warmth",
    "top score",
    "main class",
)
"""Names of the statistics, in order.

``brightness`` and ``contrast`` are mean and standard deviation of the luma in [0, 1], ``highlights`` its 95 % quantile;
``detail`` is the mean difference of neighboring pixels, ``sharpness`` the ratio of that to the difference at 1/32 of
the width; ``color`` is the mean range of the three channels, ``warmth`` the mean of red minus blue; ``top score`` is
the mean score of the top class, and ``main class`` the share of the background, or of the most frequent class if there
is none.
"""

POINTS = 64
"""Sampled points per axis."""

_LUMA = np.array([0.299, 0.587, 0.114], np.float32) / 255
_DIGITS = 6
_MAX_BYTES = 1 << 28


def sample_picture(image: Any, backend: Backend) -> BackendArray:
    """Return sampled pixels (64, 192, 3) uint8 of ``image``, HWC uint8 RGB, on the host or the backend as that is.

    Of an image with bands these are the bands that pictures show.

    The three blocks of 64 columns are the points, their right neighbors, and the pixels 1/32 of the width to the right.
    """
    height, width = image.shape[:2]
    steps = 2 * np.arange(POINTS) + 1
    rows, columns = steps * height // (2 * POINTS), steps * width // (2 * POINTS)
    shifts = [np.minimum(columns + shift, width - 1) for shift in (0, 1, max(1, width // 32))]
    places = rows[:, None], np.concatenate(shifts)
    if backend.bands is not None:
        return display_of(image[places], backend.bands)
    if not is_device_array(image):
        return image[places]
    with backend.queue():
        return image[tuple(map(backend.constant, places))]


def describe_images(score_maps: Sequence[ScoreMap], pictures: Sequence[Any], taxonomy: Taxonomy) -> NDArray[np.float64]:
    """Compute the statistics (n, 9) of n images on one backend, with one download.

    ``pictures`` are those of :func:`sample_picture`.
    """
    if not score_maps:
        return np.empty((0, len(STATISTICS)))
    backend, arrays = score_maps[0].backend, []
    with backend.queue():
        for score_map in score_maps:
            stats = score_map.decode(taxonomy, size=(POINTS, POINTS), outputs=("top", "confidence"))
            arrays += [stats.top, stats.confidence]
        arrays += [picture for picture in pictures if is_device_array(picture)]
        downloaded = iter(backend.download(*arrays))
        models = [(next(downloaded), next(downloaded)) for _ in score_maps]
        pictures = [next(downloaded) if is_device_array(picture) else picture for picture in pictures]
    rows = [
        [*_of_picture(picture), *_of_model(top, confidence, taxonomy)]
        for picture, (top, confidence) in zip(pictures, models, strict=True)
    ]
    return np.round(np.array(rows, np.float64), _DIGITS)


def pack_statistics(values: NDArray[np.float64]) -> str:
    """Encode statistics (n, 9) as text."""
    return base64.b64encode(zlib.compress(np.ascontiguousarray(values, "<f8").tobytes())).decode()


def unpack_statistics(text: str) -> NDArray[np.float64]:
    """Decode the text of :func:`pack_statistics` to (n, 9); raises ValueError if it is damaged."""
    data = inflate(base64.b64decode(text), _MAX_BYTES)
    return np.frombuffer(data, "<f8").reshape(-1, len(STATISTICS))


def _of_picture(picture: NDArray[np.uint8]) -> list[float]:
    luma = picture @ _LUMA
    points, right, further = luma[:, :POINTS], luma[:, POINTS : 2 * POINTS], luma[:, 2 * POINTS :]
    detail, coarse = float(np.abs(right - points).mean()), float(np.abs(further - points).mean())
    colors = picture[:, :POINTS]
    red, green, blue = (colors[..., channel] for channel in range(3))
    largest, smallest = np.maximum(np.maximum(red, green), blue), np.minimum(np.minimum(red, green), blue)
    sorted_points = np.partition(points.ravel(), points.size * 95 // 100)
    return [
        float(points.mean()),
        float(sorted_points[points.size * 95 // 100]),
        float(points.std()),
        detail,
        detail / (coarse + 1e-3),
        float((largest - smallest).mean() / 255),
        float((red.mean(dtype=np.float64) - blue.mean(dtype=np.float64)) / 255),
    ]


def _of_model(top: NDArray[Any], confidence: NDArray[np.float32], taxonomy: Taxonomy) -> list[float]:
    counts = np.bincount(top.ravel(), minlength=taxonomy.num_targets)
    main = counts.max() if taxonomy.background is None else counts[taxonomy.background]
    return [float(confidence.mean(dtype=np.float64)), float(main) / top.size]
