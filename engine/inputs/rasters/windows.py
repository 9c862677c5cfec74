"""Windows of large GeoTIFF files as items of a source."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ....errors import ImageError
from ...reading.geotiff import Windows, has_tiff_ending, windows_of


def windowed(item: Any, path: str, windows: Windows | None) -> Iterator[Any]:
    """Yield the windows of a GeoTIFF file that is larger than one, or else its own :class:`..sources.Item`."""
    if windows is None or not has_tiff_ending(path):
        yield item
        return
    is_whole = True
    try:
        for window in windows_of(path, windows):
            is_whole = False
            yield item._replace(uri=item.uri + window.text(), size=None, path=path)
    except ImageError as error:
        yield item._replace(problem=str(error))
        return
    if is_whole:
        yield item
