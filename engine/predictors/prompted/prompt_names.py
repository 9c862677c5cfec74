"""Find the name that an image, or a window of a larger file, has in a file of prompts."""

from __future__ import annotations

from collections.abc import Iterable

from ...inputs.names import NameIndex, file_key, tails, without_ending
from ...reading.geotiff import Window, split_window


class PromptNames:
    """Names of images from a file, with or without folders and endings, and of windows of larger files.

    ``origin`` names them in messages, as in "images in boxes.csv".
    """

    def __init__(self, names: Iterable[str], origin: str) -> None:
        self.names: tuple[str, ...] = tuple(names)
        """All names, as written."""
        files: dict[str, str] = {}
        self._windows: dict[tuple[Window, str], str] = {}
        for name in self.names:
            part = split_window(name)
            if part is None:
                files[name] = name
                continue
            key = file_key(part[0])
            self._windows[part[1], key] = name
            self._windows.setdefault((part[1], without_ending(key)), name)
        self._files = NameIndex(files, origin)

    def find(self, uri: str) -> list[tuple[str, Window | None]]:
        """Return the names of an image; with the name of a whole file comes the window of it that ``uri`` shows.

        A window may have two: its own, which comes first, and its file's. Raises :class:`UsageError` naming the
        candidates if several names without the image's ending match it.
        """
        part = split_window(uri)
        file, window = (uri, None) if part is None else part
        names: list[tuple[str, Window | None]] = []
        if window is not None:
            key = file_key(file)
            keys = ((window, tail) for tail in (*tails(key), *tails(without_ending(key))))
            names += [(self._windows[key], None) for key in keys if key in self._windows][:1]
        name = self._files.find(file)
        return names if name is None else [*names, (name, window)]
