"""Photos of a store's images, read again from their inputs."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import ImageError, SourceError, StoreError
from ..inputs.archives import split_member
from ..inputs.images import decode_input
from ..inputs.rasters.bands import display_of
from ..inputs.sources import Item, Source, open_source, read_uri
from ..model.input_spec import BandSpec
from ..model.schema import read_value
from ..reading.access import current_access


class PhotoReader:
    """Reads photos by uri; any thread may call it. An archive is listed once, whatever the number of its members.

    ``run`` is the record of the run that labeled them: its bit depth and bands.
    """

    def __init__(self, run: Mapping[str, Any] = MappingProxyType({})) -> None:
        self._bit_depth = run.get("bit_depth")
        raw = run.get("bands")
        self._bands = None if raw is None else read_value(BandSpec, raw, "bands")
        self._access = current_access()  # the options of the opening thread, whichever thread reads
        self._archives: dict[str, tuple[Source, dict[str, Item]]] = {}
        self._lock = threading.Lock()

    def read(self, uri: str, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """Read the photo (H, W, 3) uint8 RGB of an input whose labels have the shape (H, W).

        Raises :class:`StoreError` if its size has changed since it was labeled, :class:`SourceError` or
        :class:`ImageError` if it cannot be read.
        """
        return self._checked(self.picture(self._bytes(uri)), uri, shape)

    def model_image(self, uri: str, shape: tuple[int, ...]) -> NDArray[Any] | None:
        """Read the model's input image: a photo, or the bands (H, W, C) of a file; None as for :meth:`find`."""
        try:
            data = self._bytes(uri)
            return self._checked(decode_input(data, self._bands, bit_depth=self._bit_depth), uri, shape)
        except (ImageError, SourceError, StoreError):
            return None

    def _checked(self, image: NDArray[Any], uri: str, shape: tuple[int, ...]) -> NDArray[Any]:
        if image.shape[:2] != tuple(shape[:2]):
            raise StoreError(f"{uri} has changed since it was labeled; run `maskmill label` again")
        return image

    def picture(self, data: bytes) -> NDArray[np.uint8]:
        """Decode a file to (H, W, 3) uint8 RGB; of a file with bands these are the bands that pictures show."""
        image = decode_input(data, self._bands, bit_depth=self._bit_depth)
        return image if self._bands is None else display_of(image, self._bands)

    def find(self, uri: str, shape: tuple[int, ...]) -> NDArray[np.uint8] | None:
        """Read a photo as :meth:`read` does; None if it is missing, cannot be read, or has changed."""
        try:
            return self.read(uri, shape)
        except (ImageError, SourceError, StoreError):
            return None

    def _bytes(self, uri: str) -> bytes:
        member = split_member(uri)
        if member is None or ("://" not in uri and os.path.lexists(uri)):
            return read_uri(uri, access=self._access)
        archive = member[0]
        with self._lock:
            if archive not in self._archives:
                source = open_source(archive, access=self._access)
                self._archives[archive] = source, {item.uri: item for item in source}
            source, members = self._archives[archive]
        if uri not in members:
            raise SourceError(f"{uri} no longer exists")
        return source.read(members[uri])
