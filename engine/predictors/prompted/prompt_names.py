"""Find the name that an image, or a window of a larger file, has in a file of prompts."""

from __future__ import annotations

from collections.abc import Iterable

from ...inputs.names import NameIndex, file_key, tails, without_ending
from ...reading.geotiff import Window, split_window


class PromptNames:
    """Names of images that somebody wrote, with or without folders and endings, and of windows of larger files.

    ``origin`` names them in messages, as in "images in boxes.csv".
    """

    def __init__(self, names: Iterable[str], origin: str) -> None:
        self.names: tuple[str, ...] = tuple(names)
        """All names, as they were written."""
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

    def find(self, uri: str) -> tuple[str | None, Window | None]:
        """Return the name of an image or None, and the window of it that ``uri`` shows if the name is a whole file's.

        Raises :class:`UsageError` naming the candidates if several names without the image's ending match it.
        """
        part = split_window(uri)
        if part is None:
            return self._files.find(uri), None
        file, window = part
        key = file_key(file)
        for tail in (*tails(key), *tails(without_ending(key))):
            if (window, tail) in self._windows:
                return self._windows[window, tail], None
        return self._files.find(file), window
