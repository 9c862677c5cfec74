"""Public function ``resize_normalize``."""

from __future__ import annotations

from collections.abc import Sequence

from ..arrays import dispatch, host_array
from ..types import ArrayT, Channels, Filter, Layout


def resize_normalize(
    image: ArrayT,
    size: tuple[int, int],
    *,
    filter: Filter = "bilinear",
    antialias: bool = True,
    scale: float,
    mean: float | Sequence[float],
    std: float | Sequence[float],
    channels: Channels = "RGB",
    layout: Layout = "CHW",
    pad_to: tuple[int, int] | None = None,
    pad_value: float | Sequence[float] = 0,
    out: ArrayT | None = None,
) -> ArrayT:
    """Resize an image and normalize it for a model: x = (pixel * scale - mean) / std, float32.

    Args:
        image: HWC uint8 RGB.
        size: (H, W) of the resized image, in pixels.
        filter: ``nearest``, ``bilinear``, ``bicubic``, ``lanczos`` or ``area``.
        antialias: widen the filter when shrinking, as Pillow does.
        scale: factor of the pixel, before the mean.
        mean: one number or three, in the order of ``channels``.
        std: as ``mean``.
        channels: channel order of the result.
        layout: layout of the result.
        pad_to: (H, W) to pad to, on the right and at the bottom.
        pad_value: value of the padding, in pixel units.
        out: array to fill.

    Returns:
        float32 (3, H, W) or (H, W, 3); H and W are those of ``pad_to`` if it is given.

    Raises:
        UsageError: an unknown filter, ``area`` without antialias, an empty size, or ``pad_to`` smaller than ``size``.
    """
    host = {"mean": host_array("mean", mean), "std": host_array("std", std)}
    host["pad_value"] = host_array("pad_value", pad_value)
    return dispatch(
        "resize_normalize",
        image,
        size,
        host=host,
        filter=filter,
        antialias=antialias,
        scale=scale,
        channels=channels,
        layout=layout,
        pad_to=pad_to,
        out=out,
    )
